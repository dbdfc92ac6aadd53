"""
transformers' `ModelTesterMixin` for both families; docs/transformers-contract.md lists where we deviate.

A few combinations of language models and vision towers run by default, all with `HF_EVCAP_CONTRACT=all`. With
`TRANSFORMERS_CHECKOUT`, a checkout of transformers at the installed version, its `GenerationTesterMixin` and
`ExportTesterMixin` run, too: the source distribution on PyPI leaves them out.
"""

from __future__ import annotations

import os
import unittest
from typing import Any

import tiny_models
import tiny_smallcap
import torch
from shared_tests import expect_failures, load_shared_tests

from hf_evcap import EVCapForConditionalGeneration, SmallCapForConditionalGeneration


shared = load_shared_tests("test_modeling_common")
generation = load_shared_tests("generation.test_utils")

EVCAP = [("llama", "blip2"), ("gpt2", "clip")]
SMALLCAP = [("gpt2", "clip"), ("opt", "clip")]
if os.environ.get("HF_EVCAP_CONTRACT") == "all":
    EVCAP += [
        ("opt", "siglip"), ("qwen2", "dinov2"), ("qwen3", "vit"), ("llama", "efficientnet_lite"), ("gpt2", "resnet"),
        ("qwen2", "blip2"),
    ]  # fmt: skip
    SMALLCAP += [("opt_norm_after", "clip"), ("gpt2", "efficientnet_lite"), ("opt", "efficientnet_lite")]

DEVIATIONS = {
    "test_model_base_model_prefix": "There is no base model without a head, as in BLIP-2.",
}
CONVOLUTIONS = {"test_get_image_features_attentions": "A convolutional vision tower has no attention."}
RESNET = {
    f"test_get_image_features_output_{number}": "These tests do not know ResNet's `hidden_sizes`." for number in (0, 2)
}
EFFICIENTNET = {
    "test_get_image_features_hidden_states": "EfficientNet-Lite gives its last layer alone.",
    "test_model_is_small": "EfficientNet-Lite has 3 million parameters, however narrow its output.",
}


class Tester:
    """What transformers' tests ask for: a small configuration, and inputs for it."""

    batch_size, num_hidden_layers, is_training = 3, 2, True

    def __init__(self, models: Any, text: str, vision: str, **fields: Any) -> None:
        self.models, self.text, self.vision, self.fields = models, text, vision, fields
        config = self.get_config()
        self.vision_config = config.vision_config.to_dict()
        self.num_attention_heads = config.text_config.num_attention_heads
        self.hidden_size = config.text_config.hidden_size
        self.photo_tokens = getattr(config, "num_prefix_tokens", 0)
        self.seq_length = self.photo_tokens + 6

    def get_config(self) -> Any:
        config = self.models.make_config(self.text, self.vision, **self.fields)
        for part in (config, *(getattr(config, name) for name in config.sub_configs)):
            for name, usual in (("initializer_range", 0.02), ("init_std", 0.02), ("initializer_factor", 1.0)):
                if hasattr(part, name):  # our own tests take large weights, which are less exact in half precision
                    setattr(part, name, usual)
        return config

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        config, size = self.get_config(), self.models.IMAGE_SIZE
        input_ids = torch.randint(4, config.text_config.vocab_size - 1, (self.batch_size, self.seq_length))
        if self.photo_tokens:
            input_ids[:, 2 : 2 + self.photo_tokens] = config.image_token_id
        pixel_values = torch.rand(self.batch_size, 3, size, size)
        return config, {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "attention_mask": torch.ones_like(input_ids),
        }


class ModelTests(shared.ModelTesterMixin, generation.GenerationTesterMixin):
    """Both families' tests; subclasses name the parts."""

    _is_composite = True
    test_all_params_have_gradient = False  # what only retrieves, such as CLIP's projection, learns from no caption
    models: Any
    parts: tuple[str, str]
    fields: dict[str, Any] = {}

    def setUp(self) -> None:
        self.model_tester = Tester(self.models, *self.parts, **self.fields)

    def _prepare_for_class(self, inputs_dict: Any, model_class: type, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            inputs["labels"] = inputs["input_ids"].clone()
        return inputs


def add_tests(family: str, combinations: list[tuple[str, str]], **attributes: Any) -> None:
    for text, vision in combinations:
        name = f"Test{family}_{text}_{vision}"
        tests = type(name, (ModelTests, unittest.TestCase), {"parts": (text, vision), **attributes})
        of_tower = {"resnet": CONVOLUTIONS | RESNET, "efficientnet_lite": CONVOLUTIONS | EFFICIENTNET}.get(vision, {})
        globals()[name] = expect_failures(DEVIATIONS | of_tower)(tests)


add_tests(
    "EVCap",
    EVCAP,
    all_model_classes=(EVCapForConditionalGeneration,),
    models=tiny_models,
    fields={"image_token_id": 3},  # a word of the language model, which these tests resize
)
add_tests(
    "SmallCap",
    SMALLCAP,
    all_model_classes=(SmallCapForConditionalGeneration,),
    models=tiny_smallcap,
    additional_model_inputs=["input_ids"],  # without them it retrieves, for which it has no datastore here
)
