"""Vision features of several random views of each photo, in one array: what training from scratch sees."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def random_view(photo: Image.Image, side: int, rng: random.Random | None) -> Image.Image:
    """
    A photo squashed to a square: all of it, or with `rng` a crop of 45 to 100 % of it, mirrored half of the time.

    Args:
        photo (`PIL.Image.Image`): RGB.
        side (`int`): Side of the square in pixels.
        rng (`random.Random`, *optional*): Draws the crop.
    """
    if rng is None:
        return photo.resize((side, side), Image.Resampling.BICUBIC)
    width, height = photo.size
    area, aspect = rng.uniform(0.45, 1.0), rng.uniform(0.8, 1.25)
    across = min(width, max(1, round(width * (area * aspect) ** 0.5)))
    down = min(height, max(1, round(height * (area / aspect) ** 0.5)))
    left, top = rng.randint(0, width - across), rng.randint(0, height - down)
    view = photo.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + across, top + down))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else view


@torch.no_grad()
def cache_vision_features(
    vision_model: Any,
    image_processor: Any,
    photos: Sequence[Any],
    load: Callable[[Any], Image.Image],
    path: str | Path,
    views: int = 1,
    side: int = 224,
    batch_size: int = 32,
    seed: int = 0,
) -> np.ndarray:
    """
    Writes vision hidden states of photos and of random views of them; goes on where an earlier call stopped.

    Args:
        vision_model (`PreTrainedModel`): The frozen vision encoder, in bfloat16 for speed if so loaded.
        image_processor: Rescales and normalises; resizing is done here.
        photos (`Sequence`): What `load` reads.
        load (`Callable`): Makes an RGB image of a photo.
        path (`str` or `Path`): A `.npy` file; beside it a `.done` file counts finished batches.
        views (`int`, *optional*, defaults to 1): The first is the whole photo, the others are random.
        side (`int`, *optional*, defaults to 224): Side of the square that the encoder sees.
        batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
        seed (`int`, *optional*, defaults to 0): Seed of the views.

    Returns:
        `np.ndarray` of float16 and shape `(photos, views, num_patches, hidden_size)`, memory-mapped.
    """
    path = Path(path)
    progress = path.with_suffix(".done")
    jobs = [(view, photo) for view in range(views) for photo in range(len(photos))]
    done = int(progress.read_text()) if path.exists() and progress.exists() else 0
    cache: np.ndarray | None = np.load(path, mmap_mode="r+") if done else None
    for start in range(done, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]
        images = [
            random_view(load(photos[photo]), side, random.Random(f"{seed}-{view}-{photo}") if view else None)
            for view, photo in batch
        ]
        pixels = image_processor(images, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
        pixels = pixels.to(vision_model.device, vision_model.dtype, memory_format=torch.channels_last)
        hidden = vision_model(pixel_values=pixels).last_hidden_state.half().cpu().numpy()
        if cache is None:
            shape = (len(photos), views, *hidden.shape[1:])
            cache = np.lib.format.open_memmap(path, "w+", dtype=np.float16, shape=shape)
        for (view, photo), states in zip(batch, hidden, strict=True):
            cache[photo, view] = states
        progress.write_text(str(start + len(batch)))
    if cache is None:
        cache = np.load(path, mmap_mode="r+")
    del cache  # flushes
    return np.load(path, mmap_mode="r")
