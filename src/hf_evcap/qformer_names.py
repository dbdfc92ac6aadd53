"""The names that a Q-Former's weights have in a BERT, a BLIP-2 and an EVCap."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch


# Type of a model that a Q-Former may start from -> what the names of its weights there begin with (none: all).
QFORMER_PREFIXES = {"bert": (), "blip-2": ("qformer.",), "evcap": ("qformer.",)}
FUSION_PREFIXES = {"bert": (), "blip-2": ("qformer.", "embeddings."), "evcap": ("fusion_qformer.",)}
# BERT's names -> a Q-Former's, whose feed-forward layers exist twice: for queries and for text.
_BERT_NAMES = (
    (r"^(?:bert\.)?embeddings\.(word_embeddings|position_embeddings)\.", (r"embeddings.\1.",)),
    (r"^(?:bert\.)?embeddings\.LayerNorm\.", ("layernorm.", "embeddings.LayerNorm.")),
    (r"^(?:bert\.)?(encoder\.layer\.\d+\.attention)\.self\.", (r"\1.attention.",)),
    (r"^(?:bert\.)?(encoder\.layer\.\d+\.attention\.output\.)", (r"\1",)),
    (r"^(?:bert\.)?(encoder\.layer\.\d+\.(?:intermediate|output))\.", (r"\1.", r"\1_query.")),
)


def qformer_weights(model_type: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Gives weights the names that they have in a Q-Former, image or fusion, under every one that fits.

    Args:
        model_type (`str`): Of the model that they come from; a key of `QFORMER_PREFIXES`.
        weights (`Mapping[str, torch.Tensor]`): As they are named there.
    """
    named: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if model_type == "bert":
            own = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
            for pattern, replacements in _BERT_NAMES:
                if re.match(pattern, own):
                    named.update({re.sub(pattern, replacement, own): tensor for replacement in replacements})
            continue
        own = re.sub(r"^(fusion_)?qformer\.", "", name)
        named[own] = tensor
        if own.startswith("layernorm."):  # of BLIP-2's queries; the fusion's stands on its names
            named[f"embeddings.LayerNorm.{own.removeprefix('layernorm.')}"] = tensor
    return named


__all__ = ["FUSION_PREFIXES", "QFORMER_PREFIXES", "qformer_weights"]
