"""Random models with parts of width 32, and where the reference's files lie; fixtures and tests make them here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, LlamaTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

import hf_evcap
from hf_evcap import EVCapConfig, EVCapForConditionalGeneration, EVCapProcessor, VisualNameMemory


REFERENCE = Path(__file__).parent / "fixtures" / "evcap_reference"
PHOTOS = Path(hf_evcap.__file__).parent / "assets" / "photos"
IMAGE_SIZE = 56

# Weights large enough that outputs differ from photo to photo and from token to token.
SPREAD = {"initializer_range": 0.2}
LANGUAGE_MODELS = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "init_std": 0.2,
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    },
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
VISION_MODELS = {
    "blip2": {
        "model_type": "blip_2_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 14,
    },
    "clip": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 14,
        "initializer_factor": 10.0,
    },
    "siglip": {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 14,
    },
    "dinov2": {
        "model_type": "dinov2",
        "hidden_size": 32,
        "mlp_ratio": 2,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 14,
    },
    "vit": {
        "model_type": "vit",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 14,
    },
    "efficientnet_lite": {
        "model_type": "efficientnet_lite",
        "hidden_size": 32,
        "image_size": IMAGE_SIZE,
        "batch_norm_momentum": 1.0,
    },
    "resnet": {"model_type": "resnet", "hidden_sizes": [16, 32], "depths": [1, 1], "embedding_size": 16},
    "convnext": {"model_type": "convnext", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}
NAMES = ["red fox", "Teapot", "fire_hydrant", "ladder", "owl", "wine glass", "dog"]


def make_config(text: str = "llama", vision: str = "blip2", **fields: Any) -> EVCapConfig:
    """Configuration of a random model with parts of width 32."""
    qformer = {
        "model_type": "blip_2_qformer",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **SPREAD,
    }
    defaults = {
        "vision_config": {**SPREAD, **VISION_MODELS[vision]},
        "qformer_config": qformer,
        "fusion_qformer_config": {**qformer, "vocab_size": 171, "max_position_embeddings": 128},
        "text_config": {**SPREAD, "vocab_size": 600, **LANGUAGE_MODELS[text]},
        "num_query_tokens": 6,
        "num_name_query_tokens": 3,
        "num_retrieved_names": 4,
        "image_token_id": 600,
        "initializer_range": 0.2,
    }
    return EVCapConfig(**{**defaults, **fields})


def make_processor(config: EVCapConfig | None = None, **settings: Any) -> EVCapProcessor:
    """Processor with the reference's tokenizers (600 tokens and an image token, 171 name tokens)."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    prefix = 9 if config is None else config.num_prefix_tokens
    return EVCapProcessor(
        BlipImageProcessorPil(size=size),
        LlamaTokenizer.from_pretrained(str(REFERENCE), legacy=True),
        make_name_tokenizer(),
        num_prefix_tokens=prefix,
        **settings,
    )


def make_name_tokenizer() -> Any:
    """The reference's name tokenizer: BERT uncased, with a small vocabulary."""
    tokenizer = BertTokenizer(str(REFERENCE / "bert_vocab.txt"), do_lower_case=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def make_model(text: str = "llama", vision: str = "blip2", memory: bool = True, **fields: Any) -> Any:
    """Random model with a memory whose keys lie among its own query outputs."""
    torch.manual_seed(0)
    model = EVCapForConditionalGeneration(make_config(text, vision, **fields)).eval()
    model.generation_config.update(max_new_tokens=8, pad_token_id=2, bos_token_id=1, eos_token_id=2)
    model.name_tokenizer = make_name_tokenizer()
    pixels = torch.randn(len(NAMES) * 2, 3, IMAGE_SIZE, IMAGE_SIZE)
    if vision == "efficientnet_lite":  # random weights shrink activations to nothing without batch statistics
        with torch.no_grad():
            model.vision_model.train()(pixel_values=pixels)
        model.eval()
    if memory:
        with torch.no_grad():
            keys = model.get_memory_keys(pixels)
        rows = VisualNameMemory.from_rows(
            NAMES * 2,
            keys,
            encoder_fingerprint=model.encoder_fingerprint,
            query_tokens_hash=model.query_tokens_hash,
            source="tests",
        )
        model.set_memory(rows)
    return model
