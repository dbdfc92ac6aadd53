"""A memory in a model: edits, layers, names in other columns, rejection, indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

from hf_evcap import EVCapForConditionalGeneration, MemoryLayers, VisualNameMemory
from hf_evcap.memory_building.quality_report import near_duplicates, quality_report
from hf_evcap.memory_building.rejection import calibrate
from hf_evcap.retrieval_evcap import NameRetriever


@pytest.fixture
def model(model_of: Any) -> Any:
    return model_of()


@pytest.fixture
def queries(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.get_image_features(inputs["pixel_values"]).retrieval_queries


def keys_near(queries: torch.Tensor, photo: int, rows: int = 1) -> np.ndarray:
    """Keys that nothing lies nearer to than the first queries of a photo."""
    keys = queries[photo, :rows].numpy()
    return keys + 0.02 * np.random.default_rng(photo).standard_normal(keys.shape)


def fresh_names(model: Any, queries: torch.Tensor) -> list[list[str]]:
    """What a retriever that knows nothing of earlier rows retrieves."""
    retriever = NameRetriever(model.memory, model.name_tokenizer, model.config.max_name_length)
    return retriever(queries, model.config).names


@pytest.mark.parametrize("index", [None, "HNSW16", "IVF2,SQ8"])
def test_the_model_follows_every_edit(model: Any, queries: torch.Tensor, index: str | None) -> None:
    memory = model.memory
    memory.index_factory = index
    before = model.retrieve_names(queries)
    retriever = model.retriever
    memory.add(["Axolotl", "red fox"], keys_near(queries, 0, 2), kind="object")
    after = model.retrieve_names(queries)
    assert model.retriever is retriever  # followed, not made anew
    assert {"axolotl", "red fox"} <= set(after.names[0])
    assert after.row_ids[0, after.names[0].index("axolotl")] == 14
    assert after.names == fresh_names(model, queries)
    memory.rename({"Axolotl": "newt"})
    assert "newt" in model.retrieve_names(queries).names[0]
    memory.remove(["newt"])
    memory.add(["axolotl"], keys_near(queries, 1))
    again = model.retrieve_names(queries)
    assert again.names == fresh_names(model, queries)
    assert "axolotl" in again.names[1]
    memory.remove(["axolotl"])
    assert "newt" not in sum(model.retrieve_names(queries).names, []) + before.names[0]


def test_layers(model: Any, queries: torch.Tensor) -> None:
    base = model.memory
    kitchen = VisualNameMemory.from_rows(["ladle", "owl"], keys_near(queries, 0, 2))
    garden = VisualNameMemory.from_rows(["rake"], keys_near(queries, 1))
    model.set_memory({"base": base, "kitchen": kitchen, "garden": garden})
    assert isinstance(model.memory, MemoryLayers) and len(model.memory) == 17
    everything = model.retrieve_names(queries)
    assert "ladle" in everything.names[0] and "rake" in everything.names[1]
    assert everything.memories[0][everything.names[0].index("ladle")] == "kitchen"
    assert everything.row_ids[0, everything.names[0].index("ladle")] == 14
    joined = base.merge(kitchen).merge(garden)
    assert everything.names == NameRetriever(joined, model.name_tokenizer, 128)(queries, model.config).names

    only = model.retrieve_names(queries, memory="kitchen")
    assert set(sum(only.names, [])) == {"ladle", "owl"} and set(sum(only.memories, [])) == {"kitchen"}
    two = model.retrieve_names(queries, memory=["kitchen", "garden"])
    assert set(sum(two.names, [])) == {"ladle", "owl", "rake"}
    assert set(model.retrieve_names(queries, memory=garden).names[2]) == {"rake"}
    with pytest.raises(
        ValueError, match="'cellar' is neither a layer of the model .the layers are base, kitchen, garden"
    ):
        model.retrieve_names(queries, memory="cellar")
    with pytest.raises(TypeError, match="takes names of layers"):
        model.retrieve_names(queries, memory=[3])

    kitchen.add(["whisk"], keys_near(queries, 2))
    assert "whisk" in model.retrieve_names(queries).names[2]
    garden.remove(["rake"])
    assert "rake" not in sum(model.retrieve_names(queries).names, [])


def test_weights_decide_between_layers(model: Any, queries: torch.Tensor) -> None:
    key = keys_near(queries, 0)
    layers = {name: VisualNameMemory.from_rows([name], key) for name in ("left", "right")}
    model.set_memory(MemoryLayers(layers, weights={"right": 1.5}))
    found = model.retrieve_names(queries[:1])
    assert found.names == [["right", "left"]]
    assert found.scores[0, 0].item() == pytest.approx(1.5 * found.scores[0, 1].item())
    turned = model.retrieve_names(queries[:1], memory={"left": 2.0, "right": 1.0})
    assert turned.names == [["left", "right"]]
    for weight in (0, -1, float("nan"), "much"):
        with pytest.raises(ValueError, match="must be a number above 0"):
            model.retrieve_names(queries[:1], memory={"left": weight})
    with pytest.raises(ValueError, match="weights for .'middle'."):
        MemoryLayers(layers, weights={"middle": 2.0})
    with pytest.raises(ValueError, match="layer's name may hold"):
        MemoryLayers({"../left": layers["left"]})


def test_layers_exclude_rows_of_each(model: Any, queries: torch.Tensor) -> None:
    key = keys_near(queries, 0)
    model.set_memory({name: VisualNameMemory.from_rows([name], key) for name in ("left", "right")})
    found = model.retrieve_names(queries[:1], exclude_rows=torch.tensor([[1, -1]]))
    assert found.names == [["left"]] and found.row_ids.tolist()[0][0] == 0


def test_layers_come_along_with_the_model(
    model: Any, processor: Any, queries: torch.Tensor, photo_paths: list[str], tmp_path: Path
) -> None:
    kitchen = VisualNameMemory.from_rows(["ladle"], keys_near(queries, 0), source="kitchen")
    model.set_memory(MemoryLayers({"base": model.memory, "kitchen": kitchen}, weights={"kitchen": 1.25}))
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded = EVCapForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert loaded.memory.weights == {"base": 1.0, "kitchen": 1.25}
    assert loaded.memory["kitchen"].fingerprint == kitchen.fingerprint
    assert loaded.retrieve_names(queries).names == model.retrieve_names(queries).names
    kitchen.save_pretrained(tmp_path / "elsewhere")
    pipe = pipeline("image-to-text", model=str(tmp_path / "model"))
    names = {}
    for label, memory in {"all": None, "one": ["kitchen"], "folder": str(tmp_path / "elsewhere")}.items():
        names[label] = pipe(photo_paths[0], max_new_tokens=2, **({} if memory is None else {"memory": memory}))[0][
            "retrieved_names"
        ]
    assert [name["memory"] for name in names["one"]] == ["kitchen"]
    assert [name["name"] for name in names["folder"]] == ["ladle"]
    assert names["all"][0]["name"] == "ladle" and len(names["all"]) == 4
    loaded.set_memory(loaded.memory["base"])
    loaded.save_pretrained(tmp_path / "model")
    assert isinstance(EVCapForConditionalGeneration.from_pretrained(tmp_path / "model").memory, VisualNameMemory)


def test_names_in_another_language(model: Any, queries: torch.Tensor, tmp_path: Path) -> None:
    memory = model.memory
    memory.set_column("name_ko", {"owl": "부엉이", "dog": "개"})
    memory.save_pretrained(tmp_path / "memory")
    memory = VisualNameMemory.from_pretrained(tmp_path / "memory")
    model.set_memory(memory)
    plain, korean = model.retrieve_names(queries), model.retrieve_names(queries, name_column="name_ko")
    words = {"owl": "부엉이", "dog": "개"}
    assert korean.names == [[words.get(name, name) for name in photo] for photo in plain.names]
    assert korean.names != plain.names
    memory.add(["owl"], keys_near(queries, 3), name_ko="수리부엉이")
    assert "수리부엉이" in model.retrieve_names(queries, name_column="name_ko").names[3]
    assert "owl" in model.retrieve_names(queries).names[3]
    with pytest.raises(ValueError, match="no column 'name_fr' to name things by; it has name, name_ko"):
        model.retrieve_names(queries, name_column="name_fr")
    memory.retrieval["name_column"] = "name_ko"  # the memory's own choice
    assert "수리부엉이" in model.retrieve_names(queries).names[3]


def test_rejection_is_off_until_it_is_calibrated(model: Any, queries: torch.Tensor) -> None:
    memory = model.memory
    assert memory.min_similarity is None
    found = model.retrieve_names(queries)
    memory.retrieval["min_similarity"] = 1.1
    none = model.retrieve_names(queries)
    assert none.names == [[]] * 4 and none.row_ids.eq(-1).all()
    best = found.scores[:, 0].tolist()
    memory.retrieval["min_similarity"] = sorted(best)[2] - 1e-6
    some = model.retrieve_names(queries)
    assert [bool(names) for names in some.names] == [score >= sorted(best)[2] - 1e-6 for score in best]
    for index in range(4):
        assert some.names[index] == found.names[index][: len(some.names[index])]


def test_calibration() -> None:
    known, unknown = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.5, 0.3, 0.65])
    apart = calibrate(known, unknown, keep=0.75)
    assert 0.65 < apart.min_similarity <= 0.7
    assert (apart.known_kept, apart.unknown_rejected) == (0.75, 1.0)
    assert apart.separation == pytest.approx(11 / 12)
    keeping = calibrate(known, unknown, keep=1.0)
    assert keeping.known_kept == 1.0 and keeping.unknown_rejected == pytest.approx(2 / 3)
    alone = calibrate(np.linspace(0.01, 1, 100), keep=0.95)
    assert alone.known_kept == 0.95 and alone.unknown_rejected is None
    with pytest.raises(ValueError, match="there are none"):
        calibrate(np.zeros(0))


def test_the_report_finds_what_is_wrong() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((30, 32)) * 3
    names = [
        f"{word} {'abcdefghij'[n % 10] * 3}" for n, word in enumerate(["cup", "pan", "jar"] * 10) for _ in range(4)
    ]
    keys = np.repeat(centres, 4, axis=0) + 0.5 * rng.standard_normal((120, 32))
    keys[8:12] = rng.standard_normal((4, 32)) * 3  # the exemplars of the third name have nothing in common
    names += ["hub", "Cup  aaa", "red foxes", "red fox"]
    keys = np.concatenate([keys, centres.mean(axis=0, keepdims=True) * 3 + 1e-3, rng.standard_normal((3, 32))])
    memory = VisualNameMemory.from_rows(names, keys)
    report = quality_report(memory)
    assert [name for name, _ in report.disagreeing_names][:1] == [names[8]]
    assert ["Cup aaa", "cup aaa"] in report.near_duplicate_names
    assert ["red fox", "red foxes"] in report.near_duplicate_names
    assert report.rows_per_name == {1: 4, 4: 30}
    probed = quality_report(memory, probes=centres[:5])
    assert set(names[:20]) - set(names[8:12]) <= set(names) - set(probed.never_retrieved)
    assert "red fox" in probed.never_retrieved and probed.probe == "5 probes"
    copies = np.concatenate([keys[:100], np.tile(keys[:1], (1, 1))])
    many = VisualNameMemory.from_rows(["x"] * 101, copies)
    asking = np.tile(keys[:1], (60, 1)) + 0.01 * rng.standard_normal((60, 32))
    assert {row["row"] for row in quality_report(many, asking).hub_rows} >= {0, 100}
    assert quality_report(VisualNameMemory.empty(4)).to_dict()["rows"] == 0


def test_near_duplicates() -> None:
    names = [
        "teapot",
        "Teapots",
        "tea-pot",
        "wine glass",
        "glass, wine",
        "glasses",
        "bus",
        "buses",
        "raccoon",
        "racoon",
    ]
    assert near_duplicates(names) == [["Teapots", "teapot"], ["glass, wine", "wine glass"], ["raccoon", "racoon"]]
    assert near_duplicates(["cat", "car", "dog"]) == []
