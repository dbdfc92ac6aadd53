"""Retrieval of captions from a datastore, in tensors on the query's device (SmallCap, section 3.2)."""

from __future__ import annotations

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
    ) -> SmallCapRetrievedCaptions:
        """
        Finds the k captions most similar to each photo; fewer where the datastore's `min_similarity` forbids others.

        Args:
            queries (`torch.Tensor` of shape `(batch_size, dim)`): Need not be normalised.
            k (`int`): Captions for each photo.
            exclude_rows (`torch.LongTensor` of shape `(batch_size, n)`, *optional*):
                Rows that a photo must not retrieve (its own captions, in training); -1 excludes nothing.
            training_retrieval ([`TrainingRetrieval`], *optional*): Draws the k captions from more candidates.

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
        scores, rows = (found[:, 0] for found in datastore.nearest(queries[:, None], wanted, exclude_rows))
        kept = scores.isfinite()
        if training_retrieval is not None:
            kept = training_retrieval.kept(kept, k)
        scores, rows = keep_first(kept, k, scores, rows, fill=(0.0, -1))
        counts = (rows >= 0).sum(-1).tolist()
        found = datastore.snapshot.columns.select(["caption", "image_id"]).take(rows[rows >= 0].cpu().numpy())
        captions, image_ids = iter(found["caption"].to_pylist()), iter(found["image_id"].to_pylist())
        return SmallCapRetrievedCaptions(
            [list(islice(captions, count)) for count in counts],
            scores,
            rows,
            [list(islice(image_ids, count)) for count in counts],
        )


__all__ = ["CaptionRetriever", "SmallCapRetrievedCaptions"]
