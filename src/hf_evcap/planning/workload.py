"""What a model is given at once: photos, tokens of prompt, names and captions, beams."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, PreTrainedConfig
from transformers.utils import cached_file

from ..processing_evcap import EVCapProcessor


# Tokens of a caption with its end: the longest for which there must be room, and the longest of a usual batch of six.
# Of the 25,860 captions of Flickr8k's training photos, by the embedded model's tokenizer, the longest has 44 tokens;
# the longest of six has 20 on average, and the mean is 14 (`scripts/benchmark.py plan --captions FILE` counts others).
LONGEST_CAPTION = 48
LONGEST_OF_BATCH = 20
MEAN_CAPTION = 14
NAME_TOKENS = 4  # of a retrieved name with its separator
CHARACTERS_A_TOKEN = 3  # of a prompt, where there is no tokenizer to ask; English has more


@dataclass(frozen=True)
class Workload:
    """
    Sizes of a batch.

    Args:
        batch_size (`int`): Photos on one device.
        image_size (`tuple[int, int]`): Height and width of a photo.
        prefix_tokens (`int`): Vectors that stand for the photo in the prompt; 0 for SmallCap.
        prompt_tokens (`int`): Tokens of the prompt beside them; for SmallCap with the retrieved captions.
        retrieved_tokens (`int`): Tokens of the retrieved names that the fusion reads; 0 for SmallCap.
        caption_tokens (`int`): Tokens of a caption in training, with its end.
        num_beams, new_tokens (`int`): Of captioning.
        memory_shape (`tuple[int, int]`): Rows and width of the memory's or datastore's keys.
    """

    batch_size: int
    image_size: tuple[int, int]
    prefix_tokens: int
    prompt_tokens: int
    retrieved_tokens: int
    caption_tokens: int
    num_beams: int
    new_tokens: int
    memory_shape: tuple[int, int] = (0, 0)

    @property
    def sequence_tokens(self) -> int:
        """`int`: Tokens of a prompt, the photo's vectors among them."""
        return self.prefix_tokens + self.prompt_tokens

    def photos(self) -> torch.Tensor:
        """`torch.FloatTensor` of shape `(batch_size, 3, height, width)`."""
        return torch.empty(self.batch_size, 3, *self.image_size)


def read_json(source: str, file: str, **hub: Any) -> dict[str, Any]:
    """A JSON file of a folder or Hub repo; empty where there is none."""
    path = cached_file(
        source,
        file,
        **hub,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return {} if path is None else json.loads(Path(path).read_text(encoding="utf-8"))


def image_size(config: PreTrainedConfig, processor: dict[str, Any]) -> tuple[int, int]:
    """
    Height and width of the photos that the vision encoder sees.

    Args:
        config ([`PreTrainedConfig`]): The vision encoder's.
        processor (`dict`): Content of `processor_config.json`, if any.
    """
    size = getattr(config, "image_size", None)
    if size is None:  # convolutional towers of transformers take any size
        settings = processor.get("image_processor", {})
        sizes = settings.get("crop_size" if settings.get("do_center_crop") else "size", {})
        size = (sizes["height"], sizes["width"]) if "height" in sizes else sizes.get("shortest_edge", 224)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def prompt_tokens(source: str | None, config: PreTrainedConfig, processor: dict[str, Any], **hub: Any) -> int:
    """
    Tokens of the model's own prompt, without the photo's vectors and without retrieved captions.

    Counted with the processor where the repo has one with its tokenizers, else estimated from the characters.
    """
    if config.model_type == "smallcap":
        text = config.prompt_template.replace("{captions}", "") if config.num_retrieved_captions else None
        text = text or config.prompt_without_captions
    else:
        defaults = inspect.signature(EVCapProcessor.__init__).parameters
        template, prompt = (processor.get(name, defaults[name].default) for name in ("prompt_template", "prompt"))
        text = template.replace("{image}", "").replace("{prompt}", prompt)
    if source is not None and read_json(source, "tokenizer_config.json", **hub):
        loaded = AutoProcessor.from_pretrained(source, **hub)
        if config.model_type == "evcap":
            return len(loaded.encode_prompt(loaded.prompt)) - config.num_prefix_tokens
        return len(loaded.tokenizer(text, add_special_tokens=False)["input_ids"]) + bool(config.add_bos_token)
    return 1 + -(-len(text) // CHARACTERS_A_TOKEN)


def retrieved_lengths(config: PreTrainedConfig, caption: int) -> tuple[int, int]:
    """Tokens that retrieval adds to the prompt (captions of `caption` tokens), and to the fusion (names)."""
    if config.model_type == "smallcap":
        return config.num_retrieved_captions * (caption + 1), 0  # each with its separator
    return 0, max(1, min(config.max_name_length, NAME_TOKENS * config.num_retrieved_names))


__all__ = ["Workload", "image_size", "prompt_tokens", "read_json", "retrieved_lengths"]
