"""A tiny CLIP model, on disk as a person has one, and captions for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


CAPTIONS = [
    ("a cat sleeps on a mat", "7"),
    ("a sleeping cat", "7"),
    ("two dogs play with a ball", "9"),
    ("dogs run", "9"),
    ("a bus in the rain", "11"),
    ("a red bus", None),
]


def write_clip(folder: Path, seed: int = 0, projection_dim: int = 16) -> Path:
    """Saves a random CLIP whose tokenizer knows letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {
        **sizes,
        "projection_dim": projection_dim,
        "vocab_size": 54,
        "max_position_embeddings": 24,
        "bos_token_id": 52,
        "eos_token_id": 53,
    }
    vision = {**sizes, "image_size": 28, "patch_size": 14, "projection_dim": projection_dim}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)
    torch.manual_seed(seed)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # random weights of CLIP's own size give nearly the same key for all
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24).save_pretrained(folder)
    size = {"shortest_edge": 28}, {"height": 28, "width": 28}
    CLIPImageProcessorPil(size=size[0], crop_size=size[1]).save_pretrained(folder)
    return folder
