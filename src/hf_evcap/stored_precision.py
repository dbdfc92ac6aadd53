"""In which precision weights are stored: the one that they came in, for as long as no value of them needs more."""

from __future__ import annotations

from collections.abc import Mapping

import torch


_HALVES = (torch.bfloat16, torch.float16)
_SAMPLE = 1024


def halve_exact(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Stores float32 weights in half the room where no bit is lost: those that came from a checkpoint in half precision,
    or were drawn in it, and have not been trained since. Loading gives float32 again, bit for bit.

    Args:
        state (`Mapping[str, torch.Tensor]`): Values to save.

    Returns:
        `dict[str, torch.Tensor]`: The same, in bfloat16 or float16 where that holds every value of a tensor: in the
        one that holds more of the whole. Halved tensors are on the CPU; tied ones stay tied.
    """
    fitting: dict[str, list[torch.dtype]] = {}
    counts = dict.fromkeys(_HALVES, 0)
    for name, value in state.items():
        if type(value) not in (torch.Tensor, torch.nn.Parameter) or value.dtype != torch.float32 or value.is_meta:
            continue
        fitting[name] = [dtype for dtype in _HALVES if _fits(value, dtype)]
        if value.ndim > 1 and len(fitting[name]) == 1:  # zeros, ones and the like tell nothing
            counts[fitting[name][0]] += value.numel()
    if not any(counts.values()):
        return dict(state)
    order = sorted(_HALVES, key=lambda dtype: -counts[dtype])
    stored, known = dict(state), {}
    for name, dtypes in fitting.items():
        if dtypes:
            value = state[name].detach()
            place = (value.data_ptr(), value.shape, value.stride())
            if place not in known:
                known[place] = value.to(next(dtype for dtype in order if dtype in dtypes)).cpu()
            stored[name] = known[place]
    return stored


def _fits(value: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether values are the same after a way through a dtype; a few are asked first."""
    flat = value.detach().reshape(-1)
    return all(torch.equal(part.to(dtype).float(), part) for part in (flat[:_SAMPLE], flat))


__all__ = ["halve_exact"]
