"""Reads the reference's pickled memory without running what a pickle may hold."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from ..memory_evcap import VisualNameMemory
from ..torch_pickles import MEMORY_NAMES, TensorView, load_checked, make_tensor


def load_evcap_memory(path: str | os.PathLike, **settings: Any) -> VisualNameMemory:
    """
    Reads the reference's memory file, a pickled pair of a float tensor `(rows, dim)` and a list of names.

    The pickle is read by an unpickler that knows tensors, lists and strings and refuses everything else; see
    `torch_pickles`.

    Args:
        path (`str` or `os.PathLike`): The `.pkl` file.
        settings: Passed to [`VisualNameMemory.from_rows`], such as `encoder_fingerprint`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not such a pair, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no memory file {str(path)!r}.")
    try:
        file = io.BytesIO(path.read_bytes())
        loaded, _ = load_checked(file, "a memory holds a tensor and a list of names only", MEMORY_NAMES)
        if isinstance(loaded, (tuple, list)) and len(loaded) == 2 and isinstance(loaded[0], TensorView):
            loaded = (make_tensor(loaded[0]), loaded[1])
    except Exception as error:  # a hostile pickle can fail in any way; none may pass for a memory
        raise ValueError(f"{path.name} is not a memory of the reference: {error}.") from error
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
        raise ValueError(f"{path.name} must hold a pair (keys, names), it holds {type(loaded).__name__}.")
    keys, names = loaded
    if not isinstance(keys, torch.Tensor) or not isinstance(names, list):
        raise ValueError(
            f"{path.name} must hold a tensor of keys and a list of names, it holds {type(keys).__name__} and "
            f"{type(names).__name__}."
        )
    other = next((row for row, name in enumerate(names) if not isinstance(name, str)), None)
    if other is not None:
        raise ValueError(f"{path.name} must hold names as text, the name {other} is {type(names[other]).__name__}.")
    if keys.ndim != 2 or len(keys) != len(names):
        raise ValueError(
            f"{path.name} must hold a key of numbers for each name, it holds keys of shape {tuple(keys.shape)} and "
            f"{len(names):,} names."
        )
    columns = {"source": "EVCap reference", "synthetic": None, **settings}
    try:
        return VisualNameMemory.from_rows(names, keys, **columns)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a memory of the reference: {error}") from error


__all__ = ["load_evcap_memory"]
