"""What a model is given at once: photos, tokens of prompt, names and captions, beams."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoProcessor, PreTrainedConfig
from transformers.utils import cached_file

from ..processing_evcap import EVCapProcessor
from ..store_manifest import MANIFEST_NAME
from .arguments import PlanArguments


FAMILIES = {"evcap": "memory", "smallcap": "datastore"}  # with the folder of what is retrieved from
CAPTIONING = {"evcap": {"num_beams": 5, "max_new_tokens": 32}, "smallcap": {"num_beams": 3, "max_new_tokens": 25}}


# Tokens of a caption with its end: the longest for which there must be room, and the longest of a usual batch of six.
# Of the 25,860 captions of Flickr8k's training photos, by the embedded model's tokenizer, the longest has 44 tokens;
# the longest of six has 20 on average, and the mean is 14 (`scripts/benchmark.py plan --captions FILE` counts others).
LONGEST_CAPTION = 48
LONGEST_OF_BATCH = 20
MEAN_CAPTION = 14
SMALLCAP_CAPTION = 25  # without the end; of the reference's processor
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

    @property
    def memory_bytes(self) -> int:
        """`int`: Bytes of the memory's or datastore's keys as they are searched, in float32."""
        return 4 * self.memory_shape[0] * self.memory_shape[1]

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


def make_workload(arguments: PlanArguments, config: PreTrainedConfig, source: str | None) -> Workload:
    """Sizes of the largest batch: longest captions, and prompts full of them."""
    hub = {"revision": arguments.revision} if arguments.config is None else {}
    processor = {} if source is None else read_json(source, "processor_config.json", **hub)
    generation = {} if source is None else read_json(source, "generation_config.json", **hub)
    writing = {**CAPTIONING[config.model_type], **{name: value for name, value in generation.items() if value}}
    is_smallcap = config.model_type == "smallcap"
    longest = processor.get("max_caption_length", SMALLCAP_CAPTION)
    in_prompt, for_fusion = retrieved_lengths(config, longest)
    given = arguments.prompt_tokens
    return Workload(
        batch_size=arguments.batch_size,
        image_size=image_size(config.vision_config, processor),
        prefix_tokens=0 if is_smallcap else config.num_prefix_tokens,
        prompt_tokens=in_prompt + prompt_tokens(source, config, processor, **hub) if given is None else given,
        retrieved_tokens=arguments.retrieved_tokens or for_fusion,
        caption_tokens=arguments.max_caption_length or (longest + 1 if is_smallcap else LONGEST_CAPTION),
        num_beams=arguments.num_beams or writing["num_beams"],
        new_tokens=arguments.max_new_tokens or writing["max_new_tokens"],
        memory_shape=_memory_shape(arguments, config, source, hub),
    )


def usual_batch(workload: Workload, config: PreTrainedConfig, arguments: PlanArguments) -> Workload:
    """The same with captions of the usual length, for operations and hours."""
    prompt = workload.prompt_tokens
    if arguments.prompt_tokens is None and workload.caption_tokens > MEAN_CAPTION:
        longest, usual = (retrieved_lengths(config, tokens)[0] for tokens in (workload.caption_tokens, MEAN_CAPTION))
        prompt = max(1, prompt - longest + usual)
    return replace(workload, caption_tokens=min(workload.caption_tokens, LONGEST_OF_BATCH), prompt_tokens=prompt)


def _memory_shape(
    arguments: PlanArguments, config: PreTrainedConfig, source: str | None, hub: dict[str, Any]
) -> tuple[int, int]:
    folder = FAMILIES[config.model_type]
    manifest = {} if source is None else read_json(source, f"{folder}/{MANIFEST_NAME}", **hub)
    rows = manifest.get("rows", 0) if arguments.memory_rows is None else arguments.memory_rows
    if "dim" in manifest:
        return rows, manifest["dim"]
    if config.retrieval_space == "vision":
        return rows, config.retrieval_options["key_size"]
    vision = getattr(config.vision_config, "projection_dim", 768)  # an external encoder's keys are of another size
    return rows, config.qformer_config.hidden_size if config.model_type == "evcap" else vision


__all__ = ["FAMILIES", "Workload", "make_workload", "usual_batch"]
