"""What a card says of a model's family: its parts under the paper's names with their sizes, retrieval and citation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText


@dataclass(frozen=True)
class Part:
    """One row of a card's table."""

    name: str  # the model's attribute
    paper: str  # the paper's name for it
    size: str


def _transformer(config: Any) -> str:
    layers = getattr(config, "num_hidden_layers", None) or getattr(config, "n_layer", None)
    return f"{config.model_type}, {layers} layers, {config.hidden_size:,} wide"


def _vision(config: Any) -> str:
    size = f", {config.image_size} px" if getattr(config, "image_size", None) else ""
    if getattr(config, "num_hidden_layers", None):
        return _transformer(config) + size
    width = config.hidden_size if hasattr(config, "hidden_size") else config.hidden_sizes[-1]
    return f"{config.model_type}, {width:,} wide{size}"


def evcap_parts(config: Any) -> list[Part]:
    """Parts of EVCap (section 3 of the paper), in the order in which a photo passes them."""
    text = config.text_config.get_text_config()
    width, fusion_width = config.qformer_config.hidden_size, config.fusion_qformer_config.hidden_size
    parts = [
        Part("vision_model", "vision encoder", _vision(config.vision_config)),
        Part("query_tokens", "image queries T_img", f"{config.num_query_tokens} x {width:,}"),
        Part("qformer", "image Q-Former", _transformer(config.qformer_config)),
    ]
    if config.retrieval_space == "vision":
        options = config.retrieval_options
        size = f"whitening to keys of {options['key_size']:,}, fitted, not trained"
        parts.append(Part("vision_space", "retrieval space (not in the paper)", size))
    names = f", reads {config.num_retrieved_names} names, at most {config.max_name_length} tokens"
    parts += [
        Part("name_query_tokens", "object-name queries T_obj", f"{config.num_name_query_tokens} x {fusion_width:,}"),
        Part("fusion_qformer", "fusion Q-Former F", _transformer(config.fusion_qformer_config) + names),
        Part("language_projection", "projection phi", f"{fusion_width:,} to {text.hidden_size:,}"),
        Part("language_model", "language model", f"{_transformer(text)}, {text.vocab_size:,} tokens"),
    ]
    return parts


def evcap_retrieval(config: Any) -> str:
    """How EVCap finds names, in a sentence."""
    return (
        f"Retrieval: space `{config.retrieval_space}`, rule `{config.retrieval_rule}`, {config.num_retrieved_names} "
        "names."
    )


@dataclass(frozen=True)
class Family:
    """What cards of a family of models have in common."""

    intro: str
    parts: Callable[[Any], list[Part]]
    retrieval: Callable[[Any], str]
    citation: str


# Model type of a config -> its family.
FAMILIES: dict[str, Family] = {
    "evcap": Family(
        intro="An [EVCap](https://arxiv.org/abs/2311.15879) captioner: it retrieves names of what a photo may show "
        "from an external\nmemory that anyone can edit, drops the names that the photo does not support, and writes "
        "the caption with the rest. A\nname that is added to the memory can be in the next caption; no training.",
        parts=evcap_parts,
        retrieval=evcap_retrieval,
        citation="""@inproceedings{li2024evcap,
  title     = {{EVCap}: Retrieval-Augmented Image Captioning with External Visual-Name Memory for Open-World
               Comprehension},
  author    = {Li, Jiaxuan and Vo, Duc Minh and Sugimoto, Akihiro and Nakayama, Hideki},
  booktitle = {CVPR},
  year      = {2024}
}""",
    ),
}


def count_parameters(config: Any) -> dict[str, int]:
    """Counts a model's parameters by its top-level parts, without making any of them."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[name.split(".")[0]] += parameter.numel()
    return dict(counts)


__all__ = ["FAMILIES", "Family", "Part", "count_parameters"]
