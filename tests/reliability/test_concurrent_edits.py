"""Stores that some threads edit while others edit, save, search and caption: every edit whole, none lost."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import hf_evcap
from hf_evcap import CaptionDatastore, MemoryLayers, VisualNameMemory
from hf_evcap.retrieval_rows import RowRetriever


DIM = 8
STORES = [VisualNameMemory, CaptionDatastore]
INDEXES = ["Flat", "HNSW8", "IVF4,SQ8"]


@pytest.fixture(autouse=True)
def switching_often() -> Iterator[None]:
    """Lets threads take turns a hundred times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(interval)


def key_of(text: str, number: int) -> np.ndarray:
    return np.random.default_rng([number, *text.encode()]).standard_normal(DIM).astype(np.float32)


def keys_of(text: str, numbers: range) -> np.ndarray:
    return np.array([key_of(text, number) for number in numbers], np.float32)


def begin(store_class: Any, rows: int = 60, **options: Any) -> Any:
    texts = [f"base {row % 6}" for row in range(rows)]
    keys = np.array([key_of(text, row) for row, text in enumerate(texts)])
    return store_class.from_rows(texts, keys, number=list(range(rows)), **options)


def check_rows(store: Any) -> None:
    """Every row's text, number and key are those that were given together."""
    texts, numbers, keys = store.texts, store.columns["number"].to_pylist(), store.keys
    assert len(texts) == len(numbers) == len(keys)
    for text, number, key in zip(texts, numbers, keys, strict=True):
        np.testing.assert_array_equal(key, key_of(text, number), err_msg=text)


def together(*tasks: Callable[[], Any]) -> list[Any]:
    """Runs each task in a thread of its own, all from the same moment on."""
    ready = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> Any:
        ready.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result(120) for future in [pool.submit(run, task) for task in tasks]]


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("store_class", STORES)
def test_four_threads_add(store_class: Any, index: str) -> None:
    store = begin(store_class, index_factory=index)

    def add(thread: int) -> None:
        for batch in range(40):
            numbers = range(10 * batch, 10 * batch + 10)
            store.add([f"thread {thread}"] * 10, keys_of(f"thread {thread}", numbers), number=list(numbers))
            store.search(keys_of(f"thread {thread}", numbers), 3)

    together(*(lambda thread=thread: add(thread) for thread in range(4)))
    assert len(store) == 60 + 4 * 400
    check_rows(store)
    for thread in range(4):
        numbers = [
            number
            for text, number in zip(store.texts, store.columns["number"].to_pylist(), strict=True)
            if text == f"thread {thread}"
        ]
        assert numbers == list(range(400))  # all of them, in the order in which they were added
    rows = np.arange(0, len(store), 37)
    assert (store.search(store.keys[rows], 1)[1][:, 0] == rows).mean() >= (1 if index == "Flat" else 0.8)


@pytest.mark.parametrize("store_class", STORES)
def test_copies_that_share_their_rows_are_edited_apart(store_class: Any) -> None:
    store = begin(store_class, index_factory="IVF4,SQ8")
    store.search(store.keys[:1], 1)
    copies = [store.copy() for _ in range(4)]

    def edit(number: int) -> None:
        mine, text = copies[number], f"copy {number}"
        for batch in range(30):
            rows = range(3 * batch, 3 * batch + 3)
            mine.add([text] * 3, keys_of(text, rows), number=list(rows))
            found = mine.search(keys_of(text, rows), 1)[1][:, 0]
            assert [mine.texts[row] for row in found] == [text] * 3
            if batch % 10 == 5:
                mine.remove([f"base {batch // 10}"])

    together(*(lambda number=number: edit(number) for number in range(4)))
    check_rows(store)
    assert len(store) == 60
    for number, mine in enumerate(copies):
        check_rows(mine)
        assert Counter(mine.texts) == {**{f"base {base}": 10 for base in range(3, 6)}, f"copy {number}": 90}


@pytest.mark.parametrize("store_class", STORES)
def test_every_save_is_a_state_that_existed(store_class: Any, tmp_path: Path) -> None:
    store = begin(store_class, index_factory="IVF4,SQ8")
    states, done = [store.fingerprint], threading.Event()

    def edit() -> None:
        for batch in range(60):
            numbers = range(5 * batch, 5 * batch + 5)
            if batch % 7 == 6:
                store.remove([f"thread {batch - 1}"])
            else:
                store.add([f"thread {batch}"] * 5, keys_of(f"thread {batch}", numbers), number=list(numbers))
            states.append(store.fingerprint)
            store.retrieval["min_similarity"] = batch / 100
            time.sleep(0.002)
        done.set()

    def save() -> list[Path]:
        folders = []
        while True:
            last = done.is_set() and len(folders) > 1
            folders.append(tmp_path / str(len(folders)))
            store.save_pretrained(folders[-1])
            if last:
                return folders

    _, folders = together(edit, save)
    for folder in folders:
        loaded = store_class.from_pretrained(folder)
        check_rows(loaded)
        assert loaded.fingerprint in states
    assert folders and loaded.fingerprint == states[-1]


def test_layers_are_saved_whole(tmp_path: Path) -> None:
    layers = MemoryLayers({"one": begin(VisualNameMemory), "two": begin(VisualNameMemory)})
    done = threading.Event()

    def edit() -> None:
        for batch in range(40):
            for memory in layers.memories.values():
                memory.add([f"added {batch}"], keys_of(f"added {batch}", range(1)), number=[0])
        done.set()

    def save() -> list[Path]:
        folders = []
        while not done.is_set() or len(folders) < 3:
            folders.append(tmp_path / str(len(folders)))
            layers.save_pretrained(folders[-1])
        return folders

    for folder in together(edit, save)[1]:
        loaded = VisualNameMemory.from_pretrained(folder)
        for memory in loaded.memories.values():
            check_rows(memory)


@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("store_class", STORES)
def test_readers_see_edits_whole(store_class: Any, index: str) -> None:
    """Searches, the retriever on tensors, descriptions, differences and merges while rows come, go and are renamed."""
    store, done = begin(store_class, index_factory=index), threading.Event()
    retriever, other = RowRetriever(store), begin(store_class, 30)
    queries = keys_of("base 1", range(1, 31, 6))
    store.search(queries, 1)  # faiss is imported and the index built

    def edit() -> None:
        try:
            for batch in range(40):
                text = f"new {batch}"
                store.add([text] * 4, keys_of(text, range(4)), number=list(range(4)))
                if batch % 3 == 1:
                    store.remove([f"new {batch - 1}"])
                time.sleep(0.003)
                if batch % 10 == 9:
                    store.set_column("note", {"base 1": f"edit {batch}"})
        finally:
            done.set()

    def search() -> int:
        searches = 0
        while not done.is_set():
            rows = store.snapshot
            scores, found = rows.search(queries, 5)
            of_device = retriever.ready()
            nearest = of_device.nearest(torch.from_numpy(queries)[None], 5)
            for snapshot, row_ids, similarities in (
                (rows, found, scores),
                (of_device.snapshot, nearest[1][0].numpy(), nearest[0][0].numpy()),
            ):
                assert (snapshot.columns[0].take(row_ids[:, 0]).to_numpy(zero_copy_only=False) == "base 1").all()
                keys = snapshot.unit_keys(row_ids.reshape(-1)).reshape(*row_ids.shape, DIM)
                units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
                np.testing.assert_allclose(similarities, np.einsum("qkd,qd->qk", keys, units), atol=1e-5)
            searches += 1
        return searches

    def look() -> None:
        while not done.is_set():
            facts = store.describe()
            words = next(value for name, value in facts.items() if name.startswith("rows_per_"))
            assert facts["rows"] == round(words["mean"] * facts[f"{store.text_word}s"])
            assert store.diff(other).removed_rows >= 30
            assert len(store.merge(other)) >= 60
            check_rows(store.copy())
            repr(store)

    searches = together(edit, search, search, look)[1]
    assert searches > 3
    check_rows(store)


EDITS = st.lists(
    st.tuples(st.sampled_from(["add", "add", "rename", "remove", "undo", "column"]), st.integers(1, 4)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(st.lists(EDITS, min_size=2, max_size=4), st.sampled_from(STORES), st.sampled_from(INDEXES))
def test_any_edits_at_once_give_what_they_give_in_turn(plans: list, store_class: Any, index: str) -> None:
    """Threads that edit rows of their own: each thread's rows are at the end as if it had been alone."""
    store = begin(store_class, 24, index_factory=index)
    before = Counter(zip(store.texts, store.columns["number"].to_pylist(), strict=True))

    def follow(thread: int, plan: list) -> Counter:
        mine: Counter[tuple[str, int]] = Counter()
        for step, (edit, count) in enumerate(plan):
            text = f"thread {thread} step {step}"
            own = sorted({text for text, _ in mine})
            if edit in ("add", "undo"):
                store.add([text] * count, keys_of(text, range(count)), number=list(range(count)))
                added = store.last_added
                assert len(added) == count and {store.snapshot.texts[0]} == {"base 0"}
                if edit == "undo":
                    assert added.undo() == count and added.undo() == 0
                else:
                    mine.update({(text, number): 1 for number in range(count)})
            elif own and edit == "remove":
                store.remove([own[0]])
                mine = Counter({row: rows for row, rows in mine.items() if row[0] != own[0]})
            elif own and edit == "rename":
                store.rename({own[-1]: own[-1]})
            elif own:
                store.set_column(f"note {thread}", {own[0]: step})
        return mine

    expected = sum(together(*(lambda pair=pair: follow(*pair) for pair in enumerate(plans))), before)
    check_rows(store)
    assert Counter(zip(store.texts, store.columns["number"].to_pylist(), strict=True)) == expected


def test_adding_costs_the_new_rows(tmp_path: Path) -> None:
    """However many rows there are, also after a removal, which leaves gaps."""
    rng = np.random.default_rng(0)
    few, many = (
        VisualNameMemory.from_rows([f"name {row % 100}" for row in range(rows)], rng.standard_normal((rows, 16)))
        for rows in (1_000, 300_000)
    )
    new, names = rng.standard_normal((100, 16)), [f"name {row}" for row in range(100)]
    for gaps in (False, True):
        times: dict[int, list[float]] = {1_000: [], 300_000: []}
        for _ in range(41):
            for rows, memory in ((1_000, few), (300_000, many)):
                start = time.perf_counter()
                memory.add(names, new)
                times[rows].append(time.perf_counter() - start)
        assert np.median(times[300_000]) < 2 * np.median(times[1_000]) + 2e-4, gaps
        for memory in (few, many):
            memory.remove(["name 7"])


# The embedded model


@pytest.fixture(scope="module")
def pipe() -> Any:
    from transformers import pipeline

    return pipeline("image-to-text", model=hf_evcap.default_model())


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    folder = Path(hf_evcap.__file__).parent / "assets" / "photos"
    return [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.jpg"))[:4]]


@pytest.mark.parametrize("layered", [False, True])
def test_eight_threads_caption_while_one_edits(pipe: Any, photos: list[Image.Image], layered: bool) -> None:
    """Every caption is that of some state of the memory that existed while it was written."""
    model, base = pipe.model, pipe.model.memory
    memory = base.copy()
    keys = model.encode_memory_keys(pipe.processor, photos).numpy()
    own = VisualNameMemory.from_rows(["spoon"], -keys[:1], encoder_fingerprint=base.encoder_fingerprint)
    model.set_memory(MemoryLayers({"base": memory, "own": own}) if layered else memory)
    edits = [
        lambda: memory.add(["pangolin"] * 3, keys[[0, 0, 1]], kind="object"),
        lambda: memory.rename({"pangolin": "newt"}),
        lambda: memory.add(["quokka"], keys[2:3], kind="object"),
        lambda: memory.remove(["newt"]),
        lambda: memory.retrieval.update(min_similarity=0.2),
        lambda: memory.remove(["quokka"]),
    ]

    def caption(photo: Image.Image) -> str:
        return json.dumps(pipe(photo, max_new_tokens=6, num_beams=1))

    try:
        states = [[caption(photo) for photo in photos]]
        for edit in edits:
            edit()
            states.append([caption(photo) for photo in photos])
        assert len({captions[0] for captions in states}) >= 3  # the edits are seen
        memory.retrieval.pop("min_similarity")

        edited, failures = [0], []  # how many edits have begun
        done = threading.Event()

        def edit_again() -> None:
            try:
                for edit in edits:
                    edited[0] += 1
                    edit()
                    time.sleep(0.3)
            finally:
                done.set()

        def captions(thread: int) -> int:
            written = 0
            while not done.is_set() or not written:
                place = (thread + written) % len(photos)
                first = max(edited[0] - 1, 0)  # the edit that has begun may not be in yet
                found = caption(photos[place])
                possible = {states[state][place] for state in range(first, edited[0] + 1)}
                if found not in possible:
                    failures.append((first, edited[0], found))
                written += 1
            return written

        together(edit_again, *(lambda thread=thread: captions(thread) for thread in range(8)))
        assert not failures
    finally:
        model.set_memory(base)
