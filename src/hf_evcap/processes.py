"""The processes that share a piece of work, as `accelerate launch` or torchrun started them."""

from __future__ import annotations

from typing import Any

import torch


def process_state() -> Any:
    """
    Tells which of the launched processes runs here, and on what device: [`~accelerate.PartialState`].

    Without an accelerator, accelerate joins the processes only where it is told that they run on CPUs; otherwise each
    of them takes itself for the only one.
    """
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


__all__ = ["process_state"]
