"""What a card says of a model's family: its parts under the paper's names with their sizes, retrieval and citation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForImageTextToText


@dataclass(frozen=True)
class Part:
    """One row of a card's table."""

    name: str  # the model's attribute, or a segment of the parameters' names inside one
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
        size = f"projection to keys of {options['key_size']:,}, fitted, not trained"
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


def smallcap_parts(config: Any) -> list[Part]:
    """Parts of SmallCap (section 3 of the paper), in the order in which a photo passes them."""
    text = config.text_config.get_text_config()
    head, factor = config.cross_attention_head_dim, config.cross_attention_reduce_factor
    parts = [Part("vision_model", "CLIP image encoder", _vision(config.vision_config))]
    if config.retrieval_space == "clip":
        size = f"{config.encoder_hidden_size:,} to {config.vision_config.projection_dim:,}"
        parts.append(Part("visual_projection", "its projection, for retrieval", size))
    elif config.retrieval_space == "vision":
        size = f"projection to keys of {config.retrieval_options['key_size']:,}, fitted, not trained"
        parts.append(Part("vision_space", "retrieval space (not in the paper)", size))
    return [
        *parts,
        Part("language_model", "decoder", f"{_transformer(text)}, {text.vocab_size:,} tokens"),
        Part(
            "crossattention",
            "cross-attention",
            f"{text.num_hidden_layers} layers, {text.num_attention_heads} heads of {head}: the decoder's width over "
            f"{factor}",
        ),
    ]


def smallcap_retrieval(config: Any) -> str:
    """How SmallCap finds captions, in a sentence."""
    encoder = f" of `{config.retrieval_encoder}`" if config.retrieval_space == "external" else ""
    return f"Retrieval: space `{config.retrieval_space}`{encoder}, {config.num_retrieved_captions} captions."


def smallcap_use(config: Any) -> str:
    """How to caption a photo; where queries come from an encoder that is not part of the model, with that."""
    if config.retrieval_space != "external":
        return 'pipe("photo.jpg")'
    encoder = config.retrieval_encoder or "ENCODER"
    encoder = encoder if encoder.startswith("open_clip:") or "/" in encoder else f"open_clip:{encoder}/openai"
    return f"""
import torch
from hf_evcap.datastore_building import load_retrieval_encoder  # the datastore is searched with this encoder's vectors

queries = torch.from_numpy(load_retrieval_encoder("{encoder}").encode_photos(["photo.jpg"]))
inputs = pipe.processor(images=["photo.jpg"], return_tensors="pt")
pipe.processor.batch_decode(pipe.model.generate(**inputs, retrieval_queries=queries), skip_special_tokens=True)"""


@dataclass(frozen=True)
class Family:
    """What cards of a family of models have in common."""

    intro: str
    parts: Callable[[Any], list[Part]]
    retrieval: Callable[[Any], str]
    store: str  # what the model retrieves from ...
    edit: str  # ... and how to edit and replace it
    build: str  # how to make one
    without: str  # what the model does without
    retrieved: str  # the heading of what was retrieved
    trust: str  # a limit that comes with retrieval
    citation: str
    use: Callable[[Any], str] = lambda config: 'pipe("photo.jpg")'


# Model type of a config -> its family.
FAMILIES: dict[str, Family] = {
    "evcap": Family(
        intro="An [EVCap](https://arxiv.org/abs/2311.15879) captioner: it retrieves names of what a photo may show "
        "from an external\nmemory that anyone can edit, drops the names that the photo does not support, and writes "
        "the caption with the rest. A\nname that is added to the memory can be in the next caption; no training.",
        parts=evcap_parts,
        retrieval=evcap_retrieval,
        store="memory",
        edit="The memory is a dataset that `model.memory.add_images(...)`, `.remove([...])` and "
        "`model.set_memory(...)` edit and\nreplace; "
        '`from_pretrained(..., memory="org/other-memory")` loads another one of the same encoder.',
        build="`hf-evcap memory\nbuild`",
        without="Without it the model captions from the photo alone.",
        retrieved="names from the memory",
        trust="A name is only as right as the memory that it comes from: whoever edits the memory decides what the "
        "model can say.",
        citation="""@inproceedings{li2024evcap,
  title     = {{EVCap}: Retrieval-Augmented Image Captioning with External Visual-Name Memory for Open-World
               Comprehension},
  author    = {Li, Jiaxuan and Vo, Duc Minh and Sugimoto, Akihiro and Nakayama, Hideki},
  booktitle = {CVPR},
  year      = {2024}
}""",
    ),
    "smallcap": Family(
        intro="A [SmallCap](https://arxiv.org/abs/2209.15323) captioner: it retrieves captions of similar photos from "
        "a datastore and\nreads them before it writes its own. Only the cross-attention between the frozen image "
        "encoder and the frozen decoder is\ntrained; with another datastore the model captions another domain, "
        "without training.",
        parts=smallcap_parts,
        retrieval=smallcap_retrieval,
        store="datastore",
        edit="The datastore is a dataset that `model.datastore.add_captions(...)`, `.remove([...])` and "
        '`model.set_datastore(...)`\nedit and replace; `from_pretrained(..., datastore="org/other-captions")` loads '
        "another one of the same encoder.",
        build="`hf-evcap\ndatastore build`",
        without="Without it the model needs `captions=[[...]]` of yours.",
        retrieved="captions from the datastore",
        trust="The model leans on the captions that it retrieves: what they get wrong, or always say, it may repeat.",
        citation="""@inproceedings{ramos2023smallcap,
  title     = {{SmallCap}: Lightweight Image Captioning Prompted with Retrieval Augmentation},
  author    = {Ramos, Rita and Martins, Bruno and Elliott, Desmond and Kementchedjhieva, Yova},
  booktitle = {CVPR},
  year      = {2023}
}""",
        use=smallcap_use,
    ),
}


@dataclass
class PartCount:
    """Parameters of a part, and those of them that are trained."""

    total: int = 0
    trained: int = 0


def count_parameters(config: Any, parts: Sequence[str], trained: Sequence[str]) -> dict[str, PartCount]:
    """
    Counts a model's parameters by parts, without making any of them.

    Args:
        parts (`Sequence[str]`): Segments of parameters' names; a parameter counts for the innermost that it lies in.
        trained (`Sequence[str]`): Segments whose parameters are trained.

    Raises:
        ValueError: Nothing lies in one of the trained parts.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    counts = {part: PartCount() for part in parts}
    found = set()
    for name, parameter in model.named_parameters():
        segments = name.split(".")
        part = next((segment for segment in reversed(segments) if segment in parts), segments[0])
        count = counts.setdefault(part, PartCount())
        count.total += parameter.numel()
        lies_in = {one for one in trained if f".{one}." in f".{name}."}
        count.trained += parameter.numel() * bool(lies_in)
        found |= lies_in
    unknown = sorted(set(trained) - found)
    if unknown:
        raise ValueError(f"There are no parameters in the trained parts {unknown}; the model has {sorted(counts)}.")
    return counts


__all__ = ["FAMILIES", "Family", "Part", "PartCount", "count_parameters"]
