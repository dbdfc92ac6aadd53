"""transformers' shared tests of models, run on both families."""

from __future__ import annotations

import unittest

import tiny_models
import tiny_smallcap
import torch
from shared_tests import load_shared_tests

from hf_evcap import EVCapForConditionalGeneration, SmallCapForConditionalGeneration


common = load_shared_tests("test_modeling_common")
GenerationTesterMixin = load_shared_tests("generation.test_utils").GenerationTesterMixin


class EVCapTester:
    batch_size, seq_length, is_training = 3, 14, True
    num_hidden_layers, num_attention_heads = 2, 4

    def __init__(self, text, vision):
        self.text, self.vision = text, vision
        config = self.get_config()
        self.vision_config = config.vision_config.to_dict()
        self.hidden_size = 32

    def get_config(self):
        return tiny_models.make_config(self.text, self.vision, image_token_id=3)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        size = tiny_models.IMAGE_SIZE
        input_ids = torch.randint(4, 598, (self.batch_size, self.seq_length))
        input_ids[:, 2 : 2 + config.num_prefix_tokens] = config.image_token_id
        return config, {
            "pixel_values": torch.rand(self.batch_size, 3, size, size),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }


class SmallCapTester:
    batch_size, seq_length, is_training = 3, 7, True
    num_hidden_layers, num_attention_heads = 2, 2

    def __init__(self, text, vision):
        self.text, self.vision = text, vision
        self.vision_config = self.get_config().vision_config.to_dict()
        self.hidden_size = 32

    def get_config(self):
        return tiny_smallcap.make_config(self.text, self.vision)

    def prepare_config_and_inputs_for_common(self):
        config, size = self.get_config(), tiny_smallcap.IMAGE_SIZE
        input_ids = torch.randint(3, config.text_config.vocab_size - 1, (self.batch_size, self.seq_length))
        return config, {
            "pixel_values": torch.rand(self.batch_size, 3, size, size),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }


class ModelTests(common.ModelTesterMixin, GenerationTesterMixin):
    _is_composite = True

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:
            inputs["labels"] = inputs["input_ids"].clone()
        return inputs


class EVCapLlamaBlip2(ModelTests, unittest.TestCase):
    all_model_classes = (EVCapForConditionalGeneration,)

    def setUp(self):
        self.model_tester = EVCapTester("llama", "blip2")


class SmallCapGPT2Clip(ModelTests, unittest.TestCase):
    all_model_classes = (SmallCapForConditionalGeneration,)

    def setUp(self):
        self.model_tester = SmallCapTester("gpt2", "clip")


class SmallCapOPT(ModelTests, unittest.TestCase):
    all_model_classes = (SmallCapForConditionalGeneration,)

    def setUp(self):
        self.model_tester = SmallCapTester("opt", "clip")
