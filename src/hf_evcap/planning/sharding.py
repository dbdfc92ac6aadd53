"""
What one of several GPUs holds: a copy of everything (DDP), or a share of it (FSDP2, DeepSpeed's ZeRO).

Activations are those of the process's own batch in each case; weights, gradients and optimizer states are spread:

| launch | weights | gradients | optimizer | besides |
| --- | --- | --- | --- | --- |
| DDP | all | all | all | buckets as large as the gradients, in which they are summed |
| FSDP2 | share | share | share | gathered: what no layer holds, the head, two layers (one in use, one to come) |
| ZeRO-1, ZeRO-2 | all | all, share | share | buckets of 5e8 gradients at most |
| ZeRO-3 | share | share | share | gathered: 1e9 values at most; the same buckets |

DeepSpeed's limits are the defaults of its `stage3_max_live_parameters` and `reduce_bucket_size`; with mixed precision
it keeps what is trained once more in float32, together with the optimizer's states, and all parts in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from ..hub.ready_configs import find_config
from .peak_memory import storage_bytes
from .rehearsal import TrainingMemory, base_of


ZERO_LIVE_PARAMETERS = 1_000_000_000
ZERO_BUCKET = 500_000_000


@dataclass(frozen=True)
class Launch:
    """
    How a training is launched.

    Args:
        kind (`str`): `"single"`, `"ddp"`, `"fsdp"` or `"zero1"`, `"zero2"`, `"zero3"`.
        processes (`int`): GPUs, on all machines.
        mixed_precision (`str`): `"no"`, `"bf16"` or `"fp16"`.
        wrapped_layers (`tuple[str, ...]`): Classes that FSDP gathers one at a time.
        reshard (`bool`): Whether FSDP lets go of a layer after its forward pass.
        offloads_parameters, offloads_optimizer (`bool`): To the CPU's memory.
        checkpoints (`bool`): Whether FSDP recomputes activations.
    """

    kind: str = "single"
    processes: int = 1
    mixed_precision: str = "no"
    wrapped_layers: tuple[str, ...] = ()
    reshard: bool = True
    offloads_parameters: bool = False
    offloads_optimizer: bool = False
    checkpoints: bool = False

    def __str__(self) -> str:
        names = {"single": "one GPU", "ddp": "DDP", "fsdp": "FSDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2"}
        name = names.get(self.kind, "ZeRO-3")
        return name if self.kind == "single" else f"{self.processes} GPUs, {name}"


def read_launch(accelerate_config: str | None = None, gpus: int | None = None) -> Launch:
    """
    The launch that a file of `accelerate launch` describes.

    Args:
        accelerate_config (`str`, *optional*): The file, or a name of `hf-evcap configs` such as `accelerate/fsdp`;
            without one, several GPUs train by DDP.
        gpus (`int`, *optional*): Processes, before the file's.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: accelerate cannot read it, or it describes something else than DDP, FSDP or ZeRO.
    """
    if accelerate_config is None:
        return Launch("ddp" if (gpus or 1) > 1 else "single", gpus or 1)
    file = find_config(accelerate_config)
    if not Path(file).is_file():
        raise FileNotFoundError(f"There is no accelerate configuration {accelerate_config}.")
    try:
        config: Any = load_config_from_file(file)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{accelerate_config} is not a configuration of `accelerate launch`: {first}") from error
    processes = gpus or max(1, config.num_processes)
    common: dict[str, Any] = {"processes": processes, "mixed_precision": str(config.mixed_precision or "no")}
    kind = config.distributed_type.value
    if kind == "NO" or kind.startswith("MULTI_"):
        return Launch("single" if processes == 1 else "ddp", **common)
    if kind == "FSDP":
        options = {name.removeprefix("fsdp_"): value for name, value in config.fsdp_config.items()}
        layers = str(options.get("transformer_layer_cls_to_wrap") or "")
        return Launch(
            "fsdp",
            **common,
            wrapped_layers=tuple(name.strip() for name in layers.split(",") if name.strip()),
            reshard=str(options.get("reshard_after_forward", True)).lower() not in ("false", "shard_grad_op"),
            offloads_parameters=bool(options.get("offload_params")),
            offloads_optimizer=bool(options.get("offload_params")),
            checkpoints=bool(options.get("activation_checkpointing")),
        )
    if kind == "DEEPSPEED":
        options = config.deepspeed_config
        stage = options.get("zero_stage", 2)
        if "deepspeed_config_file" in options or stage not in (0, 1, 2, 3):
            raise ValueError(
                f"{accelerate_config} leaves DeepSpeed's settings to a file of its own, or has an unknown stage; "
                "write `zero_stage` and the offloads into it, as hub_configs/accelerate/deepspeed_zero3.yaml."
            )
        return Launch(
            "ddp" if stage == 0 else f"zero{stage}",
            **common,
            offloads_parameters=options.get("offload_param_device", "none") not in ("none", None),
            offloads_optimizer=options.get("offload_optimizer_device", "none") not in ("none", None),
        )
    raise ValueError(f"{accelerate_config} launches {kind}; the plan knows DDP (MULTI_GPU), FSDP and DEEPSPEED.")


def on_one_gpu(memory: TrainingMemory, launch: Launch, model: Any) -> TrainingMemory:
    """
    What a GPU holds of a training step.

    Args:
        memory ([`TrainingMemory`]): Of one process that holds everything.
        launch ([`Launch`]): The launch.
        model: Frozen as it is to be trained; of fake tensors.
    """
    if launch.kind == "single":
        return memory
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if launch.kind == "ddp":
        return replace(memory, activations=memory.activations + storage_bytes(trained))
    if launch.kind == "fsdp":
        weights, gathered = _share(memory.weights, launch), _gathered_by_fsdp(model, launch)
        return replace(
            memory,
            weights=0 if launch.offloads_parameters else weights,
            gradients=0 if launch.offloads_parameters else _share(memory.gradients, launch),
            optimizer=0 if launch.offloads_optimizer else _share(memory.optimizer, launch),
            activations=memory.activations + gathered,
        )
    return _with_zero(memory, launch, model, trained)


def _share(size: int, launch: Launch) -> int:
    return math.ceil(size / launch.processes)


def _gathered_by_fsdp(model: Any, launch: Launch) -> int:
    """Bytes that are whole at once: leftovers and head all the time, and two layers; or all, if nothing is let go."""
    base = base_of(model)
    if not launch.reshard:
        return storage_bytes(model.parameters())
    wanted = set(launch.wrapped_layers) or set(base._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in wanted]
    if not layers:
        raise ValueError(
            f"The model has no layers of the classes {', '.join(sorted(wanted))} that FSDP is to wrap; the language "
            f"model's is one of {', '.join(sorted(base.language_model._no_split_modules or ()))}."
        )
    inside = {id(weight) for layer in layers for weight in layer.parameters()}
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    tied = embeddings.weight is head.weight
    units = [storage_bytes(layer.parameters()) for layer in layers]
    if not tied:
        units.append(storage_bytes(embeddings.parameters()))
        inside |= {id(embeddings.weight)}
    leftovers = [weight for weight in model.parameters() if id(weight) not in inside]
    return storage_bytes(leftovers) + sum(sorted(units)[-2:])


def _with_zero(memory: TrainingMemory, launch: Launch, model: Any, trained: Iterable[nn.Parameter]) -> TrainingMemory:
    half = launch.mixed_precision in ("bf16", "fp16")
    values = sum(weight.numel() for weight in trained)
    size = 2 if half else 4
    everything = sum(weight.numel() * (size if weight.is_floating_point() else 1) for weight in model.parameters())
    gradients, masters = values * size, 4 * values if half else 0
    spread_weights, spread_gradients = launch.kind == "zero3", launch.kind in ("zero2", "zero3")
    bucket = size * min(values, ZERO_BUCKET)
    live = size * min(sum(weight.numel() for weight in model.parameters()), ZERO_LIVE_PARAMETERS)
    return replace(
        memory,
        weights=0 if launch.offloads_parameters else _share(everything, launch) if spread_weights else everything,
        gradients=_share(gradients, launch) if spread_gradients else gradients,
        optimizer=0 if launch.offloads_optimizer else _share(memory.optimizer + masters, launch),
        activations=memory.activations + bucket + (live if spread_weights else 0),
    )


__all__ = ["Launch", "on_one_gpu", "read_launch"]
