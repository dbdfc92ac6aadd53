"""Tiny models and ground truth that the tests share; nothing here needs a network."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any


# Before Hugging Face libraries are imported: no test may read or fill the user's cache.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-evcap-tests-")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import BertTokenizer, LlamaTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import logging as transformers_logging

import hf_evcap
from hf_evcap import EVCapConfig, EVCapForConditionalGeneration, EVCapProcessor, VisualNameMemory
from hf_evcap.conversion import ConversionReport, convert_evcap


torch.set_num_threads(1)  # the models are so small that more threads only wait for each other
transformers_logging.disable_progress_bar()

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


@pytest.fixture(scope="session")
def model_of() -> Callable[..., Any]:
    """Makes random models; see `make_model`."""
    return make_model


@pytest.fixture(scope="session")
def config_of() -> Callable[..., EVCapConfig]:
    """Makes configurations of random models; see `make_config`."""
    return make_config


@pytest.fixture(scope="session")
def processor() -> EVCapProcessor:
    """Processor of the random models. Tests must not change it."""
    return make_processor()


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """Random Llama model with a memory. Tests must not change it."""
    return make_model()


@pytest.fixture(scope="session")
def tiny_dir(tiny_model: Any, processor: EVCapProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `tiny_model` and its processor. Tests must not change it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def photo_paths() -> list[str]:
    """Four real photos that come with the package."""
    return [str(PHOTOS / f"{name}.jpg") for name in ("astronaut", "cat", "coffee", "raccoon")]


@pytest.fixture(scope="session")
def photos(photo_paths: list[str]) -> list[Image.Image]:
    """The photos, opened."""
    return [Image.open(path).convert("RGB") for path in photo_paths]


@pytest.fixture(scope="session")
def inputs(processor: EVCapProcessor, photos: list[Image.Image]) -> Any:
    """Model inputs of the four photos with the processor's own prompt. Tests must not change them."""
    return processor(images=photos, return_tensors="pt")


@pytest.fixture(scope="session")
def reference() -> SimpleNamespace:
    """What the released implementation gave for a tiny random checkpoint, and where its files lie."""
    expected = json.loads((REFERENCE / "expected.json").read_text(encoding="utf-8"))
    heads = {"num_attention_heads": expected["qformer_config"]["num_attention_heads"]}
    config = {
        "vision_config": {"num_attention_heads": expected["vision_config"]["num_attention_heads"]},
        "qformer_config": heads,
        "fusion_qformer_config": heads,
        "text_config": {**expected["llama_config"], "model_type": "llama"},
    }
    return SimpleNamespace(
        folder=REFERENCE,
        full=REFERENCE / "evcap_full.pt",
        trainable=REFERENCE / "evcap_trainable.pt",
        memory=REFERENCE / "ext_memory.pkl",
        llm_tokenizer=REFERENCE / "tokenizer.model",
        name_tokenizer=REFERENCE / "bert_vocab.txt",
        config=config,
        expected=expected,
        tensors=load_file(REFERENCE / "expected.safetensors"),
    )


@pytest.fixture(scope="session")
def converted(reference: SimpleNamespace) -> SimpleNamespace:
    """The reference's complete checkpoint, converted, with the converter's report."""
    report = ConversionReport()
    model, processor = convert_evcap(
        reference.full,
        config=reference.config,
        llm_tokenizer=reference.llm_tokenizer,
        name_tokenizer=reference.name_tokenizer,
        memory=reference.memory,
        report=report,
    )
    return SimpleNamespace(model=model, processor=processor, report=report)


@pytest.fixture(scope="session")
def converted_dir(converted: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the converted model. Tests must not change it."""
    folder = tmp_path_factory.mktemp("converted")
    converted.model.save_pretrained(folder)
    converted.processor.save_pretrained(folder)
    return folder


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def photo_server() -> Iterator[str]:
    """Address of a local web server with the sample photos."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(PHOTOS)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
