"""What a model takes, from its configuration alone: parameters, memory, disk and operations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import logging

import hf_evcap

from ..store_files import MANIFEST_NAME
from ..training.freezing import count_trainable
from .arguments import PlanArguments
from .fake_model import build_on_meta, fake_mode, freeze, make_fake, quantize
from .rehearsal import (
    CaptionMemory,
    TrainingMemory,
    base_of,
    rehearse_captioning,
    rehearse_encoding,
    rehearse_training,
)
from .sharding import Launch, on_one_gpu, read_launch
from .workload import (
    LONGEST_CAPTION,
    LONGEST_OF_BATCH,
    MEAN_CAPTION,
    Workload,
    image_size,
    prompt_tokens,
    read_json,
    retrieved_lengths,
)


logger = logging.get_logger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FAMILIES = {"evcap": "memory", "smallcap": "datastore"}  # with the folder of what is retrieved from
CAPTIONING = {"evcap": {"num_beams": 5, "max_new_tokens": 32}, "smallcap": {"num_beams": 3, "max_new_tokens": 25}}
SMALLCAP_CAPTION = 25  # tokens without the end, of the processor that its reference has


@dataclass(frozen=True)
class FeatureCache:
    """
    Size of the vision features of all photos on disk.

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
        hours (`dict[str, float]`): Of training, and of making the feature cache, where TFLOP/s are given.
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
        load (`int`): Bytes of the loaded model.
        largest_layer (`tuple[str, int]`): Layers of the largest kind, and its bytes: the least that `device_map`
            must be able to place.
        memory (`int`): Bytes of the memory's or datastore's keys, in float32.
        captioning ([`CaptionMemory`]): On one GPU.
        training (`dict[str, TrainingMemory]`): On one GPU: `"plain"`, `"gradient_checkpointing"`, `"feature_cache"`
            and `"both"`.
        feature_cache ([`FeatureCache`]): On disk.
        compute ([`Compute`]): Operations and hours.
        advice (`list[str]`): What to change so that training fits `memory_gb`; see `fits`.
    """

    arguments: PlanArguments
    source: str
    dtype: str
    parameters: dict[str, tuple[int, int]]
    workload: Workload
    launch: Launch
    load: int
    largest_layer: tuple[str, int]
    memory: int
    captioning: CaptionMemory
    training: dict[str, TrainingMemory]
    feature_cache: FeatureCache
    compute: Compute
    advice: list[str] = field(default_factory=list)

    @property
    def total_parameters(self) -> int:
        """`int`: Of the whole model."""
        return sum(total for _, total in self.parameters.values())

    @property
    def trainable_parameters(self) -> int:
        """`int`: Trained by the policy."""
        return sum(trained for trained, _ in self.parameters.values())

    @property
    def asked(self) -> str:
        """`str`: The key in `training` of the run that was asked for."""
        return variant(self.arguments.gradient_checkpointing or self.launch.checkpoints, self.arguments.feature_cache)

    @property
    def training_peak(self) -> int:
        """`int`: Bytes on one GPU at the peak of the training that was asked for, its memory's keys among them."""
        return self.training[self.asked].peak + self.memory

    @property
    def captioning_peak(self) -> int:
        """`int`: Bytes on one GPU at the peak of captioning, the memory's keys among them."""
        return self.captioning.peak + self.memory

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values; bytes and floating-point operations."""
        rows = {name: {**asdict(row), "peak": row.peak} for name, row in self.training.items()}
        return {
            "source": self.source,
            "arguments": asdict(self.arguments),
            "dtype": self.dtype,
            "parameters": {
                "total": self.total_parameters,
                "trainable": self.trainable_parameters,
                "parts": {name: {"trainable": one, "total": total} for name, (one, total) in self.parameters.items()},
            },
            "workload": asdict(self.workload),
            "launch": asdict(self.launch),
            "bytes": {
                "load": self.load,
                "largest_layer": self.largest_layer[1],
                "memory": self.memory,
                "captioning": {**asdict(self.captioning), "peak": self.captioning.peak},
                "training": rows,
                "captioning_peak": self.captioning_peak,
                "training_peak": self.training_peak,
                "feature_cache": {dtype: self.feature_cache.bytes(dtype) for dtype in ("float16", "float32")},
            },
            "flops": {name: value for name, value in asdict(self.compute).items() if name != "hours"},
            "hours": self.compute.hours,
            "advice": self.advice,
        }

    def __str__(self) -> str:
        from .report import describe

        return describe(self)


def variant(gradient_checkpointing: bool, feature_cache: bool) -> str:
    """Key of a training's figures in [`ModelPlan`]`.training`."""
    names = {(False, False): "plain", (True, True): "both", (True, False): "gradient_checkpointing"}
    return names.get((gradient_checkpointing, feature_cache), "feature_cache")


def plan_model(model: str | PreTrainedConfig | None = None, **options: Any) -> ModelPlan:
    """
    Works out what a model takes to load, to caption and to train, from its configuration alone.

    The model is built without weights, and a training step and a caption are gone through on tensors that have shapes
    but no values; so the figures follow the code of whatever encoder and language model the configuration names. Not
    counted: what PyTorch and the driver take for themselves (0.5 to 1 GB on a GPU), and gaps in the allocator's memory.

    Args:
        model (`str` or [`~transformers.PreTrainedConfig`], *optional*): A folder, a Hub id, or a configuration; the
            embedded model when absent.
        options: Fields of [`PlanArguments`].

    Returns:
        [`ModelPlan`]: All figures, and what to change where `memory_gb` is too little.

    Raises:
        OSError: There is no such model.
        ValueError: An unknown policy, precision or launch, a policy that quantized weights do not allow, ...

    Example:
    ```python
    >>> from hf_evcap.planning import plan_model

    >>> plan = plan_model("hub_configs/evcap-vicuna-13b", dtype="bfloat16", bf16=True, batch_size=6, gpus=4)
    >>> plan.trainable_parameters
    3968000
    >>> print(plan)
    ```
    """
    if isinstance(model, PreTrainedConfig):
        return _plan(PlanArguments(**options), model, None)
    arguments = PlanArguments(model=model, **options)
    config, source = load_config(arguments)
    return _plan(arguments, config, source)


def load_config(arguments: PlanArguments) -> tuple[PreTrainedConfig, str]:
    """The model's configuration, and the folder or Hub id that it is from."""
    source = arguments.config or arguments.model or hf_evcap.default_model()
    path = Path(source)
    if arguments.config is not None:
        folder = path if path.is_dir() else path.parent
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f"There is no configuration {file}.")
        return AutoConfig.from_pretrained(file, trust_remote_code=arguments.trust_remote_code), str(folder)
    hub = {"revision": arguments.revision, "trust_remote_code": arguments.trust_remote_code}
    return AutoConfig.from_pretrained(source, **hub), str(source)


def _plan(arguments: PlanArguments, config: PreTrainedConfig, source: str | None) -> ModelPlan:
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{source or 'The configuration'} is of type {config.model_type!r}; plans are made for EVCap and SmallCap."
        )
    launch = read_launch(arguments.accelerate_config, arguments.gpus)
    dtype = _dtype(arguments.dtype, config)
    workload = make_workload(arguments, config, source)
    memory = 4 * workload.memory_shape[0] * workload.memory_shape[1]

    loaded = build_on_meta(config, dtype, arguments.attn_implementation)
    trained = train_model(arguments, config, dtype)
    counts = count_trainable(trained)
    if arguments.quantization is not None:
        quantize(loaded, config, arguments.quantization)
        quantize(trained, config, arguments.quantization)
    largest = calculate_maximum_sizes(loaded)[1]
    with fake_mode():
        encoding, shape = rehearse_encoding(make_fake(loaded), workload)
        captioning = rehearse_captioning(loaded, workload)
        make_fake(trained)
        training = {
            variant(checkpointing, cached): on_one_gpu(
                rehearse(trained, workload, arguments, launch, checkpointing, cached), launch, trained
            )
            for checkpointing in (False, True)
            for cached in ((False, True) if can_cache(trained) else (False,))
        }
        asked = arguments.gradient_checkpointing or launch.checkpoints
        usual = rehearse(trained, usual_batch(workload, config), arguments, launch, asked, False)
    if arguments.feature_cache and not can_cache(trained):
        raise ValueError(
            f"The policy {arguments.policy} trains the vision encoder, whose features can then not be cached. Plan "
            "without `feature_cache`."
        )
    plan = ModelPlan(
        arguments=arguments,
        source=source or type(config).__name__,
        dtype=str(dtype).removeprefix("torch."),
        parameters=counts,
        workload=workload,
        launch=launch,
        load=captioning.weights,
        largest_layer=(", ".join(largest[1]), int(largest[0])),
        memory=memory,
        captioning=captioning,
        training=training,
        feature_cache=FeatureCache(arguments.photos, tuple(shape)),
        compute=_compute(arguments, workload, launch, encoding, captioning, usual),
    )
    from .advice import advise

    return replace(plan, advice=advise(plan, config))


def _dtype(name: str, config: PreTrainedConfig) -> torch.dtype:
    if name == "auto":
        return config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    if name not in DTYPES:
        raise ValueError(f"`dtype` must be one of auto, {', '.join(DTYPES)}; got {name!r}.")
    return DTYPES[name]


def train_model(arguments: PlanArguments, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """The model on the meta device, frozen as its policy says."""
    if arguments.quantization is not None and arguments.policy in ("full", "decoder"):
        raise ValueError(
            f"The policy {arguments.policy} trains the language model, whose quantized weights cannot be trained. "
            "Choose lora or paper, or plan without `quantization`."
        )
    model = build_on_meta(config, dtype, arguments.attn_implementation)
    return freeze(model, arguments.policy, arguments.lora_parts, arguments.lora_rank)


def can_cache(model: Any) -> bool:
    """Whether the vision encoder stays as it is in training, so that its features can be cached."""
    return not any(weight.requires_grad for weight in base_of(model).vision_model.parameters())


def rehearse(
    model: Any, workload: Workload, arguments: PlanArguments, launch: Launch, checkpointing: bool, cached: bool
) -> TrainingMemory:
    """A training step of a process that holds the whole model."""
    precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else launch.mixed_precision
    autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    try:
        return rehearse_training(
            model,
            workload,
            optim=arguments.optim,
            autocast=autocast,
            gradient_checkpointing=checkpointing,
            cached_features=cached,
            device=arguments.device,
        )
    except RuntimeError as error:
        if autocast is None and arguments.dtype != "float32" and "dtype" in str(error) or "scalar type" in str(error):
            raise ValueError(
                f"A training step of this model does not run with frozen parts in {arguments.dtype} and trained ones "
                "in float32. Train in mixed precision (`bf16`), or with dtype float32."
            ) from error
        raise


def make_workload(arguments: PlanArguments, config: PreTrainedConfig, source: str | None) -> Workload:
    """Sizes of the largest batch: longest captions, and prompts full of them."""
    hub = {"revision": arguments.revision} if arguments.config is None else {}
    processor = {} if source is None else read_json(source, "processor_config.json", **hub)
    generation = {} if source is None else read_json(source, "generation_config.json", **hub)
    writing = {**CAPTIONING[config.model_type], **{name: value for name, value in generation.items() if value}}
    is_smallcap = config.model_type == "smallcap"
    longest = processor.get("max_caption_length", SMALLCAP_CAPTION)
    in_prompt, for_fusion = retrieved_lengths(config, longest)
    given = arguments.prompt_tokens
    return Workload(
        batch_size=arguments.batch_size,
        image_size=image_size(config.vision_config, processor),
        prefix_tokens=0 if is_smallcap else config.num_prefix_tokens,
        prompt_tokens=in_prompt + prompt_tokens(source, config, processor, **hub) if given is None else given,
        retrieved_tokens=arguments.retrieved_tokens or for_fusion,
        caption_tokens=arguments.max_caption_length or (longest + 1 if is_smallcap else LONGEST_CAPTION),
        num_beams=arguments.num_beams or writing["num_beams"],
        new_tokens=arguments.max_new_tokens or writing["max_new_tokens"],
        memory_shape=_memory_shape(arguments, config, source, hub),
    )


def usual_batch(workload: Workload, config: PreTrainedConfig) -> Workload:
    """The same with captions of the usual length, for operations and hours."""
    saved = retrieved_lengths(config, SMALLCAP_CAPTION)[0] - retrieved_lengths(config, MEAN_CAPTION)[0]
    return replace(
        workload,
        caption_tokens=min(workload.caption_tokens, LONGEST_OF_BATCH),
        prompt_tokens=max(1, workload.prompt_tokens - saved),
    )


def _memory_shape(
    arguments: PlanArguments, config: PreTrainedConfig, source: str | None, hub: dict[str, Any]
) -> tuple[int, int]:
    folder = FAMILIES[config.model_type]
    manifest = {} if source is None else read_json(source, f"{folder}/{MANIFEST_NAME}", **hub)
    rows = manifest.get("rows", 0) if arguments.memory_rows is None else arguments.memory_rows
    if "dim" in manifest:
        return rows, manifest["dim"]
    if config.retrieval_space == "vision":
        return rows, config.retrieval_options["key_size"]
    vision = getattr(config.vision_config, "projection_dim", 768)  # an external encoder's keys are of another size
    return rows, config.qformer_config.hidden_size if config.model_type == "evcap" else vision


def _compute(
    arguments: PlanArguments,
    workload: Workload,
    launch: Launch,
    encoding: int,
    captioning: CaptionMemory,
    usual: TrainingMemory,
) -> Compute:
    encode, train = (count // workload.batch_size for count in (encoding, usual.flops))
    examples = arguments.captions * arguments.num_train_epochs
    cached = train - encode
    hours = {}
    if arguments.tflops is not None:
        rate = arguments.tflops * 1e12 * launch.processes * 3600
        hours = {
            "train": examples * train / rate,
            "train_from_feature_cache": examples * cached / rate,
            "make_feature_cache": arguments.photos * encode / rate,
        }
    return Compute(encode, captioning.flops // workload.batch_size, train, cached, examples, hours)


__all__ = ["ModelPlan", "plan_model"]
