"""Where named photos come from: folders, tables, datasets, box annotations. Each is an ordered list."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..caption_data.caption_words import normalize_caption, shared_words
from ..caption_data.text_files import json_lines, parse_json, read_table, read_text
from ..memory_evcap import VisualNameMemory
from ..photo_bytes import address_of
from ..photo_datasets import undecoded
from ..photo_files import is_hidden, photos_below
from ..photo_loading import load_photo
from ..row_columns import class_names, named_classes


@dataclass
class NamedPhotos:
    """
    An ordered list of photos with what they show.

    Args:
        length (`int`): Number of photos.
        get (`Callable[[int], dict]`):
            Gives the row of a photo: `image` (path, URL, PIL image or a function that makes one), `names` (a list; a
            photo that shows several things has several) and further columns. The same number gives the same row.
        identity (`str`): Hash of the listing. An interrupted build goes on only with the same listing.
        licenses (`dict[str, str]`): Licence of each source.
    """

    length: int
    get: Callable[[int], dict[str, Any]]
    identity: str
    licenses: dict[str, str]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.get(number)


def _listed(rows: Sequence[dict[str, Any]], licenses: Mapping[str, str] | None = None, **settings: Any) -> NamedPhotos:
    described = json.dumps([rows, settings], sort_keys=True, default=str).encode()
    return NamedPhotos(len(rows), rows.__getitem__, hashlib.sha256(described).hexdigest(), dict(licenses or {}))


def photo_folder(folder: str | os.PathLike, source: str | None = None) -> NamedPhotos:
    """
    Photos in sub-folders that are named for what they show, in alphabetical order.

    Args:
        folder (`str` or `os.PathLike`): `folder/quokka/1.jpg`, `folder/quokka/more/2.jpg`, ...
        source (`str`, *optional*): Value of the column `source`; the folder's name when absent.
    """
    folder = Path(folder)
    rows = []
    for sub in sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(Path(path.name))):
        named = {"names": [sub.name], "source": source or folder.name}
        rows += [{"image": file, **named} for file in photos_below(sub)]
    if not rows:
        raise FileNotFoundError(
            f"{folder} holds no photos in sub-folders named for what they show, such as {folder}/quokka/1.jpg."
        )
    return _listed(rows)


def photo_table(
    file: str | os.PathLike,
    image_column: str = "image",
    name_column: str = "name",
    columns: Sequence[str] = (),
    images: str | os.PathLike | None = None,
    source: str | None = None,
) -> NamedPhotos:
    """
    Photos listed in a CSV (or TSV) file with a header, or in a JSONL file.

    Args:
        file (`str` or `os.PathLike`): The table.
        image_column, name_column (`str`): Columns of the photo's path or URL and of its name (in JSONL maybe a list).
        columns (`Sequence[str]`): Further columns that the memory keeps.
        images (`str` or `os.PathLike`, *optional*): Folder that relative paths start from; the table's when absent.
        source (`str`, *optional*): Value of the column `source`; the file's name when absent.
    """
    file = Path(file)
    root = Path(images) if images is not None else file.parent
    table: Sequence[tuple[int, Mapping[str, Any]]]
    if file.suffix.lower() in (".jsonl", ".json", ".ndjson"):
        table = json_lines(file)
    else:
        table = read_table(file, "\t" if file.suffix.lower() == ".tsv" else ",")
    rows = []
    for number, row in table:
        for column in (image_column, name_column, *columns):
            if row.get(column) in (None, ""):
                raise ValueError(
                    f"{file}, line {number}: there is no {column!r}; the columns are {', '.join(map(str, row))}."
                )
        image = row[image_column]
        if not isinstance(image, str):
            raise ValueError(f"{file}, line {number}: {image_column!r} must name a photo, got {image!r:.80}.")
        rows.append({
            "image": image if address_of(image) or image.startswith("data:") else str(root / image),
            "names": _as_names(row[name_column], f"{file}, line {number}"),
            "source": source or file.name,
            **{column: row[column] for column in columns},
        })  # fmt: skip
    if not rows:
        raise ValueError(f"{file} lists no photos.")
    return _listed(rows)


def _as_names(value: Any, place: str) -> list[str]:
    """A name or a list of them; numbers and nulls are no names, whatever they look like as text."""
    names = list(value) if isinstance(value, (list, tuple)) else [value]
    if not names:
        raise ValueError(f"{place}: the list of names is empty.")
    try:
        return [_checked_name(name) for name in names]
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"A name must be text, got {name!r:.80}.")
    return name


def dataset_rows(
    dataset: Any,
    image_column: str = "image",
    name_column: str = "name",
    columns: Sequence[str] = (),
    source: str = "dataset",
) -> NamedPhotos:
    """
    Photos of a `datasets.Dataset`; a `ClassLabel` gives its class names, a list of names several rows. Columns that
    are called otherwise than the default are found as [`VisualNameMemory.from_images`] does.

    Args:
        dataset (`datasets.Dataset`): With random access.
        image_column, name_column (`str`): Columns of photo and name.
        columns (`Sequence[str]`): Further columns that the memory keeps.
        source (`str`): Value of the column `source`.
    """
    image_column, name_column = VisualNameMemory.find_columns(
        dataset.column_names, dataset.features, image_column, name_column
    )
    for column in (image_column, name_column, *columns):
        if column not in dataset.column_names:
            raise ValueError(f"The dataset has no column {column!r}; it has {', '.join(dataset.column_names)}.")
    classes = class_names(dataset.features[name_column])
    fingerprint, dataset = dataset._fingerprint, undecoded(dataset)

    def get(number: int) -> dict[str, Any]:
        row = dataset[number]
        names = row[name_column] if isinstance(row[name_column], list) else [row[name_column]]
        return {
            "image": row[image_column],
            "names": [_checked_name(named_classes(name, classes)) for name in names],
            "source": source,
            **{column: row[column] for column in columns},
        }

    settings = [fingerprint, len(dataset), image_column, name_column, list(columns), source]
    identity = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    return NamedPhotos(len(dataset), get, identity, {})


def captioned_scenes(dataset: Any, source: str = "captions", min_captions: int = 2) -> NamedPhotos:
    """
    Captioned photos under the content words that their captions share: rows of kind `scene`, which rule `vote` ranks
    apart from exemplars of objects (see [`~retrieval_evcap.vote_rule`]). Photos without such a word give no row.

    Args:
        dataset (`datasets.Dataset`): Columns `image`, `image_id` and `captions`, from
            [`~caption_data.load_caption_data`].
        source (`str`, *optional*): Value of the column `source`.
        min_captions (`int`, *optional*, defaults to 2): In how many captions of a photo a word stands, at most all.
    """
    captions = dataset.select_columns(["captions"])[:]["captions"]
    words = [shared_words([normalize_caption(text) for text in texts], min_captions) for texts in captions]

    def get(number: int) -> dict[str, Any]:
        row = dataset[number]
        facts = {"image_id": str(row["image_id"]), "kind": "scene", "source": source}
        return {"image": row["image"], "names": words[number], **facts}

    identity = hashlib.sha256(json.dumps([dataset._fingerprint, words, source]).encode()).hexdigest()
    return NamedPhotos(len(dataset), get, identity, {})


def annotated_boxes(
    annotations: str | os.PathLike,
    images: str | os.PathLike,
    photos_per_name: int = 10,
    seed: int = 0,
    source: str | None = None,
) -> NamedPhotos:
    """
    Crops of annotated boxes, for each name at most so many, drawn at random from different photos.

    EVCap's memory holds 1 to 10 random photos of each of the 1,203 LVIS names (section 3.2).

    Args:
        annotations (`str` or `os.PathLike`): JSON file of LVIS or COCO (`images`, `annotations`, `categories`).
        images (`str` or `os.PathLike`): Folder of the photos.
        photos_per_name (`int`, *optional*, defaults to 10): At most so many boxes a name.
        seed (`int`, *optional*, defaults to 0): Of the draw.
        source (`str`, *optional*): Value of the column `source`; the file's name when absent.
    """
    file = Path(annotations)
    try:
        listing = parse_json(read_text(file), file)
        photos = {photo["id"]: photo for photo in listing["images"]}
        names = {category["id"]: _checked_name(category["name"]) for category in listing["categories"]}
        boxes: dict[int, dict[int, list[Any]]] = {}
        for box in listing["annotations"]:
            x, y, width, height = box["bbox"]
            if not box.get("iscrowd") and width >= 2 and height >= 2:
                photo, category = photos[box["image_id"]]["id"], box["category_id"]
                boxes.setdefault(category, {}).setdefault(photo, [x, y, width, height])
        unnamed = sorted(set(boxes) - set(names))
        if unnamed:
            raise ValueError(f"no category has the id {unnamed[0]!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a file of LVIS or COCO annotations ({error!r}).") from error
    rng = np.random.default_rng(seed)
    rows = []
    for category in sorted(boxes, key=names.__getitem__):
        ids = sorted(boxes[category])
        chosen = sorted(ids[place] for place in rng.permutation(len(ids))[:photos_per_name])
        for photo in chosen:
            rows.append({
                "image": str(Path(images) / _photo_file(photos[photo], Path(images))),
                "box": boxes[category][photo],
                "image_id": str(photo),
                "names": [names[category]],
                "source": source or file.stem,
            })  # fmt: skip
    if not rows:
        raise ValueError(f"{file} holds no boxes.")
    listed = _listed(rows)
    return NamedPhotos(len(rows), lambda number: _cropped(rows[number]), listed.identity, {})


def _photo_file(photo: Mapping[str, Any], folder: Path) -> str:
    """Where a photo lies: LVIS names it by its COCO URL, whose last folder tells the split."""
    if "file_name" in photo:
        return photo["file_name"]
    split, name = photo["coco_url"].split("/")[-2:]
    return f"{split}/{name}" if (folder / split).is_dir() else name


def _cropped(row: dict[str, Any]) -> dict[str, Any]:
    x, y, width, height = row["box"]

    def crop() -> Any:
        photo = load_photo(row["image"])
        right, lower = min(photo.width, round(x + width)), min(photo.height, round(y + height))
        left, upper = min(max(0, round(x)), right - 1), min(max(0, round(y)), lower - 1)
        return photo.crop((left, upper, right, lower))

    return {"image": crop, **{name: row[name] for name in ("names", "source", "image_id")}}


def joined(sources: Iterable[NamedPhotos]) -> NamedPhotos:
    """Several sources as one list, one after the other."""
    parts = list(sources)
    starts = np.cumsum([0, *(len(part) for part in parts)])

    def get(number: int) -> dict[str, Any]:
        place = int(np.searchsorted(starts, number, side="right")) - 1
        return parts[place][number - int(starts[place])]

    identity = hashlib.sha256("".join(part.identity for part in parts).encode()).hexdigest()
    licenses = {name: text for part in parts for name, text in part.licenses.items()}
    return NamedPhotos(int(starts[-1]), get, identity, licenses)


__all__ = [
    "NamedPhotos",
    "annotated_boxes",
    "captioned_scenes",
    "dataset_rows",
    "joined",
    "photo_folder",
    "photo_table",
]
