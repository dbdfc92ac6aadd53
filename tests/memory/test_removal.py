"""Rows taken away by name, source, kind and id, and rows taken back that one call added."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from hf_evcap import CaptionDatastore, VisualNameMemory


def keys(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 6)).astype(np.float32)


@pytest.fixture
def memory() -> VisualNameMemory:
    """As it was shipped, and a person's own rows."""
    shipped = VisualNameMemory.from_rows(
        ["umbrella", "umbrella", "owl", "rain"], keys(4), source="shipped", kind=["object", "object", None, "scene"]
    )
    return shipped.add(["umbrella", "ladle"], keys(2, 1), source="mine")


def rows_of(store: Any) -> list[tuple]:
    columns = [store.columns[name].to_pylist() for name in store.columns.column_names]
    return list(zip(*columns, store.keys[:, 0].tolist(), strict=True))


def test_a_name_within_a_source_or_kind_or_ids(memory: VisualNameMemory) -> None:
    whole = rows_of(memory)
    assert rows_of(memory.copy().remove("umbrella", source="mine")) == whole[:4] + whole[5:]
    assert (
        rows_of(memory.copy().remove(["umbrella"], source=["mine", "other"], kind="object")) == whole[:4] + whole[5:]
    )
    assert rows_of(memory.copy().remove(["umbrella"], rows=[1, 2, 5])) == whole[:1] + whole[2:]
    assert rows_of(memory.copy().remove(source="mine")) == whole[:4]
    assert rows_of(memory.copy().remove(rows=np.array([5, 0]))) == whole[1:5]
    assert rows_of(memory.copy().remove(kind="object")) == whole[3:4]  # no kind means an object
    assert rows_of(memory.copy().remove(["umbrella"])) == [row for row in whole if row[0] != "umbrella"]
    bare = VisualNameMemory.from_rows(["owl", "fox"], keys(2))
    assert bare.copy().remove("owl", kind="object").names == ["fox"]


@pytest.mark.parametrize(
    ("texts", "conditions", "error", "message"),
    [
        (["umbrella", "ladle"], {"source": "shipped"}, KeyError, "no such row of 'ladle'"),
        (["unheard of"], {}, KeyError, "no name 'unheard of'"),
        (["owl"], {"kind": "scene"}, KeyError, "no such row of 'owl'"),
        (None, {"source": "nobody"}, KeyError, "no row with source='nobody'"),
        (None, {"rows": [6]}, KeyError, "has 6 rows, and none with the id 6"),
        (None, {"rows": []}, KeyError, "no row with these ids"),
        (["owl"], {"colour": "red"}, ValueError, "no column 'colour'; its further columns are: source, kind"),
        (["owl"], {"source": ["mine", 3]}, ValueError, "column 'source' holds string"),
        (None, {}, ValueError, "Say what to remove"),
    ],
)
def test_nothing_is_removed_where_something_is_wrong(
    memory: VisualNameMemory, texts: Any, conditions: dict, error: Any, message: str
) -> None:
    before = memory.snapshot
    with pytest.raises(error, match=message):
        memory.remove(texts, **conditions)
    assert memory.snapshot is before


def test_added_rows_are_taken_back_whatever_happened_since(memory: VisualNameMemory) -> None:
    whole = rows_of(memory)
    added = memory.add(["umbrella"] * 3, keys(3, 2)).last_added
    assert added is not None and added.row_ids.tolist() == [6, 7, 8] and len(added) == 3
    memory.remove(["owl"]).add(["umbrella"], keys(1, 3)).rename({"umbrella": "parasol"})
    memory.remove(rows=[6])
    assert added.row_ids.tolist() == [5, 6] and repr(added) == "AddedRows(2 of 3 rows)"
    assert added.undo() == 2 and added.undo() == 0 and len(added) == 0
    assert len(memory) == len(whole)
    assert memory.keys[-1].tolist() == keys(1, 3)[0].tolist()
    later = memory.add(["fox"], keys(1, 4)).last_added
    later.undo()
    newest = memory.add(["fox"], keys(1, 5)).last_added
    assert later.undo() == 0 and len(newest) == 1  # a number is never given twice
    memory.index_factory = "HNSW8"
    memory.search(keys(1), 2)
    assert newest.undo() == 1 and "fox" not in memory.names


def test_nothing_added_is_nothing_to_take_back(memory: VisualNameMemory) -> None:
    before = memory.snapshot
    added = memory.add([], np.zeros((0, 6)), source="x").last_added
    assert memory.snapshot is before and len(added) == 0 and added.undo() == 0


def test_a_datastore_does_the_same() -> None:
    datastore = CaptionDatastore.from_rows(["a cat", "a dog"], keys(2), image_id=[7, 8], source="coco")
    datastore.add(["a cat"], keys(1, 1), image_id=9, source="mine")
    assert datastore.copy().remove("a cat", source="mine").image_ids == ["7", "8"]
    assert datastore.copy().remove(image_id="7").captions == ["a dog", "a cat"]
    assert datastore.copy().remove("a cat").captions == ["a dog"]
    assert datastore.last_added.undo() == 1 and datastore.image_ids == ["7", "8"]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
@pytest.mark.parametrize("index", ["Flat", "IVF2,SQ8", "HNSW8"])
def test_copies_of_a_searched_and_edited_store(index: str, again: Any) -> None:
    """As workers and `datasets.map` make them, after a search with an index and a removal."""
    memory = VisualNameMemory.from_rows([f"name {row % 7}" for row in range(70)], keys(70), index_factory=index)
    memory.search(keys(2), 3)
    memory.remove(["name 3"])
    expected = memory.search(keys(5, 9), 3)
    other = again(memory)
    assert rows_of(other) == rows_of(memory) and other.settings == memory.settings
    found = other.search(keys(5, 9), 3)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    other.add(["new"], keys(1, 10))
    assert len(memory) == 60 and other.last_added.row_ids.tolist() == [60]
    assert other.search(keys(1, 10), 1)[1].tolist() == [[60]]
