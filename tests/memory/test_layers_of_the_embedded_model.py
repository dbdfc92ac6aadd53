"""Several memories in the embedded model: rule `vote` with the regression on scenes, weights, calls, languages."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

import hf_evcap
from hf_evcap import MemoryLayers, VisualNameMemory
from hf_evcap.retrieval_evcap import NameRetriever
from hf_evcap.scene_regression_evcap import SceneRegression


PHOTOS = Path(hf_evcap.__file__).parent / "assets" / "photos"


@pytest.fixture(scope="module")
def embedded() -> Any:
    return pipeline("image-to-text", model=hf_evcap.default_model())


@pytest.fixture
def pipe(embedded: Any) -> Iterator[Any]:
    model, memory, options = embedded.model, embedded.model.memory, copy.deepcopy(embedded.model.config)
    yield embedded
    model.set_memory(memory)
    model.config.retrieval_options = options.retrieval_options
    model.config.retrieval_rule = options.retrieval_rule


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted(PHOTOS.glob("*.jpg"))]


@pytest.fixture(scope="module")
def queries(embedded: Any, photos: list[Image.Image]) -> torch.Tensor:
    pixels = embedded.processor.image_processor(photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return embedded.model.get_image_features(pixels).retrieval_queries


def halves(memory: VisualNameMemory) -> tuple[VisualNameMemory, VisualNameMemory]:
    """A memory in two parts; a photo's rows stay together."""
    first = np.array([int(photo, 16) % 2 == 0 for photo in memory.columns["photo"].to_pylist()])
    parts = [memory.copy(), memory.copy()]
    for part, mask in zip(parts, (first, ~first), strict=True):
        part.remove(rows=(~mask).nonzero()[0])
    return parts[0], parts[1]


@pytest.mark.parametrize("rule", ["vote with a regression", "vote", "release"])
def test_layers_answer_as_their_union(pipe: Any, queries: torch.Tensor, rule: str) -> None:
    model = pipe.model
    if rule == "vote":
        model.config.retrieval_options = {**model.config.retrieval_options, "ridge_penalty": None}
    model.config.retrieval_rule = rule.split()[0]
    memory = model.memory.copy()
    if rule == "release":
        memory.remove(kind="scene")  # rows of the same photo are equally near, in any order
    first, second = halves(memory)
    union = first.merge(second)
    assert len(union) == len(memory) and 500 < len(first) < len(union) - 500
    expected = NameRetriever(union, model.name_tokenizer, model.config.max_name_length)
    model.set_memory({"first": first, "second": second})
    for excluded in (None, torch.tensor([[7, len(first) + 5, -1]] * len(queries))):
        found = model.retrieve_names(queries, excluded)
        wanted = expected(queries, model.config, excluded)
        assert found.names == wanted.names
        torch.testing.assert_close(found.scores, wanted.scores, atol=2e-4, rtol=2e-3)
        torch.testing.assert_close(found.row_ids, wanted.row_ids)
        places = [["first" if row < len(first) else "second" for row in rows if row >= 0] for rows in wanted.row_ids]
        assert found.memories == places and len({label for labels in places for label in labels}) == 2
    own = wanted.row_ids[:, :3]  # a photo that is left out whole
    assert model.retrieve_names(queries, own).names == expected(queries, model.config, own).names != wanted.names


def test_weights_of_layers_count_in_the_regression(pipe: Any, queries: torch.Tensor) -> None:
    """A name that two layers say of the same photos: the heavier layer's word comes first, whichever it is."""
    model = pipe.model
    scenes = model.memory.subset(lambda name: True).remove(kind="object")
    key = queries[0, :1].numpy()
    layers = {
        word: VisualNameMemory.from_rows(
            [word] * 20, key.repeat(20, 0), kind="scene", photo=[f"{n}" for n in range(20)]
        )
        for word in ("teapot", "kettle")
    }
    for heavier, lighter in (("teapot", "kettle"), ("kettle", "teapot")):
        model.set_memory(MemoryLayers({"scenes": scenes, **layers}, weights={heavier: 3.0, lighter: 0.5}))
        names = model.retrieve_names(queries[:1]).names[0]
        assert names.index(heavier) < (names.index(lighter) if lighter in names else 99)
    both = model.retrieve_names(queries[:1], memory={"teapot": 1.0, "kettle": 1.0, "scenes": 1.0})
    assert {"teapot", "kettle"} <= set(both.names[0])


def test_a_photo_of_weight_two_counts_twice() -> None:
    rng = np.random.default_rng(0)
    keys = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((12, 6)).astype("float32")), dim=1)
    photos, names = torch.arange(12).repeat(2), torch.from_numpy(rng.integers(0, 5, 24))
    weights = torch.ones(12)
    weights[:4] = 2
    weighted = SceneRegression(keys, photos, names, 5, 0.5, weights)
    twice = SceneRegression(
        torch.cat([keys, keys[:4]]),
        torch.cat([photos, torch.arange(12, 16).repeat(2)]),
        torch.cat([names, names[:4], names[12:16]]),
        5,
        0.5,
    )
    queries = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((3, 6)).astype("float32")), dim=1)
    torch.testing.assert_close(weighted(queries), twice(queries), atol=1e-5, rtol=1e-4)
    left_out = torch.tensor([[1, 7], [0, -1], [11, 3]])
    copies = torch.tensor([[1, 7, 13], [0, 12, -1], [11, 3, 15]])
    torch.testing.assert_close(weighted(queries, left_out), twice(queries, copies), atol=1e-5, rtol=1e-4)


def test_memories_of_a_call(pipe: Any, photos: list[Image.Image], tmp_path: Path) -> None:
    model, base = pipe.model, pipe.model.memory
    keys = model.encode_memory_keys(pipe.processor, photos[:1]).numpy()
    kitchen = VisualNameMemory.from_rows(["quokka"], keys, encoder_fingerprint=base.encoder_fingerprint)
    kitchen.save_pretrained(tmp_path / "kitchen")
    alone = pipe(photos[0])[0]
    for memory in ([base, kitchen], [base, str(tmp_path / "kitchen")], {str(tmp_path / "kitchen"): 2.0, base: 1.0}):
        answer = pipe(photos[0], memory=memory)[0]
        assert answer["retrieved_names"][0]["name"] == "quokka"
        assert {name["memory"] for name in answer["retrieved_names"][1:]} <= {"memory 0", "memory 1"}
        assert [name["name"] for name in answer["retrieved_names"][1:]][:3] == [
            name["name"] for name in alone["retrieved_names"]
        ][:3]
    assert pipe(photos[0]) == [alone]  # the model's own memory is as it was


def test_layers_travel_with_the_model(pipe: Any, photos: list[Image.Image], tmp_path: Path) -> None:
    first, second = halves(pipe.model.memory)
    pipe.model.set_memory(MemoryLayers({"first": first, "second": second}, weights={"second": 1.5}))
    expected = pipe(photos[:3])
    pipe.save_pretrained(tmp_path / "model")
    loaded = pipeline("image-to-text", model=str(tmp_path / "model"))
    assert loaded.model.memory.weights == {"first": 1.0, "second": 1.5}
    assert loaded(photos[:3]) == expected
    assert loaded(photos[0], memory="second")[0]["retrieved_names"][0]["memory"] == "second"


def test_names_in_another_language_in_layers(pipe: Any, queries: torch.Tensor) -> None:
    """A layer that lacks the column keeps its names; if none has it, that is an error."""
    model = pipe.model
    first, second = halves(model.memory)
    known = sorted(set(first.names))
    first.set_column("name_ko", {name: f"한 {name}" for name in known})
    model.set_memory({"first": first, "second": second})
    plain, korean = model.retrieve_names(queries), model.retrieve_names(queries, name_column="name_ko")
    worded = [name for names in korean.names for name in names if name.startswith("한 ")]
    assert worded and {name.removeprefix("한 ") for name in worded} <= set(known)
    assert set(sum(plain.names, [])) & set(sum(korean.names, []))  # of the other layer
    first.set_column("name_ko", None)
    with pytest.raises(ValueError, match="no column 'name_ko' to name things by"):
        model.retrieve_names(queries, name_column="name_ko")


def test_layers_follow_edits(pipe: Any, queries: torch.Tensor) -> None:
    model = pipe.model
    first, second = halves(model.memory)
    model.set_memory({"first": first, "second": second})
    model.retrieve_names(queries)
    second.add(["quokka"], queries[0, :1].numpy(), kind="object")
    found = model.retrieve_names(queries)
    assert found.names[0][0] == "quokka" and found.row_ids[0, 0] == len(first) + len(second) - 1
    first.remove([name for name in found.names[0][1:3] if name in set(first.names)] or ["tabby"])
    assert model.retrieve_names(queries).names[0][0] == "quokka"
    second.last_added.undo()
    assert "quokka" not in sum(model.retrieve_names(queries).names, [])
