"""Language models in few bits: which modules are quantized, training with them, and what cannot be."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny_smallcap
import torch
from tiny_models import LANGUAGE_MODELS, SPREAD, make_model
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from hf_evcap import EVCapForConditionalGeneration
from hf_evcap.training.fine_tuning.freezing import apply_policy
from hf_evcap.training.fine_tuning.quantization import (
    language_model_quantization,
    modules_in_full_precision,
    prepare_for_training,
)


HUB_CONFIGS = Path(__file__).parents[3] / "hub_configs"


@pytest.mark.parametrize("repo", ["evcap-vicuna-13b", "evcap-vicuna-7b"])
def test_only_the_language_model_is_quantized(repo: str) -> None:
    config = AutoConfig.from_pretrained(HUB_CONFIGS / repo)
    kept = modules_in_full_precision(config)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    quantized = [name for name in linear if should_convert_module(name, kept)]
    layers = config.text_config.num_hidden_layers
    assert Counter(name.split(".")[0] for name in quantized) == {"language_model": 7 * layers}
    weights = sum(model.get_submodule(name).weight.numel() for name in quantized)
    assert weights / sum(weight.numel() for weight in model.language_model.parameters()) > 0.95
    assert {name.split(".")[0] for name in linear} - {"language_model"} == {
        "vision_model", "qformer", "fusion_qformer", "language_projection"
    }  # fmt: skip


@pytest.mark.parametrize("decoder", ["gpt2", "opt"])
def test_what_smallcap_trains_is_not_quantized(decoder: str) -> None:
    model = tiny_smallcap.make_model(decoder, datastore=False)
    kept = modules_in_full_precision(model.config)
    linear = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    quantized = [name for name in linear if should_convert_module(name, kept)]
    assert quantized and all(name.startswith("language_model.") for name in quantized)
    assert not [name for name in quantized if "crossattention" in name or name.endswith("lm_head")]
    model.freeze_for_training("paper")
    trained = {name.rpartition(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and not trained & set(quantized)


@pytest.fixture(scope="module")
def wide_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose language model is wide enough for blocks of 64 weights."""
    text = {**SPREAD, "vocab_size": 600, **LANGUAGE_MODELS["llama"], "hidden_size": 64, "intermediate_size": 128}
    folder = tmp_path_factory.mktemp("wide")
    make_model(text_config=text).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_training_with_a_quantized_language_model(
    quantization: str, wide_dir: Path, processor: Any, photos: list, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra `quantization`)")
    plain = EVCapForConditionalGeneration.from_pretrained(wide_dir)
    settings = language_model_quantization(quantization, plain.config)
    model = EVCapForConditionalGeneration.from_pretrained(wide_dir, quantization_config=settings)
    kinds = Counter((name.split(".")[0], type(module).__name__) for name, module in model.named_modules())
    assert kinds["language_model", {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[quantization]] == 14
    assert kinds["language_model", "Linear"] == 1  # the head
    assert not [part for part, kind in kinds if part != "language_model" and kind.startswith(("Linear4", "Linear8"))]
    assert model.memory is not None and model.encoder_fingerprint == plain.encoder_fingerprint
    batch = processor(images=photos, suffix=["a cat"] * 4, return_tensors="pt")
    prepare_for_training(model, "paper").freeze_for_training("paper")
    with torch.no_grad():
        model(**batch)  # an evaluation before training takes no gradients from it
    model.train()
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(plain(**batch).loss.item(), rel=0.1)
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == {
        "query_tokens", "name_query_tokens", "language_projection.weight", "language_projection.bias"
    }  # fmt: skip
    assert all(weight.grad.any() for weight in model.parameters() if weight.grad is not None)
    model.save_pretrained(tmp_path)
    again = prepare_for_training(EVCapForConditionalGeneration.from_pretrained(tmp_path), "paper")
    with torch.no_grad():
        assert again(**batch).loss.item() == pytest.approx(model.eval()(**batch).loss.item(), abs=1e-5)
    with pytest.raises(ValueError, match="`full` trains the language model, whose quantized weights cannot"):
        prepare_for_training(model, "full")
    adapted = apply_policy(model, "lora", None, 4, 8, 0.0)
    adapted.train()
    adapted(**batch).loss.backward()
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert [name for name in trained if "lora_" in name and ".language_model." in name]
    assert not [name for name in trained if "lora_" not in name and ".language_model." in name]
    assert all(weight.grad is not None for name, weight in adapted.named_parameters() if name in trained)


def test_what_cannot_be_is_told(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="`quantization` must be one of 8bit, 4bit; got '3bit'"):
        language_model_quantization("3bit", tiny_model.config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'hf_evcap\[quantization\]'"):
        language_model_quantization("4bit", tiny_model.config)
