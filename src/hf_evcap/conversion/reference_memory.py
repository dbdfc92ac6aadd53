"""Reads the reference's pickled memory without running what a pickle may hold."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ..memory_evcap import VisualNameMemory


def _load_storage(data: bytes) -> Any:
    """Reads the tensor bytes inside the pickle, a `torch.save` of their own."""
    return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")


# What a pickle of tensors, lists and strings needs; every other global is refused.
_ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("collections", "OrderedDict"): OrderedDict,
}


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the pickle asks for {module}.{name}; a memory holds a tensor and a list of names only"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("the pickle refers to data outside itself")


def load_evcap_memory(path: str | os.PathLike, **settings: Any) -> VisualNameMemory:
    """
    Reads the reference's memory file, a pickled pair of a float tensor `(rows, dim)` and a list of names.

    The pickle is read by an unpickler that knows tensors, lists and strings and refuses everything else.

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
        with path.open("rb") as file:
            loaded = _TensorUnpickler(file).load()
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
    return VisualNameMemory.from_rows(names, keys, **{"source": "EVCap reference", "synthetic": None, **settings})


__all__ = ["load_evcap_memory"]
