"""The paper's model at its full size, from configs alone: what is trained, and what its repo holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_parts import text_tokenizer
from transformers import BertTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from hf_evcap import EVCapConfig, EVCapForConditionalGeneration, EVCapProcessor
from hf_evcap.assembly_evcap import EVCapAssembly
from hf_evcap.stored_precision import halve_exact


# What the config.json of Salesforce/blip2-flan-t5-xxl and of lmsys/vicuna-13b-v1.3 say.
BLIP2 = {
    "model_type": "blip-2",
    "num_query_tokens": 32,
    "vision_config": {
        "model_type": "blip_2_vision_model", "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    },
    "qformer_config": {
        "model_type": "blip_2_qformer", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "cross_attention_frequency": 2,
        "encoder_hidden_size": 1408, "max_position_embeddings": 512,
    },
    "text_config": {"model_type": "t5", "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}  # fmt: skip
VICUNA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824,
    "num_hidden_layers": 40, "num_attention_heads": 40, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "torch_dtype": "float16", "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TRAINED = ("query_tokens", "name_query_tokens", "language_projection.")
ON_THE_HUB = ("vision_model.", "qformer.", "language_model.")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("full-size")
    for name, config in (("blip2", BLIP2), ("vicuna", VICUNA)):
        (root / name).mkdir()
        (root / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    BlipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(root / "blip2")
    text_tokenizer("sentencepiece").save_pretrained(root / "vicuna")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(30517))]
    (root / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    return {
        "encoder": root / "blip2",
        "language_model": root / "vicuna",
        "name_tokenizer": BertTokenizer(str(root / "vocab.txt"), do_lower_case=True),
    }


def assemble(parts: dict[str, Any], **options: Any) -> tuple[EVCapAssembly, EVCapForConditionalGeneration]:
    """The assembly, and its model without values."""
    assembly = EVCapAssembly(EVCapProcessor, **parts, **options)
    with torch.device("meta"):
        return assembly, EVCapForConditionalGeneration(assembly.config)


def bytes_of_own(
    assembly: EVCapAssembly, model: EVCapForConditionalGeneration, on_the_hub: tuple[str, ...]
) -> dict[str, int]:
    """Bytes that a repo holds of each of its own parts after training: those of `TRAINED` in float32."""
    state = model.state_dict()
    drawn = assembly.drawn(state, {name: value for name, value in state.items() if name.startswith(on_the_hub)})
    own = {name for name in state if not name.startswith(on_the_hub)}
    frozen = halve_exact({name: drawn[name] for name in own if not name.startswith(TRAINED)})
    sizes = {name: value.numel() * value.element_size() for name, value in frozen.items()}
    sizes.update({name: 4 * state[name].numel() for name in own if name.startswith(TRAINED)})
    assert set(sizes) == own
    return sizes


def test_a_repo_of_evcap_13b_with_a_random_fusion(parts: dict[str, Any]) -> None:
    assembly, model = assemble(parts, fusion_init="random:0")
    assert model.freeze_for_training("paper") == 3_968_000
    assert sum(parameter.numel() for parameter in model.parameters()) == 14_290_684_160
    defaults = EVCapConfig()  # the paper's
    for part in ("vision_config", "qformer_config", "fusion_qformer_config", "text_config"):
        ours, theirs = getattr(assembly.config, part), getattr(defaults, part)
        for size in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(ours, size) == getattr(theirs, size), (part, size)
    assert assembly.config.fusion_qformer_config.vocab_size == 30523
    sizes = bytes_of_own(assembly, model, ON_THE_HUB)
    assert sum(sizes.values()) < 450_000_000
    fusion = sum(size for name, size in sizes.items() if name.startswith("fusion_qformer."))
    assert fusion == 2 * sum(parameter.numel() for parameter in model.fusion_qformer.parameters())


def test_a_repo_of_evcap_13b_with_a_fusion_of_a_public_repo(parts: dict[str, Any], tmp_path: Path) -> None:
    source, _ = assemble(parts)
    source.config.save_pretrained(tmp_path)
    source.processor.save_pretrained(tmp_path)
    assembly, model = assemble(parts, fusion_init=str(tmp_path))
    assert model.freeze_for_training("paper") == 3_968_000
    assert [one.prefixes for one in assembly.parts["fusion_qformer"]] == [("fusion_qformer.",)]
    sizes = bytes_of_own(assembly, model, (*ON_THE_HUB, "fusion_qformer."))
    assert sum(sizes.values()) == 4 * 3_968_000 < 20_000_000
