"""Checks the folder of a memory or datastore: rows, hashes, manifest and index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..store_index import read_index
from ..store_manifest import INDEX_NAME, read_manifest


def verify_store(source: str | os.PathLike, store_class: Any) -> list[str]:
    """
    Lists what is wrong with a store; an empty list says that nothing is.

    Args:
        source (`str` or `os.PathLike`): A folder, or a Hub id, of which only the rows are checked.
        store_class: [`VisualNameMemory`] or [`CaptionDatastore`].
    """
    try:
        store = store_class.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        return [str(error)]
    if not os.path.isdir(source):
        return []
    folder, problems = Path(source), []
    manifest, texts = read_manifest(folder, store_class.format_name), f"{store_class.text_word}s"
    facts = {"rows": len(store), texts: len(set(store.texts)), "dim": store.dim, "dtype": store.dtype}
    problems += [
        f"The manifest says {manifest[what]} {what}; the rows have {value}."
        for what, value in facts.items()
        if what in manifest and manifest[what] != value
    ]
    file = folder / INDEX_NAME
    if file.is_file() and len(store):
        if read_index(file, manifest["index_factory"], store.key_rows, memory_map=False) is None:
            problems.append(f"{file} is not an index of these rows. Delete it, or save the {store.store_word} again.")
    return problems


__all__ = ["verify_store"]
