"""A retrieval space made of pooled vision features, for encoders whose Q-Former is too small to retrieve with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .photo_loading import load_photo


class EVCapVisionSpace(nn.Module):
    """
    Maps a photo's patches to retrieval queries: the whole photo first, then overlapping windows of its grid.

    Pooled features are power-normalised (`sign(x) |x|^p`), centred, whitened and scaled to unit length. Mean and
    whitening are fixed numbers fitted once on photos (see [`~EVCapVisionSpace.fit`]), not trained.

    Args:
        options (`dict`):
            `key_size`, `power`, `whitening_power` (0 keeps the spread of the principal components, 1 evens it out),
            `window_size`, `window_stride`; `config.retrieval_options`.
        width (`int`): Of the vision features.
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, options: dict[str, Any], width: int) -> None:
        super().__init__()
        self.key_size: int = options["key_size"]
        self.power: float = options["power"]
        self.whitening_power: float = options["whitening_power"]
        self.window_size: int = options["window_size"]
        self.window_stride: int = options["window_stride"]
        # Retrieval computes in fp32, whatever the dtype of the model.
        self.register_buffer("mean", torch.empty(width, dtype=torch.float32))
        self.register_buffer("whitening", torch.empty(width, self.key_size, dtype=torch.float32))
        self.reset_buffers()

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """As before any fit: the first `key_size` features as they are."""
        nn.init.zeros_(self.mean)
        nn.init.eye_(self.whitening)

    def pool(self, vision_hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Averages patches over the photo and over windows.

        Args:
            vision_hidden_states (`torch.Tensor` of shape `(batch_size, num_patches, width)`): With or without a
                class token in front of a square grid.

        Returns:
            `torch.Tensor` of shape `(batch_size, 1 + num_windows, width)`, power-normalised.
        """
        patches = vision_hidden_states.float()
        side = math.isqrt(patches.shape[1])
        grid = patches[:, patches.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))
        pooled = [grid.flatten(2).mean(-1, keepdim=True)]
        if self.window_size:
            window = min(self.window_size, side)
            pooled.append(nn.functional.avg_pool2d(grid, window, self.window_stride).flatten(2))
        features = torch.cat(pooled, dim=2).transpose(1, 2)
        return features.sign() * features.abs().pow(self.power)

    @torch.no_grad()
    def fit(self, features: torch.Tensor) -> None:
        """
        Fits mean and whitening (PCA) to photos.

        Args:
            features (`torch.Tensor` of shape `(num_photos, width)`): The first row of [`pool`] for each photo.
        """
        if len(features) <= self.key_size:
            raise ValueError(
                f"Keys of {self.key_size} numbers are learnt from more photos than that; got {len(features)}. Give "
                "more, or set a smaller `key_size` in `retrieval_options`."
            )
        centred = (features - features.mean(0)).double()
        _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
        scale = (math.sqrt(len(features) - 1) / spread[: self.key_size]) ** self.whitening_power
        self.mean.copy_(features.mean(0))
        self.whitening.copy_((directions[: self.key_size] * scale[:, None]).T)

    def forward(self, vision_hidden_states: torch.Tensor) -> torch.Tensor:
        """Gives retrieval queries of shape `(batch_size, 1 + num_windows, key_size)`; the first is the photo's key."""
        vectors = (self.pool(vision_hidden_states) - self.mean) @ self.whitening
        return nn.functional.normalize(vectors, dim=-1)


@torch.no_grad()
def fit_vision_space(model: Any, processor: Any, photos: Sequence[Any], batch_size: int = 16) -> None:
    """
    Fits the retrieval space of a model to photos: its memory's, or any that show what it shall tell apart.

    Args:
        model: With `config.retrieval_space == "vision"`. A memory that it has no longer fits, nor do memories that it
            built before.
        processor: The model's.
        photos (`Sequence`): More than the keys have numbers; anything that [`~photo_loading.load_photo`] reads.
        batch_size (`int`, *optional*, defaults to 16): Photos encoded at once.

    Raises:
        ValueError: The model retrieves in another space, or the photos are too few.
    """
    if model.config.retrieval_space != "vision":
        raise ValueError(
            f"Only the retrieval space 'vision' is fitted; this model's is {model.config.retrieval_space!r}."
        )
    space, pooled = model.vision_space, []
    for start in range(0, len(photos), batch_size):
        batch = [load_photo(photo) for photo in photos[start : start + batch_size]]
        pixel_values = processor.image_processor(batch, return_tensors="pt")["pixel_values"]
        hidden_states = model.get_vision_hidden_states(pixel_values)
        pooled.append(space.pool(hidden_states)[:, 0].cpu())
    space.fit(torch.cat(pooled))
    model.config.encoder_fingerprint = None
    model.set_memory(None)


__all__ = ["EVCapVisionSpace", "fit_vision_space"]
