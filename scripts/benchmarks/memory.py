"""The memory: cost of edits, hot swap, the default index of a large memory against a flat one, share of a caption.

Keys: `--keys FILE.npy` holds real encoder vectors of shape (photos, vectors of a photo, dim). Photos are split: nine
tenths are grown into a memory, each row a real vector plus half the difference of two vectors of another photo (what
the view changes); the queries are the vectors, grown likewise, of the photos held out. Without a file, vectors are
drawn around 5,000 random centres in a random subspace, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


OPEN_MAPPED = """
import json, sys, time, resource
import numpy as np
import faiss
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
queries = np.load(sys.argv[2])
before = resident()
start = time.perf_counter()
index = faiss.read_index(sys.argv[1], faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
opened = time.perf_counter() - start
times = []
for photo in queries:
    start = time.perf_counter()
    index.search(photo, 5)
    times.append(time.perf_counter() - start)
print(json.dumps({"open": opened, "resident": resident() - before, "p50": float(np.median(times)),
                  "first": times[0]}))
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", default=["edits", "index", "swap"], help="edits, index, swap (default: all)"
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--keys", help="real vectors, .npy")
    parser.add_argument("--index", help="FAISS factory string (default: the memory's own choice)")
    parser.add_argument("--probes", help="numbers of cells to look at, for a table, such as 4,8,16")
    parser.add_argument("--photos", type=int, default=40, help="photos of 32 queries each")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--model", help="model folder or Hub id for `swap` (default: the embedded one)")
    return parser


class KeySource:
    """Grows real vectors into as many keys and queries as are wanted."""

    def __init__(self, file: str | None, dim: int) -> None:
        rng = np.random.default_rng(0)
        if file is None:
            print("keys: NO real vectors given; 5,000 random centres in 96 of the dimensions, 10 vectors around each")
            centres = rng.standard_normal((5000, 1, 96)) * np.linspace(2, 0.2, 96)
            vectors = centres + 0.5 * rng.standard_normal((5000, 10, 96)) * np.linspace(1, 0.2, 96)
            vectors = vectors @ np.linalg.qr(rng.standard_normal((dim, 96)))[0].T
        else:
            vectors = np.load(file)
            print(f"keys: grown from real vectors {vectors.shape} of {Path(file).name}")
        vectors = vectors[rng.permutation(len(vectors))].astype(np.float32)
        self.dim = vectors.shape[-1]
        held_out = len(vectors) // 10
        self.held_out, self.known = vectors[:held_out], vectors[held_out:]

    def grow(self, bases: np.ndarray, rng: np.random.Generator, others: np.ndarray) -> np.ndarray:
        photos, first, second = (
            rng.integers(0, n, len(bases)) for n in (len(others), others.shape[1], others.shape[1])
        )
        grown = bases + 0.5 * (others[photos, first] - others[photos, second])
        return grown + 0.02 * grown.std() * rng.standard_normal(grown.shape, dtype=np.float32)

    def keys(self, rows: int) -> np.ndarray:
        made, rng, flat = (
            np.empty((rows, self.dim), np.float32),
            np.random.default_rng(1),
            self.known.reshape(-1, self.dim),
        )
        for start in range(0, rows, 50_000):
            stop = min(start + 50_000, rows)
            made[start:stop] = self.grow(flat[np.arange(start, stop) % len(flat)], rng, self.known)
        return made

    def queries(self, photos: int, each: int = 32) -> np.ndarray:
        rng = np.random.default_rng(2)
        chosen = self.held_out[rng.integers(0, len(self.held_out), photos)]
        bases = chosen[:, np.arange(each) % chosen.shape[1]].reshape(-1, self.dim)
        made = self.grow(bases, rng, self.held_out)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        return made.reshape(photos, each, self.dim)


def resident_gib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def names_of(rows: int) -> list[str]:
    return [f"name {row % 14_000}" for row in range(rows)]


def measure_edits(memory: object, source: KeySource, repeats: int) -> None:
    from hf_evcap import VisualNameMemory

    small = VisualNameMemory.from_rows(names_of(1000), source.keys(1000))
    new, new_names = source.keys(100), [f"name {row}" for row in range(100)]
    times: dict[str, list[float]] = {"small": [], "large": []}
    for _ in range(repeats):  # interleaved, so that neighbours' noise falls on both
        for label, one in (("small", small), ("large", memory)):
            times[label].append(seconds(lambda one=one: one.add(new_names, new)))
    medians = {label: statistics.median(values) for label, values in times.items()}
    print(
        f"add 100 rows: to 1,000 {medians['small'] * 1e3:.2f} ms, to {len(memory):,} {medians['large'] * 1e3:.2f} ms, "
        f"ratio {medians['large'] / medians['small']:.2f} (medians of {repeats}; worst of the large "
        f"{max(times['large']) * 1e3:.1f} ms)"
    )
    removed = statistics.median(
        seconds(lambda name=name: memory.remove([name])) for name in ("name 200", "name 201", "name 202")
    )
    renamed = statistics.median(
        seconds(lambda name=name: memory.rename({name: name + "x"})) for name in ("name 203", "name 204", "name 205")
    )
    print(f"in {len(memory):,} rows: remove a name {removed * 1e3:.1f} ms, rename one {renamed * 1e3:.1f} ms")


def measure_index(memory: object, source: KeySource, arguments: argparse.Namespace) -> None:
    import faiss

    from hf_evcap import store_index
    from hf_evcap.store_keys import exact_search

    queries = source.queries(arguments.photos)
    if arguments.index:
        memory.index_factory = arguments.index
    build = seconds(memory.row_index)
    index = memory.row_index()
    print(
        f"index {index.factory} of {len(memory):,} x {memory.dim}: built in {build:.0f} s, resident "
        f"{resident_gib():.2f} GiB"
    )
    flat = faiss.IndexFlatIP(memory.dim)
    for block in memory.key_rows.blocks():
        flat.add(store_index.normalize_keys(block))
    flat_times, own_times, exact = [], [], []
    for photo in queries:
        start = time.perf_counter()
        exact.append(flat.search(photo, 1)[1][:, 0])
        flat_times.append(time.perf_counter() - start)
    own_times = [seconds(lambda photo=photo: exact_search(photo, memory.key_rows, 1)) for photo in queries[:5]]
    flat_p50 = statistics.median(flat_times)
    del flat
    print(
        f"flat, 32 queries: p50 {flat_p50 * 1e3:.0f} ms (faiss IndexFlatIP), "
        f"{statistics.median(own_times) * 1e3:.0f} ms (ours)"
    )
    inverted = store_index.inverted_lists(index.index)
    probes = (
        [int(count) for count in arguments.probes.split(",")]
        if arguments.probes
        else [inverted.nprobe if inverted else 0]
    )
    for count in probes:
        if inverted is not None:
            inverted.nprobe = count
        memory.search(queries[0], 5)
        times, hits = [], []
        for photo, truth in zip(queries, exact, strict=True):
            start = time.perf_counter()
            found = memory.search(photo, 5)[1]
            times.append(time.perf_counter() - start)
            hits.append(found[:, 0] == truth)
        p50 = statistics.median(times)
        print(
            f"  probing {count}: p50 {p50 * 1e3:.1f} ms = 1/{flat_p50 / p50:.0f} of flat, recall@1 "
            f"{np.mean(hits):.4f} ({np.size(hits)} queries)"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "index.faiss"
        index.write(file, memory.key_rows)
        np.save(Path(folder) / "queries.npy", queries)
        command = [
            sys.executable,
            "-c",
            OPEN_MAPPED,
            str(file),
            f"{folder}/queries.npy",
        ]
        mapped = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(
            f"memory-mapped ({file.stat().st_size / 2**30:.2f} GiB): opens in {mapped['open'] * 1e3:.0f} ms, p50 "
            f"{mapped['p50'] * 1e3:.1f} ms (first {mapped['first'] * 1e3:.0f} ms), resident "
            f"{mapped['resident'] / 2**20:.0f} MiB after {len(queries)} photos"
        )


@torch.inference_mode()
def measure_swap(arguments: argparse.Namespace) -> None:
    from PIL import Image
    from transformers import pipeline

    import hf_evcap
    from hf_evcap import VisualNameMemory

    model_id = arguments.model or hf_evcap.default_model()
    pipe = pipeline("image-to-text", model=model_id)
    model = pipe.model
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8))
    memories = []
    for _ in range(7):
        keys = rng.standard_normal((15_000, model.memory_key_size), dtype=np.float32)
        names = [f"thing {rng.integers(10**6)}" for _ in range(1203)]
        memories.append(
            VisualNameMemory.from_rows(
                [names[row % 1203] for row in range(15_000)], keys, encoder_fingerprint=model.encoder_fingerprint
            )
        )
    pipe(photo)
    times, work = [], []
    for memory in memories:
        start, worked = time.perf_counter(), time.process_time()
        model.set_memory(memory)
        model.retriever  # noqa: B018 - what the next caption would do
        times.append(time.perf_counter() - start)
        work.append(time.process_time() - worked)
    print(
        f"hot swap of 15,000 rows x {model.memory_key_size}, 1,203 names: p50 {statistics.median(times) * 1e3:.1f} ms "
        f"({statistics.median(work) * 1e3:.1f} ms of processor time), best {min(times) * 1e3:.1f}, worst "
        f"{max(times) * 1e3:.1f} ms"
    )
    rows = 14_596
    memory = VisualNameMemory.from_rows(
        memories[0].names[:rows], memories[0].keys[:rows], encoder_fingerprint=model.encoder_fingerprint
    )
    model.set_memory(memory)
    features = model.get_image_features(pipe.processor(images=photo, return_tensors="pt")["pixel_values"])
    model.retrieve_names(features.retrieval_queries)
    retrieval = statistics.median(seconds(lambda: model.retrieve_names(features.retrieval_queries)) for _ in range(9))
    pipe(photo)
    caption = statistics.median(seconds(lambda: pipe(photo)) for _ in range(3))
    queries = features.retrieval_queries.shape[1]
    print(
        f"14,596 rows, {queries} queries: retrieval with dedupe and tokens {retrieval * 1e3:.1f} ms, a caption "
        f"{caption * 1e3:.0f} ms: {100 * retrieval / caption:.1f} %"
    )


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    unknown = set(arguments.parts) - {"edits", "index", "swap"}
    if unknown:
        raise SystemExit(f"Unknown parts {sorted(unknown)}; there are edits, index and swap.")
    if {"edits", "index"} & set(arguments.parts):
        from hf_evcap import VisualNameMemory

        source = KeySource(arguments.keys, arguments.dim)
        memory = VisualNameMemory.from_rows(names_of(arguments.rows), source.keys(arguments.rows))
        print(f"{memory!r}: resident {resident_gib():.2f} GiB")
        if "edits" in arguments.parts:
            measure_edits(memory.copy() if "index" in arguments.parts else memory, source, arguments.repeats)
        if "index" in arguments.parts:
            measure_index(memory, source, arguments)
    if "swap" in arguments.parts:
        measure_swap(arguments)
    return 0
