"""Optimizers by the names that `transformers.TrainingArguments.optim` has for them, for fake weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers.optimization import Adafactor


class _BlockwiseAdam(torch.optim.Optimizer):
    """States of the size of bitsandbytes' 8-bit Adam: two bytes a value, and two float32 for each 256 of them."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and not self.state[weight]:
                    size = 2 * weight.numel() + 8 * (weight.numel() // 256)
                    self.state[weight]["states"] = torch.empty(size, dtype=torch.uint8)


OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adamw_8bit", "adafactor", "sgd")


def make_optimizer(optim: str, weights: list[Any], device: str) -> torch.optim.Optimizer:
    """
    Makes an optimizer.

    Args:
        optim (`str`): One of `OPTIMIZERS`.
        weights (`list[nn.Parameter]`): What is trained.
        device (`str`): On GPUs PyTorch's optimizers work on all weights at once, and need room for it.
    """
    at_once = device != "cpu"
    if optim == "adamw_torch":
        return torch.optim.AdamW(weights, foreach=at_once)
    if optim == "adamw_torch_fused":
        return torch.optim.AdamW(weights, foreach=False)
    if optim == "adafactor":
        return Adafactor(weights, scale_parameter=False, relative_step=False, lr=1e-3)
    if optim == "sgd":
        return torch.optim.SGD(weights, lr=1e-3, foreach=at_once)
    if optim == "adamw_8bit":
        return _BlockwiseAdam(weights)
    raise ValueError(f"`optim` must be one of {', '.join(OPTIMIZERS)}; got {optim!r}.")


__all__ = ["OPTIMIZERS", "make_optimizer"]
