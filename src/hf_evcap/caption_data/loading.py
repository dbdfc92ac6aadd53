"""`load_caption_data`: captioned photos of any source as one kind of dataset."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import datasets

from .annotation_files import Listing, detect_format, read_coco, read_csv, read_jsonl, read_karpathy
from .caption_checks import PhotoFolder
from .dataset_columns import open_dataset, standardize, standardize_stream
from .known_datasets import FORMATS, KNOWN_DATASETS, find_annotations
from .listed_photos import dataset_of_listing
from .splits import rows_of_split


_READERS: dict[str, Callable[[Path], Listing]] = {
    "karpathy": read_karpathy,
    "coco": read_coco,
    "nocaps": read_coco,
    "jsonl": read_jsonl,
    "csv": read_csv,
}
_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".ndjson")
_METADATA = ("metadata.jsonl", "metadata.csv", "captions.jsonl", "captions.json", "captions.csv", "captions.txt")


def load_caption_data(
    name_or_path: str | os.PathLike,
    split: str | None = None,
    *,
    images: str | os.PathLike | None = None,
    annotations: str | os.PathLike | None = None,
    format: str | None = None,
    config_name: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    id_column: str | None = None,
    domain_column: str | None = None,
    require_captions: bool | None = None,
    on_error: str = "raise",
    allow_urls: bool = False,
    streaming: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Loads captioned photos.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A benchmark (`coco-karpathy`, `flickr30k`, `nocaps`, `whoops`), a file (Karpathy's JSON, COCO's captions
            JSON, NoCaps' JSON, JSONL, CSV, parquet), a folder (photos with `metadata.jsonl`, parquet files, a dataset
            saved to disk) or a dataset on the Hub.
        split (`str`, *optional*): Split, or several as `"train+restval"`. When absent: what papers test for a
            benchmark, otherwise everything that a file holds, or the only split of a dataset.
        images (`str` or `os.PathLike`, *optional*): Folder of the photos; the listing file's when absent.
        annotations (`str` or `os.PathLike`, *optional*): A benchmark's listing file, or the folder with it. When
            absent it is looked for in and beside `images`.
        format (`str`, *optional*): One of `FORMATS`; found from the content when absent.
        config_name (`str`, *optional*): Configuration of a Hub dataset.
        image_column, caption_column, id_column, domain_column (`str`, *optional*): Columns, where they have other
            names than the usual ones. A caption column holds a caption or a list of them.
        require_captions (`bool`, *optional*): `True`: every photo needs a caption. `False`: none does. When absent:
            all have captions, or none, as in a test set.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` leaves out photos whose file is missing and
            damaged files of a folder of parquet, and logs how many.
        allow_urls (`bool`, *optional*, defaults to `False`): Fetch photos that tables and datasets name by an address.
            Whoever wrote them decides then what is asked of which server, those of your own network among them.
        streaming (`bool`, *optional*, defaults to `False`): Give an `IterableDataset`. Rows of Hub datasets and
            parquet files are then checked when they come: ids that stand twice and photos without captions are not
            noticed, and captions in rows of their own are not brought together.
        revision, token (*optional*): Of a Hub dataset.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Columns `image` ([`datasets.Image`], decoded when read),
        `image_id` (`str`), `captions` (list of `str`, empty where there are none), `domain` (`str`, where the source
        tells) and the source's other columns.

    Raises:
        FileNotFoundError: A file or photo is missing.
        ValueError: Unknown format, split or column, no photos, duplicate ids, ids without captions, empty captions,
            NaN.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"Unknown format {format!r}; the formats are {', '.join(FORMATS)}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f'`on_error` must be "raise" or "skip", got {on_error!r}.')
    source = os.fspath(name_or_path)
    placed = images is not None or annotations is not None  # the folder of photos may be called as the benchmark is
    if source in KNOWN_DATASETS and (placed or not os.path.exists(source)):
        known = KNOWN_DATASETS[source]
        file = find_annotations(source, annotations, images)
        format = format or known.format
        if file is None or format == "karpathy":
            split = split or known.split
        elif split == known.split:
            split = None  # the file is that split whole
        source = str(file) if file is not None else str(known.hub_id)
    elif annotations is not None:
        raise ValueError(f"`annotations` goes with a benchmark's name ({', '.join(KNOWN_DATASETS)}); got {source!r}.")
    if format == "whoops" and caption_column is None:
        caption_column = "crowd_captions"
    columns = {
        "image_column": image_column,
        "caption_column": caption_column,
        "id_column": id_column,
        "domain_column": domain_column,
    }
    path = _listing_file(Path(source), split, format)
    if path is not None:
        kind = format if format in _READERS or format == "parquet" else detect_format(path)
        if kind != "parquet":
            listing = _READERS[kind](path)
            kept = [] if not listing.rows else _rows(listing, split, path, named=Path(source) != path)
            listing = Listing([listing.rows[row] for row in kept], [listing.places[row] for row in kept])
            if kind == "nocaps" and any("domain" not in row for row in listing.rows):
                raise ValueError(f"{path}: photos of NoCaps have a `domain`; these have none. Use the format 'coco'.")
            folders = [Path(images)] if images is not None else [path.parent, path.parent.parent]
            photos = PhotoFolder(folders, allow_urls)
            dataset = dataset_of_listing(listing, photos, columns, require_captions, on_error, str(path))
            return dataset.to_iterable_dataset() if streaming else dataset
        source = str(path)
    opened, split = open_dataset(
        source,
        split,
        imagefolder=format == "imagefolder",
        on_error=on_error,
        name=config_name,
        streaming=streaming,
        revision=revision,
        token=token,
    )
    if streaming:
        return standardize_stream(opened, columns, images, source, allow_urls)
    return standardize(opened, split, columns, images, require_captions, on_error, source, allow_urls)


def _listing_file(path: Path, split: str | None, format: str | None) -> Path | None:
    """
    The file that lists a source's photos: itself, or one in the folder, maybe in a sub-folder named like the split.
    `None` for what `datasets` opens as a whole.
    """
    if path.is_file():
        if format in ("hub", "imagefolder"):
            raise ValueError(f"{path} is a file; the format {format!r} is of folders and Hub datasets.")
        return path
    if not path.is_dir():
        if path.is_absolute() or len(path.parts) > 2 or path.suffix in _FILE_ENDINGS:
            raise FileNotFoundError(f"There is no file or folder {path}.")
        return None
    if format not in ("hub", "imagefolder", "parquet"):
        names = [*_METADATA, *(known.file for known in KNOWN_DATASETS.values())]
        for folder in [path / split, path] if split else [path]:
            for name in names:
                if (folder / name).is_file():
                    return folder / name
        if format in _READERS:
            raise FileNotFoundError(f"{path} holds no file that lists photos, such as {', '.join(names)}; name it.")
    return None


def _rows(listing: Listing, split: str | None, path: Path, named: bool) -> list[int]:
    """Rows of a split; a file in a sub-folder that is named for the split is that split whole."""
    if named and listing.splits is None and split is not None and path.parent.name == split:
        split = None
    return rows_of_split(listing.splits, split, str(path), len(listing.rows))
