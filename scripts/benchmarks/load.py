"""A long run: captions through one pipeline from several threads while its memory is edited.

Tells errors, captions that are not those of the memory's state, and how much memory the process has gained after its
warm-up. Every caption is compared with the one that a single thread wrote before for the same state of the memory (or,
where an edit fell into it, for one of the states before and after). Ends with exit status 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np


WARM_UP = 0.1  # of the captions
GROWTH_MB = 32  # that a run may gain: what an allocator keeps differs by some


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--edit-every", type=int, default=100, metavar="CAPTIONS")
    parser.add_argument("--index", help="FAISS factory string of the memory (default: the memory's own choice)")
    parser.add_argument("--model", help="model folder or Hub id (default: the embedded one)")
    parser.add_argument("--photos", help="folder of photos (default: the package's samples)")
    parser.add_argument("--max-new-tokens", type=int, default=12)
    return parser


class EditedMemory:
    """A memory that goes through the same few states again and again, one edit after the other."""

    def __init__(self, memory: Any, keys: np.ndarray) -> None:
        self.memory = memory
        self.edits: list[Callable[[], Any]] = [
            lambda: memory.add(["blue quokka"] * 3, keys[[0, 0, 1]], kind="object"),
            lambda: memory.rename({"blue quokka": "green newt"}),
            lambda: memory.add(["old quokka"], keys[2:3], kind="object"),
            lambda: memory.remove(["green newt"]),
            lambda: memory.retrieval.update(min_similarity=0.3),
            lambda: memory.remove(["old quokka"], kind="object"),
            lambda: memory.retrieval.pop("min_similarity"),
        ]
        self.begun = self.done = 0
        self._lock = threading.Lock()

    def edit(self) -> None:
        with self._lock:
            self.begun += 1
            self.edits[(self.begun - 1) % len(self.edits)]()
            self.done += 1

    def state(self, edits: int) -> int:
        return edits % len(self.edits)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from PIL import Image
    from transformers import pipeline

    import hf_evcap

    folder = Path(arguments.photos or Path(hf_evcap.__file__).parent / "assets" / "photos")
    photos = [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.jpg"))[:8]]
    pipe = pipeline("image-to-text", model=arguments.model or hf_evcap.default_model())
    pipe.call_count = -(10**9)  # its advice to use a dataset is not for this run
    memory = pipe.model.memory
    if arguments.index:
        memory.index_factory = arguments.index
    edited = EditedMemory(memory, pipe.model.encode_memory_keys(pipe.processor, photos).numpy())

    def caption(place: int) -> str:
        return json.dumps(pipe(photos[place], max_new_tokens=arguments.max_new_tokens))

    rows = memory.fingerprint
    expected = []
    for _ in edited.edits:
        expected.append([caption(place) for place in range(len(photos))])
        edited.edit()
    if memory.fingerprint != rows or expected[0] != [caption(place) for place in range(len(photos))]:
        raise SystemExit("The edits do not lead back to where they began.")

    numbers, wrong, errors = itertools.count(), [], []
    resident: list[float] = []

    def work() -> None:
        while (number := next(numbers)) < arguments.captions:
            try:
                if number % arguments.edit_every == arguments.edit_every - 1:
                    edited.edit()
                    resident.append(resident_mb())
                place, before = number % len(photos), edited.done
                found = caption(place)
                possible = range(before, edited.begun + 1)
                if found not in {expected[edited.state(edits)][place] for edits in possible}:
                    wrong.append({"caption": number, "edits": [possible.start, possible.stop - 1], "found": found})
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told
                errors.append(f"caption {number}: {type(error).__name__}: {error}")

    start = time.perf_counter()
    with ThreadPoolExecutor(arguments.threads) as pool:
        for future in [pool.submit(work) for _ in range(arguments.threads)]:
            future.result()
    seconds = time.perf_counter() - start
    warm = resident[int(len(resident) * WARM_UP) :]
    quarter = max(1, len(warm) // 4)
    begin, end = statistics.median(warm[:quarter]), statistics.median(warm[-quarter:])
    return {
        "captions": arguments.captions,
        "threads": arguments.threads,
        "edits": edited.done - len(edited.edits),
        "states that differ": len({json.dumps(captions) for captions in expected}),
        "errors": errors,
        "wrong captions": wrong,
        "captions a second": round(arguments.captions / seconds, 2),
        "resident after warm-up, MB": round(begin, 1),
        "resident at the end, MB": round(end, 1),
        "growth, MB": round(end - begin, 1),
    }


def main(argv: list[str] | None = None) -> int:
    found = run(make_parser().parse_args(argv))
    for what, value in found.items():
        shown = f"{len(value)} {value[:3]}" if isinstance(value, list) and value else value
        print(f"{what:<28} {0 if value == [] else shown}")
    return 1 if found["errors"] or found["wrong captions"] or found["growth, MB"] > GROWTH_MB else 0
