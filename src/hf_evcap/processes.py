"""The processes that share a piece of work, as `accelerate launch` or torchrun started them."""

from __future__ import annotations

import atexit
import functools
from typing import Any

import torch
from torch import distributed


@functools.cache
def _leave_at_exit() -> None:
    """A process that ends while the threads of its process group run is aborted now and then, with its work done."""

    def leave() -> None:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()

    atexit.register(leave)


def process_state() -> Any:
    """
    Tells which of the launched processes runs here, and on what device: [`~accelerate.PartialState`].

    Without an accelerator, accelerate joins the processes only where it is told that they run on CPUs; otherwise each
    of them takes itself for the only one.
    """
    from accelerate import PartialState

    _leave_at_exit()
    return PartialState(cpu=not torch.accelerator.is_available())


__all__ = ["process_state"]
