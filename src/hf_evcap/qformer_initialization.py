"""Where the weights of a Q-Former come from that its encoder does not bring: a BERT, a BLIP-2, an EVCap, or chance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Blip2QFormerConfig, PreTrainedConfig

from .model_source import ModelSource


# Sizes that a fusion Q-Former shares with the image Q-Former, as the release makes both alike.
SHARED_SIZES = (
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_size",
    "intermediate_size",
    "cross_attention_frequency",
    "max_position_embeddings",
)
# BERT's names -> a Q-Former's, whose feed-forward layers exist twice: for queries and for text.
_BERT_NAMES = (
    (r"^(?:bert\.)?embeddings\.(word_embeddings|position_embeddings)\.", (r"embeddings.\1.",)),
    (r"^(?:bert\.)?embeddings\.LayerNorm\.", ("layernorm.", "embeddings.LayerNorm.")),
    (r"^(?:bert\.)?(encoder\.layer\.\d+\.attention)\.self\.", (r"\1.attention.",)),
    (r"^(?:bert\.)?(encoder\.layer\.\d+\.attention\.output\.)", (r"\1",)),
    (r"^(?:bert\.)?(encoder\.layer\.\d+\.(?:intermediate|output))\.", (r"\1.", r"\1_query.")),
)


@dataclass
class QFormerStart:
    """
    What a Q-Former starts from.

    Args:
        seed (`int`): Of the weights that are drawn at random.
        config ([`PreTrainedConfig`], *optional*): Of the model that gives weights.
        weights (`dict[str, torch.Tensor]`): Its weights, by the names that they have in a Q-Former. Those that do not
            fit (the cross-attention of another encoder) are drawn.
        queries (`torch.Tensor`, *optional*): Trained queries.
        trained (`bool`): Whether they were trained for the part's task.
        source ([`ModelSource`], *optional*): Where they come from.
        place (`str`): What the names of the weights begin with there.
    """

    seed: int = 0
    config: PreTrainedConfig | None = None
    weights: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)
    queries: torch.Tensor | None = None
    trained: bool = False
    source: ModelSource | None = None
    place: str = ""


def _random_seed(init: str) -> int | None:
    """The seed of `"random"` or `"random:SEED"`; `None` for anything else."""
    found = re.fullmatch(r"random(?::(\d+))?", init)
    return None if found is None else int(found[1] or 0)


def start_image_qformer(init: str, download: Mapping[str, Any]) -> QFormerStart:
    """
    Finds the start of an image Q-Former.

    Args:
        init (`str`): `"random:SEED"`, or a folder or repo id of a BERT (as BLIP-2 began), a BLIP-2 or an EVCap.
        download (`Mapping[str, Any]`): Options of downloads.
    """
    seed = _random_seed(init)
    if seed is not None:
        return QFormerStart(seed)
    source = _open(init, "qformer_init", download)
    if source.config.model_type == "bert":
        return QFormerStart(0, source.config, _from_bert(source), source=source)
    weights = source.read("qformer.", "query_tokens")
    queries = weights.pop("query_tokens", None)
    own = {name.removeprefix("qformer."): tensor for name, tensor in weights.items()}
    return QFormerStart(0, source.config.qformer_config, own, queries, trained=True, source=source, place="qformer.")


def start_fusion_qformer(init: str | ModelSource, download: Mapping[str, Any]) -> QFormerStart:
    """
    Finds the start of a fusion Q-Former.

    Args:
        init (`str` or [`ModelSource`]): `"random:SEED"`, or an EVCap (its fusion), a BLIP-2 (its Q-Former, as far as
            shapes allow) or a BERT, by folder or repo id.
        download (`Mapping[str, Any]`): Options of downloads.
    """
    seed = _random_seed(init) if isinstance(init, str) else None
    if seed is not None:
        return QFormerStart(seed)
    source = _open(init, "fusion_init", download) if isinstance(init, str) else init
    if source.config.model_type == "bert":
        return QFormerStart(0, source.config, _from_bert(source), source=source)
    if source.config.model_type == "blip-2":
        return QFormerStart(
            0, source.config.qformer_config, fusion_from_blip2(source.read("qformer.", "embeddings.")), source=source
        )
    weights = source.read("fusion_qformer.", "name_query_tokens")
    queries = weights.pop("name_query_tokens", None)
    own = {name.removeprefix("fusion_qformer."): tensor for name, tensor in weights.items()}
    if source.config.tie_name_embeddings:
        own["embeddings.word_embeddings.weight"] = _input_embeddings(source)
    fusion_config = source.config.fusion_qformer_config
    return QFormerStart(0, fusion_config, own, queries, trained=True, source=source, place="fusion_qformer.")


def _input_embeddings(source: ModelSource) -> torch.Tensor:
    """The words of an EVCap's language model, where its fusion reads names with them."""
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(source.config.text_config)
    table = language_model.get_input_embeddings().weight
    name = next(name for name, parameter in language_model.named_parameters() if parameter is table)
    return source.read(f"language_model.{name}")[f"language_model.{name}"]


def fusion_from_blip2(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a fusion Q-Former takes from the Q-Former of a BLIP-2 (`qformer.*`, `embeddings.*`)."""
    own = {name.removeprefix("qformer."): tensor for name, tensor in weights.items()}
    norms = {
        name.replace("layernorm.", "embeddings.LayerNorm."): tensor
        for name, tensor in own.items()
        if name.startswith("layernorm.")
    }
    return {**norms, **own}


def _open(init: str, argument: str, download: Mapping[str, Any]) -> ModelSource:
    source = ModelSource(init, **download)
    if source.config.model_type not in ("bert", "blip-2", "evcap"):
        raise ValueError(
            f"`{argument}` must be 'random:SEED', or a BERT, a BLIP-2 or an EVCap; {init!r} is a "
            f"{source.config.model_type!r} model."
        )
    return source


def _from_bert(source: ModelSource) -> dict[str, torch.Tensor]:
    """A BERT's weights under every name that they have in a Q-Former."""
    weights = {}
    for name, tensor in source.read().items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        for pattern, replacements in _BERT_NAMES:
            if re.match(pattern, name):
                weights.update({re.sub(pattern, replacement, name): tensor for replacement in replacements})
    return weights


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


__all__ = [
    "SHARED_SIZES",
    "QFormerStart",
    "fusion_from_blip2",
    "qformer_config",
    "start_fusion_qformer",
    "start_image_qformer",
]
