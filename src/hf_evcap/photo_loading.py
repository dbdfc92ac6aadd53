"""Photos from wherever a user has them, as upright RGB images."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError


def to_rgb(image: Image.Image) -> Image.Image:
    """Makes a photo an upright RGB one: EXIF rotation applied, deep values scaled, transparency put on white."""
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # greyscale; plain `convert` clips it to white
        values: np.ndarray = np.nan_to_num(np.asarray(image, dtype=np.float32))
        brightest = values.max(initial=0)
        if sixteen_bit or brightest > 255:
            values = values / 257
        elif image.mode == "F" and brightest <= 1:
            values = values * 255
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "La", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def load_photo(source: Any, timeout: float | None = None) -> Image.Image:
    """
    Loads a photo as an upright RGB image.

    Args:
        source (`str`, `os.PathLike`, `bytes`, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `dict`):
            Path, URL, base64 string, encoded bytes, an image, pixels of shape `(height, width[, channels])` or
            `(3, height, width)` as 8-bit integers or as floats from 0 to 1, or a row `{"bytes": ..., "path": ...}` as
            `datasets` stores images.
        timeout (`float`, *optional*, defaults to 30): Seconds to wait for a URL.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image, is truncated, or cannot be downloaded.
    """
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    label = f"the photo {os.fspath(source)!r}" if isinstance(source, (str, os.PathLike)) else "the photo"
    label = label if len(label) < 300 else "the photo (a base64 string)"
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return to_rgb(_array_to_image(source))
    if not isinstance(source, (str, os.PathLike, bytes, Image.Image)):
        raise TypeError(f"Expected a path, URL, PIL image, array or bytes as a photo, got {type(source).__name__}.")
    try:
        if not isinstance(source, Image.Image):
            content = source if isinstance(source, bytes) else _read(os.fspath(source), timeout)
            source = Image.open(io.BytesIO(content))
        return to_rgb(source)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file for {label}.") from None
    except (IsADirectoryError, PermissionError):
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"Could not read {label}: it is not an image in a format that Pillow knows.") from error
    except ConnectionError as error:
        raise ValueError(f"Could not download {label}: {error}") from error
    except Exception as error:  # Pillow's decoders answer damage with errors of every kind
        raise ValueError(f"Could not read {label}: {error}. The file is damaged or incomplete.") from error


def hash_photo(photo: Image.Image) -> str:
    """
    Identity of a photo by its content: SHA-256 over the size and pixels of the upright RGB image.

    The same photo as a file, in a dataset or opened has the same hash; one that was resized or compressed anew has
    another.
    """
    photo = to_rgb(photo)
    return hashlib.sha256(f"{photo.width}x{photo.height}".encode() + photo.tobytes()).hexdigest()


def _read(source: str, timeout: float | None) -> bytes:
    """Bytes behind a path, URL or base64 string."""
    if source.startswith(("http://", "https://")):
        return _download(source, 30.0 if timeout is None else timeout)
    if source.startswith("data:"):
        return base64.b64decode(source.partition(",")[2])
    if os.path.isdir(source):
        raise IsADirectoryError(f"{source!r} is a folder; give a photo.")
    if len(source) < 300 or os.path.exists(source):
        return Path(source).read_bytes()
    return base64.b64decode(source)


def _download(url: str, timeout: float) -> bytes:
    try:
        import httpx
    except ImportError:
        from huggingface_hub.utils import httpx
    try:
        answer = httpx.get(url, timeout=timeout, follow_redirects=True, headers={"User-Agent": "hf_evcap"})
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConnectionError(str(error)) from error
    return answer.content


def _array_to_image(array: np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"Expected pixels of shape (height, width[, channels]), got {array.shape}.")
    if array.dtype == np.uint16:
        array = array / 257
    elif array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating):
        array = np.nan_to_num(array.astype(np.float32))
        if array.max() > 1.5:  # resizing may overshoot 1 a little
            raise ValueError(
                f"Pixels as floats must be from 0 to 1, these reach {array.max():.6g}; divide them by 255."
            )
        array = (array.clip(0, 1) * 255).round()
    elif array.min() < 0 or array.max() > 255:
        raise ValueError(f"Pixels as integers must be from 0 to 255, these are {array.min()} to {array.max()}.")
    return Image.fromarray(array.astype(np.uint8))


def as_list(images: Any) -> list[Any]:
    """Photos as a list: one alone, a list, a column of a dataset, or a batch of pixel arrays."""
    batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
    several = isinstance(images, Sequence) and not isinstance(images, (str, bytes))
    return list(images) if batch or several else [images]


__all__ = ["as_list", "hash_photo", "load_photo", "to_rgb"]
