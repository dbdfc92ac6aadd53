"""What to change so that a training fits: each change is planned for, the first that is enough is the last one named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from .arguments import PlanArguments
from .fake_model import fake_mode, make_fake, quantize
from .model_plan import ModelPlan, make_training_model, rehearse
from .sharding import Launch, on_one_gpu, read_launch


# PyTorch's and the driver's own share of a GPU, in bytes.
OVERHEAD = 1_000_000_000
FSDP_GPUS = (2, 4, 8, 16, 32, 64)


def advise(plan: ModelPlan, config: PreTrainedConfig) -> list[str]:
    """
    Changes that make a training fit into `memory_gb`, in the order in which to make them.

    Args:
        plan ([`ModelPlan`]): With a training that may be too large.
        config ([`EVCapConfig`] or [`SmallCapConfig`]): The model's.

    Returns:
        `list[str]`: A line a change, with the memory that it leaves; empty where all fits.
    """
    if plan.arguments.memory_gb is None or plan.training_peak + OVERHEAD <= plan.room:
        return []
    ...
