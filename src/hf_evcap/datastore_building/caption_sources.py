"""Where a datastore's captions come from: text, JSONL, JSON, parquet, datasets, another datastore."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..caption_data import load_caption_data
from ..caption_data.annotation_files import (
    ID_COLUMNS,
    Listing,
    detect_format,
    read_coco,
    read_csv,
    read_jsonl,
    read_karpathy,
)
from ..caption_data.caption_checks import read_captions, read_image_id
from ..caption_data.dataset_columns import open_dataset
from ..caption_data.splits import rows_of_split
from ..caption_data.text_files import parse_json, read_text
from ..datastore_smallcap import CaptionDatastore
from ..memory_building import NamedPhotos, dataset_rows
from ..row_columns import CAPTION_COLUMNS, PHOTO_COLUMNS, find_column
from ..store_manifest import MANIFEST_NAME


_FILE_ENDINGS = (".csv", ".gz", ".json", ".jsonl", ".ndjson", ".parquet", ".tsv", ".txt")
_READERS = {"karpathy": read_karpathy, "coco": read_coco, "nocaps": read_coco, "jsonl": read_jsonl, "csv": read_csv}


@dataclass
class CaptionList:
    """
    Captions in order.

    Args:
        captions (`list[str]`): What to hold.
        image_ids (`list[str or None]`): The photo that each describes, where that is known.
        source (`str`): Where they are from: the column `source`.
        licenses (`dict[str, str]`): Licence of each source.
    """

    captions: list[str]
    image_ids: list[str | None]
    source: str
    licenses: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def identity(self) -> str:
        """`str`: Hash of the list. An interrupted build goes on only with the same."""
        digest = hashlib.sha256(self.source.encode())
        for caption, image_id in zip(self.captions, self.image_ids, strict=True):
            digest.update(json.dumps([caption, image_id]).encode())
        return digest.hexdigest()


def open_captions(
    source: str | os.PathLike,
    *,
    split: str | None = None,
    caption_column: str | None = None,
    id_column: str | None = None,
    source_name: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> CaptionList:
    """
    Reads captions; photos are not opened and need not be there.

    Args:
        source (`str` or `os.PathLike`): A text file (a caption a line, maybe `.gz`), JSONL, a JSON list of captions,
            Karpathy's or COCO's JSON, parquet, a datastore (to encode its captions anew), or a dataset on the Hub.
        split (`str`, *optional*): Split, or several as `"train+restval"`.
        caption_column, id_column (`str`, *optional*): Columns, where they have other names than the usual ones.
        source_name (`str`, *optional*): Value of the column `source`; the file's or dataset's name when absent.
        config_name, revision (`str`, *optional*): Of a dataset on the Hub.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The source is in no known format, or holds no captions.
    """
    path = Path(source)
    name = source_name or (path.name if path.exists() else str(source))
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        held = CaptionDatastore.from_pretrained(path)
        return CaptionList(held.captions, held.image_ids, name, held.licenses)
    if path.is_file():
        words = [suffix.lower() for suffix in path.suffixes[-2:]]
        if words[-1:] == [".txt"] or words == [".txt", ".gz"]:
            found = _text_lines(path)
        elif (kind := "jsonl" if words[-1:] in ([".jsonl"], [".ndjson"]) else detect_format(path)) == "parquet":
            found = _dataset_columns(str(path), split, caption_column, id_column)
        else:
            plain = _list_of_captions(path) if kind == "jsonl" else None
            found = plain or _listed(_READERS[kind](path), split, caption_column, id_column, str(path))
    elif path.is_absolute() or len(path.parts) > 2 or path.suffix.lower() in _FILE_ENDINGS:
        raise FileNotFoundError(f"There is no file or folder {path}.")
    else:
        found = _dataset_columns(str(source), split, caption_column, id_column, name=config_name, revision=revision)
    captions, image_ids = found
    if not captions:
        raise ValueError(f"{source} holds no captions.")
    return CaptionList(captions, image_ids, name)


Found = tuple[list[str], list[str | None]]


def _text_lines(path: Path) -> Found:
    lines = io.StringIO(read_text(path), newline=None)
    captions = [line.strip() for line in lines if line.strip()]
    return captions, [None] * len(captions)


def _list_of_captions(path: Path) -> Found | None:
    """A JSON list of strings, as the reference's `coco_index_captions.json`; `None` if the file is another thing."""
    text = read_text(path)
    if text.lstrip()[:1] != "[":
        return None
    content = parse_json(text, path)
    if not content or not isinstance(content[0], str):
        return None
    captions = [caption for place, one in enumerate(content) for caption in read_captions([one], f"{path}[{place}]")]
    return captions, [None] * len(captions)


def _listed(
    listing: Listing, split: str | None, caption_column: str | None, id_column: str | None, what: str
) -> Found:
    rows = rows_of_split(listing.splits, split, what, len(listing.rows))
    names = list(dict.fromkeys(name for row in listing.rows for name in row))
    captions_at = find_column(names, caption_column, CAPTION_COLUMNS, "caption_column")
    if captions_at is None:
        raise ValueError(f"{what} has no captions; its columns are {', '.join(names)}. Tell with `caption_column`.")
    id_at = find_column(names, id_column, (*ID_COLUMNS, *PHOTO_COLUMNS), "id_column")
    captions: list[str] = []
    image_ids: list[str | None] = []
    for row in rows:
        place = listing.places[row]
        of_photo = read_captions(listing.rows[row].get(captions_at), place)
        value = None if id_at is None else listing.rows[row].get(id_at)
        captions += of_photo
        image_ids += [None if value is None else read_image_id(value, place)] * len(of_photo)
    return captions, image_ids


def _dataset_columns(
    source: str, split: str | None, caption_column: str | None, id_column: str | None, **options: Any
) -> Found:
    """Captions and ids of a parquet file or dataset, without its photos."""
    dataset, left = open_dataset(source, split, streaming=False, **options)
    names = list(dataset.column_names)
    captions_at = find_column(names, caption_column, CAPTION_COLUMNS, "caption_column")
    id_at = find_column(names, id_column, ID_COLUMNS, "id_column")
    wanted = [column for column in dict.fromkeys((captions_at, id_at, "split" if left else None)) if column in names]
    rows = dataset.select_columns(wanted).to_list()
    splits = [row["split"] for row in rows] if left and "split" in names else None
    places = [f"{source}, row {row}" for row in range(len(rows))]
    return _listed(Listing(rows, places, splits), left, captions_at, id_at, source)


def captioned_photos(
    source: str | os.PathLike, *, source_name: str | None = None, columns: tuple[str, ...] = (), **options: Any
) -> NamedPhotos:
    """
    Photos with their captions, for a datastore whose keys are the photos'.

    Args:
        source (`str` or `os.PathLike`): Anything that [`load_caption_data`] reads.
        source_name (`str`, *optional*): Value of the column `source`; the source's name when absent.
        columns (`tuple[str, ...]`): Further columns that the datastore keeps.
        options: Of [`load_caption_data`]: `split`, `images`, `format`, ...
    """
    dataset = load_caption_data(source, require_captions=True, **options)
    return dataset_rows(
        dataset, name_column="captions", columns=("image_id", *columns), source=source_name or Path(source).name
    )


def photos_with_captions_within(photos: NamedPhotos, tokenizer: Any, max_tokens: int) -> NamedPhotos:
    """Leaves out captions of more tokens than the prompt has room for; a photo may keep none."""

    def get(number: int) -> dict[str, Any]:
        row = photos[number]
        encoded = tokenizer(row["names"], add_special_tokens=False, verbose=False)["input_ids"]
        short = [name for name, ids in zip(row["names"], encoded, strict=True) if len(ids) <= max_tokens]
        return {**row, "names": short}

    identity = hashlib.sha256(f"{photos.identity} {max_tokens}".encode()).hexdigest()
    return NamedPhotos(len(photos), get, identity, photos.licenses)


__all__ = ["CaptionList", "captioned_photos", "open_captions", "photos_with_captions_within"]
