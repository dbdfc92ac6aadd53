"""What a plan says: figures of a model, and how they are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .arguments import PlanArguments
from .rehearsal import CaptionMemory, TrainingMemory
from .report import describe
from .sharding import Launch
from .workload import Workload


# PyTorch's and the driver's own share of a GPU, and gaps in the allocator's memory, in bytes.
OVERHEAD = 1_000_000_000


@dataclass(frozen=True)
class FeatureCache:
    """
    Vision features of all photos on disk.

    Args:
        photos (`int`): Photos.
        shape (`tuple[int, ...]`): Patches and width of a photo's features.
    """

    photos: int
    shape: tuple[int, ...]

    def bytes(self, dtype: str = "float16") -> int:
        """Bytes in float16, as `hf-evcap cache-features` writes by default, or in float32."""
        size = 2 if dtype == "float16" else 4
        for side in self.shape:
            size *= side
        return self.photos * size


@dataclass(frozen=True)
class Compute:
    """
    Floating-point operations, of matrix products, convolutions and attention.

    Args:
        encode_photo (`int`): The vision encoder, for a photo.
        caption_photo (`int`): A caption of full length, its photo encoded.
        train_example (`int`): A photo with a caption of usual length, forward and backward.
        train_cached_example (`int`): The same from cached features.
        examples (`float`): Examples of all epochs.
        hours (`dict[str, float]`): `train`, `train_from_feature_cache` and `make_feature_cache`, on all GPUs together;
            empty where no TFLOP/s are given.
    """

    encode_photo: int
    caption_photo: int
    train_example: int
    train_cached_example: int
    examples: float
    hours: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelPlan:
    """
    What a model takes; `str(plan)` is a table, `plan.to_dict()` plain values.

    Args:
        arguments ([`PlanArguments`]): What was asked.
        source (`str`): Where the configuration is from.
        dtype (`str`): Of the frozen parts.
        parameters (`dict[str, tuple[int, int]]`): Part to its trained and all parameters.
        workload ([`Workload`]): The largest batch.
        launch ([`Launch`]): How many GPUs, and what each holds.
        largest_layer (`tuple[str, int]`): The largest layer and its bytes: the least that a device must hold of a
            model that `device_map="auto"` spreads.
        captioning ([`CaptionMemory`]): On one GPU.
        training (`dict[str, TrainingMemory]`): On one GPU, by [`variant`].
        feature_cache ([`FeatureCache`]): On disk.
        compute ([`Compute`]): Operations and hours.
        advice (`list[tuple[str, int]]`): Changes that make the training fit `memory_gb`, in the order in which to make
            them, with the bytes at the peak after each.
    """

    arguments: PlanArguments
    source: str
    dtype: str
    parameters: dict[str, tuple[int, int]]
    workload: Workload
    launch: Launch
    largest_layer: tuple[str, int]
    captioning: CaptionMemory
    training: dict[str, TrainingMemory]
    feature_cache: FeatureCache
    compute: Compute
    advice: list[tuple[str, int]] = field(default_factory=list)

    @property
    def total_parameters(self) -> int:
        """`int`: Of the whole model."""
        return sum(total for _, total in self.parameters.values())

    @property
    def trainable_parameters(self) -> int:
        """`int`: Trained by the policy."""
        return sum(trained for trained, _ in self.parameters.values())

    @property
    def load(self) -> int:
        """`int`: Bytes of the loaded model."""
        return self.captioning.weights

    @property
    def asked(self) -> str:
        """`str`: The key in `training` of the run that was asked for."""
        return variant(self.arguments.gradient_checkpointing or self.launch.checkpoints, self.arguments.feature_cache)

    def fits(self, peak: int) -> bool | None:
        """Whether a peak, with PyTorch's own share, fits into `memory_gb`; `None` where that was not given."""
        room = self.arguments.memory_gb
        return None if room is None else peak + self.overhead <= room * 1e9

    @property
    def overhead(self) -> int:
        """`int`: Bytes of a GPU that are not for tensors."""
        return 0 if self.arguments.device == "cpu" else OVERHEAD

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values; bytes and floating-point operations."""
        training = {
            name: {**asdict(row), "peak": row.peak, "fits": self.fits(row.peak)} for name, row in self.training.items()
        }
        captioning = {**asdict(self.captioning), "peak": self.captioning.peak}
        parts = {name: {"trainable": one, "total": total} for name, (one, total) in self.parameters.items()}
        return {
            "source": self.source,
            "arguments": asdict(self.arguments),
            "dtype": self.dtype,
            "parameters": {"total": self.total_parameters, "trainable": self.trainable_parameters, "parts": parts},
            "workload": asdict(self.workload),
            "launch": asdict(self.launch),
            "bytes": {
                "load": self.load,
                "largest_layer": self.largest_layer[1],
                "memory": self.workload.memory_bytes,
                "captioning": {**captioning, "fits": self.fits(self.captioning.peak)},
                "training": training,
                "feature_cache": {dtype: self.feature_cache.bytes(dtype) for dtype in ("float16", "float32")},
            },
            "asked": self.asked,
            "flops": {name: value for name, value in asdict(self.compute).items() if name != "hours"},
            "hours": self.compute.hours,
            "advice": [{"change": change, "peak": peak} for change, peak in self.advice],
        }

    def __str__(self) -> str:
        return describe(self)


def variant(gradient_checkpointing: bool, feature_cache: bool) -> str:
    """Key of a run in [`ModelPlan`]`.training`: `plain`, `gradient_checkpointing`, `feature_cache` or `both`."""
    if gradient_checkpointing:
        return "both" if feature_cache else "gradient_checkpointing"
    return "feature_cache" if feature_cache else "plain"


__all__ = ["Compute", "FeatureCache", "ModelPlan", "variant"]
