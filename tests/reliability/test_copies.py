"""Models that are copied, pickled and sent to other processes after they have searched with an index."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets.fingerprint import Hasher
from PIL import Image
from transformers import pipeline

import hf_evcap
from hf_evcap import CaptionDatastore
from hf_evcap.retrieval_smallcap import CaptionRetriever


@pytest.fixture(scope="module")
def pipe() -> Any:
    """The embedded model after a search with an approximate index, and a removal."""
    made = pipeline("image-to-text", model=hf_evcap.default_model())
    made.model.memory.index_factory = "IVF16,SQ8"
    made(photo())
    made.model.memory.remove(["tabby"])
    return made


def photo() -> Image.Image:
    return Image.open(Path(hf_evcap.__file__).parent / "assets" / "photos" / "cat.jpg").convert("RGB")


def names(model: Any, queries: torch.Tensor) -> list[list[str]]:
    return model.retrieve_names(queries).names


def retrieve(state: tuple[bytes, np.ndarray]) -> list[list[str]]:
    model, queries = state
    return names(pickle.loads(model), torch.from_numpy(queries))


def test_a_model_is_copied_and_pickled(pipe: Any) -> None:
    model = pipe.model
    pixels = pipe.processor(images=photo(), return_tensors="pt")["pixel_values"]
    queries = model.get_image_features(pixels).retrieval_queries.detach()
    expected = names(model, queries)
    assert "tabby" not in expected[0] and len(expected[0]) > 5
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
    }
    for how, other in copies.items():
        assert names(other, queries) == expected, how
        assert other.memory is not model.memory and other.retriever.memory is other.memory
        other.memory.remove([expected[0][0]])
        assert names(other, queries) != expected == names(model, queries), how
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(retrieve, ((pickle.dumps(model), queries.numpy()),)) == expected


def test_a_dataset_is_mapped_by_a_model(pipe: Any) -> None:
    """`datasets.map` hashes what its function holds."""
    model = pipe.model
    queries = np.random.default_rng(0).standard_normal((4, 1, model.memory_key_size)).astype("float32")
    rows = datasets.Dataset.from_dict({"query": queries.tolist()})
    mapped = rows.map(lambda row: {"name": names(model, torch.tensor([row["query"]]))[0][0]})
    assert mapped["name"][:] == [names(model, torch.from_numpy(query)[None])[0][0] for query in queries]
    first = Hasher.hash(model.memory)
    assert first == Hasher.hash(model.memory)
    assert first != Hasher.hash(model.memory.copy().remove(kind="scene"))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_datastore_in_a_retriever(again: Any) -> None:
    keys = np.random.default_rng(0).standard_normal((60, 8)).astype("float32")
    store = CaptionDatastore.from_rows([f"caption {row}" for row in range(60)], keys, index_factory="IVF2,SQ8")
    retriever = CaptionRetriever(store)
    retriever(torch.from_numpy(keys[:2]), 3)
    store.remove(["caption 5"])
    expected = retriever(torch.from_numpy(keys[:2]), 3)
    other = again(retriever)
    assert other(torch.from_numpy(keys[:2]), 3).captions == expected.captions
    other.memory.remove(["caption 1"])
    assert retriever(torch.from_numpy(keys[:2]), 3).captions == expected.captions
