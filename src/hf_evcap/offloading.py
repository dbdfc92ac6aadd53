"""Parts on other devices, and offloaded ones, whose weights accelerate's hooks bring for each call (`device_map`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def to_part(tensor: torch.Tensor, part: nn.Module) -> torch.Tensor:
    """Moves a part's input to its weights. Offloaded weights lie nowhere; hooks then move the input with them."""
    weight = next(part.parameters())
    return tensor if weight.is_meta else tensor.to(weight.device)


def own_parameter(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter of a module itself, outside the module's `forward`, too, where only that would bring it."""
    hook = getattr(module, "_hf_hook", None)
    if hook is None or not getattr(module, name).is_meta:
        return getattr(module, name)
    hook.pre_forward(module)
    try:
        return getattr(module, name)
    finally:
        hook.post_forward(module, None)


def without_parameters_on_disk(device_map: Any, names: Iterable[str]) -> Any:
    """Keeps a model's own parameters in memory: no `forward` of a part would fetch them, and they are small."""
    if not isinstance(device_map, dict):
        return device_map
    return {name: "cpu" if name in names and place == "disk" else place for name, place in device_map.items()}


def complete_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a module, those that are offloaded read back into memory."""
    state = module.state_dict()
    if not any(tensor.is_meta for tensor in state.values()):
        return state
    try:  # in a `try`, since transformers refuses a repo's code that imports what is not installed
        from accelerate.utils.modeling import get_state_dict_offloaded_model
    except ImportError as error:
        raise ImportError("Offloaded weights are read back by accelerate: pip install accelerate.") from error
    return get_state_dict_offloaded_model(module)


__all__ = ["complete_state_dict", "own_parameter", "to_part", "without_parameters_on_disk"]
