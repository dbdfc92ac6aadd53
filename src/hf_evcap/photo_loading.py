"""Photos from wherever a user has them, as upright RGB images."""

from __future__ import annotations

import hashlib
import numbers
import os
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from .photo_bytes import describe, open_photo


# Photos of more pixels are read at a half, a quarter or an eighth of their size.
MAX_FULL_SIZE_PIXELS = 64_500_000
_REDUCED_PIXELS = 32_000_000
_STRIP_PIXELS = 4_000_000
_PROGRAMS = ("EPS",)  # formats that Pillow has another program run
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ERRORS = (
    ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
    Warning, struct.error,
)  # fmt: skip


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Makes a photo an upright RGB one: EXIF rotation applied, deep values scaled, transparency put on white. One of more
    than `MAX_FULL_SIZE_PIXELS` is made smaller, in strips, so that it is not held in several copies.
    """
    image.load()
    sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    scale = _scale(image)
    if scale == 1:
        photo = _flatten(image, sixteen_bit)
    else:
        brightest = max(_brightest(strip) for _, strip in _strips(image, scale)) if image.mode in ("I", "F") else None
        photo = Image.new("RGB", (-(-image.width // scale), -(-image.height // scale)))
        for top, strip in _strips(image, scale):
            photo.paste(_flatten(strip, sixteen_bit, brightest).reduce(scale), (0, top // scale))
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        photo = photo.transpose(turn)
    photo.info = {}  # what it says of the orientation holds no longer
    return photo


def _flatten(image: Image.Image, sixteen_bit: bool, brightest: float | None = None) -> Image.Image:
    """A copy with 8 bits of red, green and blue."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # greyscale; plain `convert` clips it to white
        values: np.ndarray = np.nan_to_num(np.asarray(image, dtype=np.float32))
        brightest = values.max(initial=0) if brightest is None else brightest
        if sixteen_bit or brightest > 255:
            values = values / 257
        elif image.mode == "F" and brightest <= 1:
            values = values * 255
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(background, image).convert("RGB")
    return image.convert("RGB")


def _brightest(image: Image.Image) -> float:
    return float(np.nan_to_num(np.asarray(image, dtype=np.float32)).max(initial=0))


def _strips(image: Image.Image, scale: int) -> Iterator[tuple[int, Image.Image]]:
    """Cuts an image into strips of whole rows, a multiple of `scale` of them, with the row where each begins."""
    rows = scale * max(1, _STRIP_PIXELS // (image.width * scale))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _scale(image: Image.Image) -> int:
    """By how much a photo is made smaller."""
    pixels = image.width * image.height
    if pixels <= MAX_FULL_SIZE_PIXELS:
        return 1
    return next((scale for scale in (2, 4) if pixels <= _REDUCED_PIXELS * scale**2), 8)


def _orientation(image: Image.Image) -> Any:
    """What EXIF (or XMP) says of a photo's orientation. The rest of it may be as odd as it likes."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except _EXIF_ERRORS:
        return None
    return value if isinstance(value, numbers.Number) else None


def load_photo(source: Any, timeout: float | None = None) -> Image.Image:
    """
    Loads a photo as an upright RGB image.

    Photos of more than 64 million pixels are read at a half, a quarter or an eighth of their size; those of more than
    179 million, Pillow's limit against decompression bombs, are refused.

    Args:
        source (`str`, `os.PathLike`, bytes, stream, `PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or `dict`):
            Path, URL, `data:` URI, base64 string, encoded bytes (`bytes`, `bytearray`, `memoryview`) or a binary
            stream of them, an image, pixels of shape `(height, width[, channels])` or `(3, height, width)` as 8-bit
            integers or as floats from 0 to 1, or a row `{"bytes": ..., "path": ...}` as `datasets` stores images.
        timeout (`float`, *optional*, defaults to 60): Seconds within which a URL must have answered whole.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not an image, is truncated, has too many pixels, is no regular file, or cannot be downloaded.
        TypeError: It is nothing of the above.
    """
    if isinstance(source, dict):
        source = _of_row(source)
    if _is_array(source):
        return to_rgb(_array_to_image(source))
    if not is_photo(source):
        raise TypeError(f"Expected a path, URL, PIL image, array or bytes as a photo, got {type(source).__name__}.")
    label = describe(source)
    if not isinstance(source, Image.Image):
        with open_photo(source, timeout) as file:
            return _decode(file, label)
    return _decode(source, label)


def _of_row(row: dict[str, Any]) -> Any:
    if not {"bytes", "path"} & set(row):
        raise TypeError(f"Expected a photo, got a dictionary with {', '.join(map(str, row)) or 'nothing in it'}.")
    source = row.get("bytes") or row.get("path")
    if source is None or source == b"" or source == "":
        raise ValueError("The photo is a row without content: neither its `bytes` nor its `path` is filled.")
    return source


def _decode(source: Any, label: str) -> Image.Image:
    """Pixels of an opened file, or of an image that is maybe not decoded yet."""
    try:
        if isinstance(source, Image.Image):
            return to_rgb(source)
        Image.init()
        with Image.open(source, formats=[name for name in Image.ID if name not in _PROGRAMS]) as image:
            scale = _scale(image)
            if scale > 1:  # JPEG alone decodes at a smaller size
                image.draft(None, (image.width // scale, image.height // scale))
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise ValueError(f"Could not read {label}: it is not an image in a format that Pillow knows.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"Could not read {label}: it has too many pixels ({error}). Make it smaller.") from error
    except MemoryError as error:
        raise ValueError(f"Could not read {label}: there is not enough memory for its pixels.") from error
    except PermissionError:
        raise
    except Exception as error:  # Pillow's decoders answer damage with errors of every kind
        raise ValueError(f"Could not read {label}: {error}. The file is damaged or incomplete.") from error


def hash_photo(photo: Image.Image) -> str:
    """
    Identity of a photo by its content: SHA-256 over the size and pixels of the upright RGB image.

    The same photo as a file, in a dataset or opened has the same hash; one that was resized or compressed anew has
    another, and so may one of more than 64 million pixels that Pillow opened.
    """
    photo = to_rgb(photo)
    return hashlib.sha256(f"{photo.width}x{photo.height}".encode() + photo.tobytes()).hexdigest()


def _is_array(source: Any) -> bool:
    return isinstance(source, (np.ndarray, torch.Tensor)) or (
        hasattr(source, "__array__") and not isinstance(source, (str, bytes, Image.Image))
    )


def _array_to_image(array: Any) -> Image.Image:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float().numpy() if array.is_floating_point() else array.numpy()
    array = np.asarray(array)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.size == 0 or array.shape[2:] not in ((), (2,), (3,), (4,)):
        raise ValueError(f"Expected pixels of shape (height, width[, channels]), got {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"Expected pixels as integers or floats, got {array.dtype}.")
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


def is_photo(source: Any) -> bool:
    """Whether something is one photo, such as [`load_photo`] takes, rather than several."""
    if _is_array(source):
        return len(source.shape) < 4
    kinds = (str, bytes, bytearray, memoryview, os.PathLike, dict, Image.Image)
    return isinstance(source, kinds) or hasattr(source, "read")


def as_list(images: Any) -> list[Any]:
    """Photos as a list: one alone, a list, a column of a dataset, or a batch of pixel arrays."""
    if is_photo(images) or not (isinstance(images, Sequence) or _is_array(images)):
        return [images]
    return list(images)


__all__ = ["as_list", "hash_photo", "is_photo", "load_photo", "to_rgb"]
