"""What a Q-Former starts from that its encoder does not bring: a BERT, a BLIP-2, an EVCap, or chance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, Blip2QFormerConfig, PreTrainedConfig

from .model_source import ModelSource
from .part_sources import PartSource, sources_of_part
from .qformer_names import FUSION_PREFIXES, QFORMER_PREFIXES


# Sizes that the two Q-Formers share, as the release makes both alike.
SHARED_SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "cross_attention_frequency",
    "max_position_embeddings",
)


@dataclass
class QFormerStart:
    """
    What a Q-Former starts from.

    Args:
        seed (`int`): Of the weights that are drawn at random.
        config ([`PreTrainedConfig`], *optional*): Of the model that gives weights.
        weights (`list[PartSource]`): Where they lie. Those that do not fit (the cross-attention of another encoder)
            are drawn.
        queries (`list[PartSource]`): Where trained queries lie.
        num_queries (`int`, *optional*): How many.
        trained (`bool`): Whether they were trained for the part's task.
        name (`str`): Of the model, for messages.
    """

    seed: int = 0
    config: PreTrainedConfig | None = None
    weights: list[PartSource] = field(default_factory=list)
    queries: list[PartSource] = field(default_factory=list)
    num_queries: int | None = None
    trained: bool = False
    name: str = ""


def find_qformer_start(part: str, init: str | ModelSource, download: Mapping[str, Any]) -> QFormerStart:
    """
    Finds the start of a Q-Former.

    Args:
        part (`str`): `"qformer"` or `"fusion_qformer"`.
        init (`str` or [`ModelSource`]): `"random:SEED"`, or by folder or repo id a BERT (as BLIP-2 began), a BLIP-2 or
            an EVCap.
        download (`Mapping[str, Any]`): Options of downloads.

    Raises:
        ValueError: It is none of them.
    """
    fusion = part == "fusion_qformer"
    if isinstance(init, str):
        random = re.fullmatch(r"random(?::(\d+))?", init)
        if random:
            return QFormerStart(int(random[1] or 0))
        if init.startswith("random"):
            raise ValueError(f"{init!r} names no start of a Q-Former: 'random:SEED' has a number, as in 'random:7'.")
        source = ModelSource(init, **download)
    else:
        source = init
    config: Any = source.config
    prefixes = (FUSION_PREFIXES if fusion else QFORMER_PREFIXES).get(config.model_type)
    if prefixes is None:
        raise ValueError(
            f"`{'fusion_init' if fusion else 'qformer_init'}` must be 'random:SEED', or a BERT, a BLIP-2 or an EVCap; "
            f"{source.given!r} is a {config.model_type!r} model."
        )
    start = QFormerStart(0, config, [PartSource(source, prefixes)], name=source.given)
    if config.model_type == "blip-2":
        start.config, start.trained = config.qformer_config, not fusion
        if not fusion:
            start.queries, start.num_queries = [PartSource(source, ("query_tokens",))], config.num_query_tokens
    elif config.model_type == "evcap":
        start.config, start.trained = getattr(config, f"{part}_config"), part not in (config.untrained_parts or ())
        start.weights = sources_of_part(source, part)
        start.queries = sources_of_part(source, "name_query_tokens" if fusion else "query_tokens")
        start.num_queries = config.num_name_query_tokens if fusion else config.num_query_tokens
        if fusion and config.tie_name_embeddings:
            start.weights.append(PartSource(weights={"embeddings.word_embeddings.weight": _input_embeddings(source)}))
    return start


def _input_embeddings(source: ModelSource) -> torch.Tensor:
    """The words of an EVCap's language model, where its fusion reads names with them."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(source.config)
    table = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is table)
    read = (one.read(model, "language_model") for one in sources_of_part(source, "language_model"))
    return next(weights[name] for weights in read if name in weights)


def qformer_config(
    sizes: PreTrainedConfig | Mapping[str, Any] | None, given: Mapping[str, Any] | None, **fixed: Any
) -> Blip2QFormerConfig:
    """
    Makes a Q-Former's config.

    Args:
        sizes (`PreTrainedConfig` or `dict`, *optional*): Where `SHARED_SIZES` are taken from.
        given (`Mapping`, *optional*): Fields that the user gave; they come before the others.
        fixed: Fields that follow from other parts.
    """
    values = sizes if isinstance(sizes, Mapping) else {name: getattr(sizes, name, None) for name in SHARED_SIZES}
    own = {name: value for name, value in values.items() if value is not None}
    given = {name: value for name, value in (given or {}).items() if name != "model_type"}
    return Blip2QFormerConfig(**{**own, **fixed, **given})


__all__ = ["SHARED_SIZES", "QFormerStart", "find_qformer_start", "qformer_config"]
