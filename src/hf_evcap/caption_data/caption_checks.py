"""Checks that every source of captions passes: ids, captions, photos' files."""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..photo_bytes import address_of, check_address


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_captions(value: Any, place: str) -> list[str]:
    """
    Captions of a photo, however a source writes them.

    Args:
        value: A caption, a list of captions, a list of objects with the caption under `raw` or `caption`, or such a
            list as a JSON string (CSV files have it so); `None` for no caption.
        place (`str`): Where it stands, for messages.

    Raises:
        ValueError: A caption is empty, NaN or no text.
    """
    if value is None:
        return []
    if isinstance(value, str):
        value = _listed(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        if _is_missing(value):
            raise ValueError(f"{place}: the caption is NaN; expected text.")
        raise ValueError(f"{place}: a caption must be text, got {value!r}.")
    captions = []
    for number, caption in enumerate(value):
        if isinstance(caption, dict):
            caption = next((caption[key] for key in ("raw", "caption", "sentence") if key in caption), caption)
        if _is_missing(caption):
            raise ValueError(f"{place}: captions[{number}] is {'None' if caption is None else 'NaN'}; expected text.")
        if not isinstance(caption, str):
            raise ValueError(f"{place}: captions[{number}] must be text, got {caption!r}.")
        if not caption.strip():
            raise ValueError(f"{place}: captions[{number}] is empty. Write the caption or take it out.")
        captions.append(caption)
    return captions


def _listed(text: str) -> list[Any]:
    """A caption as a list of one; a list that was written as text, as the list."""
    if text.strip().startswith("[") and text.strip().endswith("]"):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(text.strip())
            except (ValueError, SyntaxError):
                continue
            if isinstance(value, list):
                return value
    return [text]


def read_image_id(value: Any, place: str) -> str:
    """
    A photo's id as text.

    Raises:
        ValueError: It is missing, NaN or empty.
    """
    if _is_missing(value) or str(value).strip() == "":
        raise ValueError(f"{place}: the image id is {'empty' if value == '' else value!r}; every photo needs one.")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as pandas reads a column of whole numbers
    return str(value).strip()


def read_domain(value: Any, place: str) -> str:
    """
    The domain of a photo, by which results are told apart.

    Raises:
        ValueError: It is missing.
    """
    if _is_missing(value) or not str(value).strip():
        raise ValueError(f"{place}: the domain is missing; give one to every photo or take the column out.")
    return str(value).strip()


def group_captions(
    image_ids: Sequence[str],
    captions: Sequence[list[str]],
    places: Sequence[str],
    one_a_row: bool,
    same_photo: Callable[[int, int], bool],
) -> tuple[list[int], list[list[str]]]:
    """
    Brings the captions of a photo together where each stands in a row of its own.

    Args:
        image_ids (`Sequence[str]`): Of each row.
        captions (`Sequence[list[str]]`): Of each row.
        places (`Sequence[str]`): Where each row stands, for messages.
        one_a_row (`bool`): Whether rows hold one caption each, so that a photo may have several rows.
        same_photo (`Callable`): Whether two rows of the same id have the same photo.

    Returns:
        `tuple[list[int], list[list[str]]]`: First row of each photo, and its captions.

    Raises:
        ValueError: An id stands twice.
    """
    first_rows: dict[str, int] = {}
    grouped: dict[str, list[str]] = {}
    for row, image_id in enumerate(image_ids):
        first = first_rows.setdefault(image_id, row)
        if first == row:
            grouped[image_id] = list(captions[row])
            continue
        if not one_a_row or not same_photo(first, row):
            raise ValueError(
                f"{places[row]}: the image id {image_id!r} stands twice, first at {places[first]}. Ids must differ "
                "from photo to photo."
            )
        grouped[image_id] += captions[row]
    return list(first_rows.values()), list(grouped.values())


def check_references(
    image_ids: Sequence[str], captions: Sequence[list[str]], require_captions: bool | None, what: str
) -> None:
    """
    Checks that photos have captions.

    Args:
        image_ids (`Sequence[str]`): Of the photos.
        captions (`Sequence[list[str]]`): Of the photos.
        require_captions (`bool` or `None`): `True`: every photo needs one. `None`: every one, or none at all, as in a
            test set without references. `False`: as it comes.
        what (`str`): The source, for messages.

    Raises:
        ValueError: Photos without captions.
    """
    if not image_ids:
        raise ValueError(f"{what} lists no photos.")
    without = [image_id for image_id, of_photo in zip(image_ids, captions, strict=True) if not of_photo]
    if not without or require_captions is False or (require_captions is None and len(without) == len(image_ids)):
        return
    shown = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
    raise ValueError(
        f"{what}: {len(without)} of {len(image_ids)} image ids have no captions: {shown}. Add captions or take "
        "these photos out; from Python, load_caption_data(..., require_captions=False) keeps them."
    )


class PhotoFolder:
    """
    Finds the files of listed photos.

    Args:
        folders (`Sequence[Path]`): Where relative paths may start.
        allow_urls (`bool`, *optional*, defaults to `False`): Take addresses, too.
    """

    def __init__(self, folders: Sequence[Path], allow_urls: bool = False) -> None:
        self.folders = list(folders)
        self.allow_urls = allow_urls

    def find(self, candidates: Sequence[str], place: str) -> str:
        """
        The first candidate that exists, as a path, or an address as it is.

        Args:
            candidates (`Sequence[str]`): Names that the photo may have.
            place (`str`): Where it is listed, for messages.

        Raises:
            FileNotFoundError: There is none of them.
            ValueError: It is an address, and those are not allowed.
        """
        for candidate in candidates:
            if address_of(candidate):
                check_listed_address(candidate, self.allow_urls, place)
                return candidate
            for folder in self.folders:
                path = folder / candidate
                if os.path.isfile(path):
                    self.folders.sort(key=lambda other: other != folder)  # the next photo is likely in the same
                    return str(path)
        folders = " or ".join(map(str, self.folders))
        raise FileNotFoundError(
            f"{place}: there is no photo {candidates[0][:200]} in {folders}. Name the folder of the photos with "
            '`images` (--images), or leave such photos out with on_error="skip" (--on-error skip).'
        )


def check_listed_address(photo: Any, allow_urls: bool, place: str) -> None:
    """
    Refuses a photo that is to be fetched from an address, unless that is allowed; see [`check_address`].

    Raises:
        ValueError: It is one; the message tells the place.
    """
    try:
        check_address(photo, allow_urls)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
