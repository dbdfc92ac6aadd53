"""Small files of captioned photos in the formats of the field, for tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def write_lines(folder: Path, rows: list[Any], name: str = "captions.jsonl") -> Path:
    return write(folder / name, "".join(json.dumps(row) + "\n" for row in rows))


def karpathy_image(name: str, split: str, captions: list[str], **fields: Any) -> dict[str, Any]:
    sentences = [
        {"tokens": caption.lower().split(), "raw": caption, "imgid": 0, "sentid": number}
        for number, caption in enumerate(captions)
    ]
    return {"filename": name, "imgid": 0, "split": split, "sentences": sentences, **fields}


def write_karpathy(folder: Path, images: list[dict[str, Any]], name: str = "coco") -> Path:
    return write(folder / f"dataset_{name}.json", {"images": images, "dataset": name})


def write_coco(
    folder: Path,
    photos: dict[int, str],
    captions: list[tuple[int, str]],
    name: str = "captions_val2014.json",
    **more: Any,
) -> Path:
    """`photos` are file names by id; `more` are lists of further fields of the images, such as `domain`."""
    images = [{"id": image_id, "file_name": file, "width": 8, "height": 6} for image_id, file in photos.items()]
    for field, values in more.items():
        for image, value in zip(images, values, strict=True):
            image[field] = value
    annotations = [
        {"image_id": image_id, "id": number, "caption": caption} for number, (image_id, caption) in enumerate(captions)
    ]
    return write(folder / name, {"info": {}, "licenses": [], "images": images, "annotations": annotations})


def write_whoops(folder: Path, rows: list[tuple[str, list[str]]]) -> Path:
    file = folder / "whoops_dataset.csv"
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["image_id", "selected_caption", "crowd_captions", "commonsense_category"])
        for image_id, captions in rows:
            writer.writerow([image_id, "a caption", json.dumps(captions), "Deviation"])
    return file


def write_parquet(file: Path, photos: list[Path], **columns: Any) -> Path:
    data = datasets.Dataset.from_dict({"image": [str(photo) for photo in photos], **columns})
    data.cast_column("image", datasets.Image()).to_parquet(file)
    return file
