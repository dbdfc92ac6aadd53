"""How two retrieval stores differ: which rows are the same, which texts came, went, changed or were renamed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from .store_keys import KeyRows


@dataclass
class StoreDifference:
    """
    What leads from one store to another.

    Args:
        added_rows, removed_rows (`int`): Rows that only the new and only the old one have.
        added, removed (`dict[str, int]`): Texts that only one of them has, with their rows.
        changed (`dict[str, tuple[int, int]]`): Texts of both whose rows differ: rows added and rows removed.
        renamed (`dict[str, str]`): Texts whose every key stands under another text now.
        relabelled (`dict[str, int]`): Texts with rows that differ only in further columns.
    """

    added_rows: int = 0
    removed_rows: int = 0
    added: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    changed: dict[str, tuple[int, int]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    relabelled: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added_rows or self.removed_rows or self.relabelled)


# Texts, identities, keys and further columns of a store's rows.
Rows = tuple[list[str], list[bytes], KeyRows, pa.Table]


def row_identities(texts: Sequence[str], columns: pa.Table, keys: KeyRows) -> list[bytes]:
    """Hashes each row's text, its values in some columns (empty ones do not count) and its key as float32."""
    names = columns.column_names
    values = zip(*(columns[name].to_pylist() for name in names), strict=True) if names else ((),) * len(texts)
    identities = []
    for text, row, key in zip(texts, values, key_bytes(keys), strict=True):
        told_apart = [(name, value) for name, value in zip(names, row, strict=True) if value is not None]
        identities.append(hashlib.blake2b(repr((text, told_apart)).encode() + key, digest_size=16).digest())
    return identities


def key_bytes(keys: KeyRows) -> Iterator[bytes]:
    """Each key as the bytes of little-endian float32, whatever precision it is kept in."""
    for block in keys.blocks():
        for key in np.ascontiguousarray(block, dtype="<f4"):
            yield key.tobytes()


def compare_rows(old: Rows, new: Rows) -> StoreDifference:
    """Lists what leads from the old rows to the new ones."""
    (old_texts, old_ids, old_keys, old_columns), (new_texts, new_ids, new_keys, new_columns) = old, new
    removed, added = unmatched_rows(old_ids, new_ids), unmatched_rows(new_ids, old_ids)
    rows_removed, rows_added = Counter(old_texts[row] for row in removed), Counter(new_texts[row] for row in added)
    before, after = Counter(old_texts), Counter(new_texts)
    return StoreDifference(
        added_rows=len(added),
        removed_rows=len(removed),
        added={text: rows for text, rows in after.items() if text not in before},
        removed={text: rows for text, rows in before.items() if text not in after},
        changed={
            text: (rows_added[text], rows_removed[text])
            for text in before
            if text in after and rows_added[text] + rows_removed[text]
        },
        renamed=_renamed(
            [
                (old_texts[row], key)
                for row, key in zip(removed, key_bytes(old_keys.keep(np.array(removed))), strict=True)
            ],
            [(new_texts[row], key) for row, key in zip(added, key_bytes(new_keys.keep(np.array(added))), strict=True)],
            set(after),
        ),
        relabelled=_relabelled(old_ids, old_columns, new_texts, new_ids, new_columns),
    )


def unmatched_rows(rows: Sequence[bytes], others: Sequence[bytes]) -> list[int]:
    """Rows that have no partner among the others, each of which pairs with one; both are given by their identities."""
    partners, left = Counter(others), []
    for row, identity in enumerate(rows):
        if partners[identity] > 0:
            partners[identity] -= 1
        else:
            left.append(row)
    return left


def _renamed(removed: list[tuple[str, bytes]], added: list[tuple[str, bytes]], remaining: set[str]) -> dict[str, str]:
    """Texts that are gone and whose every key stands under one other text now."""
    wordings: dict[bytes, set[str]] = {}
    for text, key in added:
        wordings.setdefault(key, set()).add(text)
    now: dict[str, set[str]] = {}
    for text, key in removed:
        found = wordings.get(key, set())
        now[text] = now[text] & found if text in now else set(found)
    return {text: min(found) for text, found in now.items() if found and text not in remaining}


def _relabelled(
    old_ids: list[bytes], old_columns: pa.Table, new_texts: list[str], new_ids: list[bytes], new_columns: pa.Table
) -> dict[str, int]:
    """Texts with rows that differ only in further columns, and how many."""
    names = sorted({*old_columns.column_names, *new_columns.column_names})
    if not names:
        return {}

    def values(columns: pa.Table) -> Iterator[tuple[str, ...]]:
        have = set(columns.column_names)
        lists = [columns[name].to_pylist() if name in have else [None] * len(columns) for name in names]
        return (tuple(map(repr, row)) for row in zip(*lists, strict=True))

    before: dict[bytes, Counter[tuple[str, ...]]] = {}
    for identity, row in zip(old_ids, values(old_columns), strict=True):
        before.setdefault(identity, Counter())[row] += 1
    changed: Counter[str] = Counter()
    for identity, row, text in zip(new_ids, values(new_columns), new_texts, strict=True):
        if identity in before:
            changed[text] += before[identity][row] <= 0
            before[identity][row] -= 1
    return {text: rows for text, rows in changed.items() if rows}


__all__ = ["StoreDifference", "compare_rows", "row_identities", "unmatched_rows"]
