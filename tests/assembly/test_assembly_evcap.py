"""EVCap put together from pretrained parts: the parts' own values, sensible choices, messages that help."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from hf_evcap import EVCapForConditionalGeneration
from hf_evcap.conversion import ConversionReport
from hf_evcap.conversion.evcap import convert_state_dict


def assemble(encoder: Any, language_model: Any, **options: Any) -> EVCapForConditionalGeneration:
    return EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(encoder, language_model, **options)


# What it is made of


def test_parts_of_the_reference_equal_the_converted_checkpoint(
    reference: SimpleNamespace, reference_parts: SimpleNamespace, converted: SimpleNamespace
) -> None:
    model = assemble(reference_parts.blip2, reference_parts.llama, name_tokenizer=reference_parts.name_tokenizer)
    expected, found = converted.model.state_dict(), model.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        if not name.startswith(("fusion_qformer.", "name_query_tokens", "language_projection.")):
            assert torch.equal(found[name], value), name
    assert model.config.image_token_id == converted.model.config.image_token_id
    assert model.generation_config.eos_token_id == converted.model.generation_config.eos_token_id
    pixels = reference.tensors["pixel_values"]
    with torch.no_grad():
        assert torch.equal(
            model.get_image_features(pixels).query_output, converted.model.get_image_features(pixels).query_output
        )


def test_it_trains_what_the_reference_trains(reference: SimpleNamespace, reference_parts: SimpleNamespace) -> None:
    model = assemble(reference_parts.blip2, reference_parts.llama, name_tokenizer=reference_parts.name_tokenizer)
    names = set(convert_state_dict(torch.load(reference.trainable, weights_only=True)["model"], ConversionReport()))
    assert len(names) == 4
    model.freeze_for_training("paper")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == names
