"""A language model out of a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_parts import save_gguf
from transformers import AutoModelForCausalLM, GgufConfig

from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor


pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed: pip install gguf")


def test_a_gguf_file_is_unpacked(tower_of: Callable[[str], Path], photo_paths: list[str], tmp_path: Path) -> None:
    file = save_gguf(tmp_path / "tiny.gguf")
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, quantization_config=GgufConfig(gguf_file=file.name, dequantize=True)
    ).state_dict()
    parts = (tower_of("vit"), file)
    processor = EVCapProcessor.from_encoder_and_language_model_pretrained(*parts)
    model = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(*parts, processor=processor)
    assert type(model.language_model.lm_head) is torch.nn.Linear
    for name, value in expected.items():
        assert torch.equal(model.state_dict()[f"language_model.{name}"], value), name
    batch = processor(images=photo_paths[:1], suffix=["a cat"], return_tensors="pt")
    model(**batch).loss.backward()
    assert model.language_projection.weight.grad.any()
    half = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(
        tower_of("vit"), tmp_path, gguf_file=file.name, dtype="bfloat16"
    )
    assert torch.equal(half.language_model.lm_head.weight, expected["lm_head.weight"].bfloat16())
    model.save_pretrained(tmp_path / "model")
    again = EVCapForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert "tiny.gguf" not in (tmp_path / "model" / "config.json").read_text(encoding="utf-8")
