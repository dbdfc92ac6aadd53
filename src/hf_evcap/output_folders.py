"""Folders that verbs write to: what lies there is not replaced unless the user says so."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Sequence
from pathlib import Path

from .whole_files import STAGING_PREFIX


_IGNORED = (".DS_Store",)
_SHOWN = 3
# File that tells what a folder holds -> what.
_MARKS = {
    "config.json": "a model",
    "adapter_config.json": "adapters of a model",
    "memory_config.json": "a memory or datastore",
    "feature_cache.json": "a feature cache",
    "results.json": "an evaluation",
}


class OutputExistsError(FileExistsError, ValueError):
    """A folder holds what writing would replace."""


def check_output(
    folder: str | os.PathLike, overwrite: bool = False, own: Sequence[str] = (), wanted: str | None = None
) -> None:
    """
    Refuses a folder that holds something else, or something older, unless it may be overwritten.

    What is written takes the place of files of the same names then; whatever else is there stays.

    Args:
        folder (`str` or `os.PathLike`): Where something will be written.
        overwrite (`bool`, *optional*, defaults to `False`): Whether the user allows it.
        own (`Sequence[str]`): Patterns of what an interrupted run of the same work left there.
        wanted (`str`, *optional*): What alone may be replaced, such as `"feature cache"`, for the message.

    Raises:
        NotADirectoryError: It is a file.
        OutputExistsError: It is not empty. A `FileExistsError` and a `ValueError`.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder.")
    if overwrite or not folder.is_dir():
        return
    if any(folder.glob(f"{STAGING_PREFIX}*")):  # of a save that was killed: undone or completed, it may leave nothing
        from .store_folder import recover_folder
        from .store_lock import locked_folder

        with locked_folder(folder) as real:
            recover_folder(real)
    entries = sorted(path.name for path in folder.iterdir() if path.name not in _IGNORED)
    others = [name for name in entries if not any(fnmatch.fnmatchcase(name, pattern) for pattern in own)]
    if not others:
        return
    held = _describe(folder, others)
    begin = f"{folder} exists and is no {wanted}: it holds {held}" if wanted else f"{folder} holds {held} already"
    raise OutputExistsError(
        f"{begin}. Choose another folder, or give `overwrite=True` (--overwrite): files of the same names are "
        "replaced then, others stay."
    )


def _describe(folder: Path, names: Sequence[str]) -> str:
    mark = next((mark for mark in _MARKS if mark in names), None)
    if mark is None:
        return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    rows = None
    if mark == "memory_config.json":
        try:
            rows = json.loads((folder / mark).read_text(encoding="utf-8")).get("rows")
        except (OSError, ValueError, AttributeError):
            pass  # damaged, and still somebody's
    return _MARKS[mark] + (f" of {rows:,} rows" if isinstance(rows, int) else "")


__all__ = ["OutputExistsError", "check_output"]
