"""Works out a plan: finds the configuration, goes through captioning and training, counts operations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import calculate_maximum_sizes
from transformers import AutoConfig, PreTrainedConfig

import hf_evcap

from ..hub.ready_configs import find_config
from .advice import advise
from .arguments import PlanArguments
from .fake_model import build_on_meta, fake_mode, make_fake, quantize
from .model_plan import Compute, FeatureCache, ModelPlan, variant
from .rehearsal import TrainingMemory, rehearse_captioning
from .sharding import Launch, read_launch
from .training_run import TrainingRun, dtype_of
from .workload import FAMILIES, Workload, make_workload, usual_batch


def plan_model(model: str | PreTrainedConfig | None = None, **options: Any) -> ModelPlan:
    """
    Works out what a model takes to load, to caption and to train, from its configuration alone.

    The model is built without weights, and a training step and a caption are gone through on tensors that have shapes
    but no values; so the figures follow the code of whatever encoder and language model the configuration names. Not
    counted: what PyTorch and the driver take for themselves, and gaps in the allocator's memory; `fits` leaves 1 GB.

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
    return plan_from(PlanArguments(model=model, **options))


def plan_from(arguments: PlanArguments) -> ModelPlan:
    """The same as [`plan_model`], from arguments that are there already."""
    return _plan(arguments, *load_config(arguments))


def load_config(arguments: PlanArguments) -> tuple[PreTrainedConfig, str]:
    """The model's configuration, and the folder or Hub id that it is from."""
    if arguments.config is None:
        source = arguments.model or hf_evcap.default_model()
        hub: dict[str, Any] = {"revision": arguments.revision, "trust_remote_code": arguments.trust_remote_code}
        try:
            return AutoConfig.from_pretrained(source, **hub), str(source)
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise OSError(f"Could not read the configuration of {source}, a folder or Hub id: {reason}") from error
    given = Path(find_config(arguments.config))
    file = given / "config.json" if given.is_dir() else given
    if not file.is_file():
        raise FileNotFoundError(f"There is no configuration {file}; `hf-evcap configs` lists those of the package.")
    config = AutoConfig.from_pretrained(file, trust_remote_code=arguments.trust_remote_code)
    return config, str(file.parent)


def _plan(arguments: PlanArguments, config: PreTrainedConfig, source: str | None) -> ModelPlan:
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"{source or 'The configuration'} is of type {config.model_type!r}; plans are made for EVCap and SmallCap."
        )
    launch = read_launch(arguments.accelerate_config, arguments.gpus)
    workload = make_workload(arguments, config, source)
    run = TrainingRun(arguments, config, launch)
    if arguments.feature_cache and not run.can_cache_features:
        raise ValueError(
            f"The policy {arguments.policy} trains the vision encoder, whose features can then not be cached. Plan "
            "without `feature_cache`."
        )
    loaded = build_on_meta(config, dtype_of(arguments.dtype, config), arguments.attn_implementation)
    if arguments.quantization is not None:
        quantize(loaded, config, arguments.quantization)
    largest = calculate_maximum_sizes(loaded)[1]
    with fake_mode():
        captioning, encoded = rehearse_captioning(make_fake(loaded), workload)
    training = {}
    for checkpointing in (False, True):
        from_photos, from_features = run.step(workload, checkpointing)
        training[variant(checkpointing, False)] = from_photos
        if run.can_cache_features:
            training[variant(checkpointing, True)] = from_features
    usual = run.step(usual_batch(workload, config, arguments), arguments.gradient_checkpointing or launch.checkpoints)
    plan = ModelPlan(
        arguments=arguments,
        source=source or type(config).__name__,
        dtype=str(dtype_of(arguments.dtype, config)).removeprefix("torch."),
        parameters=run.parameters,
        workload=workload,
        launch=launch,
        largest_layer=(largest[1][0], int(largest[0])),
        captioning=captioning,
        training=training,
        feature_cache=FeatureCache(arguments.photos, encoded.shape),
        compute=_compute(arguments, workload, launch, encoded.flops, captioning.flops, usual),
    )
    return replace(plan, advice=advise(plan, config))


def _compute(
    arguments: PlanArguments,
    workload: Workload,
    launch: Launch,
    encoding: int,
    captioning: int,
    usual: tuple[TrainingMemory, TrainingMemory],
) -> Compute:
    encode, caption, train, cached = (
        count // workload.batch_size for count in (encoding, captioning, *(step.flops for step in usual))
    )
    examples = arguments.captions * arguments.num_train_epochs
    hours = {}
    if arguments.tflops is not None:
        rate = arguments.tflops * 1e12 * launch.processes * 3600
        hours = {
            "train": examples * train / rate,
            "train_from_feature_cache": examples * cached / rate,
            "make_feature_cache": arguments.photos * encode / rate,
        }
    return Compute(encode, caption, train, cached, examples, hours)


__all__ = ["plan_from", "plan_model"]
