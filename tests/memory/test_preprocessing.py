"""Photos that are prepared differently do not share a memory."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from hf_evcap import VisualNameMemory
from hf_evcap.memory_building import build_memory
from hf_evcap.memory_building.photo_sources import photo_table
from hf_evcap.store_photos import hash_preprocessing


@pytest.fixture
def other_processor(processor: Any) -> Any:
    """The processor, but for the colours' means."""
    other = copy.deepcopy(processor)
    other.image_processor.image_mean = [0.5, 0.5, 0.5]
    return other


def test_hash_is_of_what_changes_pixels(processor: Any, other_processor: Any, tmp_path: Path) -> None:
    assert hash_preprocessing(other_processor) != hash_preprocessing(processor)
    processor.save_pretrained(tmp_path)
    loaded = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert hash_preprocessing(loaded) == hash_preprocessing(processor) is not None
    loaded.image_processor.crop_size = {"height": 5, "width": 5}  # of a step that is switched off
    assert hash_preprocessing(loaded) == hash_preprocessing(processor)
    assert hash_preprocessing(processor.tokenizer) is None


def test_it_is_recorded_and_checked(
    tiny_model: Any, processor: Any, other_processor: Any, photo_paths: list[str], tmp_path: Path
) -> None:
    rows = [{"image": photo_paths[0], "name": "astronaut"}]
    memory = VisualNameMemory.from_images(tiny_model, processor, rows)
    memory.save_pretrained(tmp_path / "memory")
    loaded = VisualNameMemory.from_pretrained(tmp_path / "memory")
    assert loaded.preprocessing_hash == memory.preprocessing_hash == hash_preprocessing(processor)
    file = tmp_path / "photos.jsonl"
    file.write_text(json.dumps({"image": photo_paths[0], "name": "astronaut"}), encoding="utf-8")
    build_memory(tiny_model, processor, photo_table(file), tmp_path / "built")
    assert VisualNameMemory.from_pretrained(tmp_path / "built").preprocessing_hash == memory.preprocessing_hash
    with pytest.raises(ValueError, match="were prepared by another image processor"):
        loaded.add_images(tiny_model, other_processor, photo_paths[1:2], "cat")
    loaded.add_images(tiny_model, processor, photo_paths[1:2], "cat")
    other = VisualNameMemory.from_images(tiny_model, other_processor, rows)
    with pytest.raises(ValueError, match="prepared by different image processors"):
        loaded.merge(other)
    other.preprocessing_hash = None  # of an older file: unknown, and accepted
    assert loaded.merge(other).preprocessing_hash == memory.preprocessing_hash


def test_pipeline_warns(
    tiny_dir: Path, other_processor: Any, photo_paths: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    pipe = transformers.pipeline("image-to-text", model=str(tiny_dir))
    rows = [{"image": photo_paths[0], "name": "astronaut"}]
    pipe.model.set_memory(VisualNameMemory.from_images(pipe.model, other_processor, rows))
    transformers.utils.logging.enable_propagation()
    transformers.pipeline("image-to-text", model=pipe.model, processor=pipe.processor)
    transformers.utils.logging.disable_propagation()
    assert "were prepared by another image processor" in caplog.text
