"""The captioning pipeline of a model that is named by words, as commands and evaluations name it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any


NO_MEMORY = "none"


def load_pipeline(
    model: str | None = None,
    *,
    revision: str | None = None,
    memory: str | Sequence[str] | None = None,
    device: Any = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """
    Makes the pipeline of a model.

    Args:
        model (`str`, *optional*): Folder or Hub id; the embedded default when absent.
        revision (`str`, *optional*): Of the model.
        memory (`str` or `Sequence[str]`, *optional*): Memory or datastore instead of the model's own. Several memories
            become layers, named by the last part of their names; `"none"` retrieves nothing.
        device (`str` or `torch.device`, *optional*): The first accelerator when absent.
        dtype (`str`, *optional*): As saved when absent, but float32 for the embedded model.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run code that comes with a Hub repo.

    Raises:
        ValueError: The model is no captioner of this package, or takes no layers; there is no such device.
    """
    from transformers import pipeline

    import hf_evcap

    check_device(device)
    memories = [memory] if isinstance(memory, (str, os.PathLike)) else list(memory or ())
    if len(memories) > 1 and NO_MEMORY in memories:
        raise ValueError(f"A memory of {NO_MEMORY!r} goes without others; got {', '.join(memories)}.")
    one = len(memories) == 1 and memories != [NO_MEMORY]
    pipe = pipeline(
        "image-text-to-text",
        model=model or hf_evcap.default_model(),
        revision=revision,
        device=device,
        dtype=dtype or ("auto" if model else "float32"),
        trust_remote_code=trust_remote_code or None,
        model_kwargs={"memory": memories[0]} if one else {},
    )
    if not getattr(pipe, "captions_photos", False):
        raise ValueError(f"{model} is no captioner of this package but a {type(pipe.model).__name__}.")
    if memories == [NO_MEMORY]:
        pipe.model.set_memory(None)
        for name, value in retrieve_nothing(pipe.model.config).items():
            setattr(pipe.model.config, name, value)
    elif len(memories) > 1:
        pipe.model.set_memory(_layers(memories, pipe.model))
    return pipe


def _layers(memories: Sequence[str], model: Any) -> Any:
    from .memory_evcap import MemoryLayers, VisualNameMemory

    if model.memory_class is not VisualNameMemory:
        raise ValueError(f"A {type(model).__name__} takes one {model.memory_class.store_word}, got {len(memories)}.")
    named: dict[str, str] = {}
    for place, source in enumerate(memories):
        name = re.sub(r"[^\w.-]+", "-", os.path.basename(os.path.normpath(source)).partition("@")[0], flags=re.ASCII)
        if not name or name in named:
            name = f"{name or 'memory'}-{place}"
        named[name] = source
    return MemoryLayers(named)


def check_device(device: Any) -> None:
    """
    Refuses a device that this machine does not have.

    Args:
        device (`str`, `int` or `torch.device`, *optional*): What is asked for.

    Raises:
        ValueError: It is no name of a device, or there is none of this kind or number.
    """
    import torch

    if device is None or device == "auto":
        return
    try:
        wanted = torch.device(f"cuda:{device}" if str(device).isdigit() else device)
    except RuntimeError:
        raise ValueError(f"There is no device {device!r}; give cpu, cuda, cuda:1, mps or xpu.") from None
    if wanted.type in ("cpu", "meta"):
        return
    module = getattr(torch, wanted.type, None)
    if module is None or not (hasattr(module, "is_available") and module.is_available()):
        raise ValueError(f"The device {str(device)!r} is not here: PyTorch finds no {wanted.type} device. Give cpu.")
    number = module.device_count() if hasattr(module, "device_count") else 1
    if wanted.index is not None and wanted.index >= number:
        raise ValueError(f"The device {str(device)!r} is not here: this machine has {number}, counted from 0.")


def number_field(config: Any) -> str:
    """The config's field for how many names (EVCap) or captions (SmallCap) are retrieved."""
    return next(field for field in ("num_retrieved_names", "num_retrieved_captions") if hasattr(config, field))


def retrieve_nothing(config: Any) -> dict[str, int]:
    """The config's fields with which a captioner of either family writes from the photo alone."""
    return {number_field(config): 0}


__all__ = ["NO_MEMORY", "check_device", "load_pipeline", "number_field", "retrieve_nothing"]
