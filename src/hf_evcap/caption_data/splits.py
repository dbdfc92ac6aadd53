"""Splits by name: "val", "valid" and "validation" are one; "train+restval" is two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


_SYNONYMS = {"val": "validation", "valid": "validation", "dev": "validation"}


def same_split(one: str, other: str) -> bool:
    """Whether two names mean the same split."""
    one, other = one.strip().lower(), other.strip().lower()
    return _SYNONYMS.get(one, one) == _SYNONYMS.get(other, other)


def rows_of_split(splits: Sequence[str] | None, split: str | None, what: str, count: int) -> list[int]:
    """
    Rows of a split.

    Args:
        splits (`Sequence[str]` or `None`): Split of each row, where the source tells.
        split (`str`, *optional*): Split, or several joined by `+`; all rows when absent.
        what (`str`): The source. A file without splits may be a split whole and be named for it.
        count (`int`): Number of rows.

    Raises:
        ValueError: There is no such split.
    """
    if split is None:
        return list(range(count))
    parts = split.split("+")
    if splits is None:
        words = re.findall(r"[a-z]+\d*", Path(what).stem.lower())
        words += [word.rstrip("0123456789") for word in words]  # captions_val2014 is the split val, and val2014
        if all(any(same_split(part, word) for word in words) for part in parts):
            return list(range(count))
        raise ValueError(f"{what} does not say which split a photo is of; leave out the split {split!r}.")
    known = list(dict.fromkeys(splits))
    for part in parts:
        if not any(same_split(part, name) for name in known):
            raise ValueError(f"{what} has no split {part!r}; it has {', '.join(map(str, known))}.")
    return [row for row, name in enumerate(splits) if any(same_split(name, part) for part in parts)]
