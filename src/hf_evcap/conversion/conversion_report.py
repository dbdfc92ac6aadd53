"""What a conversion did with every weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class ConversionReport:
    """
    What became of every key.

    Args:
        used (`dict[str, str]`): Our key for each key that was read.
        unused (`list[str]`): Keys of the checkpoint that the model has no place for.
        missing (`list[str]`): Weights of the model that no checkpoint held.
        initialized (`list[str]`): Those of the missing that were initialised as `fusion_init` asked.
    """

    used: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    initialized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.used)} keys used, {len(self.unused)} unused, {len(self.missing)} missing"]
        for title in ("unused", "missing", "initialized"):
            lines.extend(f"  {title}: {key}" for key in getattr(self, title))
        return "\n".join(lines)


def check_shapes(converted: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raises `ValueError` where a weight does not fit its place in the model."""
    for key, tensor in converted.items():
        if key in expected and tensor.shape != expected[key].shape:
            raise ValueError(
                f"{key} has shape {tuple(tensor.shape)} in the checkpoint and {tuple(expected[key].shape)} in the "
                "model of this config; check the config's sizes."
            )


__all__ = ["ConversionReport", "check_shapes"]
