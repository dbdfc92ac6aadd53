"""Captions that were written elsewhere, in COCO's result format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..caption_data.caption_checks import read_image_id
from ..caption_data.text_files import parse_json, read_text


def read_predictions(file: str | Path, image_ids: Sequence[str]) -> list[dict[str, Any]]:
    """
    Reads `[{"image_id": ..., "caption": ...}, ...]` and brings it into the order of the photos.

    Args:
        file (`str` or `Path`): The JSON file.
        image_ids (`Sequence[str]`): Ids of the photos that are to be scored.

    Returns:
        `list[dict]`: `image_id`, `caption` and an empty `retrieved` for each photo.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not that format, no predictions, an id twice, unknown or without a caption, a caption that is no
            text.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"There is no file of predictions {file}.")
    content = parse_json(read_text(file), file)
    if not isinstance(content, list):
        raise ValueError(
            f'{file} must hold a list of {{"image_id": ..., "caption": ...}}, got {type(content).__name__}.'
        )
    if not content:
        raise ValueError(f"{file} holds no predictions: there is nothing to score.")
    known, captions = set(image_ids), {}
    for number, row in enumerate(content):
        place = f"{file}[{number}]"
        if not isinstance(row, dict) or "image_id" not in row or "caption" not in row:
            raise ValueError(f"{place} must have `image_id` and `caption`, got {row!r}.")
        image_id = read_image_id(row["image_id"], place)
        if not isinstance(row["caption"], str):
            raise ValueError(f"{place}: the caption must be text, got {row['caption']!r}.")
        if image_id in captions:
            raise ValueError(f"{place}: the image id {image_id!r} stands twice; give one caption a photo.")
        if image_id not in known:
            raise ValueError(f"{place}: the dataset has no image id {image_id!r}; its ids are {_shown(image_ids)}.")
        captions[image_id] = row["caption"]
    without = [image_id for image_id in image_ids if image_id not in captions]
    if without:
        raise ValueError(f"{file} has no captions for {len(without)} of {len(known)} photos: {_shown(without)}.")
    return [{"image_id": image_id, "caption": captions[image_id], "retrieved": []} for image_id in image_ids]


def _shown(values: Sequence[str]) -> str:
    return ", ".join(values[:5]) + (", ..." if len(values) > 5 else "")
