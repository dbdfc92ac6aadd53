"""Reads chosen weights from checkpoints of any size: folders, files and Hub repos, safetensors and PyTorch files."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import safe_open

from .torch_pickles import check_checkpoint
from .weight_files import check_weight_file


# In the order in which transformers looks for them.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def locate_file(source: str, file: str, revision: str | None = None, **hub: Any) -> Path | None:
    """
    Path of a file in a folder, or downloaded from a Hub repo; `None` if it is not there.

    Args:
        source (`str`): Folder, or repo id.
        file (`str`): Its name.
        revision (`str`, *optional*): Branch, tag or commit of the repo.
        hub: Options of [`~huggingface_hub.hf_hub_download`], such as `cache_dir` and `token`.
    """
    if os.path.isdir(source):
        path = Path(source) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(source, file, revision=revision, **hub))
    except EntryNotFoundError:
        return None


def read_state_file(path: Path, prefixes: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """
    Reads a weight file, memory-mapped where its format allows.

    Args:
        path (`Path`): A `.safetensors` file, or a PyTorch file, which is read with `weights_only`.
        prefixes (`Iterable[str]`, *optional*): Only keys that start with one of these.

    Raises:
        ValueError: The file is damaged, or holds something other than tensors.
    """
    wanted = tuple(prefixes) if prefixes is not None else ("",)
    check_weight_file(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys() if key.startswith(wanted)}
        # The format of torch before 1.6, not a zip file, cannot be mapped into memory.
        mmap = zipfile.is_zipfile(path)
        check_checkpoint(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except Exception as error:  # a hostile file can fail in any way
        raise ValueError(f"{path.name} is damaged or holds more than weights: {error}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("model"), dict):
        loaded = loaded["model"]
    if not isinstance(loaded, dict):
        raise ValueError(f"{path.name} holds {type(loaded).__name__}, not a dictionary of weights.")
    return {key: value for key, value in loaded.items() if isinstance(value, torch.Tensor) and key.startswith(wanted)}


def read_pretrained(
    source: str | os.PathLike, prefixes: Iterable[str] | None = None, revision: str | None = None, **hub: Any
) -> dict[str, torch.Tensor]:
    """
    Reads weights of a Hugging Face model folder or Hub repo without making the model; only the shards that hold
    wanted keys are downloaded and opened.

    Args:
        source (`str` or `os.PathLike`): Folder, or repo id.
        prefixes (`Iterable[str]`, *optional*): Only keys that start with one of these.
        revision (`str`, *optional*): Branch, tag or commit of the repo.
        hub: Options of [`~huggingface_hub.hf_hub_download`], such as `cache_dir` and `token`.

    Returns:
        `dict[str, torch.Tensor]`: The weights, mapped from their files and not read into memory before they are used.

    Raises:
        FileNotFoundError: There are no weights.
    """
    source = os.fspath(source)
    wanted = tuple(prefixes) if prefixes is not None else ("",)
    for file in _WEIGHT_FILES:
        path = locate_file(source, file, revision, **hub)
        if path is None:
            continue
        if path.suffix != ".json":
            return read_state_file(path, wanted)
        shard_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        state: dict[str, torch.Tensor] = {}
        for shard in sorted({shard for key, shard in shard_of.items() if key.startswith(wanted)}):
            shard_path = locate_file(source, shard, revision, **hub)
            if shard_path is None:
                raise FileNotFoundError(f"{source} lists the shard {shard}, but does not hold it.")
            state.update(read_state_file(shard_path, wanted))
        return state
    raise FileNotFoundError(f"{source!r} holds no weights ({', '.join(_WEIGHT_FILES)}).")


__all__ = ["locate_file", "read_pretrained", "read_state_file"]
