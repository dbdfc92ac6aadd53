"""One process or two, whole batches or parts of them: the same losses and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import distributed_run
import numpy as np
import pytest
import torch
from accelerate_launch import launch
from tiny_models import PHOTOS, make_model

from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator


WAYS = ("plain", "accumulated", "drawn")


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos with captions of very different length, two each."""
    file = tmp_path_factory.mktemp("listing") / "captions.jsonl"
    lines = []
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        captions = ["a photo", "a very long caption " + "of many things " * number]
        lines.append(json.dumps({"image": str(photo), "image_id": photo.stem, "captions": captions}))
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def one(tiny_dir: Path, listing: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process gives."""
    folder = tmp_path_factory.mktemp("one")
    return {**distributed_run.run(tiny_dir, listing, folder), "folder": folder}


@pytest.fixture(scope="module")
def two(tiny_dir: Path, listing: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes give."""
    folder = tmp_path_factory.mktemp("two")
    printed = launch(distributed_run.__file__, str(tiny_dir), str(listing), str(folder))
    found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    return {**found, "folder": folder, "printed": printed}


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_train_as_one_does(way: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one[way]["losses"]) == distributed_run.STEPS
    np.testing.assert_allclose(two[way]["losses"], one[way]["losses"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(two[way]["weights"], one[way]["weights"], atol=1e-5, rtol=0)


def test_two_processes_cache_the_same_features(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert two["printed"].count("features of 8 photos") == 1  # two that did not know of each other would both say so
    names = sorted(path.name for path in (one["folder"] / "features").iterdir())
    assert sorted(path.name for path in (two["folder"] / "features").iterdir()) == names
    for name in names:
        contents = [(found["folder"] / "features" / name).read_bytes() for found in (one, two)]
        assert contents[0] == contents[1], name


def test_accumulated_parts_train_as_the_whole_batch(one: dict[str, Any]) -> None:
    np.testing.assert_allclose(one["accumulated"]["losses"], one["plain"]["losses"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(one["accumulated"]["weights"], one["plain"]["weights"], atol=1e-5, rtol=0)
    assert np.abs(np.subtract(one["drawn"]["losses"], one["plain"]["losses"])).max() > 1e-3


def test_the_loss_is_the_mean_over_tokens(processor: Any, photos: list) -> None:
    """Not over photos or parts of a batch: a long caption counts for its length."""
    model = make_model()
    captions = ["a cat", "a very long caption of many things of many kinds", "two", "three words here"]
    collate = PhotoCaptionCollator(processor)

    def loss_of(rows: list[int], **options: Any) -> tuple[float, int]:
        examples = [{"image": photos[row], "caption": captions[row], "row": row} for row in rows]
        batch = collate(examples)
        with torch.no_grad():
            outputs = model(**batch, logits_to_keep=batch["labels"].shape[1], **options)
        return outputs.loss.item(), int((batch["labels"] != -100).sum())

    whole, tokens = loss_of([0, 1, 2, 3])
    singles = [loss_of([row]) for row in range(4)]
    assert sum(count for _, count in singles) == tokens
    assert whole == pytest.approx(sum(loss * count for loss, count in singles) / tokens, abs=1e-5)
    parts = [loss_of(rows, num_items_in_batch=torch.tensor(tokens))[0] for rows in ([0, 1], [2, 3])]
    assert sum(parts) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_the_sharded_model_is_the_whole_one(dtype: str, two: dict[str, Any]) -> None:
    """The FSDP configuration applied by accelerate's code; the Q-Formers stay in float32 beside bfloat16 parts."""
    found = two["sharded"][dtype]
    assert found["loss"][1] == pytest.approx(found["loss"][0], abs=1e-5 if dtype == "torch.float32" else 1e-2)
    assert found["gradient"] < (1e-5 if dtype == "torch.float32" else 0.05) * max(1, found["largest"])
    assert dtype != "torch.float32" or found["captions"][0] == found["captions"][1]
    layers = ["Blip2EncoderLayer"] * 2 + ["Blip2QFormerLayer"] * 4 + ["LlamaDecoderLayer"] * 2
    assert [unit for unit in found["units"] if unit.endswith("Layer")] == layers
    assert "EVCapForConditionalGeneration" in found["units"]
