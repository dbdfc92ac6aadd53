"""Parts on other devices, and offloaded ones, whose weights accelerate's hooks bring for each call (`device_map`)."""

from __future__ import annotations

import torch
from torch import nn


def to_part(tensor: torch.Tensor, part: nn.Module) -> torch.Tensor:
    """Moves a part's input to its weights. Offloaded weights lie nowhere; hooks then move the input with them."""
    weight = next(part.parameters())
    return tensor if weight.is_meta else tensor.to(weight.device)


def own_parameter(module: nn.Module, name: str) -> torch.Tensor:
    """A parameter of a module itself, outside the module's `forward`, too, where only that would bring it."""
    parameter = getattr(module, name)
    if not parameter.is_meta or not hasattr(module, "_hf_hook"):
        return parameter
    from accelerate.utils import align_module_device

    with align_module_device(module):
        return getattr(module, name)


def complete_state_dict(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a module, those that are offloaded read back into memory."""
    state = module.state_dict()
    if not any(tensor.is_meta for tensor in state.values()):
        return state
    from accelerate.utils.modeling import get_state_dict_offloaded_model

    return get_state_dict_offloaded_model(module)


__all__ = ["complete_state_dict", "own_parameter", "to_part"]
