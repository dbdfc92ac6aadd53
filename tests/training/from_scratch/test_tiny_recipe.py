"""The whole tiny recipe on a dozen coloured squares: every stage, the finished repo, and starting it again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import hf_evcap.training
from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor
from hf_evcap.modeling_efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from hf_evcap.training.fine_tuning.name_lists import read_names
from hf_evcap.training.from_scratch.tiny_data import TinyData
from hf_evcap.training.from_scratch.tiny_export import export_captioner, memory_rows
from hf_evcap.training.from_scratch.tiny_recipe import TinyRecipe
from tests.test_modeling_efficientnet_lite import published_name


COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def photo(colour: str, seed: int) -> dict:
    noise = np.random.default_rng(seed).integers(-25, 25, (40, 50, 3))
    stream = io.BytesIO()
    Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    scenes = [
        {"image": photo(colour, i), "captions": [f"A {colour} wall .", f"the {colour} wall"], "source": "made"}
        for i, colour in enumerate([*COLOURS] * 3)
    ]
    objects = [
        {"image": photo(colour, 100 + i), "name": f"{colour} square", "source": "made", "license": "CC0"}
        for i, colour in enumerate([*COLOURS] * 4)
    ]
    pd.DataFrame(scenes).to_parquet(folder / "captions.parquet")
    pd.DataFrame(objects).to_parquet(folder / "objects.parquet")
    (folder / "text.txt").write_text("A red wall by a green door.\nThe blue wall has a dog.\nA dog sees a wall.\n" * 8)
    (folder / "names.json").write_text(json.dumps([{"name": "bell_pepper_(fruit)", "synonyms": ["capsicum"]}, "dog"]))
    torch.manual_seed(0)
    vision = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=96, batch_norm_momentum=0.5)).train()
    with torch.no_grad():  # statistics of a batch, or a random tower passes nothing on
        for _ in range(6):
            vision(torch.randn(8, 3, 1, 1) + 0.1 * torch.randn(8, 3, 96, 96))
    torch.save({published_name(name): weight for name, weight in vision.state_dict().items()}, folder / "vision.pth")
    return folder


@pytest.fixture(scope="module")
def recipe() -> dict:
    """The shipped recipe with everything made small."""
    path = Path(hf_evcap.training.__file__).parent / "recipes" / "evcap-tiny.yaml"
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    recipe["data"] |= {"captions": "captions.parquet", "objects": "objects.parquet", "text": "text.txt"}
    recipe["data"] |= {"names": "names.json", "held_out_photos": 2, "held_out_names": 0, "exemplars_per_name": 3}
    recipe["data"] |= {"held_out_exemplars": 1}
    recipe["vision"] |= {"config": {"model_type": "efficientnet_lite", "image_size": 96}, "caption_views": 2}
    recipe["tokenizer"]["vocab_size"] = 330
    model = recipe["model"]
    model |= {"num_query_tokens": 4, "num_name_query_tokens": 8, "max_name_length": 8, "num_retrieved_names": 3}
    model["retrieval_options"] |= {"key_size": 4, "window_size": 2, "window_stride": 1, "object_threshold": 0.0}
    for part in ("qformer_config", "fusion_qformer_config", "text_config"):
        model[part] |= {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    model["text_config"] |= {"num_key_value_heads": 2, "num_hidden_layers": 1}
    stages = recipe["stages"]
    for numbers in (stages["language"], *stages["names"], *stages["joint"]):
        numbers |= {"steps": 2, "batch_size": 4, "bf16": False}
    stages["alignment"] |= {"steps": 2, "batch_size": 4}
    stages |= {"branches": 2, "averaged_rounds": [1, 2]}
    return recipe


def test_recipe_makes_a_repo_that_captions(data, recipe, tmp_path):
    trained = TinyRecipe(recipe, data, tmp_path / "work", data / "vision.pth")
    output = export_captioner(trained, tmp_path / "model")
    model = EVCapForConditionalGeneration.from_pretrained(output).eval()
    processor = EVCapProcessor.from_pretrained(output)
    assert model.dtype == torch.float32
    counts = model.memory.describe()
    assert counts["rows"] == 9 + sum(len(row["names"]) for row in memory_rows(trained) if row["kind"] == "scene")
    assert {"red square", "wall"} <= set(model.memory.names)
    results = [f"joint-{branch}-{number}.pt" for branch in (1, 2) for number in (1, 2)]
    tokens = [torch.load(tmp_path / "work" / name, weights_only=True)["query_tokens"] for name in results]
    assert not torch.equal(tokens[0], tokens[2])  # each branch draws its own examples
    assert torch.allclose(model.query_tokens, torch.stack(tokens).mean(dim=0), atol=1e-3)
    inputs = processor(images=[Image.new("RGB", (60, 40), "red")] * 2, return_tensors="pt")
    ids = model.generate(**inputs, num_beams=2, max_new_tokens=5)
    assert len(processor.batch_decode(ids, skip_special_tokens=True)) == 2
    encoded = model.encode_images(inputs["pixel_values"])
    assert encoded.names.names[0] == encoded.names.names[1]

    # Nothing is made again: the stages' results are all there, and the second repo is the first.
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()}
    again = TinyRecipe(recipe, data, tmp_path / "work", data / "vision.pth")
    export_captioner(again, tmp_path / "again", embedded=True)
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()}
    again = EVCapForConditionalGeneration.from_pretrained(tmp_path / "again").eval()
    for (name, weight), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(weight, other), name
    assert again.memory.fingerprint == model.memory.fingerprint
    assert not list((tmp_path / "again").glob("*.py"))


def test_same_seed_gives_the_same_weights(data, recipe, tmp_path):
    results = []
    for run in ("one", "two"):
        trained = TinyRecipe(recipe, data, tmp_path / run, data / "vision.pth")
        torch.manual_seed(len(run) + len(results))  # what happened before must not matter
        results.append(load_file(trained.names_as_text() / "model.safetensors"))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(weight, results[1][name]) for name, weight in results[0].items())


def test_held_out_photos_are_not_trained_on(data, recipe, tmp_path):
    trained = TinyData(recipe, data, tmp_path)
    assert len(trained.held_out_photos) == 2
    assert not trained.held_out_photos & set(trained.training_photos)
    assert len(trained.training_objects) == 9  # the fourth photo of each name tests it
    held_out = [caption for photo in trained.held_out_photos for caption in trained.photos["captions"][photo]]
    text = (data / "text.txt").read_text()
    (data / "told.txt").write_text(text + "\n".join(held_out))
    told = TinyData({**recipe, "data": {**recipe["data"], "text": "told.txt"}}, data, tmp_path / "told")
    assert len(told.corpus) == len(text.splitlines())  # nor are their captions read as text
    assert len(trained.simulator.scene_words) == 7


def test_names_of_lvis_and_plain_lists(data):
    assert read_names(data / "names.json") == ["bell pepper", "capsicum", "dog"]


def test_missing_data_is_named(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"captions\.parquet.*data\.captions"):
        TinyRecipe(recipe, tmp_path, tmp_path / "work", tmp_path / "vision.pth")
