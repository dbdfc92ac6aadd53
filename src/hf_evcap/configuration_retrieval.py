"""What the configurations of both families share: their memory, the identity of their encoder, sub-configurations."""

from __future__ import annotations

from typing import Any

from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

from .configuration_efficientnet_lite import EfficientNetLiteConfig


# A Hub repo that carries this file may run where hf_evcap is not installed, so the vision tower registers itself here.
AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)

# Numbers of the `vision` space: dimension of the keys, exponent of the power normalisation, how far the whitening goes
# (1 evens out the spread of the components, 0 keeps it), windows of the patch grid (a side of 0 turns them off) and
# the step between them.
VISION_SPACE_OPTIONS = {"key_size": 256, "power": 0.5, "whitening_power": 1.0, "window_size": 3, "window_stride": 2}


def vision_hidden_size(config: PreTrainedConfig) -> int:
    """Width of the vision encoder's last hidden state."""
    if hasattr(config, "hidden_size"):
        return config.hidden_size
    if hasattr(config, "hidden_sizes"):  # convolutional towers name one width a stage
        return config.hidden_sizes[-1]
    raise ValueError(f"vision_config of type {config.model_type!r} names neither `hidden_size` nor `hidden_sizes`.")


def resolve_config(config: dict | PreTrainedConfig | None, default: dict[str, Any], name: str) -> PreTrainedConfig:
    """Makes a sub-configuration from what the user gave: a configuration, a dictionary or nothing."""
    if isinstance(config, PreTrainedConfig):
        return config
    if config is not None and not isinstance(config, dict):
        raise TypeError(f"`{name}` must be a configuration or a dictionary, got {type(config).__name__}.")
    fields = {**({} if config and "model_type" in config else default), **(config or {})}
    model_type = fields.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"`{name}` has model_type {model_type!r}, which transformers' AutoConfig does not know.")
    return CONFIG_MAPPING[model_type](**fields)


def complete_options(given: dict[str, Any] | None, defaults: dict[str, Any]) -> dict[str, Any]:
    """Fills in the `retrieval_options` that were not given and refuses those that nothing reads."""
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        raise ValueError(f"Unknown `retrieval_options` {unknown}; the chosen space and rule have {sorted(defaults)}.")
    return {**defaults, **(given or {})}


class RetrievalConfig(PreTrainedConfig):
    """
    Configuration of a model that brings a memory along.

    Args:
        memory_reference (`dict`, *optional*):
            Memory that `from_pretrained` loads: `{"repo_id": ..., "revision": ...}` of a dataset repo on the Hub.
            `None` loads the folder that the model's own repo has for it. Never a local path.
        encoder_fingerprint (`str`, *optional*):
            Identity of the frozen encoder, written by `save_pretrained`; memories of other encoders are refused.
        untrained_parts (`list[str]`, *optional*):
            Parts that started at random or from another task and that no training has fitted yet; a policy that would
            leave an untrained image Q-Former as it is is refused.
        part_sources (`dict[str, dict]`, *optional*):
            Where parts came from when the model was assembled, by their names: `repo_id`, `revision` (a commit),
            `prefixes` of the weights' names there, `sha256` over all of their values, `gguf_file` where they lie in
            one, and `referenced`: whether they are read from there, or lie in the model's own repo.
    """

    memory_reference: dict | None = None
    encoder_fingerprint: str | None = None
    untrained_parts: list | None = None
    part_sources: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not type(self).__module__.startswith("transformers_modules"):
            # The entry is for environments without hf_evcap. Here the pipeline is registered, and the entry would make
            # `transformers.pipeline` ask for `trust_remote_code`.
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)
        if self.memory_reference is not None:
            if set(self.memory_reference) - {"repo_id", "revision"} or "repo_id" not in self.memory_reference:
                raise ValueError(
                    f"`memory_reference` holds `repo_id` and `revision`, got {sorted(self.memory_reference)}."
                )
            validate_repo_id(self.memory_reference["repo_id"])  # a local path would be of no use to others
        for part, record in (self.part_sources or {}).items():
            missing = {"repo_id", "revision", "prefixes", "sha256", "referenced"} - set(record)
            if missing:
                raise ValueError(f"The entry {part!r} of `part_sources` lacks {', '.join(sorted(missing))}.")
            validate_repo_id(record["repo_id"])


__all__ = ["RetrievalConfig"]
