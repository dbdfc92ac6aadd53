"""Bytes that tensors hold while PyTorch code runs, and operations that it does, on real tensors or on fake ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


def _convolution_backward(
    gradient: torch.Tensor,
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: list[bool],
    **_: Any,
) -> int:
    """For each wanted gradient as much as the forward pass; PyTorch's count forgets that groups are apart."""
    return sum(wanted[:2]) * conv_flop_count(list(inputs.shape), list(weight.shape), list(gradient.shape), transposed)


# PyTorch's counts of floating-point operations, and what they lack.
_FLOPS = {
    **flop_registry,
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once (tied weights, views)."""
    return sum(storage.nbytes() for storage in {id(s): s for s in (t.untyped_storage() for t in tensors)}.values())


_CONVOLUTIONS = {torch.ops.aten.convolution, torch.ops.aten.convolution_backward}


class PeakMemory(TorchDispatchMode):
    """
    Follows the storages that operations make, from their birth to their end, and counts floating-point operations.

    Work space inside of an operation is not seen, but for convolutions', which is counted as a copy of what goes in;
    nor is what an allocator keeps for later.

    Args:
        held (`Iterable[torch.Tensor]`): Tensors that are there already, such as a model's weights: counted in all
            figures, and not again when an operation returns them.

    Attributes:
        now (`int`): Bytes held at the moment.
        peak (`int`): The most bytes held since the last [`reset_peak`].
        flops (`int`): Floating-point operations of matrix products, convolutions and attention.

    Example:
    ```python
    >>> with PeakMemory(model.parameters()) as memory:
    ...     model(**batch).loss.backward()
    >>> memory.peak
    ```
    """

    def __init__(self, held: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self._known: set[int] = set()
        self.now = self.peak = self.flops = 0
        self._held = [tensor.untyped_storage() for tensor in held]  # kept, so that no other storage gets their ids
        for storage in self._held:
            self._add(storage)

    def reset_peak(self) -> None:
        """Starts the peak anew at what is held now."""
        self.peak = self.now

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        weakref.finalize(storage, self._remove, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and notes what it made."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in _FLOPS:
            self.flops += _FLOPS[func._overloadpacket](*args, **kwargs, out_val=result)
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        if func._overloadpacket in _CONVOLUTIONS and args[1].shape[2:].numel() > 1:
            self.peak = max(self.peak, self.now + args[0].nbytes)
        return result


__all__ = ["PeakMemory", "storage_bytes"]
