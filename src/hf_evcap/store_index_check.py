"""Whether a stored index is of the rows that it lies beside; found out before it is searched."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .store_keys import KeyRows, normalize_keys


PROBES = 128
TOLERANCE = 0.02  # of a cosine: codes that another machine's rounding made


def import_faiss() -> Any:
    """Imports faiss, or says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("Indexes need faiss: `pip install faiss-cpu`.") from error
    return faiss


def index_problem(index: Any, factory: str, keys: KeyRows) -> str | None:
    """
    Looks for what is odd about an index.

    Sizes, metric and kind must be those of the factory string, every row must stand in it once, links must lead to
    rows, and random rows must be stored as their keys would be. Whether it finds its rows is not asked: coarse codes
    may not, and are as good as they were when they were saved.

    Args:
        index (`faiss.Index`): Read from a file that may be anybody's.
        factory (`str`): What it should be.
        keys ([`KeyRows`]): The rows.

    Returns:
        `str` or `None`: What is odd, in words; `None` if nothing is.
    """
    faiss = import_faiss()
    if index.ntotal != len(keys) or index.d != keys.dim or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return f"holds {index.ntotal} rows of {index.d} numbers, not {len(keys)} of {keys.dim}, or another metric"
    if not fits_rows(factory, len(keys)):
        return f"cannot be of the kind {factory!r} over {len(keys)} rows"
    try:
        if _kinds(index) != _kinds(faiss.index_factory(keys.dim, factory, faiss.METRIC_INNER_PRODUCT)):
            return f"is not of the kind {factory!r}"
        if len(keys) == 0:
            return None
        rows = np.unique(np.append(np.random.default_rng().integers(0, len(keys), PROBES), [0, len(keys) - 1]))
        return _layer_problem(index, rows, normalize_keys(keys.take(rows)))
    except RuntimeError as error:
        return f"cannot be looked into ({str(error).splitlines()[0][-200:]})"


def fits_rows(factory: str, rows: int) -> bool:
    """Whether an index of this kind asks for no more cells than there are rows; FAISS makes room for them at once."""
    return all(int(cells) <= max(rows, 1) for cells in re.findall(r"(?:IVF|IMI2x)(\d+)", factory))


def _kinds(index: Any) -> list[tuple[Any, ...]]:
    """The classes of an index and of those inside of it, with the sizes that tell them apart."""
    faiss = import_faiss()
    one = faiss.downcast_index(index)  # a view of `index`, which must outlive it
    kind: tuple[Any, ...] = (type(one).__name__.removesuffix("IP"), one.d)  # a file does not tell IndexFlatIP apart
    if isinstance(one, faiss.IndexPreTransform):
        chain = [faiss.downcast_VectorTransform(one.chain.at(place)) for place in range(one.chain.size())]
        return [kind, *((part.d_in, part.d_out) for part in chain), *_kinds(one.index)]  # OPQ is read as a matrix
    if isinstance(one, faiss.IndexRefine):
        return [kind, *_kinds(one.base_index), *_kinds(one.refine_index)]
    if isinstance(one, faiss.IndexHNSW):
        return [(*kind, one.hnsw.nb_neighbors(0)), *_kinds(one.storage)]
    if isinstance(one, faiss.IndexIVF):
        return [(*kind, one.nlist, one.code_size)]
    return [(*kind, getattr(one, "code_size", None))]


def _layer_problem(index: Any, rows: np.ndarray, vectors: np.ndarray) -> str | None:
    """What is odd about an index and those inside of it; `vectors` are those of `rows`."""
    faiss = import_faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        for place in range(index.chain.size()):
            vectors = faiss.downcast_VectorTransform(index.chain.at(place)).apply(vectors)
        return _size_problem(index.index, index.ntotal) or _layer_problem(index.index, rows, vectors)
    if isinstance(index, faiss.IndexRefine):
        parts = (index.base_index, index.refine_index)
        found = [_size_problem(part, index.ntotal) or _layer_problem(part, rows, vectors) for part in parts]
        return found[0] or found[1]
    if isinstance(index, faiss.IndexHNSW):
        return (
            _size_problem(index.storage, index.ntotal)
            or _graph_problem(index.hnsw, index.ntotal)
            or _layer_problem(index.storage, rows, vectors)
        )
    if isinstance(index, faiss.IndexIVFFastScan) or not isinstance(index, (faiss.IndexIVF, faiss.IndexFlatCodes)):
        return "is of a kind that cannot be checked when it is read"  # FAISS reads fast-scan cells without their codes
    if isinstance(index, faiss.IndexIVF):
        return _cells_problem(index, rows, vectors)
    return _probe_problem(np.stack([index.reconstruct(int(row)) for row in rows]), index, vectors)


def _size_problem(index: Any, rows: int) -> str | None:
    return None if index.ntotal == rows else f"holds {index.ntotal} rows inside instead of {rows}"


def _probe_problem(stored: np.ndarray, codec: Any, vectors: np.ndarray) -> str | None:
    """Compares what is stored for some rows with what their vectors become in this index."""
    expected = codec.sa_decode(codec.sa_encode(np.ascontiguousarray(vectors)))
    near, wanted = _cosines(stored, vectors), _cosines(expected, vectors)
    if np.isfinite(near).all() and (near >= wanted - TOLERANCE).all():
        return None
    return (
        f"holds other keys: {int((~(near >= wanted - TOLERANCE)).sum())} of {len(vectors)} that were compared differ"
    )


def _cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.einsum("rd,rd->r", first, second) / np.maximum(lengths, 1e-30)


def _cells_problem(index: Any, rows: np.ndarray, vectors: np.ndarray) -> str | None:
    faiss = import_faiss()
    cells = index.invlists
    if cells.nlist != index.nlist or index.quantizer.ntotal != index.nlist:
        return f"has {cells.nlist} cells for {index.quantizer.ntotal} centres instead of {index.nlist}"
    sizes = np.array([cells.list_size(cell) for cell in range(index.nlist)], dtype=np.int64)
    if sizes.sum() != index.ntotal:
        return f"has {sizes.sum()} entries for {index.ntotal} rows"
    ids = np.concatenate(
        [faiss.rev_swig_ptr(cells.get_ids(cell), int(size)).copy() for cell, size in enumerate(sizes) if size]
    )
    if ids.min() < 0 or ids.max() >= index.ntotal or (np.bincount(ids, minlength=index.ntotal) != 1).any():
        return "names rows that there are not, or twice"
    place_of = np.empty(index.ntotal, dtype=np.int64)
    place_of[ids] = np.arange(index.ntotal)
    ends = sizes.cumsum()
    stored = np.empty_like(vectors)
    for number, place in enumerate(place_of[rows]):
        cell = int(np.searchsorted(ends, place, side="right"))
        index.reconstruct_from_offset(cell, int(place - ends[cell] + sizes[cell]), faiss.swig_ptr(stored[number]))
    return _probe_problem(stored, index, vectors)


def _graph_problem(graph: Any, rows: int) -> str | None:
    faiss = import_faiss()
    neighbors, offsets, levels = (
        faiss.rev_swig_ptr(values.data(), values.size()) for values in (graph.neighbors, graph.offsets, graph.levels)
    )
    if len(levels) != rows or len(offsets) != rows + 1 or not 0 <= graph.entry_point < rows:
        return "has a graph of another size"
    if (np.diff(offsets.astype(np.int64)) < 0).any() or offsets[0] != 0 or offsets[-1] != len(neighbors):
        return "has a graph whose parts overlap"
    if levels.min() < 1 or levels[graph.entry_point] <= graph.max_level or levels.max() > graph.max_level + 1:
        return "has a graph with levels that cannot be"
    if len(neighbors) and not (neighbors.min() >= -1 and neighbors.max() < rows):
        return "has links to rows that there are not"
    return None


__all__ = ["fits_rows", "import_faiss", "index_problem"]
