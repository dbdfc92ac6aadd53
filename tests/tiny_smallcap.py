"""Random SmallCap models with parts of width 32, their tokenizer and captions for their datastores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_evcap import CaptionDatastore, SmallCapConfig, SmallCapForConditionalGeneration, SmallCapProcessor


REFERENCE = Path(__file__).parent / "fixtures" / "smallcap_reference"
IMAGE_SIZE = 56
CAPTIONS = [
    ("a cat sleeps on a mat", "7"),
    ("two dogs play with a ball in the park near a river", "9"),
    ("A man rides a horse.", "11"),
    ("a red bus", "12"),
    ("an astronaut stands in front of the U.S. flag and smiles", "13"),
    ("a cup of coffee on a table", "14"),
    ("a raccoon looks out of a tree", "15"),
    ("people walk along the street with umbrellas in the rain", "16"),
    ("a plate of food", "17"),
    ("another cat on another mat", "7"),
]
DECODERS = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "opt": {
        "model_type": "opt",
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "init_std": 0.2,
    },
    "opt_norm_after": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
}
_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
DECODERS["llama"] = {"model_type": "llama", **_LLAMA}
DECODERS["mistral"] = {"model_type": "mistral", "sliding_window": 8, **_LLAMA}
DECODERS["xglm"] = {
    "model_type": "xglm",
    "d_model": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "attention_heads": 4,
    "max_position_embeddings": 256,
    "init_std": 0.2,
}
DECODERS["opt_norm_after"] = {**DECODERS["opt"], **DECODERS["opt_norm_after"]}
ENCODERS = {
    "clip": {
        "model_type": "clip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": 14,
        "projection_dim": 16,
        "initializer_factor": 10.0,
    },
    "efficientnet_lite": {
        "model_type": "efficientnet_lite",
        "hidden_size": 32,
        "image_size": IMAGE_SIZE,
        "batch_norm_momentum": 1.0,
    },
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2's, learnt from the captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=399, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([f"This image shows {caption}" for caption, _ in CAPTIONS], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made.add_special_tokens({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    return made


def make_processor() -> SmallCapProcessor:
    """Processor of the random models."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return SmallCapProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size), make_tokenizer()
    )


def make_config(text: str = "gpt2", vision: str = "clip", **fields: Any) -> SmallCapConfig:
    """Configuration of a random model."""
    tokenizer = make_processor().tokenizer
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    defaults = {
        "vision_config": ENCODERS[vision],
        "text_config": {"initializer_range": 0.2, **tokens, **DECODERS[text]},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "retrieval_space": "clip" if vision == "clip" else "vision",
    }
    if vision != "clip":
        defaults["retrieval_options"] = {"key_size": 8}
    return SmallCapConfig(**{**defaults, **fields})


def make_datastore(model: SmallCapForConditionalGeneration, rows: int = len(CAPTIONS), seed: int = 1) -> Any:
    """A datastore whose keys lie among the model's own queries."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        keys = model.get_memory_keys(torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator))
    captions, image_ids = zip(*CAPTIONS[:rows], strict=True)
    return CaptionDatastore.from_rows(
        list(captions), keys, image_id=list(image_ids), encoder_fingerprint=model.encoder_fingerprint, source="tests"
    )


def make_model(text: str = "gpt2", vision: str = "clip", datastore: bool = True, **fields: Any) -> Any:
    """Random model with a datastore."""
    torch.manual_seed(0)
    model = SmallCapForConditionalGeneration(make_config(text, vision, **fields)).eval()
    model.tokenizer = make_processor().tokenizer
    if vision == "efficientnet_lite":  # random weights shrink activations to nothing without batch statistics
        pixels = torch.randn(24, 3, IMAGE_SIZE, IMAGE_SIZE)
        with torch.no_grad():
            model.vision_model.train()(pixel_values=pixels)
            model.eval()
            model.vision_space.fit(model.vision_space.pool(model.get_vision_hidden_states(pixels))[:, 0])
    if datastore:
        model.set_datastore(make_datastore(model))
    return model
