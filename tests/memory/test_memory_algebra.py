"""Edits and set operations of memories, against a plain list of rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hf_evcap import VisualNameMemory


DIM = 4
NAMES = ["owl", "red fox", "teapot", "ladder", "고양이", "Ñandú"]
PROFILE = settings(max_examples=60, deadline=None)

# A row is a name and a number that stands for a key.
ROWS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 9)), max_size=12)
DISTINCT = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 9)), max_size=12, unique=True)


def make_key(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(DIM).astype(np.float32)


def make_keys(rows: list[tuple[str, int]]) -> np.ndarray:
    return np.array([make_key(number) for _, number in rows], np.float32).reshape(-1, DIM)


def make_memory(rows: list[tuple[str, int]], **options: str) -> VisualNameMemory:
    return VisualNameMemory.from_rows([name for name, _ in rows], make_keys(rows), **options)


def as_rows(memory: VisualNameMemory) -> list[tuple[str, bytes]]:
    return [(name, key.tobytes()) for name, key in zip(memory.names, memory.keys, strict=True)]


def same_rows(first: VisualNameMemory, second: VisualNameMemory) -> bool:
    return Counter(as_rows(first)) == Counter(as_rows(second))


def brute_force(memory: VisualNameMemory, queries: np.ndarray, k: int) -> np.ndarray:
    keys = memory.keys / np.linalg.norm(memory.keys, axis=1, keepdims=True)
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return -np.sort(-(queries @ keys.T), axis=1)[:, :k]


@PROFILE
@given(ROWS, ROWS)
def test_merge_is_idempotent_and_commutative_up_to_order(a: list, b: list) -> None:
    first, second = make_memory(a), make_memory(b)
    assert as_rows(first.merge(first)) == as_rows(first)
    assert same_rows(first.merge(second), second.merge(first))
    assert Counter(as_rows(first.merge(second))) == Counter(as_rows(first)) | Counter(as_rows(second))


@PROFILE
@given(ROWS, ROWS, ROWS)
def test_merge_is_associative(a: list, b: list, c: list) -> None:
    first, second, third = make_memory(a), make_memory(b), make_memory(c)
    assert as_rows(first.merge(second).merge(third)) == as_rows(first.merge(second.merge(third)))


@PROFILE
@given(DISTINCT, DISTINCT)
def test_difference_and_merge_are_inverse(a: list, b: list) -> None:
    first, second = make_memory(a), make_memory(b)
    apart = second.difference(first)
    assert first.merge(apart).difference(apart).fingerprint == first.fingerprint
    shared = first.difference(apart.merge(first).difference(second))  # rows of both
    assert same_rows(first.difference(shared).merge(shared), first)
    assert len(first.difference(first)) == 0


@PROFILE
@given(ROWS, ROWS)
def test_diff_counts_what_leads_from_one_to_the_other(a: list, b: list) -> None:
    first, second = make_memory(a), make_memory(b)
    before, after = Counter(as_rows(first)), Counter(as_rows(second))
    difference = first.diff(second)
    assert difference.added_rows == (after - before).total()
    assert difference.removed_rows == (before - after).total()
    assert set(difference.added) == set(second.names) - set(first.names)
    assert set(difference.removed) == set(first.names) - set(second.names)
    touched = {name for name, _ in (after - before) + (before - after)}
    assert set(difference.changed) == touched & set(first.names) & set(second.names)
    assert bool(difference) == (before != after)


@PROFILE
@given(ROWS, st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_add_then_remove_restores_the_fingerprint(rows: list, numbers: list[int]) -> None:
    memory = make_memory(rows)
    before = memory.fingerprint
    memory.add(["axolotl"] * len(numbers), np.array([make_key(number) for number in numbers]), source="pond")
    assert len(memory) == len(rows) + len(numbers)
    assert memory.fingerprint != before
    memory.remove(["axolotl"])
    assert memory.fingerprint == before


class Edits(RuleBasedStateMachine):
    """Any sequence of edits: rows as in a plain list, and a search as by brute force over them."""

    options: dict[str, str] = {}

    @initialize(rows=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 40)), min_size=8, max_size=20))
    def begin(self, rows: list) -> None:
        self.rows = list(rows)
        self.memory = make_memory(rows, **self.options)
        self.copies: list[tuple[VisualNameMemory, list]] = []

    @rule(rows=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 40)), max_size=5))
    def add(self, rows: list) -> None:
        self.memory.add([name for name, _ in rows], make_keys(rows))
        self.rows += rows

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, _ in self.rows]))
        self.memory.remove([name])
        self.rows = [row for row in self.rows if row[0] != name]

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), new=st.sampled_from(NAMES))
    def rename(self, data: st.DataObject, new: str) -> None:
        old = data.draw(st.sampled_from([name for name, _ in self.rows]))
        self.memory.rename({old: new})
        self.rows = [(new if name == old else name, number) for name, number in self.rows]

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.copies = [*self.copies[-2:], (self.memory, list(self.rows))]
        self.memory = self.memory.copy()

    @rule(bad=st.sampled_from(["name", "key", "width", "unknown"]))
    def fail(self, bad: str) -> None:
        keys = make_keys([("owl", 1), ("owl", 2)])
        names = ["owl", " " if bad == "name" else "fox"]
        if bad == "key":
            keys[1, 2] = np.nan
        with pytest.raises((ValueError, KeyError)):
            if bad == "unknown":
                self.memory.remove(["owl", "unheard of"])
            else:
                self.memory.add(names, keys[:, :3] if bad == "width" else keys)

    @invariant()
    def rows_and_search_agree(self) -> None:
        for memory, rows in [(self.memory, self.rows), *self.copies]:
            assert as_rows(memory) == [(name, make_key(number).tobytes()) for name, number in rows]
        queries = make_keys([("", 100), ("", 101), *self.rows[:2]])
        for k in (1, 5):
            scores, found = self.memory.search(queries, k)
            expected = brute_force(self.memory, queries, k)
            assert scores.shape == found.shape == expected.shape
            np.testing.assert_allclose(scores, expected, atol=1e-5)
            assert all(len(set(row)) == len(row) for row in found.tolist())
            keys = self.memory.keys[found] if found.size else np.zeros((*found.shape, DIM), np.float32)
            for query, row_scores, row_keys in zip(queries, scores, keys, strict=True):
                own = row_keys @ query / np.linalg.norm(row_keys, axis=1) / np.linalg.norm(query)
                np.testing.assert_allclose(row_scores, own, atol=1e-5)


class IndexedEdits(Edits):
    options = {"index_factory": "IVF2,SQ8"}


class GraphEdits(Edits):
    options = {"index_factory": "HNSW16"}


class UnselectableEdits(Edits):
    """An index whose kind cannot pass over rows."""

    options = {"index_factory": "SQ8,RFlat"}


# Shrinking a sequence of edits takes minutes; the failing one is printed as it is.
MACHINES = settings(
    max_examples=20, stateful_step_count=12, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestEdits = Edits.TestCase
TestEdits.settings = MACHINES
TestIndexedEdits = IndexedEdits.TestCase
TestIndexedEdits.settings = MACHINES
TestGraphEdits = GraphEdits.TestCase
TestGraphEdits.settings = MACHINES
TestUnselectableEdits = UnselectableEdits.TestCase
TestUnselectableEdits.settings = MACHINES
