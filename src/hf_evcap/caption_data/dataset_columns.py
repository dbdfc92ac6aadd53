"""Brings datasets (of the Hub, of folders, of parquet) into the package's columns; photos are not touched."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.utils import logging

from ..photo_bytes import address_of
from ..photo_files import is_hidden
from ..row_columns import CAPTION_COLUMNS, class_names, find_column, find_photo_column, named_classes, need_column
from .annotation_files import ID_COLUMNS, Listing
from .caption_checks import (
    PhotoFolder,
    check_listed_address,
    check_references,
    group_captions,
    read_captions,
    read_domain,
    read_image_id,
)
from .listed_photos import dataset_of_listing
from .splits import rows_of_split, same_split


logger = logging.get_logger(__name__)


def open_dataset(
    source: str, split: str | None, imagefolder: bool = False, on_error: str = "raise", **options: Any
) -> tuple[Any, str | None]:
    """
    Opens a parquet file, a folder, a dataset saved to disk or one of the Hub.

    Args:
        source (`str`): File, folder or id.
        split (`str`, *optional*): Split, or several joined by `+`.
        imagefolder (`bool`, *optional*): Whether to take a folder for photos with metadata whatever it holds.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` leaves out damaged files of a folder of parquet.
        options: `name`, `streaming`, `revision`, `token` of [`datasets.load_dataset`].

    Returns:
        The dataset, and the split that is still to be taken from its column `split`, if any.

    Raises:
        ValueError: There is no such split, or several and none was chosen; a damaged file.
    """
    path = Path(source)
    if path.exists() and not imagefolder:
        options |= _check_parquet(path, on_error)
    if path.is_dir() and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()):
        saved = datasets.load_from_disk(source)
        saved = saved if isinstance(saved, datasets.DatasetDict) else {"all": saved}
        chosen, of_column = _choose_split(saved, split, source)
        return (chosen.to_iterable_dataset() if options["streaming"] else chosen), of_column
    if path.is_file():
        return datasets.load_dataset(
            "parquet", data_files=source, split="train", streaming=options["streaming"]
        ), split
    if imagefolder:
        opened = datasets.load_dataset("imagefolder", data_dir=source, streaming=options["streaming"])
    else:
        try:
            opened = datasets.load_dataset(source, **options)
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(f"{source} cannot be read: {error.__cause__ or error}.") from error
    return _choose_split(opened, split, source)


def _check_parquet(path: Path, on_error: str) -> dict[str, str]:
    """Names damaged parquet files, of which pyarrow does not say which they are; gives options that skip them."""
    damaged = []
    files = [path] if path.is_file() else _parquet_files(path)
    for file in files:
        try:
            pq.read_metadata(file)
        except (pa.ArrowInvalid, OSError) as error:
            if on_error == "raise" or len(files) == 1:
                raise ValueError(
                    f"{file} is damaged or incomplete ({error}). Get it again, or leave such files out with "
                    'on_error="skip" (--on-error skip).'
                ) from error
            damaged.append(file.name)
    if not damaged:
        return {}
    logger.warning(f"{path}: left out {len(damaged)} of {len(files)} files, which are damaged: {', '.join(damaged)}.")
    return {"on_bad_files": "skip"}


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.parquet") if not is_hidden(file.relative_to(folder)))


def _choose_split(splits: Any, split: str | None, source: str) -> tuple[Any, str | None]:
    names = list(splits)
    if split is None:
        if len(names) > 1:
            raise ValueError(f"{source} has the splits {', '.join(names)}; choose one with `split`.")
        return splits[names[0]], None
    chosen = []
    for part in split.split("+"):
        same = [name for name in names if same_split(part, name)]
        if not same:
            if len(names) == 1 and "split" in (splits[names[0]].column_names or []):
                return splits[names[0]], split
            raise ValueError(f"{source} has no split {part!r}; it has {', '.join(names)}.")
        chosen.append(splits[same[0]])
    return (chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)), None


def find_columns(features: Mapping[str, Any], columns: dict[str, str | None], what: str) -> dict[str, str | None]:
    """Which of a dataset's columns are `image`, `image_id`, `captions` and `domain`."""
    image = find_photo_column(features, columns["image_column"], features)
    return {
        "image": need_column(image, features, "image_column", f"{what} has no image column"),
        "image_id": find_column(features, columns["id_column"], ID_COLUMNS, "id_column"),
        "captions": find_column(features, columns["caption_column"], CAPTION_COLUMNS, "caption_column"),
        "domain": find_column(features, columns["domain_column"], ("domain",), "domain_column"),
    }


def standardize(
    dataset: datasets.Dataset,
    split: str | None,
    columns: dict[str, str | None],
    images: str | os.PathLike | None,
    require_captions: bool | None,
    on_error: str,
    what: str,
    allow_urls: bool,
) -> datasets.Dataset:
    """
    Checks a dataset's rows and gives it our columns.

    Args:
        dataset (`datasets.Dataset`): Any, with a column of photos or of their files' names.
        split (`str`, *optional*): Taken from its column `split`.
        columns, require_captions, on_error, what: As in `dataset_of_listing`.
        allow_urls (`bool`): See [`load_caption_data`].
        images (`str` or `os.PathLike`, *optional*): Folder of the photos, where the dataset names files.
    """
    if split is not None:
        splits = list(dataset["split"]) if "split" in dataset.column_names else None
        dataset = dataset.select(rows_of_split(splits, split, what, len(dataset)))
    found = find_columns(dataset.features, columns, what)
    if require_captions and found["captions"] is None:
        raise ValueError(
            f"{what} has no captions; its columns are {', '.join(dataset.column_names)}. Tell which has them with "
            '`caption_column`, or list photos with captions in a file beside them, metadata.jsonl: {"file_name": '
            '"1.jpg", "captions": ["a cat"]}.'
        )
    image_column = str(found["image"])
    places = [f"{what}, row {row}" for row in range(len(dataset))]
    if _holds_names(dataset.features[image_column]):
        folder = Path(images) if images is not None else Path(what).parent if os.path.isfile(what) else Path(what)
        listing = Listing(dataset.to_list(), places)
        return dataset_of_listing(
            listing, PhotoFolder([folder], allow_urls), columns, require_captions, on_error, what
        )
    texts = {key: name for key, name in found.items() if key != "image" and name is not None}
    table = dataset.select_columns(list(texts.values())).to_dict() if texts else {}
    values = {key: named_classes(table[name], class_names(dataset.features[name])) for key, name in texts.items()}
    ids = values.get("image_id", range(len(dataset)))
    image_ids = [read_image_id(value, place) for value, place in zip(ids, places, strict=True)]
    given = values.get("captions", [None] * len(dataset))
    captions = [read_captions(value, place) for value, place in zip(given, places, strict=True)]
    photos = dataset.cast_column(image_column, datasets.Image(decode=False))
    if not allow_urls:
        _check_addresses(photos.data.column(image_column), what)

    def same_photo(first: int, other: int) -> bool:
        return photos[first][image_column] == photos[other][image_column]

    one_a_row = all(isinstance(value, str) for value in given)
    rows, captions = group_captions(image_ids, captions, places, one_a_row, same_photo)
    image_ids = [image_ids[row] for row in rows]
    check_references(image_ids, captions, require_captions, what)

    result = dataset if len(rows) == len(dataset) else dataset.select(rows)
    ours = {"image", "image_id", "captions", "domain"} - {image_column}
    result = result.remove_columns([name for name in result.column_names if name in ours | set(texts.values())])
    result = result.rename_column(image_column, "image") if image_column != "image" else result
    result = result.cast_column("image", datasets.Image())
    result = result.add_column("image_id", image_ids)
    result = result.add_column("captions", captions, feature=datasets.List(datasets.Value("string")))
    if "domain" in values:
        result = result.add_column("domain", [read_domain(values["domain"][row], places[row]) for row in rows])
    return result


def _holds_names(feature: Any) -> bool:
    return getattr(feature, "dtype", None) == "string"


def _check_addresses(photos: pa.ChunkedArray, what: str) -> None:
    """Refuses a column of undecoded photos that names addresses where it has no bytes."""
    for chunk in photos.iterchunks():
        empty = pc.is_null(pc.struct_field(chunk, "bytes"))
        paths = pc.struct_field(chunk, "path").cast(pa.large_string())
        for path in paths.filter(pc.and_kleene(empty, pc.match_substring(paths, "://"))).to_pylist():
            check_listed_address(path, False, what)


def standardize_stream(
    dataset: datasets.IterableDataset,
    columns: dict[str, str | None],
    images: str | os.PathLike | None,
    what: str,
    allow_urls: bool,
) -> datasets.IterableDataset:
    """The same for rows that come one by one; what concerns several rows (ids that stand twice) is not seen."""
    if dataset.features is None:
        dataset = dataset._resolve_features()
    found = find_columns(dataset.features, columns, what)
    image_column = str(found["image"])
    caption_classes = class_names(dataset.features[found["captions"]]) if found["captions"] else None
    named = _holds_names(dataset.features[image_column])
    if not named:
        dataset = dataset.cast_column(image_column, datasets.Image(decode=False))

    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        place = f"{what}, row {number}"
        photo = row[image_column]
        address = address_of(photo)
        # A stream from the Hub names its photos by where they lie there.
        if address and (named or not address.rpartition("::")[2].startswith("hf://")):
            check_listed_address(photo, allow_urls, place)
        if isinstance(photo, str):
            photo = {"bytes": None, "path": photo if address else str(Path(images or "") / photo)}
        converted = {
            "image": photo,
            "image_id": read_image_id(row[found["image_id"]] if found["image_id"] else number, place),
            "captions": read_captions(
                named_classes(row[found["captions"]], caption_classes) if found["captions"] else None, place
            ),
        }
        if found["domain"] is not None:
            converted["domain"] = read_domain(row[found["domain"]], place)
        return converted

    used = [name for name in found.values() if name is not None]
    features = {name: feature for name, feature in dataset.features.items() if name not in used}
    features |= {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
    }
    if found["domain"] is not None:
        features["domain"] = datasets.Value("string")
    # `map(features=...)` leaves photos that come undecoded as they are; `cast` decodes them.
    return dataset.map(convert, with_indices=True, remove_columns=used).cast(datasets.Features(features))
