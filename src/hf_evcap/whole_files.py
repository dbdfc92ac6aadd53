"""Text files that are written whole or not at all: whoever reads one finds it as it was before, or complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


STAGING_PREFIX = ".hf_evcap-save-"  # of the hidden folder in which a store's new files are written


def write_text(file: Path, text: str) -> None:
    """Puts a text file in the place of an earlier one when it is complete."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Writes a value as indented JSON, as [`write_text`] does."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


__all__ = ["STAGING_PREFIX", "write_json", "write_text"]
