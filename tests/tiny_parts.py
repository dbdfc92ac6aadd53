"""Tiny pretrained parts: a BLIP-2, vision towers and language models, each as its own library saves it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tiny_models import IMAGE_SIZE, REFERENCE
from tiny_smallcap import make_tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    LlamaTokenizer,
    SiglipConfig,
    SiglipModel,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_evcap import EfficientNetLiteConfig, EfficientNetLiteModel


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
PHOTO = {"image_size": IMAGE_SIZE, "patch_size": 14}
# Weights large enough that outputs differ from photo to photo.
SPREAD = {"initializer_range": 0.2}
LANGUAGE_MODELS = {
    "llama": ({**SIZES, **SPREAD, "num_key_value_heads": 2}, "sentencepiece"),
    "mistral": ({**SIZES, **SPREAD, "num_key_value_heads": 2}, "sentencepiece"),
    "gemma": ({**SIZES, **SPREAD, "num_key_value_heads": 2, "head_dim": 8}, "sentencepiece"),
    "qwen2": ({**SIZES, **SPREAD, "num_key_value_heads": 2}, "bpe"),
    "qwen3": ({**SIZES, **SPREAD, "num_key_value_heads": 2, "head_dim": 8}, "bpe"),
    "gemma2": ({**SIZES, **SPREAD, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}, "sentencepiece"),
    "gemma3_text": (
        {**SIZES, **SPREAD, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64},
        "sentencepiece",
    ),
    "phi3": ({**SIZES, **SPREAD, "num_key_value_heads": 2}, "bpe"),
    "smollm3": ({**SIZES, **SPREAD, "num_key_value_heads": 2}, "bpe"),
    "xglm": (
        {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "init_std": 0.2},
        "sentencepiece",
    ),
    "opt": (
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "init_std": 0.2,
        },
        "bpe",
    ),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 2, **SPREAD}, "bpe"),
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def text_tokenizer(kind: str) -> Any:
    """A tokenizer of 600 tokens (SentencePiece) or 399 and an end token (byte-level BPE)."""
    if kind == "sentencepiece":
        return LlamaTokenizer.from_pretrained(str(REFERENCE), legacy=True)
    return make_tokenizer()


def save_language_model(folder: Path, kind: str, max_shard_size: str = "1GB", **changes: Any) -> Path:
    """A random language model as transformers saves it, with its tokenizer."""
    sizes, tokenizer_kind = LANGUAGE_MODELS[kind]
    tokenizer = text_tokenizer(tokenizer_kind)
    config = CONFIG_MAPPING[kind](
        **{
            **sizes,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 256,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": None,
            **changes,
        }
    )
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    return folder


def make_tower(kind: str) -> Any:
    """A whole model with a vision tower."""
    torch.manual_seed(4)
    if kind == "clip":
        vision = {**SIZES, **PHOTO, "initializer_factor": 10.0}
        return CLIPModel(CLIPConfig(text_config=SIZES, vision_config=vision, projection_dim=16))
    if kind == "siglip":
        return SiglipModel(SiglipConfig(text_config=SIZES, vision_config={**SIZES, **PHOTO}))
    sizes = {name: value for name, value in SIZES.items() if name != "intermediate_size" or kind == "vit"}
    return AutoModel.from_config(CONFIG_MAPPING[kind](**sizes, **PHOTO, **SPREAD))


def save_published_lite(file: Path) -> Path:
    """An EfficientNet-Lite0 under the names of the published weights, with their classifier."""
    torch.manual_seed(5)
    model = EfficientNetLiteModel(EfficientNetLiteConfig(batch_norm_momentum=1.0))
    model.train()(pixel_values=torch.randn(4, 3, 64, 64))  # batch statistics, without which activations vanish
    parts = {"expansion": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    parts["projection"] = ("_project_conv", "_bn2")
    top = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    published = {"_fc.weight": torch.zeros(10, 1280), "_fc.bias": torch.zeros(10)}
    for name, tensor in model.state_dict().items():
        block = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(convolution|normalization)\.(\w+)", name)
        if block:
            layer = parts[block[2]][block[3] == "normalization"]
            published[f"_blocks.{block[1]}.{layer}.{block[4]}"] = tensor
        else:
            part, layer, value = name.split(".")
            published[f"{top[part][layer == 'normalization']}.{value}"] = tensor
    torch.save(published, file)
    return file


def save_tower(folder: Path, kind: str) -> Path:
    """A vision tower with its image processor; of EfficientNet-Lite the published file."""
    if kind == "efficientnet_lite":
        return save_published_lite(folder / "efficientnet-lite0.pth")
    make_tower(kind).save_pretrained(folder)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(folder)
    return folder


def save_blip2(folder: Path, model: Any, **options: Any) -> Path:
    """A BLIP-2 with the encoder and the queries of an EVCap, and its image processor."""
    config = model.config
    blip2 = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=config.vision_config.to_dict(),
            qformer_config=config.qformer_config.to_dict(),
            text_config={**LANGUAGE_MODELS["opt"][0], "model_type": "opt", "vocab_size": 50},
            num_query_tokens=config.num_query_tokens,
        )
    )
    state = {name: value for name, value in model.state_dict().items() if name.startswith(("vision_", "qformer."))}
    state["query_tokens"] = model.query_tokens.detach()
    assert not blip2.load_state_dict(state, strict=False).unexpected_keys
    blip2.save_pretrained(folder, **options)
    side = config.vision_config.image_size
    BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def save_gguf(file: Path) -> Path:
    """A random Llama with its tokenizer in a GGUF file, its matrices in blocks of 8 bits."""
    import gguf

    tokenizer = make_tokenizer()
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in tokenizer.all_special_tokens else 1 for word in words])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_vocab_size(len(words))
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    generator = torch.Generator().manual_seed(6)
    wide, narrow = (64, 32), (32, 64)
    shapes = {"ffn_gate": wide, "ffn_up": wide, "ffn_down": narrow}
    shapes.update(dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (32, 32)))
    tensors = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    tensors.update({"token_embd.weight": (len(words), 32), "output.weight": (len(words), 32)})
    for name, shape in tensors.items():
        values = (0.2 * torch.randn(shape, generator=generator)).numpy()
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"):
        writer.add_tensor(name, torch.ones(32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
