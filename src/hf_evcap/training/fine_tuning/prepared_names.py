"""Names of the training photos, retrieved once; some are replaced, so that names are read and not known by heart."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ...photo_rows import photo_keys
from ...retrieval_evcap import normalize_name
from .retrieval_in_training import TrainingRetrieval


class PreparedNames:
    """
    Gives a training example its retrieved names and its captions, both changed in step by chance.

    A name that was retrieved and that a caption says is replaced in both by another name: the photo no longer tells
    what to write, the list does. So a captioner learns to write names that it never saw a photo of. Only names among
    `others` are replaced, which keeps verbs and colours in their places.

    Args:
        candidates (`dict[int, list[str]]`): Retrieved names by row of the dataset, best first.
        retrieval ([`TrainingRetrieval`]): Its numbers say how many are drawn and withheld.
        k (`int`): Names that a photo gets at most.
        others (`Sequence[str]`): Names that may be replaced, and that may stand for them.
        share (`float`): Share of photos of which a name is replaced, where one can be.
        seed (`int`, *optional*, defaults to 0): Of the draws, which depend on it, the epoch and the row.
    """

    def __init__(
        self,
        candidates: dict[int, list[str]],
        retrieval: TrainingRetrieval,
        k: int,
        others: Sequence[str],
        share: float,
        seed: int = 0,
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"`replaced_names` is a share, from 0 to 1; got {share}.")
        self.candidates, self.retrieval, self.k, self.share, self.seed = candidates, retrieval, k, share, seed
        self.others = sorted({normalize_name(name) for name in others})
        self.replaceable = set(self.others)

    def __call__(self, row: int, captions: Sequence[str], epoch: int) -> tuple[list[str], list[str]]:
        """
        Args:
            row (`int`): Of the dataset.
            captions (`Sequence[str]`): Of the photo.
            epoch (`int`): Counts the passes; each has its own draws.

        Returns:
            `tuple[list[str], list[str]]`: Names, and captions in their order.
        """
        found = self.candidates[row]
        drawn = self.retrieval.draw(np.random.default_rng([self.seed, epoch, row]), np.arange(len(found)), self.k)
        names, captions = [found[place] for place in sorted(drawn)], list(captions)
        rng = random.Random(f"{self.seed}-{epoch}-{row}")
        if rng.random() >= self.share:
            return names, captions
        said = [name for name in names if name in self.replaceable and any(map(_says(name).search, captions))]
        if not said:
            return names, captions
        old, new = rng.choice(said), rng.choice(self.others)
        if new in names:
            return names, captions
        names[names.index(old)] = new
        return names, [replace_name(caption, old, new) for caption in captions]


def _says(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:(an?)\s+)?({re.escape(name)})(?!\w)", re.IGNORECASE)


def replace_name(caption: str, old: str, new: str) -> str:
    """Puts another name in the place of one, its article agreeing, its first letter as large."""

    def written(found: re.Match[str]) -> str:
        name = new[:1].upper() + new[1:] if found[2][:1].isupper() else new
        if found[1] is None:
            return name
        return f"{found[1][0]}{'n' if new[:1].lower() in 'aeiou' else ''} {name}"

    return _says(old).sub(written, caption)


@torch.no_grad()
def retrieve_once(
    model: Any, examples: Any, retrieval: TrainingRetrieval, batch_size: int = 64, progress: Callable = iter
) -> dict[int, list[str]]:
    """
    Retrieves names for every photo that is trained on; a photo never finds itself.

    Args:
        model ([`EVCapForConditionalGeneration`]): With a memory, and a retrieval space that training does not change.
        examples ([`CaptionExamples`]): Of a dataset with cached vision features.
        retrieval ([`TrainingRetrieval`]): Says how many candidates there are to be.
        batch_size (`int`, *optional*, defaults to 64): Photos at once.
        progress (`Callable`, *optional*): Wraps the iterator over batches.

    Returns:
        `dict[int, list[str]]`: Names by row of the dataset, best first.

    Raises:
        ValueError: There are no cached features, no memory, or the retrieval changes with what is trained.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base, "retriever", None) is None or base.config.retrieval_space != "vision":
        raise ValueError(
            "Names are retrieved once, before training, for EVCap models with a memory whose "
            '`config.retrieval_space` is "vision": elsewhere training changes what is retrieved.'
        )
    if "vision_hidden_states" not in examples.dataset.column_names:
        raise ValueError("Names are retrieved once from cached features: give --feature_cache.")
    config, rows = retrieval.widened(base.config), sorted(examples.references)
    candidates: dict[int, list[str]] = {}
    for start in progress(range(0, len(rows), batch_size)):
        batch = [examples.dataset[row] for row in rows[start : start + batch_size]]
        features = torch.stack([torch.as_tensor(photo["vision_hidden_states"]) for photo in batch])
        queries = base.vision_space(features.to(base.query_tokens.device))
        excluded = retrieval.own_rows(photo_keys(batch).numpy()) if retrieval.leave_one_out else None
        names = base.retriever(queries, config, None if excluded is None else excluded.to(queries.device)).names
        candidates.update(zip(rows[start : start + batch_size], names, strict=True))
    return candidates


__all__ = ["PreparedNames", "replace_name", "retrieve_once"]
