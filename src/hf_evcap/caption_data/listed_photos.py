"""Makes a dataset of a file that lists photos by their names."""

from __future__ import annotations

from typing import Any

import datasets
from transformers.utils import logging

from ..row_columns import CAPTION_COLUMNS, PHOTO_COLUMNS, find_column
from .annotation_files import ID_COLUMNS, Listing
from .caption_checks import (
    PhotoFolder,
    check_references,
    group_captions,
    read_captions,
    read_domain,
    read_image_id,
)


logger = logging.get_logger(__name__)


def dataset_of_listing(
    listing: Listing,
    folder: PhotoFolder,
    columns: dict[str, str | None],
    require_captions: bool | None,
    on_error: str,
    what: str,
) -> datasets.Dataset:
    """
    Finds the photos of a listing, checks its rows and makes a dataset of them.

    Args:
        listing ([`Listing`]): Rows of a file.
        folder ([`PhotoFolder`]): Where its photos lie.
        columns (`dict`): `image_column`, `caption_column`, `id_column`, `domain_column`; `None` for the usual ones.
        require_captions, on_error: See [`load_caption_data`].
        what (`str`): The file, for messages.
    """
    if not listing.rows:
        raise ValueError(f"{what} lists no photos.")
    names = list(dict.fromkeys(name for row in listing.rows for name in row))
    image_column = find_column(names, columns["image_column"], PHOTO_COLUMNS, "image_column")
    id_column = find_column(names, columns["id_column"], ID_COLUMNS, "id_column")
    caption_column = find_column(names, columns["caption_column"], CAPTION_COLUMNS, "caption_column")
    domain_column = find_column(names, columns["domain_column"], ("domain",), "domain_column")
    if image_column is None and id_column is None:
        raise ValueError(
            f"{what} has no column that names photos; the columns are {', '.join(names)}. Tell which with "
            "`image_column`."
        )
    rows, places, files, image_ids, captions = [], [], [], [], []
    for row, place in zip(listing.rows, listing.places, strict=True):
        candidates = _photo_names(row, image_column, id_column, place)
        try:
            file = folder.find(candidates, place)
        except (FileNotFoundError, ValueError):
            if on_error == "raise":
                raise
            continue
        rows.append(row)
        places.append(place)
        files.append(file)
        image_ids.append(read_image_id(row.get(id_column) if id_column else candidates[0], place))
        captions.append(read_captions(row.get(caption_column) if caption_column else None, place))
    if len(rows) < len(listing.rows):
        without = f"{len(listing.rows) - len(rows)} of {len(listing.rows)} rows"
        logger.warning(f"{what}: left out {without}, whose photos are missing or not to be fetched.")
    one_a_row = caption_column is not None and all(isinstance(row.get(caption_column), str) for row in rows)
    firsts, captions = group_captions(
        image_ids, captions, places, one_a_row, lambda first, other: files[first] == files[other]
    )
    image_ids = [image_ids[row] for row in firsts]
    check_references(image_ids, captions, require_captions, what)
    table: dict[str, Any] = {"image": [files[row] for row in firsts], "image_id": image_ids, "captions": captions}
    if domain_column is not None:
        table["domain"] = [read_domain(rows[row].get(domain_column), places[row]) for row in firsts]
    used = {image_column, id_column, caption_column, domain_column, *table}
    for name in names:
        if name not in used:
            table[name] = _plain_column([rows[row].get(name) for row in firsts])
    dataset = datasets.Dataset.from_dict({name: values for name, values in table.items() if name != "captions"})
    dataset = dataset.add_column("captions", captions, feature=datasets.List(datasets.Value("string")))
    return dataset.select_columns(list(table)).cast_column("image", datasets.Image())


def _photo_names(row: dict[str, Any], image_column: str | None, id_column: str | None, place: str) -> list[str]:
    """Names that a row's photo may have. WHOOPS' table names photos by their ids alone."""
    if image_column is None:
        name = read_image_id(row.get(id_column or ""), place)
        endings = ("png", "jpg", "jpeg")
        return [f"{folder}{name}.{ending}" for folder in ("", "whoops_images/") for ending in endings]
    value = row.get(image_column)
    if isinstance(value, list) and value:
        return [str(candidate) for candidate in value]
    if not isinstance(value, str) or not value:
        raise ValueError(f"{place}: {image_column!r} must name a photo, got {value!r}.")
    return [value]


def _plain_column(values: list[Any]) -> list[Any]:
    """A column that Arrow can hold: values of several types become text."""
    kinds = {type(value) for value in values if value is not None}
    return values if len(kinds) <= 1 else [None if value is None else str(value) for value in values]
