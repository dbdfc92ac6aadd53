"""An evaluation says which of its photos stand in the model's memory, and can leave them out."""

from __future__ import annotations

from pathlib import Path

import pytest
from caption_files import write_lines
from PIL import Image
from tiny_models import PHOTOS
from transformers import pipeline

import hf_evcap
from hf_evcap.evaluation import EvaluationArguments, evaluate_captioner


NAMES = ("cat", "coffee", "rocket")


@pytest.fixture(scope="module")
def memory_with_a_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded memory and, under two words, the photo of the cat."""
    pipe = pipeline("image-to-text", model=hf_evcap.default_model())
    memory = pipe.model.memory.copy()
    memory.add_images(pipe.model, pipe.processor, [str(PHOTOS / "cat.jpg")] * 2, ["whiskers", "paw"])
    folder = tmp_path_factory.mktemp("memory")
    memory.set_column("photo", None).save_pretrained(folder)  # nothing names the photo: its key alone tells
    return folder


@pytest.fixture(scope="module")
def resized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captioned photos, each at twice its size: other pixels than those of the memory."""
    folder = tmp_path_factory.mktemp("resized")
    rows = []
    for number, name in enumerate(NAMES):
        photo = Image.open(PHOTOS / f"{name}.jpg")
        photo.resize((photo.width * 2, photo.height * 2)).save(folder / f"{name}.jpg")
        rows.append({"image": f"{name}.jpg", "image_id": number, "captions": [f"a {name} on a photo"]})
    return write_lines(folder, rows)


def evaluated(dataset: Path, output: Path, **options: object) -> dict:
    arguments = EvaluationArguments(
        str(dataset), str(output), memory_effect=False, report_photos=0, num_beams=1, **options
    )
    return evaluate_captioner(arguments)


def test_photos_of_the_memory_are_named(resized: Path, memory_with_a_photo: Path, tmp_path: Path) -> None:
    results = evaluated(resized, tmp_path, memory=str(memory_with_a_photo))
    assert results["dataset"]["in_memory"] == ["0"]
    assert "1 of these photos are in the model's memory" in (tmp_path / "results.md").read_text()


def test_photos_of_the_memory_are_left_out(resized: Path, memory_with_a_photo: Path, tmp_path: Path) -> None:
    results = evaluated(resized, tmp_path, memory=str(memory_with_a_photo), leave_out_memory_photos=True)
    assert results["dataset"]["photos"] == 2 and results["dataset"]["in_memory"] == []
    assert "in the model's memory" not in (tmp_path / "results.md").read_text()


def test_other_photos_are_not_taken_for_the_memorys(resized: Path, tmp_path: Path) -> None:
    assert evaluated(resized, tmp_path)["dataset"]["in_memory"] == []


def test_ids_tell_too(resized: Path, tmp_path: Path) -> None:
    pipe = pipeline("image-to-text", model=hf_evcap.default_model())
    memory = pipe.model.memory.subset(["dog", "tabby"])
    memory.set_column("image_id", ["2"] + [None] * (len(memory) - 1)).save_pretrained(tmp_path / "memory")
    results = evaluated(resized, tmp_path / "out", memory=str(tmp_path / "memory"))
    assert results["dataset"]["in_memory"] == ["2"]
