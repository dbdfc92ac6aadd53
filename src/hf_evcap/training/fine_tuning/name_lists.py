"""Lists of names for training: read from a file, and joined as the retriever joins what it finds."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path


def read_names(path: str | Path) -> list[str]:
    """Reads general names: LVIS categories with their synonyms, or a plain JSON list of strings; lower case."""
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    names = set()
    for entry in entries:
        for name in [entry] if isinstance(entry, str) else [entry["name"], *entry.get("synonyms", [])]:
            names.add(" ".join(re.sub(r"\(.*?\)", "", name.replace("_", " ")).split()).lower())
    return sorted(names - {""})


def join_names(names: Sequence[Sequence[int]], sep_token_id: int, max_length: int) -> list[int]:
    """
    Joins names as the retriever does: `name <sep> name <sep>`, cut at `max_length`, a lone separator without names.

    Args:
        names (`Sequence[Sequence[int]]`): Token ids of each name.
        sep_token_id (`int`): The separator, which stands last even after a cut.
        max_length (`int`): Tokens at most.
    """
    joined = [token for name in names for token in (*name, sep_token_id)] or [sep_token_id]
    if len(joined) > max_length:
        joined = [*joined[: max_length - 1], sep_token_id]
    return joined


__all__ = ["join_names", "read_names"]
