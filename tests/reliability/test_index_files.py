"""`index.faiss` is a cache that may be anybody's: odd ones are rebuilt with a warning, sound ones are used."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from hf_evcap import CaptionDatastore, VisualNameMemory
from hf_evcap.store_index import TooFewRowsError, make_index
from hf_evcap.store_index_check import index_problem
from hf_evcap.store_keys import KeyRows, normalize_keys


ROWS, DIM = 3000, 32
KINDS = [
    "Flat", "SQ8", "PQ8", "HNSW16", "HNSW16,SQ8", "IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8", "PCA16,IVF16,SQ8",
    "OPQ8,IVF16,PQ8", "IVF16,PQ8,RFlat", "SQ8,RFlat", "IVF16_HNSW8,SQ8", "PCAR8,HNSW16", "IVF16,SQ4",
]  # fmt: skip


@pytest.fixture(scope="module")
def keys() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((300, DIM))
    return (centres[rng.integers(0, 300, ROWS)] + 0.3 * rng.standard_normal((ROWS, DIM))).astype(np.float32)


def store_of(keys: np.ndarray, store_class: Any = VisualNameMemory, **options: Any) -> Any:
    return store_class.from_rows([f"thing {row % 40}" for row in range(len(keys))], keys, **options)


@pytest.mark.parametrize("factory", KINDS)
def test_an_index_of_the_rows_passes_and_others_do_not(factory: str, keys: np.ndarray, tmp_path: Path) -> None:
    rows = KeyRows.of(keys)
    faiss.write_index(make_index(factory, rows), str(tmp_path / "index"))
    for flags in (0, faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY):
        index = faiss.read_index(str(tmp_path / "index"), flags)
        assert [index_problem(index, factory, rows) for _ in range(4)] == [None] * 4  # whichever rows are probed
    rng = np.random.default_rng(1)
    moved = np.arange(ROWS)
    moved[: ROWS // 5] = rng.permutation(ROWS // 5)
    assert "compared differ" in str(index_problem(index, factory, KeyRows.of(keys[moved])))
    assert "compared differ" in str(
        index_problem(index, factory, KeyRows.of(rng.standard_normal(keys.shape, np.float32)))
    )
    assert "of the kind" in str(index_problem(index, "IVF8,SQ8", rows))
    assert "rows of" in str(index_problem(index, factory, rows.select(np.arange(ROWS - 1))))


def saved_with(folder: Path, change: Any) -> None:
    """Changes a folder's index, and tells the manifest that this is the one."""
    index = faiss.read_index(str(folder / "index.faiss"))
    faiss.write_index(change(index) or index, str(folder / "index.faiss"))
    forget_hash(folder)


def forget_hash(folder: Path) -> None:
    """Makes a folder one of an earlier version, which knows no hash of its index."""
    file = folder / "memory_config.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    for name in ("index_sha256", "settings_sha256", "files"):
        manifest.pop(name)
    file.write_text(json.dumps(manifest), encoding="utf-8")


def ids_of(index: Any) -> np.ndarray:
    cells = faiss.extract_index_ivf(index).invlists
    return np.concatenate(
        [faiss.rev_swig_ptr(cells.get_ids(cell), cells.list_size(cell)) for cell in range(cells.nlist)]
    )


def renumber(index: Any, change: Any) -> None:
    cells = faiss.extract_index_ivf(index).invlists
    for cell in range(cells.nlist):
        ids = faiss.rev_swig_ptr(cells.get_ids(cell), cells.list_size(cell))
        ids[:] = change(ids)


def permute(index: Any) -> None:
    order = np.random.default_rng(2).permutation(ROWS)
    kept = np.linspace(0, ROWS - 1, 16).astype(int)  # where the check used to look
    others = np.setdiff1d(np.arange(ROWS), kept)
    order = np.arange(ROWS)
    order[others] = np.random.default_rng(2).permutation(others)
    renumber(index, lambda ids: order[ids])


def unlink(index: Any) -> None:
    neighbors = index.hnsw.neighbors
    faiss.rev_swig_ptr(neighbors.data(), neighbors.size())[5] = ROWS + 7


TAMPERED = {
    "permuted": ("IVF16,SQ8", permute, "compared differ"),
    "ids out of range": ("IVF16,SQ8", lambda index: renumber(index, lambda ids: ids + 1), "there are not, or twice"),
    "ids twice": ("IVF16,PQ8", lambda index: renumber(index, lambda ids: ids // 2 * 2), "there are not, or twice"),
    "links": ("HNSW16", unlink, r"links to rows that there are not|neighbors.* out of range"),  # new FAISS sees it too
    "kind": ("IVF16,SQ8", lambda index: faiss.index_factory(DIM, "Flat", faiss.METRIC_INNER_PRODUCT), "rows of"),
    "metric": ("SQ8", lambda index: setattr(index, "metric_type", faiss.METRIC_L2), "another metric"),
}


@pytest.mark.parametrize("damage", TAMPERED)
def test_a_tampered_index_is_rebuilt_with_a_warning(
    damage: str, keys: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    factory, change, message = TAMPERED[damage]
    store = store_of(keys, index_factory=factory)
    store.save_pretrained(tmp_path / "store")
    saved_with(tmp_path / "store", change)
    logging.getLogger("hf_evcap").addHandler(caplog.handler)
    loaded = VisualNameMemory.from_pretrained(tmp_path / "store")
    assert re.search(message, caplog.text) and "rebuilt" in caplog.text
    found = loaded.search(keys[::10], 1)[1][:, 0]
    assert (found == np.arange(0, ROWS, 10)).mean() > 0.9


@pytest.mark.parametrize("store_class", [VisualNameMemory, CaptionDatastore])
@pytest.mark.parametrize("factory", ["IVF16,PQ8", "IVF16,SQ8", "HNSW16", "PCA16,IVF16,SQ8"])
def test_a_saved_index_is_used(
    factory: str, store_class: Any, keys: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(keys, store_class, index_factory=factory)
    store.save_pretrained(tmp_path / "store")
    logging.getLogger("hf_evcap").addHandler(caplog.handler)
    for memory_map in (False, True):
        loaded = store_class.from_pretrained(tmp_path / "store", memory_map=memory_map)
        assert loaded.key_rows.buffer.index is not None and not caplog.records
        np.testing.assert_array_equal(loaded.search(keys[:50], 5)[1], store.search(keys[:50], 5)[1])
    forget_hash(tmp_path / "store")
    assert store_class.from_pretrained(tmp_path / "store").key_rows.buffer.index is not None and not caplog.records


def test_an_index_of_two_exchanged_rows_is_known_by_its_hash(
    keys: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store_of(keys, index_factory="IVF16,SQ8").save_pretrained(tmp_path / "store")
    index = faiss.read_index(str(tmp_path / "store" / "index.faiss"))
    renumber(index, lambda ids: np.where(ids == 7, 8, np.where(ids == 8, 7, ids)))
    faiss.write_index(index, str(tmp_path / "store" / "index.faiss"))
    logging.getLogger("hf_evcap").addHandler(caplog.handler)
    loaded = VisualNameMemory.from_pretrained(tmp_path / "store")
    assert "not the one that was saved" in caplog.text
    assert loaded.search(keys[7:9], 1)[1][:, 0].tolist() == [7, 8]


def test_a_mapped_index_outlives_its_file(keys: np.ndarray, tmp_path: Path) -> None:
    """Another process saves the folder anew; rows that are added later need the index in memory."""
    folder = tmp_path / "store"
    store_of(keys, index_factory="IVF16,SQ8").save_pretrained(folder)
    loaded = VisualNameMemory.from_pretrained(folder, memory_map=True)
    store_of(keys[::-1].copy(), index_factory="IVF16,SQ8").save_pretrained(folder)
    loaded.add(["new"], -keys[:1])
    found = loaded.search(np.concatenate([-keys[:1], keys[:40]]), 1)[1][:, 0]
    assert found.tolist() == [ROWS, *range(40)]


def test_an_index_with_more_cells_than_rows_is_not_made(keys: np.ndarray) -> None:
    rows = KeyRows.of(keys[:50])
    with pytest.raises(TooFewRowsError, match="more cells than there are rows, 50"):
        make_index("IVF1000000000,Flat", rows)
    store = store_of(keys[:50], index_factory="IVF1000000000,Flat")
    assert store.search(keys[:2], 1)[1][:, 0].tolist() == [0, 1]
    index = faiss.IndexFlatIP(DIM)
    index.add(normalize_keys(keys[:50]))
    assert "cannot be of the kind" in str(index_problem(index, "IVF1000000000,Flat", rows))
