"""Which files of a folder are photos. Imports little, so that the command line tells a wrong folder at once."""

from __future__ import annotations

import os
from pathlib import Path


PHOTO_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def list_photos(folder: str | os.PathLike) -> list[str]:
    """
    Photos in a folder and its sub-folders, in alphabetical order.

    Raises:
        FileNotFoundError: There is no such folder, or no photo in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"There is no folder {os.fspath(folder)!r} of photos.")
    photos = photos_below(folder)
    if not photos:
        raise FileNotFoundError(f"No photos in {os.fspath(folder)!r}; known endings are {', '.join(PHOTO_SUFFIXES)}.")
    return photos


def photos_below(folder: str | os.PathLike) -> list[str]:
    """The same for a folder that is there and may hold none."""
    files = (path for path in Path(folder).rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file())
    return [str(path) for path in sorted(files) if not is_hidden(path.relative_to(folder))]


def is_hidden(path: Path) -> bool:
    """Whether a path is one that systems hide: `.cache/`, macOS' companions of files, `._photo.jpg`, `__MACOSX/`."""
    return any(part.startswith(".") and part not in (".", "..") or part == "__MACOSX" for part in path.parts)


__all__ = ["PHOTO_SUFFIXES", "is_hidden", "list_photos", "photos_below"]
