"""A training as it is planned: the model frozen by its policy, its precisions, and what a step takes on each GPU."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from ..training.fine_tuning.freezing import count_trainable
from .arguments import PlanArguments
from .fake_model import build_on_meta, fake_mode, freeze, make_fake, quantize
from .rehearsal import TrainingMemory, base_of, rehearse_training
from .sharding import Launch, on_one_gpu
from .workload import Workload


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str, config: PreTrainedConfig) -> torch.dtype:
    """Precision of the frozen parts; `"auto"` is that of the configuration."""
    if name == "auto":
        return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"`dtype` must be one of auto, {', '.join(DTYPES)}; got {name!r}.")
    return DTYPES[name]


class TrainingRun:
    """
    A model as it is to be trained, of fake tensors.

    Args:
        arguments ([`PlanArguments`]): Policy, precisions, optimizer.
        config ([`EVCapConfig`] or [`SmallCapConfig`]): The model's.
        launch ([`Launch`]): How many GPUs, and what each holds.

    Raises:
        ValueError: An unknown policy or precision, or a policy that trains what is to be quantized.

    Attributes:
        parameters (`dict[str, tuple[int, int]]`): Part to its trained and all parameters.
    """

    def __init__(self, arguments: PlanArguments, config: PreTrainedConfig, launch: Launch) -> None:
        self.arguments = arguments
        self.launch = launch
        model = build_on_meta(config, dtype_of(arguments.dtype, config), arguments.attn_implementation)
        model = freeze(model, arguments.policy, arguments.lora_parts, arguments.lora_rank, arguments.lora_beside)
        self.parameters = count_trainable(model)
        if arguments.quantization is not None:
            quantize(model, config, arguments.quantization)
        with fake_mode() as self.mode:
            self.model = make_fake(model)
        self._rehearsed: dict[tuple[Workload, bool], tuple[TrainingMemory, TrainingMemory]] = {}

    @property
    def can_cache_features(self) -> bool:
        """`bool`: Whether the vision encoder stays as it is, so that its features can be cached."""
        return not any(weight.requires_grad for weight in base_of(self.model).vision_model.parameters())

    @property
    def autocast(self) -> torch.dtype | None:
        """`torch.dtype` or `None`: Of mixed precision."""
        asked = "bf16" if self.arguments.bf16 else "fp16" if self.arguments.fp16 else self.launch.mixed_precision
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(asked)

    def step(
        self, workload: Workload, gradient_checkpointing: bool, launch: Launch | None = None
    ) -> tuple[TrainingMemory, TrainingMemory]:
        """
        What a training step takes on one GPU: from photos, and from cached features.

        Args:
            workload ([`Workload`]): Sizes of the batch.
            gradient_checkpointing (`bool`): As in `hf-evcap train`.
            launch ([`Launch`], *optional*): Another one of the same precision.

        Raises:
            ValueError: The step does not run in these precisions.
        """
        asked = (workload, gradient_checkpointing)
        if asked not in self._rehearsed:
            self._rehearsed[asked] = self._rehearse(*asked)
        from_photos, from_features = (
            on_one_gpu(step, launch or self.launch, self.model) for step in self._rehearsed[asked]
        )
        return from_photos, from_features

    def _rehearse(self, workload: Workload, gradient_checkpointing: bool) -> tuple[TrainingMemory, TrainingMemory]:
        try:
            with self.mode:
                return rehearse_training(
                    self.model,
                    workload,
                    optim=self.arguments.optim,
                    autocast=self.autocast,
                    gradient_checkpointing=gradient_checkpointing,
                    device=self.arguments.device,
                )
        except RuntimeError as error:
            if self.autocast is not None or "dtype" not in str(error) and "scalar type" not in str(error):
                raise
            raise ValueError(
                f"A training step does not run with frozen parts in {self.arguments.dtype} and trained parts in "
                "float32. Train in mixed precision (`bf16`), or with dtype float32."
            ) from error


__all__ = ["TrainingRun", "dtype_of"]
