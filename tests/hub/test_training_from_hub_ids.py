"""From two ids on the Hub to a trained model there: assembled, cached, trained, pushed, and captioning elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_client import Client
from hub_server import HubServer
from public_parts import serve
from safetensors.torch import load
from test_publish import run_program
from tiny_models import PHOTOS
from transformers import AutoModelForImageTextToText, AutoProcessor

import hf_evcap


ENCODER, LANGUAGE_MODEL = "parts/efficientnet-lite", "parts/tiny-llama"
ROAD = """
import transformers
from hf_evcap.cli.main import main

def run(*words):
    assert main(list(words)) == 0, words

def captions(model):
    return [photo[0]["generated_text"] for photo in transformers.pipeline("image-to-text", model=model)(photos)]

start, memory, features, out = (f"{folder}/{name}" for name in ("start", "memory", "features", "out"))
run("new", "evcap", "--encoder", encoder, "--language-model", language_model, "--fit-vision-space", folder + "/photos",
    "--out", start)
run("memory", "build", folder + "/photos", "--model", start, "--out", memory)
run("cache-features", "--model", start, "--dataset", listing, "--output", features)
run("train", "--model", start, "--memory", memory, "--dataset", listing, "--feature_cache", features, "--policy",
    "qformers", "--max_steps", "6", "--learning_rate", "0.01", "--per_device_train_batch_size", "4",
    "--output_dir", out, "--report_to", "none")
run("push", "model", out, "alice/from-ids", "--frozen", "reference")
result = captions(start), captions(out)
"""
CAPTION = """
import json, sys
import hf_evcap, transformers
pipe = transformers.pipeline("image-to-text", model=sys.argv[1])
print(json.dumps([photo[0]["generated_text"] for photo in pipe(sys.argv[2:])]))
"""


@pytest.fixture(scope="module")
def real_parts(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded model's encoder and language model, each in a repo of its own; returns the whole model."""
    root = tmp_path_factory.mktemp("real-parts")
    model = AutoModelForImageTextToText.from_pretrained(hf_evcap.default_model(), memory=False)
    processor = AutoProcessor.from_pretrained(hf_evcap.default_model())
    for repo, part, reader in (
        (ENCODER, model.vision_model, processor.image_processor),
        (LANGUAGE_MODEL, model.language_model, processor.tokenizer),
    ):
        part.save_pretrained(root / repo)
        reader.save_pretrained(root / repo)
        serve(hub, repo, root / repo)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photos in a folder for each of two names, and a listing of them with captions."""
    rows = []
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:6]):
        target = tmp_path / "photos" / ("kettle" if number % 2 else "owl") / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
        rows.append({"image": str(target), "image_id": photo.stem, "captions": [f"a photo of a {photo.stem}"]})
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def test_from_ids_to_a_repo_that_captions_alike(
    hub: HubServer,
    client: Client,
    real_parts: Any,
    folder: Path,
    environment_of: Callable[..., dict[str, str]],
    photo_paths: list[str],
) -> None:
    two_photos = photo_paths[:2]
    untrained, trained = client(
        ROAD,
        folder=str(folder),
        listing=str(folder / "captions.jsonl"),
        photos=two_photos,
        encoder=ENCODER,
        language_model=LANGUAGE_MODEL,
    )
    assert untrained != trained
    files = hub.files("model", "alice/from-ids")
    weights = load(files["model.safetensors"])
    assert {name.split(".")[0] for name in weights} == {
        "query_tokens", "name_query_tokens", "qformer", "fusion_qformer", "language_projection", "vision_space",
    }  # fmt: skip
    sources = json.loads(files["config.json"])["part_sources"]
    assert {part: (record["repo_id"], record["referenced"]) for part, record in sources.items()} == {
        "vision_model": (ENCODER, True),
        "language_model": (LANGUAGE_MODEL, True),
    }
    assert run_program(CAPTION, "alice/from-ids", *two_photos, environment=environment_of()) == trained
