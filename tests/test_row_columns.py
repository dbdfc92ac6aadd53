"""Columns of datasets that are called as their makers liked: found where they can be, and named where they cannot."""

from __future__ import annotations

import datasets
import pytest
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import hf_evcap
from hf_evcap import VisualNameMemory
from hf_evcap.memory_building.photo_sources import dataset_rows
from hf_evcap.row_columns import find_photo_column


@pytest.fixture(scope="module")
def pipe():
    return pipeline("image-to-text", model=hf_evcap.default_model())


@pytest.fixture(scope="module")
def labelled(photo_paths, tmp_path_factory):
    """An imagefolder with a folder a class: `image` and `label`, a `ClassLabel`."""
    folder = tmp_path_factory.mktemp("classes")
    for name, path in zip(("astronaut", "tabby", "espresso", "raccoon"), photo_paths, strict=True):
        (folder / name).mkdir()
        Image.open(path).convert("RGB").resize((96, 96)).save(folder / name / "1.png")
    dataset = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert dataset.features["label"].names == ["astronaut", "espresso", "raccoon", "tabby"]
    return dataset


@pytest.mark.parametrize("stream", [False, True])
def test_class_numbers_become_names(pipe, labelled, stream):
    dataset = labelled.to_iterable_dataset() if stream else labelled
    memory = VisualNameMemory.from_images(pipe.model, pipe.processor, dataset, batch_size=3)
    assert memory.names == ["astronaut", "espresso", "raccoon", "tabby"]
    listed = labelled.map(lambda row: {"label": [row["label"], 0]})
    listed = listed.cast_column("label", datasets.List(labelled.features["label"]))
    several = VisualNameMemory.from_images(pipe.model, pipe.processor, listed, name_column="label")
    assert several.names == ["astronaut", "astronaut", "espresso", "astronaut", "raccoon", "astronaut", "tabby",
                             "astronaut"]  # fmt: skip


def test_the_only_column_of_photos(pipe, labelled, photo_paths):
    expected = VisualNameMemory.from_images(pipe.model, pipe.processor, labelled)
    drawings = labelled.rename_column("image", "drawing").add_column("path", ["elsewhere"] * 4)
    for rows in (drawings, drawings.to_iterable_dataset(), list(labelled.rename_column("image", "drawing"))):
        if isinstance(rows, list):
            rows = [{**row, "label": expected.names[row["label"]]} for row in rows]
        memory = VisualNameMemory.from_images(pipe.model, pipe.processor, rows)
        assert memory.fingerprint == expected.fingerprint
    assert dataset_rows(drawings)[1]["names"] == ["espresso"]
    captions = [result[0]["generated_text"] for result in pipe(list(labelled["image"]))]
    found = [result[0]["generated_text"] for result in pipe(drawings.remove_columns("label"), batch_size=2)]
    assert found == captions
    assert [result[0]["generated_text"] for result in pipe(KeyDataset(drawings, "drawing"))] == captions


def test_columns_that_are_not_there_are_named(pipe, labelled):
    two = labelled.rename_column("image", "left").map(lambda row: {"right": row["left"]})
    with pytest.raises(ValueError, match=r"no column 'image'; it has left, label, right"):
        VisualNameMemory.from_images(pipe.model, pipe.processor, two)
    with pytest.raises(ValueError, match=r"no column 'name'; it has image, kind"):
        VisualNameMemory.from_images(pipe.model, pipe.processor, labelled.rename_column("label", "kind"))
    with pytest.raises(ValueError, match=r"no column 'photo'; it has image, label"):
        VisualNameMemory.from_images(pipe.model, pipe.processor, labelled, image_column="photo")
    with pytest.raises(ValueError, match=r"needs a photo under `image`; this one has left, label, right"):
        list(pipe(two))


def test_which_column_holds_photos(labelled):
    photo, stored = Image.new("RGB", (2, 2)), {"bytes": b"", "path": None}
    assert find_photo_column(["image", "other"], None, {"other": photo}) == "image"
    assert find_photo_column(["path", "drawing"], None, {"path": "a.jpg", "drawing": photo}) == "drawing"
    assert find_photo_column(["path", "drawing"], None, {"path": "a.jpg", "drawing": stored}) == "drawing"
    assert find_photo_column(["path", "drawing"], None, {"path": "a.jpg", "drawing": "x"}) == "path"
    assert find_photo_column(["left", "right"], None, {"left": photo, "right": photo}) is None
    assert find_photo_column(["left", "right"], "right", {"left": photo, "right": photo}) == "right"
    assert find_photo_column(labelled.column_names, None, labelled.features) == "image"
    with pytest.raises(ValueError, match=r"no column 'middle' \(`image_column`\); the columns are left, right"):
        find_photo_column(["left", "right"], "middle")
