"""Files that list photos and captions: Karpathy's JSON, COCO's and NoCaps' JSON, JSONL, CSV. Each gives rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..row_columns import PHOTO_COLUMNS
from .text_files import UTF16_MARKS, json_lines, parse_json, read_table, read_text


@dataclass
class Listing:
    """
    Photos as a file lists them, before anything is checked.

    Args:
        rows (`list[dict]`): Columns as in the file.
        places (`list[str]`): Where each row stands, for messages.
        splits (`list[str]` or `None`): Split of each row, where the file tells.
    """

    rows: list[dict[str, Any]]
    places: list[str] = field(default_factory=list)
    splits: list[str] | None = None


def detect_format(file: Path) -> str:
    """
    Tells a file's format from its content.

    Raises:
        ValueError: Nothing that is known; the message lists what is.
    """
    with file.open("rb") as opened:
        start = opened.read(65536)
    if start[:4] == b"PAR1":
        return "parquet"
    if start.startswith(UTF16_MARKS):
        read_text(file)  # says so
    text = start.decode("utf-8-sig", errors="replace").lstrip()
    if text[:1] in ("{", "["):
        return _detect_json(file)
    first_line = text.partition("\n")[0]
    if start and "\0" not in first_line and _delimiter(first_line) is not None:
        return "csv"
    raise ValueError(
        f"{file} is in no format that is known: expected Karpathy's JSON (`images` with `sentences`), COCO's or "
        "NoCaps' JSON (`images` and `annotations`), JSONL with an object a line, CSV with a header that names an "
        "image and a caption column, or parquet."
    )


def _detect_json(file: Path) -> str:
    content = _parse_json(file)
    if content is None or isinstance(content, list):
        return "jsonl"
    images = content.get("images")
    if not isinstance(images, list):
        if len(content) and any(name in content for name in ("image", "file_name", "filename", "path")):
            return "jsonl"  # of a single line
        raise ValueError(
            f"{file} is JSON without `images`, so neither Karpathy's nor COCO's format; its keys are "
            f"{', '.join(list(content)[:8]) or 'none'}."
        )
    if any(isinstance(image, dict) and "sentences" in image for image in images[:1]):
        return "karpathy"
    return "nocaps" if any(isinstance(image, dict) and "domain" in image for image in images[:1]) else "coco"


def _parse_json(file: Path) -> Any:
    """The file's JSON value, or `None` where it holds several, one a line."""
    try:
        content = parse_json(read_text(file), file)
    except ValueError as error:
        if getattr(error.__cause__, "msg", None) == "Extra data":
            return None
        raise
    if not isinstance(content, (dict, list)):
        raise ValueError(f"{file} holds {type(content).__name__}; expected an object or a list of objects.")
    return content


def _images_of(file: Path, content: Any, wanted: str) -> list[dict[str, Any]]:
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise ValueError(f"{file} is not in {wanted} format: expected an object with a list of objects `images`.")
    return images


def read_karpathy(file: Path) -> Listing:
    """
    Reads `dataset_coco.json`, `dataset_flickr8k.json` or `dataset_flickr30k.json`.

    Ids are COCO's where the file has them, otherwise the photos' file names without their endings.
    """
    listing, splits = Listing([]), []
    for number, image in enumerate(_images_of(file, _parse_json(file), "Karpathy's")):
        place = f"{file}, images[{number}]"
        for key in ("filename", "sentences", "split"):
            if key not in image:
                raise ValueError(f"{place} has no {key!r}; Karpathy's format has filename, sentences and split.")
        filename = str(image["filename"])
        folder = image.get("filepath")
        candidates = [f"{folder}/{filename}"] if folder else []
        candidates += [filename, *_coco_names(filename)]
        listing.rows.append({
            "image": candidates,
            "image_id": str(image.get("cocoid", Path(filename).stem)),
            "captions": image["sentences"],
            "split": image["split"],
        })  # fmt: skip
        listing.places.append(place)
        splits.append(str(image["split"]))
    listing.splits = splits
    return listing


def _coco_names(filename: str) -> list[str]:
    """Where a photo of COCO 2014 lies in the folders of 2017, which has the same photos under shorter names."""
    match = re.fullmatch(r"COCO_(?:train|val)2014_(\d{12}\.jpg)", filename)
    return [f"train2017/{match[1]}", f"val2017/{match[1]}", match[1]] if match else []


def read_coco(file: Path) -> Listing:
    """
    Reads `captions_train2014.json` and the like, or NoCaps' file, whose photos have a domain.

    Raises:
        ValueError: Not that format, or a caption of a photo that is not listed.
    """
    content = _parse_json(file)
    listing = Listing([])
    by_id: dict[Any, dict[str, Any]] = {}
    for number, image in enumerate(_images_of(file, content, "COCO's")):
        place = f"{file}, images[{number}]"
        if image.get("id") is None or not image.get("file_name"):
            raise ValueError(f"{place} needs `id` and `file_name`; it has {', '.join(image)}.")
        if image["id"] in by_id:
            raise ValueError(f"{place}: the image id {image['id']!r} stands twice.")
        filename = str(image["file_name"])
        folder = str(image.get("coco_url", "")).split("/")[-2:-1]
        candidates = [filename, *(f"{name}/{filename}" for name in folder), *_coco_names(filename)]
        row: dict[str, Any] = {
            "image": candidates,
            "image_id": str(image["id"]),
            "captions": [],
            **{key: image[key] for key in ("domain", "open_images_id") if key in image},
        }
        by_id[image["id"]] = row
        listing.rows.append(row)
        listing.places.append(place)
    annotations = content.get("annotations", [])
    if not isinstance(annotations, list):
        raise ValueError(f"{file}: `annotations` must be a list, got {type(annotations).__name__}.")
    unlisted = []
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or "image_id" not in annotation or "caption" not in annotation:
            raise ValueError(f"{file}, annotations[{number}] needs `image_id` and `caption`; this is no caption file.")
        if annotation["image_id"] not in by_id:
            unlisted.append(annotation["image_id"])
        else:
            by_id[annotation["image_id"]]["captions"].append(annotation["caption"])
    if unlisted:
        raise ValueError(
            f"{file} has captions of {len(set(map(str, unlisted)))} image ids that `images` does not list, such as "
            f"{unlisted[0]!r}."
        )
    return listing


def read_jsonl(file: Path) -> Listing:
    """Reads an object a line, or a JSON list of objects."""
    content = _parse_json(file)
    listing = Listing([])
    if content is None or isinstance(content, dict):
        for number, row in json_lines(file):
            listing.rows.append(row)
            listing.places.append(f"{file}, line {number}")
        return _with_splits(listing)
    for number, row in enumerate(content):
        if not isinstance(row, dict):
            raise ValueError(f"{file}[{number}]: expected an object, got {type(row).__name__}.")
    return _with_splits(Listing(content, [f"{file}[{number}]" for number in range(len(content))]))


def read_csv(file: Path) -> Listing:
    """Reads a table with a header, its columns parted by commas, tabs, semicolons or bars."""
    text = read_text(file)
    delimiter = _delimiter(text.partition("\n")[0])
    if delimiter is None:
        raise ValueError(f"{file} has no header that names an image column; it starts with {text[:60]!r}.")
    table = read_table(file, delimiter)
    return _with_splits(Listing([row for _, row in table], [f"{file}, line {line}" for line, _ in table]))


def _delimiter(header: str) -> str | None:
    """What parts a header's columns, if one of them is an image column."""
    for delimiter in (",", "\t", "|", ";"):
        names = {name.strip().strip('"').lower() for name in header.split(delimiter)}
        if len(names) > 1 and names & {*PHOTO_COLUMNS, *ID_COLUMNS}:
            return delimiter
    return None


def _with_splits(listing: Listing) -> Listing:
    if listing.rows and all(isinstance(row.get("split"), str) for row in listing.rows):
        listing.splits = [row["split"] for row in listing.rows]
    return listing


# Names of the column of ids that are found without being told, the likeliest first.
ID_COLUMNS = ("image_id", "cocoid", "img_id", "imgid", "__key__", "id")
