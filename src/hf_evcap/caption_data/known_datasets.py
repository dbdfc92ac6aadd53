"""The benchmarks that captioning papers report: which file lists them, which split is tested, where they come from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


FORMATS = ("karpathy", "coco", "nocaps", "whoops", "jsonl", "csv", "parquet", "imagefolder", "hub")


@dataclass(frozen=True)
class KnownDataset:
    """
    A benchmark.

    Args:
        title (`str`): As papers call it.
        format (`str`): One of `FORMATS`.
        file (`str`): Usual name of the file that lists photos and captions.
        split (`str` or `None`): Split that papers report; `None` where the file is one split.
        source (`str`): Where to get it.
        hub_id (`str`, *optional*): Dataset on the Hub that is taken when no file is found.
    """

    title: str
    format: str
    file: str
    split: str | None
    source: str
    hub_id: str | None = None


_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
KNOWN_DATASETS = {
    "coco-karpathy": KnownDataset("COCO (Karpathy)", "karpathy", "dataset_coco.json", "test", _KARPATHY),
    "flickr30k": KnownDataset("Flickr30k (Karpathy)", "karpathy", "dataset_flickr30k.json", "test", _KARPATHY),
    "nocaps": KnownDataset(
        "NoCaps", "nocaps", "nocaps_val_4500_captions.json", None, "https://nocaps.org/download (validation set)"
    ),
    "whoops": KnownDataset(
        "WHOOPS",
        "whoops",
        "whoops_dataset.csv",
        "test",
        "https://huggingface.co/datasets/nlphuji/whoops",
        hub_id="nlphuji/whoops",
    ),
}


def find_annotations(
    name: str, annotations: str | os.PathLike | None, images: str | os.PathLike | None
) -> Path | None:
    """
    Finds the file that lists a known dataset.

    Args:
        name (`str`): One of `KNOWN_DATASETS`.
        annotations (`str` or `os.PathLike`, *optional*): The file, or a folder that holds it.
        images (`str` or `os.PathLike`, *optional*): Folder of the photos; the file may lie in it or beside it.

    Returns:
        `Path` or `None`: `None` if the dataset is to be taken from the Hub.

    Raises:
        FileNotFoundError: There is no such file; the message says where to get it.
    """
    known = KNOWN_DATASETS[name]
    if annotations is not None:
        given = Path(annotations)
        file = given / known.file if given.is_dir() else given
        if not file.is_file():
            raise FileNotFoundError(
                f"There is no file {file} with the captions of {known.title}. Get it from {known.source}."
            )
        return file
    places = []
    if images is not None:
        folder = Path(images)
        places = [folder, folder / "annotations", folder.parent, folder.parent / "annotations"]
    for place in places:
        if (place / known.file).is_file():
            return place / known.file
    if known.hub_id is not None:
        return None
    looked = f" Looked in {', '.join(map(str, places))}." if places else ""
    raise FileNotFoundError(
        f"{known.title} needs {known.file}: get it from {known.source}, and name it with `annotations` "
        f"(--annotations on the command line).{looked}"
    )
