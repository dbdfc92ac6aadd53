"""The ready-made repos in hub_configs/: every file is loaded, and the sizes are the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, GenerationConfig

from hf_evcap import (
    EVCapConfig,
    EVCapForConditionalGeneration,
    EVCapProcessor,
    SmallCapForConditionalGeneration,
    SmallCapProcessor,
)


HUB_CONFIGS = Path(__file__).parent.parent / "hub_configs"
FULL_SIZE = ["evcap-vicuna-13b", "evcap-vicuna-7b"]


@pytest.mark.parametrize(("name", "trainable"), [("evcap-vicuna-13b", 3_968_000), ("evcap-vicuna-7b", 3_180_544)])
def test_trainable_parameters_on_the_meta_device(name: str, trainable: int) -> None:
    config = AutoConfig.from_pretrained(HUB_CONFIGS / name)
    assert type(config) is EVCapConfig
    with torch.device("meta"):
        model = EVCapForConditionalGeneration(config)
    assert model.freeze_for_training("paper") == trainable
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {"query_tokens", "name_query_tokens", "language_projection.weight", "language_projection.bias"}


@pytest.mark.parametrize(("name", "total"), [("smallcap-7m", "219,401,472"), ("smallcap-opt", "220,200,960")])
def test_smallcap_folders_are_the_papers_models(name: str, total: str) -> None:
    config = AutoConfig.from_pretrained(HUB_CONFIGS / name)
    with torch.device("meta"):
        model = SmallCapForConditionalGeneration(config)
    assert model.freeze_for_training("paper") == 7_094_016
    assert all("crossattention" in name for name, one in model.named_parameters() if one.requires_grad)
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" == total
    card = (HUB_CONFIGS / name / "README.md").read_text(encoding="utf-8")
    assert f"7,094,016 parameters of {total}" in card
    generation = GenerationConfig.from_pretrained(HUB_CONFIGS / name)
    made = model.generation_config
    for option in ("max_new_tokens", "num_beams", "length_penalty", "early_stopping", "eos_token_id", "pad_token_id"):
        assert getattr(generation, option) == getattr(made, option), option
    assert (config.eos_token_id, config.pad_token_id) == (generation.eos_token_id, generation.pad_token_id)
    assert config.prompt_template.format(captions="c") == "Similar images show\n\nc.\n\nThis image shows "
    settings, _ = SmallCapProcessor.get_processor_dict(HUB_CONFIGS / name)
    assert (settings["pad_token"], settings["end_token"], settings["max_caption_length"]) == ("!", ".", 25)
    assert settings["image_processor"]["size"] == {"shortest_edge": config.vision_config.image_size}


def test_13b_is_the_papers_model() -> None:
    shipped = EVCapConfig.from_pretrained(HUB_CONFIGS / "evcap-vicuna-13b").to_dict()
    default = EVCapConfig(image_token_id=32000).to_dict()
    for part in ("architectures", "transformers_version", "text_config"):
        shipped.pop(part, None), default.pop(part, None)
    assert shipped == default
    config = EVCapConfig.from_pretrained(HUB_CONFIGS / "evcap-vicuna-13b")
    sizes = config.text_config.hidden_size, config.text_config.num_hidden_layers, config.text_config.vocab_size
    assert sizes == (5120, 40, 32000)
    assert config.num_prefix_tokens == 40


@pytest.mark.parametrize("name", FULL_SIZE)
def test_decoding_is_the_references(name: str) -> None:
    generation = GenerationConfig.from_pretrained(HUB_CONFIGS / name)
    assert (generation.num_beams, generation.max_new_tokens, generation.do_sample) == (5, 32, False)
    assert set(generation.eos_token_id) == {2, 13, 869, 29889}  # </s>, newline, " ." and "." of LLaMA's vocabulary


@pytest.mark.parametrize("name", FULL_SIZE)
def test_processor_config_has_the_references_prompt_and_pixels(name: str) -> None:
    settings, _ = EVCapProcessor.get_processor_dict(HUB_CONFIGS / name)
    text = settings["prompt_template"].replace("{prompt}", settings["prompt"])
    assert text == "###Human: <Img>{image}</Img> Describe this image in detail. ###Assistant: "
    assert settings["num_prefix_tokens"] == 40
    assert settings["image_processor"]["size"] == {"height": 224, "width": 224}


@pytest.mark.parametrize("name", sorted(path.parent.name for path in HUB_CONFIGS.glob("*/config.json")))
def test_cards_have_valid_metadata(name: str) -> None:
    loaded = ModelCard.load(HUB_CONFIGS / name / "README.md")
    assert loaded.data.license
