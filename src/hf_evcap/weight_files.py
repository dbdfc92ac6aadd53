"""Whether a file of weights is what its name says, told from its first bytes. Imports no PyTorch."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path


_HEAD = 64
_LONGEST_HEADER = 100_000_000  # bytes; as in the safetensors library


def check_weight_file(path: str | os.PathLike) -> None:
    """
    Refuses a file that holds no weights, or not all of them.

    Args:
        path (`str` or `os.PathLike`): A `.safetensors` file, or a checkpoint that PyTorch wrote.

    Raises:
        ValueError: It is something else, or was cut off; the message names it and says what it seems to be.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise ValueError(f"{path} is empty; copy or download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file itself; fetch it by `git lfs pull`.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is a web page, not weights; download the file itself.")
    if path.suffix == ".safetensors":
        _check_safetensors(path)
    elif not head.startswith((b"PK", b"\x80")):  # a zip archive, or a pickle of PyTorch before 1.6
        raise ValueError(f"{path} is no checkpoint of PyTorch: it begins with {head[:16]!r}.")


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{path} is damaged, or no safetensors file: its header does not fit in {size} bytes.")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            needed = 8 + length + max(ends, default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise ValueError(f"{path} is damaged, or no safetensors file: its header cannot be read.") from error
    if needed != size:
        raise ValueError(f"{path} is damaged: it has {size:,} bytes, and its header tells of {needed:,}.")


__all__ = ["check_weight_file"]
