"""What to change so that a training fits: changes are made one after the other, each rehearsed, until it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from .model_plan import ModelPlan
from .rehearsal import TrainingMemory
from .sharding import Launch
from .training_run import TrainingRun


SHARED_BY = (2, 4, 8, 16, 32, 64)  # GPUs that FSDP may spread a model over


@dataclass(frozen=True)
class _Change:
    """What the user may do, and what it does to the plan's arguments and launch."""

    words: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    launch: Launch | None = None


def advise(plan: ModelPlan, config: PreTrainedConfig) -> list[tuple[str, int]]:
    """
    Changes that make a training fit into `memory_gb`.

    Where weights, gradients and optimizer states alone are too large, these are made smaller first; else activations.

    Args:
        plan ([`ModelPlan`]): With a training that may be too large.
        config ([`EVCapConfig`] or [`SmallCapConfig`]): The model's.

    Returns:
        `list[tuple[str, int]]`: Changes in the order in which to make them, each with the bytes at the peak after it;
        empty where all fits. After the last it fits, unless nothing helps.
    """
    now = plan.training[plan.asked]
    if plan.fits(now.peak) is not False:
        return []
    held = now.peak - now.activations
    groups = [_smaller_activations(plan), _smaller_weights(plan)]
    made: list[tuple[str, int]] = []
    arguments, launch = plan.arguments, plan.launch
    run: TrainingRun | None = None  # of these
    for changes in groups if plan.fits(held) else reversed(groups):
        for change in changes:
            tried = dataclasses.replace(arguments, **change.arguments)
            tried_launch = change.launch or launch
            tried_run = run
            if tried_run is None or change.arguments:
                try:
                    tried_run = TrainingRun(tried, config, launch)
                except ValueError:  # the policy trains what the change would quantize
                    continue
            if not change.arguments:
                run = tried_run
            found = _step(plan, tried_run, tried_launch)
            if found.peak >= now.peak:
                continue
            if change.launch is not None and not plan.fits(found.peak) and change.launch.processes < SHARED_BY[-1]:
                continue  # more GPUs are needed at once, not one after the other
            now, arguments, launch, run = found, tried, tried_launch, tried_run
            made.append((change.words, now.peak))
            if plan.fits(now.peak):
                return made
    return made


def _step(plan: ModelPlan, run: TrainingRun, launch: Launch) -> TrainingMemory:
    """A step of a run as it is launched, from photos or cached features as the plan says."""
    arguments = run.arguments
    workload = dataclasses.replace(plan.workload, batch_size=arguments.batch_size)
    return run.step(workload, arguments.gradient_checkpointing or launch.checkpoints, launch)[arguments.feature_cache]


def _smaller_activations(plan: ModelPlan) -> Iterator[_Change]:
    if not (plan.arguments.gradient_checkpointing or plan.launch.checkpoints):
        yield _Change("--gradient_checkpointing true", {"gradient_checkpointing": True})
    size, whole = plan.arguments.batch_size, plan.arguments.batch_size
    while size > 1:
        size //= 2
        steps = -(-whole // size)
        words = f"--per_device_train_batch_size {size} --gradient_accumulation_steps {steps}"
        yield _Change(words, {"batch_size": size})


def _smaller_weights(plan: ModelPlan) -> Iterator[_Change]:
    arguments = plan.arguments
    if plan.dtype == "float32":
        yield _Change("--dtype bfloat16 --bf16 true", {"dtype": "bfloat16", "bf16": True, "fp16": False})
    if arguments.policy in ("full", "decoder"):
        yield _Change("--policy lora", {"policy": "lora"})
    if arguments.quantization is None:
        yield _Change("--quantization 8bit", {"quantization": "8bit"})
    if arguments.quantization != "4bit":
        yield _Change("--quantization 4bit", {"quantization": "4bit"})
    if plan.launch.kind in ("single", "ddp"):
        for gpus in SHARED_BY:
            if gpus >= plan.launch.processes:
                words = f"`accelerate launch --config_file fsdp.yaml` (hub_configs/accelerate) on {gpus} GPUs"
                yield _Change(words, launch=dataclasses.replace(plan.launch, kind="fsdp", processes=gpus))


__all__ = ["advise"]
