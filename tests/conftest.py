"""Tiny models and ground truth that the tests share; nothing here needs a network."""

from __future__ import annotations

import json
import logging
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
from tiny_models import PHOTOS, REFERENCE, make_config, make_model, make_processor
from transformers.utils import logging as transformers_logging

from hf_evcap import EVCapConfig, EVCapProcessor
from hf_evcap.conversion import ConversionReport, convert_evcap


torch.set_num_threads(1)  # the models are so small that more threads only wait for each other
transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """Undoes what a command line run in this process does to the logs; each test hears warnings that come once."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("hf_evcap", "transformers")]
    before = {name: logging.getLogger(name).level for name in ("hf_evcap", "transformers", *names)}
    transformers_logging.warning_once.cache_clear()
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


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
