"""The similarity below which nothing in a memory is what a photo shows, found with held-out photos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..photo_loading import load_photo
from ..store_photos import batched


@dataclass
class Calibration:
    """
    A threshold and what it does to the photos it was found with.

    Args:
        min_similarity (`float`): Rows less similar are not retrieved.
        known_kept (`float`): Share of the photos of known things that keep a name.
        unknown_rejected (`float` or `None`): Share of the photos of other things that get no name.
        separation (`float` or `None`): Chance that a photo of a known thing has a nearer row than another one.
        known, unknown (`int`): Photos.
    """

    min_similarity: float
    known_kept: float
    unknown_rejected: float | None
    separation: float | None
    known: int
    unknown: int


def best_similarities(model: Any, processor: Any, photos: Iterable[Any], batch_size: int = 16) -> np.ndarray:
    """Similarity of each photo's nearest row of the model's memory, to any of the photo's queries."""
    import torch

    best = []
    with torch.no_grad():
        for batch in batched(({"image": photo} for photo in photos), batch_size):
            images = [load_photo(row["image"]() if callable(row["image"]) else row["image"]) for row in batch]
            pixel_values = processor.image_processor(images, return_tensors="pt")["pixel_values"]
            queries = model.get_image_features(pixel_values).retrieval_queries.float().cpu().numpy()
            scores, _ = model.memory.search(queries.reshape(-1, queries.shape[-1]), 1)
            best.append(scores.reshape(len(images), -1).max(axis=1))
    return np.concatenate(best) if best else np.zeros(0, np.float32)


def calibrate(known: np.ndarray, unknown: np.ndarray | None = None, keep: float = 0.95) -> Calibration:
    """
    Chooses the threshold.

    Args:
        known (`np.ndarray`): Best similarities of held-out photos of things that the memory holds.
        unknown (`np.ndarray`, *optional*): Those of photos of other things. With them, the threshold that tells the
            two apart best is taken, among those that keep at least `keep` of the known.
        keep (`float`, *optional*, defaults to 0.95): Share of the known photos that must keep a name.
    """
    if not len(known):
        raise ValueError("Give held-out photos of things that the memory holds; there are none.")
    if not 0 < keep <= 1:
        raise ValueError(f"`keep` must be above 0 and at most 1; got {keep}.")
    highest = float(np.sort(known)[int(np.floor((1 - keep) * len(known) + 1e-9))])  # keeps the wanted share
    threshold = highest
    if unknown is not None and len(unknown):
        middles = np.sort(np.concatenate([known, unknown]))
        candidates = np.unique(np.append((middles[1:] + middles[:-1]) / 2, highest))
        candidates = candidates[candidates <= highest]
        gains = [(known >= value).mean() + (unknown < value).mean() for value in candidates]
        threshold = float(candidates[int(np.argmax(gains))])
    rejected = separation = None
    if unknown is not None and len(unknown):
        rejected = float((unknown < threshold).mean())
        separation = float((known[:, None] > unknown[None]).mean() + 0.5 * (known[:, None] == unknown[None]).mean())
    return Calibration(
        threshold,
        float((known >= threshold).mean()),
        rejected,
        separation,
        len(known),
        0 if unknown is None else len(unknown),
    )


__all__ = ["Calibration", "best_similarities", "calibrate"]
