"""What the joint stage trains on: captioned photos, borrowed captions, named objects and plain text, drawn by item."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .name_exercises import OBJECT_TEMPLATES, CopyingExercises, NamedCaptionExercises, NameSource


@dataclass
class CaptionedPhotos:
    """
    Photos with captions, and the names that the memory gave for each cached view (the photo itself left out).

    Args:
        features (`np.ndarray`): Vision hidden states `(photos, views, num_patches, vision_hidden_size)`.
        captions (`list[list[str]]`): Normalised captions of each photo.
        names (`list[list[list[str]]]`): Retrieved names by photo and view, best first.
        chosen (`list[int]`): Photos that training may use.
        weights (`list[list[float]]`): How often each caption is drawn; see [`~caption_text.agreement_weights`].
    """

    features: np.ndarray
    captions: list[list[str]]
    names: list[list[list[str]]]
    chosen: list[int]
    weights: list[list[float]]


@dataclass
class NamedPhotos:
    """
    Photos of single objects, and the names that the memory gave for each cached view (the photo itself left out).

    Args:
        features (`np.ndarray`): Vision hidden states `(photos, views, num_patches, vision_hidden_size)`.
        labels (`list[str]`): Name of each photo's object.
        names (`list[list[list[str]]]`): Retrieved names by photo and view, best first.
        num_objects (`list[list[int]]`): How many of the retrieved names, at the front, are objects.
        chosen (`list[int]`): Photos that training may use.
    """

    features: np.ndarray
    labels: list[str]
    names: list[list[list[str]]]
    num_objects: list[list[int]]
    chosen: list[int]


class CaptionMixture:
    """
    Draws the joint stage's examples: every item from its own seed, so that a stage can go on where it stopped.

    The four kinds are photos with their own captions; photos with captions of the corpus that say nearly the same;
    objects under a template, where the name is often replaced by any other in list and caption, so that names are
    read and not memorised; text exercises without a photo.

    Args:
        photos ([`CaptionedPhotos`]): Photos with captions.
        borrowed (`Sequence[tuple[int, str]]`): A photo's number and a caption of the corpus close to its own.
        objects ([`NamedPhotos`]): Photos of objects.
        exercises ([`~name_exercises.NamedCaptionExercises`]): Text without photos.
        source ([`~name_exercises.NameSource`]): Names to put in the place of others.
        num_items (`int`): Length.
        seed (`int`, *optional*, defaults to 0): Seed.
        weights (`Sequence[float]`, *optional*): Shares of the four kinds.
        name_dropout (`float`, *optional*, defaults to 0.12): Share of photos shown without any name.
        replaced (`float`, *optional*, defaults to 0.6): Share of objects whose name is replaced.
    """

    def __init__(
        self,
        photos: CaptionedPhotos,
        borrowed: Sequence[tuple[int, str]],
        objects: NamedPhotos,
        exercises: NamedCaptionExercises | CopyingExercises,
        source: NameSource,
        num_items: int,
        seed: int = 0,
        weights: Sequence[float] = (0.42, 0.2, 0.2, 0.18),
        name_dropout: float = 0.12,
        replaced: float = 0.6,
    ) -> None:
        self.photos, self.borrowed, self.objects = photos, borrowed, objects
        self.exercises, self.source, self.num_items, self.seed = exercises, source, num_items, seed
        self.weights, self.name_dropout, self.replaced = weights, name_dropout, replaced

    def __len__(self) -> int:
        return self.num_items

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Returns `names` and `caption` as token ids and, for a photo, `features` `(num_patches, hidden_size)`."""
        rng = random.Random(self.seed * 1_000_003 + item)
        kind = rng.choices(range(4), self.weights)[0]
        if kind == 0:
            photo = rng.choice(self.photos.chosen)
            caption = rng.choices(self.photos.captions[photo], self.photos.weights[photo])[0]
            return self._scene(photo, caption, rng)
        if kind == 1:
            photo, caption = rng.choice(self.borrowed)
            return self._scene(photo, caption, rng)
        if kind == 2:
            return self._object(rng.choice(self.objects.chosen), rng)
        return {**self.exercises[rng.randrange(len(self.exercises))], "features": None, "seed": item}

    def _scene(self, photo: int, caption: str, rng: random.Random) -> dict[str, Any]:
        view = rng.randrange(self.photos.features.shape[1])
        names = [] if rng.random() < self.name_dropout else self.photos.names[photo][view]
        names = [name for name in names if rng.random() > 0.07]
        return {
            "names": [self.source.encode(name) for name in names],
            "caption": self.source.encode(caption),
            "features": self.photos.features[photo, view],
            "seed": rng.randrange(1 << 30),
        }

    def _object(self, photo: int, rng: random.Random) -> dict[str, Any]:
        view = rng.randrange(self.objects.features.shape[1])
        label, retrieved = self.objects.labels[photo], self.objects.names[photo][view]
        count = self.objects.num_objects[photo][view]
        found = [name for name in retrieved[:count]]
        names = [self.source.encode(name) for name in retrieved]
        target = self.source.encode(label)
        replaced = rng.random() < self.replaced
        if label in found:
            place = found.index(label)
        else:
            place = min(len(found), rng.choice((0, 0, 0, 1)))
            names.insert(place, target)
        if replaced:
            # No photo can tell which of the names a made-up one is, so it stands where the memory is surest.
            names.insert(0, names.pop(place)) if rng.random() < 0.85 else None
            place = 0 if names[0] == target else place
            target = self.source(rng)
            names[place] = target
        if rng.random() < self.name_dropout / 2:
            names, target = [], self.source.encode(label)
        before, after = rng.choice(OBJECT_TEMPLATES).split("{}")
        caption = (self.source.encode(before.strip()) if before.strip() else []) + self.source.with_article(
            target, rng
        )
        caption += self.source.encode(after.strip()) if after.strip() else []
        return {
            "names": names,
            "caption": caption,
            "features": self.objects.features[photo, view],
            "seed": rng.randrange(1 << 30),
        }


class CachedFeatures:
    """
    Stacks cached features of a batch, some cells dropped; zeros stand for text without a photo.

    Args:
        num_patches, hidden_size (`int`): Of the vision encoder's output.
        cell_dropout (`float`, *optional*, defaults to 0.15): Share of cells set to zero, up to twice it in a photo.
    """

    def __init__(self, num_patches: int, hidden_size: int, cell_dropout: float = 0.15) -> None:
        self.num_patches, self.hidden_size, self.cell_dropout = num_patches, hidden_size, cell_dropout

    def __call__(self, examples: Sequence[dict[str, Any]]) -> torch.Tensor:
        features = torch.zeros(len(examples), self.num_patches, self.hidden_size)
        for row, example in zip(features, examples, strict=True):
            if example["features"] is not None:
                row.copy_(torch.from_numpy(np.array(example["features"])))
                generator = np.random.default_rng(example["seed"])
                row[
                    torch.from_numpy(generator.random(self.num_patches) < generator.random() * 2 * self.cell_dropout)
                ] = 0
        return features
