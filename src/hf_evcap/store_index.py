"""FAISS index over the keys of a retrieval store: which one, built, followed, searched, read and written."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from .store_index_check import fits_rows, import_faiss, index_problem
from .store_keys import KeyBuffer, KeyRows, exact_search, normalize_keys
from .store_manifest import hash_file


logger = logging.get_logger(__name__)

FLAT_ROWS = 100_000  # up to here comparing with every row is fast enough, and exact
TRAIN_ROWS_PER_CELL = 48
PROBED_CELLS = 48
CODED_COMPONENTS = 256
HNSW_EF_SEARCH = 64
REFINED_CANDIDATES = 48  # beyond k, compared again exactly


def default_index_factory(rows: int, dim: int) -> str:
    """
    Chooses an index by size: exact up to 100,000 rows, then inverted lists of 8-bit codes, about 2 sqrt(rows) of them.

    Codes are made of the keys' 256 principal components, a twelfth of the room and bandwidth of 768 floats; the best
    candidates are compared again exactly.
    """
    if rows <= FLAT_ROWS:
        return "Flat"
    reduced = f"PCA{CODED_COMPONENTS}," if dim > CODED_COMPONENTS else ""
    return f"{reduced}IVF{2 ** round(np.log2(rows) / 2 + 1)},SQ8"


class TooFewRowsError(ValueError):
    """An index cannot be trained on so few rows."""


def make_index(factory: str, keys: KeyRows) -> Any:
    """
    Builds an inner-product index over normalised keys; the same keys give the same index.

    Raises:
        ValueError: FAISS does not know the factory string, or it needs another dimension.
        TooFewRowsError: It needs more rows.
    """
    faiss = import_faiss()
    if not fits_rows(factory, keys.length):
        raise TooFewRowsError(f"The index {factory!r} has more cells than there are rows, {keys.length}.")
    try:
        index = faiss.index_factory(keys.dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"FAISS cannot make the index {factory!r} for keys of dimension {keys.dim}. Strings such as 'Flat', "
            "'HNSW32', 'IVF1024,SQ8' and 'IVF1024,PQ96' are described in FAISS's guide to the index factory."
        ) from error
    inverted = inverted_lists(index)
    cells = 0
    if inverted is not None:
        cells = inverted.nlist
        inverted.nprobe = min(PROBED_CELLS, cells)
        inverted.cp.niter = 10
        inverted.cp.min_points_per_centroid, inverted.cp.max_points_per_centroid = 1, TRAIN_ROWS_PER_CELL
    if not index.is_trained:
        sample = keys.length if not cells else min(keys.length, max(TRAIN_ROWS_PER_CELL * cells, 65536))
        rows = np.sort(np.random.default_rng(0).permutation(keys.length)[:sample])
        try:
            vectors = normalize_keys(keys.take(rows))
            _train_transform(index, vectors)
            index.train(vectors)
        except RuntimeError as error:
            raise TooFewRowsError(
                f"The index {factory!r} cannot be trained on {keys.length} rows ({_reason(error)})."
            ) from error
    graph = innermost(index)
    if isinstance(graph, faiss.IndexHNSW):
        graph.hnsw.efSearch = HNSW_EF_SEARCH
    for block in keys.blocks():
        index.add(normalize_keys(block))
    return index


def _train_transform(index: Any, vectors: np.ndarray) -> None:
    """Trains a leading PCA on vectors and their mirror images: it must not shift them, inner products would change."""
    faiss = import_faiss()
    if isinstance(index, faiss.IndexPreTransform):
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        if isinstance(transform, faiss.PCAMatrix):
            sample = vectors[:: max(1, len(vectors) // 30_000)]
            transform.train(np.concatenate([sample, -sample]))


def innermost(index: Any) -> Any:
    """The index behind transforms such as OPQ and PCA and behind refinement, as its own class."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    while isinstance(index, (faiss.IndexPreTransform, faiss.IndexRefine)):
        index = faiss.downcast_index(index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index)
    return index


def inverted_lists(index: Any) -> Any:
    """The inverted-file index behind transforms, or `None` if it is of another kind."""
    inner = innermost(index)
    return inner if isinstance(inner, import_faiss().IndexIVF) else None


def _reason(error: RuntimeError) -> str:
    return str(error).splitlines()[0].split("failed: ")[-1].split("Error: ")[-1].strip("' ")[:200]


def search_parameters(index: Any, selector: Any) -> Any:
    """Parameters with which an index searches only selected rows, or `None` if its kind cannot."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = search_parameters(index.index, selector)
        return None if inner is None else faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexIVF):
        made = faiss.IVFPQSearchParameters if isinstance(index, faiss.IndexIVFPQ) else faiss.SearchParametersIVF
        return made(sel=selector, nprobe=index.nprobe)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=index.hnsw.efSearch)
    if isinstance(index, (faiss.IndexFlat, faiss.IndexScalarQuantizer)):
        return faiss.SearchParameters(sel=selector)
    return None


class SharedUse:
    """Lets many threads read side by side, or one change what they read; whoever waits to change it goes first."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._readers = 0
        self._changing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Holds off changes."""
        with self._condition:
            self._condition.wait_for(lambda: not self._changing)
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                self._condition.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Waits until nobody reads, and holds off readers and other changes."""
        with self._condition:
            self._condition.wait_for(lambda: not self._changing)
            self._changing = True
            self._condition.wait_for(lambda: not self._readers)
        try:
            yield
        finally:
            with self._condition:
                self._changing = False
                self._condition.notify_all()


class RowIndex:
    """
    An index over the rows of a [`KeyBuffer`], shared by all stores that look at the buffer, in any thread.

    Rows written to the buffer are added to the index when it is next searched; searches wait for that, not for each
    other. Rows that a store has dropped stay in the index and are passed over.

    Args:
        factory (`str`): FAISS factory string.
        index (`faiss.Index`): Over the buffer's first rows, in order.
        file (`str` or `os.PathLike`, *optional*): Where it is memory-mapped from, if it is; it cannot grow in place.
    """

    def __init__(self, factory: str, index: Any, file: str | os.PathLike | None = None) -> None:
        self.factory = factory
        self.index = index
        self.file = file
        self._use = SharedUse()
        self._selectors: list[tuple[KeyRows, int, Any]] = []  # for the last few sets of rows that were searched

    def __getstate__(self) -> dict[str, Any]:
        with self._use.reading():
            return {"factory": self.factory, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["factory"], state["index"])  # type: ignore[misc]

    def follow(self, buffer: KeyBuffer) -> None:
        """Adds the buffer's rows that the index does not hold yet."""
        if self.index.ntotal >= buffer.used:
            return
        with self._use.changing():
            if self.file is not None:  # a memory-mapped index is read-only
                self.index, self.file = self._in_memory(buffer), None
            for start in range(self.index.ntotal, buffer.used, 16384):
                self.index.add(normalize_keys(buffer.array[start : min(start + 16384, buffer.used)]))

    def _in_memory(self, buffer: KeyBuffer) -> Any:
        """What is memory-mapped, read as a whole; made anew where the file was replaced or is gone."""
        rows = KeyRows(buffer, self.index.ntotal)
        read = read_index(Path(str(self.file)), self.factory, rows, memory_map=False)
        return make_index(self.factory, rows) if read is None else read.index

    def search(self, queries: np.ndarray, keys: KeyRows, k: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Finds rows of `keys` near to queries; candidates are compared exactly, so scores are true cosines.

        Args:
            queries (`np.ndarray` of shape `(num_queries, dim)`): Of unit length.
            keys ([`KeyRows`]): Rows of the buffer that the index follows.
            k (`int`): At most the number of keys.

        Returns:
            Scores and rows of shape `(num_queries, k)`, best first.
        """
        self.follow(keys.buffer)
        with self._use.reading():
            slots = self._nearest_slots(queries, keys, min(k + max(REFINED_CANDIDATES, k), len(keys)))
        present = slots >= 0
        places = keys.slots
        rows = slots.clip(min=0) if places is None else np.searchsorted(places, slots.clip(min=0))
        candidates = keys.buffer.array[slots.clip(min=0)].astype(np.float32, copy=False)
        scores = np.einsum("qd,qcd->qc", queries, candidates) * keys.buffer.scale[slots.clip(min=0)]
        scores = np.where(present, scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        short = np.isneginf(scores).any(axis=1)
        if short.any():  # the lists that were looked at did not hold k rows
            scores[short], rows[short] = exact_search(queries[short], keys, k)
        return scores.astype(np.float32), rows.astype(np.int64)

    def _nearest_slots(self, queries: np.ndarray, keys: KeyRows, k: int) -> np.ndarray:
        """Gives the buffer places of about the `k` nearest rows of each query, -1 where fewer were found."""
        if len(keys) == self.index.ntotal:
            return self.index.search(queries, k)[1]
        parameters = search_parameters(self.index, self._selector(keys))
        if parameters is not None:
            return self.index.search(queries, k, params=parameters)[1]
        idle = self.index.ntotal - len(keys)  # at most half of them, see `KeyRows.keep`
        slots = self.index.search(queries, min(k + idle, self.index.ntotal))[1]
        known = slots < len(keys) if keys.slots is None else np.isin(slots, keys.slots)
        order = np.argsort(~known | (slots < 0), axis=1, kind="stable")[:, :k]
        return np.take_along_axis(np.where(known, slots, -1), order, 1)

    def _selector(self, keys: KeyRows) -> Any:
        faiss = import_faiss()
        if keys.slots is None:
            return faiss.IDSelectorRange(0, len(keys))
        for known, total, selector in self._selectors:
            if known is keys and total == self.index.ntotal:
                return selector
        chosen = np.zeros(self.index.ntotal, dtype=bool)
        chosen[keys.slots] = True
        selector = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
        self._selectors = [*self._selectors[-3:], (keys, self.index.ntotal, selector)]
        return selector

    def over(self, keys: KeyRows) -> Any:
        """`faiss.Index`: Over exactly these rows, in their order."""
        self.follow(keys.buffer)
        with self._use.reading():
            return self.index if len(keys) == self.index.ntotal else make_index(self.factory, keys)

    def write(self, file: Path, keys: KeyRows) -> None:
        """Writes an index over exactly these rows."""
        self.follow(keys.buffer)
        with self._use.reading():
            index = self.index if len(keys) == self.index.ntotal else make_index(self.factory, keys)
            import_faiss().write_index(index, str(file))


def write_flat_index(file: Path, keys: KeyRows) -> None:
    """Writes the exact index."""
    import_faiss().write_index(make_index("Flat", keys), str(file))


def read_index(
    file: Path, factory: str, keys: KeyRows, memory_map: bool, sha256: str | None = None
) -> RowIndex | None:
    """
    Reads a stored index if it is of these rows; otherwise warns and returns `None`, so that it is built again.

    Args:
        file (`Path`): The index file.
        factory (`str`): FAISS factory string it was made by.
        keys ([`KeyRows`]): The rows.
        memory_map (`bool`): Leave the file on disk and read what a search needs.
        sha256 (`str`, *optional*): Of the file, where it is known.
    """
    if not file.is_file():
        logger.warning(f"{file} is missing; the index will be rebuilt from the rows.")
        return None
    if sha256 is not None and hash_file(file) != sha256:
        logger.warning(f"{file} is not the one that was saved with the rows; the index will be rebuilt from them.")
        return None
    faiss = import_faiss()
    try:
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if memory_map else 0
        index = faiss.read_index(str(file), flags)
    except (RuntimeError, MemoryError) as error:
        problem = _reason(error) if isinstance(error, RuntimeError) else "it asks for more memory than there is"
        logger.warning(f"{file} cannot be read ({problem}); the index will be rebuilt from the rows.")
        return None
    oddity = index_problem(index, factory, keys)
    if oddity is not None:
        logger.warning(f"{file} {oddity}; the index will be rebuilt from the rows.")
        return None
    return RowIndex(factory, index, file if memory_map else None)


__all__ = [
    "RowIndex",
    "TooFewRowsError",
    "default_index_factory",
    "make_index",
    "read_index",
    "write_flat_index",
]
