"""The names that a Q-Former's weights have in a BERT, a BLIP-2, an EVCap and the authors' code."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch


# Type of a model that a Q-Former may start from -> what the names of its weights there begin with (none: all).
QFORMER_PREFIXES = {"bert": (), "blip-2": ("qformer.",), "evcap": ("qformer.",)}
FUSION_PREFIXES = {"bert": (), "blip-2": ("qformer.", "embeddings."), "evcap": ("fusion_qformer.",)}
_PARTS_OF_BERT = (
    "embeddings.word_embeddings.",
    "embeddings.position_embeddings.",
    "embeddings.LayerNorm.",
    "encoder.",
)


def qformer_name(name: str) -> str | None:
    """
    The name that a weight of a BERT has in a Q-Former, `None` for what no Q-Former has (pooler, heads). The Q-Formers
    of BLIP-2's and EVCap's authors are BERTs, too, with cross-attention and a second feed-forward layer, for queries.

    Args:
        name (`str`): With or without `bert.` in front.
    """
    own = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    own = own.replace("LayerNorm.beta", "LayerNorm.bias")
    if not own.startswith(_PARTS_OF_BERT):
        return None
    return re.sub(r"^(encoder\.layer\.\d+\.(?:cross)?attention)\.self\.", r"\1.attention.", own)


def query_layernorm(name: str) -> str:
    """A name as an image Q-Former has it, which reads no words: BERT's LayerNorm of its embeddings is the queries'."""
    return name.replace("embeddings.LayerNorm.", "layernorm.")


def qformer_weights(model_type: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Gives weights the names that they have in a Q-Former, image or fusion, under every one that fits: a copy of its
    own under each, so that training one does not move another.

    Args:
        model_type (`str`): Of the model that they come from; a key of `QFORMER_PREFIXES`.
        weights (`Mapping[str, torch.Tensor]`): As they are named there.
    """
    named: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        own = qformer_name(name) if model_type == "bert" else re.sub(r"^(fusion_)?qformer\.", "", name)
        if own is not None:
            named[own] = tensor
    for own, tensor in list(named.items()):
        others = [query_layernorm(own), re.sub(r"^layernorm\.", "embeddings.LayerNorm.", own)]
        if model_type == "bert":  # its feed-forward layers are those of queries and of text
            others.append(re.sub(r"^(encoder\.layer\.\d+\.(?:intermediate|output))\.", r"\1_query.", own))
        for other in others:
            if other not in named:
                named[other] = tensor.clone()
    return named


__all__ = ["FUSION_PREFIXES", "QFORMER_PREFIXES", "qformer_name", "qformer_weights", "query_layernorm"]
