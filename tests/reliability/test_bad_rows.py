"""One bad photo in a dataset whose images `datasets` would decode: named, or left out with `on_error="skip"`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_evcap import EVCapProcessor, VisualNameMemory
from hf_evcap.cli.main import main
from hf_evcap.memory_building import build_memory, dataset_rows


def bad_contents(whole: bytes) -> dict[str, dict[str, Any] | None]:
    return {
        "cut": {"bytes": whole[: len(whole) // 2], "path": "cut.jpg"},
        "no image": {"bytes": b"This is no photo.", "path": "text.jpg"},
        "missing": {"bytes": None, "path": "not/there.jpg"},
        "folder": {"bytes": None, "path": "/"},
        "empty": {"bytes": b"", "path": None},
        "null": None,
        "in no archive": {"bytes": None, "path": "zip://a.jpg::not/there.zip"},
        "by an unknown protocol": {"bytes": None, "path": "gopher://host/a.jpg"},
    }


BAD = list(bad_contents(b"xx"))


@pytest.fixture(scope="module")
def pipe(tiny_dir: Path) -> Any:
    return pipeline("image-to-text", model=str(tiny_dir))


def rows(photo_paths: list[str], bad: str) -> datasets.Dataset:
    """Four photos with names and captions, the bad one second."""
    contents: list[Any] = [{"bytes": Path(path).read_bytes(), "path": Path(path).name} for path in photo_paths]
    contents[1] = bad_contents(contents[1]["bytes"])[bad]
    columns = {
        "image": contents,
        "name": ["astronaut", "cat", "coffee", "raccoon"],
        "captions": [[f"Photo {number}."] for number in range(4)],
        "image_id": ["a", "b", "c", "d"],
    }
    features = datasets.Features({
        "image": datasets.Image(),
        "name": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
        "image_id": datasets.Value("string"),
    })  # fmt: skip
    return datasets.Dataset.from_dict(columns, features=features)


def write_parquet(data: datasets.Dataset, file: Path) -> None:
    """As `to_parquet`, which looks for the photos and stops where one is missing."""
    pq.write_table(data.data.table.replace_schema_metadata(data.features.arrow_schema.metadata), file)


def ways(data: datasets.Dataset) -> dict[str, Any]:
    """In how many shapes a dataset reaches a pipeline."""
    return {
        "dataset": data,
        "stream": data.to_iterable_dataset(),
        "stream of shards": data.to_iterable_dataset(num_shards=2),
        "column": data["image"],
        "column of a stream": data.to_iterable_dataset()["image"],
        "KeyDataset": KeyDataset(data, "image"),
        "selection": data.select([0, 1, 2, 3]),
        "generator over a stream": (row for row in data.cast_column("image", datasets.Image(decode=False))),
    }


@pytest.mark.parametrize("bad", BAD)
def test_the_pipeline(pipe: Any, photo_paths: list[str], bad: str) -> None:
    expected = [pipe(path) for path in photo_paths]
    for way, data in ways(rows(photo_paths, bad)).items():
        for batch_size in (1, 3):
            answers = list(pipe(data, on_error="skip", batch_size=batch_size))
            assert [answers[0], *answers[2:]] == [expected[0], *expected[2:]], way
            assert answers[1][0]["generated_text"] is None and answers[1][0]["error"], way
            if way.startswith("generator"):
                break  # it is used up
    for way, data in ways(rows(photo_paths, bad)).items():
        with pytest.raises((ValueError, OSError, TypeError)):
            list(pipe(data))
        if way == "dataset":
            assert list(pipe(data, num_workers=1, on_error="skip"))[2] == expected[2]


@pytest.mark.parametrize("bad", BAD)
def test_building_memories(
    tiny_model: Any, processor: EVCapProcessor, photo_paths: list[str], bad: str, tmp_path: Path
) -> None:
    data = rows(photo_paths, bad)
    good = rows(photo_paths, bad).select([0, 2, 3])
    expected = VisualNameMemory.from_images(tiny_model, processor, good)
    for source in (data, data.to_iterable_dataset()):
        memory = VisualNameMemory.from_images(tiny_model, processor, source, on_error="skip")
        assert memory.fingerprint == expected.fingerprint and memory.names == ["astronaut", "coffee", "raccoon"]
        with pytest.raises(ValueError, match="Photo 1 "):
            VisualNameMemory.from_images(tiny_model, processor, source)
    report = build_memory(tiny_model, processor, dataset_rows(data), tmp_path / "built", on_error="skip")
    assert report.rows == 3 and list(report.skipped) == [1]
    with pytest.raises(ValueError, match="Photo 1 "):
        build_memory(tiny_model, processor, dataset_rows(data), tmp_path / "other")


@pytest.mark.parametrize("bad", ["cut", "missing", "null", "in no archive"])
def test_the_command_line(tiny_dir: Path, photo_paths: list[str], bad: str, tmp_path: Path, capsys: Any) -> None:
    """`memory build`, `evaluate` and `cache-features` of a parquet file; with `raise` they name the photo."""
    file = tmp_path / "data" / "train.parquet"
    file.parent.mkdir()
    write_parquet(rows(photo_paths, bad), file)
    model = ["--model", str(tiny_dir)]
    data = ["--dataset", str(file)]
    runs = {
        "memory": ["memory", "build", str(file.parent), "--dataset", "--out", str(tmp_path / "memory"), *model],
        "features": ["cache-features", *data, "--output", str(tmp_path / "features"), *model],
        "evaluation": ["evaluate", *data, "--output", str(tmp_path / "evaluation"), "--no-memory-effect", *model],
    }
    for name, words in runs.items():
        assert main(words) == 1, name
        message = capsys.readouterr().err
        assert "Photo 1 " in message or "'b'" in message, name
        restart = ["--restart"] if name != "evaluation" else ["--restart", "--report-photos", "4"]
        assert main([*words, "--on-error", "skip", *restart]) == 0, name
    assert VisualNameMemory.from_pretrained(tmp_path / "memory").names == ["astronaut", "coffee", "raccoon"]
    assert len(datasets.load_from_disk(str(tmp_path / "features"))) == 3
    lines = (tmp_path / "evaluation" / "photos.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == ["a", "c", "d"]


@pytest.mark.parametrize("bad", ["cut", "null", "missing"])
@pytest.mark.parametrize("streaming", [False, True])
def test_training(tiny_dir: Path, photo_paths: list[str], bad: str, streaming: bool, tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    write_parquet(rows(photo_paths, bad), file)
    words = ["train", "--model", str(tiny_dir), "--dataset", str(file), "--max_steps", "3", "--report_to", "none",
             "--per_device_train_batch_size", "2", "--save_strategy", "no", "--disable_tqdm", "true",
             "--leave_one_out", "false"]  # fmt: skip
    words += ["--streaming", "true"] if streaming else []
    assert main([*words, "--output_dir", str(tmp_path / "stopped")]) == 1
    assert main([*words, "--output_dir", str(tmp_path / "out"), "--on_bad_data", "skip"]) == 0
    found = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert found["skipped_photos"] >= 1


def test_photos_with_a_mode_of_their_own_come_as_they_were(pipe: Any, photo_paths: list[str]) -> None:
    grey = rows(photo_paths, "cut").select([0, 2]).cast_column("image", datasets.Image(mode="L"))
    expected = [pipe(row["image"]) for row in grey]
    for data in (grey, grey.to_iterable_dataset(), grey["image"]):
        assert list(pipe(data)) == expected
    assert expected != [pipe(photo_paths[0]), pipe(photo_paths[2])]


def test_transforms_of_the_user_get_what_they_expect(pipe: Any, photo_paths: list[str]) -> None:
    data = rows(photo_paths, "cut").select([0, 2])
    turned = data.with_transform(lambda batch: {"image": [photo.rotate(90) for photo in batch["image"]]})
    assert list(pipe(turned)) == [pipe(row["image"].rotate(90)) for row in data]
