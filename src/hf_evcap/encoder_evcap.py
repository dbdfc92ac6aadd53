"""The encoder of an EVCap that is being assembled: a BLIP-2's, another EVCap's, or a vision tower alone."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, PreTrainedConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from .configuration_evcap import EVCapConfig
from .model_source import ModelSource, own_config
from .part_sources import PartSource, sources_of_part
from .vision_towers import find_efficientnet_lite, find_vision_tower, load_image_processor


@dataclass
class Encoder:
    """
    What an encoder brings to an EVCap.

    Args:
        kind (`str`): `"blip2"`, `"evcap"` or `"tower"`.
        fields (`dict`): Of the [`EVCapConfig`].
        parts (`dict[str, list[PartSource]]`): Where its parts lie.
        source ([`ModelSource`], *optional*): Where it comes from; `None` for a bare weight file.
        image_processor: Its image processor, or `None`.
        name_tokenizer: An EVCap's, or `None`.
    """

    kind: str
    fields: dict[str, Any]
    parts: dict[str, list[PartSource]]
    source: ModelSource | None = None
    image_processor: Any = None
    name_tokenizer: Any = None


def find_encoder(encoder: str | os.PathLike, vision_config: Mapping[str, Any], download: Mapping[str, Any]) -> Encoder:
    """
    Finds a vision encoder, with the Q-Former and the queries where it has them.

    Args:
        encoder (`str` or `os.PathLike`): A BLIP-2, an EVCap, a vision tower, or a `.pth` file of an EfficientNet-Lite.
        vision_config (`Mapping[str, Any]`): Fields of the vision encoder's config to change.
        download (`Mapping[str, Any]`): Options of downloads.

    Raises:
        ValueError: It has no vision tower.
    """
    if Path(encoder).is_file():
        tower, source = find_efficientnet_lite(encoder, vision_config), None
    else:
        source = ModelSource(encoder, **download)
        if source.config.model_type == "evcap":
            return _evcap_encoder(source)
        if source.config.model_type == "blip-2":
            return _blip2_encoder(source, vision_config)
        tower = find_vision_tower(source, vision_config)
    parts = {"vision_model": [tower.weights]}
    return Encoder("tower", {"vision_config": tower.config}, parts, source, tower.image_processor)


def _blip2_encoder(source: ModelSource, vision_config: Mapping[str, Any]) -> Encoder:
    config: Any = source.config
    fields = {
        "vision_config": own_config(config.vision_config, **vision_config),
        "qformer_config": own_config(config.qformer_config),
        "num_query_tokens": config.num_query_tokens,
    }
    image_processor = load_image_processor(source)
    if image_processor is None:
        side = config.vision_config.image_size
        image_processor = BlipImageProcessorPil(size={"height": side, "width": side})
    prefixes = {"vision_model": "vision_model.", "qformer": "qformer.", "query_tokens": "query_tokens"}
    parts = {part: [PartSource(source, (prefix,))] for part, prefix in prefixes.items()}
    return Encoder("blip2", fields, parts, source, image_processor)


def _evcap_encoder(source: ModelSource) -> Encoder:
    config: Any = source.config
    others = {"text_config", "image_token_id", "memory_reference", "known_words_only", "part_sources"}
    own = set(EVCapConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__) - others
    fields = {name: copy.deepcopy(getattr(config, name)) for name in own}
    for name in ("vision_config", "qformer_config", "fusion_qformer_config"):
        fields[name] = own_config(fields[name])
    names = ["vision_model", "qformer", "query_tokens"]
    names += ["vision_space"] if config.retrieval_space == "vision" else []
    parts = {part: sources_of_part(source, part) for part in names}
    processor = AutoProcessor.from_pretrained(source.name, **source.options)
    return Encoder("evcap", fields, parts, source, processor.image_processor, processor.name_tokenizer)


__all__ = ["Encoder", "find_encoder"]
