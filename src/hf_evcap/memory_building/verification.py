"""Checks a memory folder: rows, hashes, manifest and index."""

from __future__ import annotations

import os
from pathlib import Path

from ..memory_evcap import VisualNameMemory
from ..store_files import INDEX_NAME, read_manifest
from ..store_index import finds_own_rows, read_index


def verify_memory(source: str | os.PathLike) -> list[str]:
    """
    Lists what is wrong with a memory; an empty list says that nothing is.

    Args:
        source (`str` or `os.PathLike`): A folder, or a Hub id, of which only the rows are checked.
    """
    try:
        memory = VisualNameMemory.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        return [str(error)]
    if not os.path.isdir(source):
        return []
    folder, problems = Path(source), []
    manifest = read_manifest(folder, VisualNameMemory.format_name)
    facts = {"rows": len(memory), "names": len(set(memory.names)), "dim": memory.dim, "dtype": memory.dtype}
    problems += [
        f"The manifest says {manifest[what]} {what}; the rows have {value}."
        for what, value in facts.items()
        if what in manifest and manifest[what] != value
    ]
    file = folder / INDEX_NAME
    if file.is_file() and len(memory):
        index = read_index(file, manifest["index_factory"], len(memory), memory.dim, memory_map=False)
        if index is None or not finds_own_rows(index, memory.key_rows, probes=256):
            problems.append(f"{file} is not an index of these rows. Delete it, or save the memory again.")
    return problems


__all__ = ["verify_memory"]
