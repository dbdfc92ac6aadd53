"""Retrieval of captions from a datastore, in tensors on the query's device (SmallCap, section 3.2)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from transformers.utils import ModelOutput

from .datastore_smallcap import CaptionDatastore
from .retrieval_rows import RowRetriever, SearchableRows, keep_first


@dataclass
class SmallCapRetrievedCaptions(ModelOutput):
    """
    Captions retrieved for a batch of photos, k a photo, best first.

    Args:
        captions (`list[list[str]]`): Captions of each photo.
        scores (`torch.Tensor` of shape `(batch_size, k)`): Their similarity; 0 where captions were given instead.
        row_ids (`torch.LongTensor` of shape `(batch_size, k)`): Their rows in the datastore; -1 where given.
        image_ids (`list[list[str | None]]`): The photos that they describe, where the datastore knows.
    """

    captions: list[list[str]] | None = None
    scores: torch.Tensor | None = None
    row_ids: torch.LongTensor | None = None
    image_ids: list[list[str | None]] | None = None

    @classmethod
    def given(cls, captions: list[list[str]]) -> SmallCapRetrievedCaptions:
        """Puts captions that were not retrieved by the model, a list for each photo, into this form."""
        if any(isinstance(photo, str) for photo in captions):
            raise TypeError(f"`captions` must hold a list of captions for each photo; got {captions!r}.")
        width = max(map(len, captions), default=0)
        scores = torch.zeros(len(captions), width)
        rows = torch.full((len(captions), width), -1, dtype=torch.long)
        return cls([list(photo) for photo in captions], scores, rows, [[None] * len(photo) for photo in captions])


# Candidates for a caption of the prompt, where not every one will do.
_CANDIDATES = 8


@dataclass(frozen=True)
class CaptionChoice:
    """
    Which of the nearest captions go into a prompt.

    Args:
        max_per_image (`int`, *optional*): At most so many that describe one photo; any where photos are unknown.
        duplicate_overlap (`float`, *optional*): A caption goes that shares this much of its words with a better one:
            words in common over words in either, from 0 to 1.
        own (`Sequence[str]`, *optional*): A caption a photo that it must not find: the one that it learns to write.
    """

    max_per_image: int | None = None
    duplicate_overlap: float | None = None
    own: Sequence[str] | None = None

    @property
    def chooses(self) -> bool:
        """`bool`: Whether any caption may have to go."""
        return self.max_per_image is not None or self.duplicate_overlap is not None or self.own is not None

    def of_photo(self, place: int, captions: Sequence[str], image_ids: Sequence[str | None]) -> list[bool]:
        """Whether each caption of a photo of the batch may be taken, best first."""
        overlap = 1.0 if self.duplicate_overlap is None else self.duplicate_overlap
        own = None if self.own is None else _words(self.own[place])
        kept: list[bool] = []
        seen: list[frozenset[str]] = []
        of_image: Counter[str] = Counter()
        for caption, image_id in zip(captions, image_ids, strict=True):
            words = _words(caption)
            takes = words != own and (
                self.duplicate_overlap is None or all(_overlap(words, other) < overlap for other in seen)
            )
            if takes and self.max_per_image is not None and image_id is not None:
                takes = of_image[image_id] < self.max_per_image
            if takes:
                seen.append(words)
                of_image.update([image_id] if image_id is not None else [])
            kept.append(takes)
        return kept


def _words(caption: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", caption.lower()))


def _overlap(words: frozenset[str], other: frozenset[str]) -> float:
    return len(words & other) / max(len(words | other), 1)


class CaptionRetriever(RowRetriever):
    """
    A datastore attached to a model, which it follows: every call retrieves from the rows that the datastore has when
    it begins.

    Args:
        memory ([`CaptionDatastore`]): The datastore.
    """

    memory: CaptionDatastore

    def __call__(
        self,
        queries: torch.Tensor,
        k: int,
        exclude_rows: torch.LongTensor | None = None,
        training_retrieval: Any = None,
        choice: CaptionChoice | None = None,
    ) -> SmallCapRetrievedCaptions:
        """
        Finds the k captions most similar to each photo; fewer where the datastore's `min_similarity` forbids others.

        Args:
            queries (`torch.Tensor` of shape `(batch_size, dim)`): Need not be normalised.
            k (`int`): Captions for each photo.
            exclude_rows (`torch.LongTensor` of shape `(batch_size, n)`, *optional*):
                Rows that a photo must not retrieve (its own captions, in training); -1 excludes nothing.
            training_retrieval ([`TrainingRetrieval`], *optional*): Draws the k captions from more candidates.
            choice ([`CaptionChoice`], *optional*): Which captions will do; fewer than k where too few of the nearest
                do.

        Raises:
            ValueError: The datastore has fewer rows that a photo may retrieve.
        """
        datastore: SearchableRows = self.ready(queries.device)
        excluded = 0 if exclude_rows is None or not exclude_rows.numel() else int((exclude_rows >= 0).sum(-1).max())
        if datastore.rows - excluded < k:
            raise ValueError(
                f"The datastore has {datastore.rows} captions, of which a photo may retrieve "
                f"{datastore.rows - excluded}; a prompt has {k}. Add captions, or set "
                "`model.config.num_retrieved_captions`."
            )
        wanted = k if training_retrieval is None else training_retrieval.candidates(k)
        choice = choice if choice is not None and choice.chooses else None
        pool = wanted if choice is None else wanted * _CANDIDATES
        scores, rows = (found[:, 0] for found in datastore.nearest(queries[:, None], pool, exclude_rows))
        kept = scores.isfinite()
        if choice is not None:
            kept = _first(kept & _chosen(datastore, rows, kept, choice), wanted)
        if training_retrieval is not None:
            kept = training_retrieval.kept(kept, k)
        scores, rows = keep_first(kept, k, scores, rows, fill=(0.0, -1))
        captions, image_ids = _texts(datastore, rows)
        return SmallCapRetrievedCaptions(captions, scores, rows, image_ids)


def _texts(datastore: SearchableRows, rows: torch.LongTensor) -> tuple[list[list[str]], list[list[str | None]]]:
    """Captions and image ids of the rows of each photo; -1 is none."""
    counts = (rows >= 0).sum(-1).tolist()
    found = datastore.snapshot.columns.select(["caption", "image_id"]).take(rows[rows >= 0].cpu().numpy())
    captions, image_ids = iter(found["caption"].to_pylist()), iter(found["image_id"].to_pylist())
    return [list(islice(captions, count)) for count in counts], [list(islice(image_ids, count)) for count in counts]


def _chosen(
    datastore: SearchableRows, rows: torch.LongTensor, present: torch.Tensor, choice: CaptionChoice
) -> torch.Tensor:
    """Where `present` rows `(batch_size, n)`, best first, will do."""
    chosen = torch.zeros_like(present)
    captions, image_ids = _texts(datastore, rows.masked_fill(~present, -1))
    for place, photo in enumerate(zip(captions, image_ids, strict=True)):
        chosen[place, present[place]] = torch.tensor(choice.of_photo(place, *photo), dtype=torch.bool).to(rows.device)
    return chosen


def _first(kept: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` true places of each row of a mask."""
    return kept & (kept.cumsum(-1) <= count)


__all__ = ["CaptionChoice", "CaptionRetriever", "SmallCapRetrievedCaptions"]
