"""Putting a captioner together from pretrained parts: what both families share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from .frozen_references import remember_quantized_parts
from .language_models import (
    find_language_model,
    language_model_dtype,
    load_text_tokenizer,
    quantizing_language_model,
)
from .model_source import DOWNLOAD_OPTIONS, own_config
from .part_sources import PartSource
from .vision_space_evcap import fit_vision_space


LOADING_OPTIONS = (
    "attn_implementation",
    "device_map",
    "dtype",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "quantization_config",
)


class Assembly:
    """
    A captioner made of pretrained parts: first its config and its processor, then, with [`load`], the model.

    Args:
        language_model (`str` or `os.PathLike`): Folder, repo id or `.gguf` file.
        gguf_file (`str`, *optional*): GGUF file in it.
        processor (*optional*): To use instead of one that is made.
        vision_space_photos (`Sequence`, *optional*): Photos to which the retrieval space is fitted.
        options: Fields of the config, options of loading and of downloads.
    """

    config_class: type[PreTrainedConfig]
    fields: dict[str, Any]
    config: Any
    processor: Any

    def __init__(
        self,
        language_model: str | os.PathLike,
        gguf_file: str | None,
        processor: Any,
        vision_space_photos: Any,
        options: Mapping[str, Any],
    ) -> None:
        self.fields, self.loading, self.download = split_options(self.config_class, options)
        self.photos = None if vision_space_photos is None else list(vision_space_photos)
        self.text_source = find_language_model(language_model, gguf_file, self.download)
        self.text_config: Any = own_config(self.text_source.config)
        self.tokenizer = load_text_tokenizer(self.text_source) if processor is None else processor.tokenizer

    @property
    def parts(self) -> dict[str, list[PartSource]]:
        """`dict[str, list[PartSource]]`: Where each part lies; a later source gives what those before it lack."""
        raise NotImplementedError

    def drawn(
        self, expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """
        What no part brings.

        Args:
            expected (`Mapping[str, torch.Tensor]`): The model's state, on the meta device.
            weights (`Mapping[str, torch.Tensor]`): What the parts bring.
        """
        raise NotImplementedError

    def finish(self, model: Any) -> None:
        """Gives the model what is not in its weights: generation config and tokenizer."""
        raise NotImplementedError

    def default_memory(self, model_class: Any) -> Any:
        """The memory of a model for which none is named."""
        return None

    def load(self, model_class: Any, memory: Any = None) -> Any:
        """
        Makes the model.

        Args:
            model_class (`type`): [`EVCapForConditionalGeneration`] or [`SmallCapForConditionalGeneration`].
            memory (*optional*): Memory or datastore, its folder or repo id; `False` for none, not even an encoder's.

        Raises:
            ValueError: A part does not fill its place.
        """
        loading = dict(self.loading)
        dtype = language_model_dtype(self.text_source, loading.pop("dtype", None))
        with torch.device("meta"):
            empty = model_class(self.config)
        expected = empty.state_dict()
        weights: dict[str, torch.Tensor] = {}
        for part, sources in self.parts.items():
            for source in sources:
                weights = {**source.read(empty, part, dtype), **weights}
        weights.update(self.drawn(expected, weights))
        check_weights(expected, weights, getattr(self.config.text_config, "tie_word_embeddings", False))
        if loading.get("quantization_config") is not None:
            loading["quantization_config"] = quantizing_language_model(loading["quantization_config"], empty)
        model = model_class.from_pretrained(None, config=self.config, state_dict=weights, dtype=dtype, **loading)
        model.eval()
        model.config.part_sources = self._records()
        remember_quantized_parts(model)
        self.finish(model)
        if self.photos is not None:
            fit_vision_space(model, self.processor, self.photos)
        elif memory is None:
            memory = self.default_memory(model_class)
        if isinstance(memory, (str, os.PathLike)):
            memory = model_class.memory_class.from_pretrained(memory, **self.download)
        if memory is not None and memory is not False:
            model.set_memory(memory)
        return model

    def _records(self) -> dict[str, dict[str, Any]] | None:
        """Entries for `config.part_sources` of the parts that a repo on the Hub holds."""
        records = {part: sources[0].record for part, sources in self.parts.items() if sources}
        return {part: record for part, record in records.items() if record is not None} or None


def split_options(
    config_class: type[PreTrainedConfig], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """
    Sorts the options of an assembly.

    Returns:
        `tuple[dict, dict, dict]`: Fields of the config, options of `from_pretrained`, options of downloads.

    Raises:
        TypeError: One is none of them.
    """
    fields, loading, download = {}, {}, {}
    known = {name for name in getattr(config_class, "__dataclass_fields__", ()) if not name.startswith("_")}
    for name, value in options.items():
        if name in DOWNLOAD_OPTIONS:
            download[name] = value
        elif name in LOADING_OPTIONS:
            loading[name] = value
        elif name in known and name != "text_config":
            fields[name] = check_field(config_class, name, value)
        elif name == "revision":
            raise TypeError("Parts have revisions of their own: write them behind the ids, as in 'org/name@revision'.")
        else:
            own = sorted(known - set(PreTrainedConfig.__dataclass_fields__))
            raise TypeError(
                f"Unknown option {name!r}. Fields of {config_class.__name__}: {', '.join(own)}. Options of loading: "
                f"{', '.join((*LOADING_OPTIONS, *DOWNLOAD_OPTIONS))}."
            )
    return fields, loading, download


def check_field(config_class: type[PreTrainedConfig], name: str, value: Any) -> Any:
    """A field's value, if it is of the type of its default; raises `TypeError` otherwise."""
    default = getattr(config_class, name, None)
    known: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
    kinds = known.get(type(default))
    if kinds is not None and not (isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))):
        raise TypeError(f"The field {name!r} of {config_class.__name__} is like {default!r}; got {value!r}.")
    return value


def draw_weights(expected: Mapping[str, torch.Tensor], seed: int, std: float) -> dict[str, torch.Tensor]:
    """
    Draws weights at random: the same for a seed in every version of the libraries.

    Values are rounded to bfloat16, so that a file keeps them exactly in half the room.

    Args:
        expected (`Mapping[str, torch.Tensor]`): Names and shapes; may be on the meta device.
        seed (`int`): Seed.
        std (`float`): Standard deviation of matrices and queries; norms start at 1, biases at 0.
    """
    drawn = {}
    generator = torch.Generator().manual_seed(seed)
    for name in sorted(expected):
        shape = expected[name].shape
        if name.endswith("bias"):
            drawn[name] = torch.zeros(shape)
        elif len(shape) == 1:  # norms
            drawn[name] = torch.ones(shape)
        else:
            drawn[name] = nn.init.normal_(torch.empty(shape), std=std, generator=generator).bfloat16().float()
    return drawn


def check_weights(expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], tied: bool) -> None:
    """
    Raises `ValueError` where a part does not fill its place in a model.

    Args:
        expected (`Mapping[str, torch.Tensor]`): The model's state, on the meta device.
        weights (`Mapping[str, torch.Tensor]`): What there is.
        tied (`bool`): Whether the language model's output embeddings are its input embeddings.
    """
    for name, place in expected.items():
        shape = weights[name].shape if name in weights else None
        if shape != place.shape and not (shape is None and tied and name.startswith("language_model.")):
            found = "in none of the parts" if shape is None else f"of shape {tuple(shape)} in its checkpoint"
            raise ValueError(
                f"The weight {name} of shape {tuple(place.shape)} is {found}: a checkpoint does not fit its config. "
                "Give a whole model, or another revision of it."
            )


__all__ = ["LOADING_OPTIONS", "Assembly", "check_field", "check_weights", "draw_weights", "split_options"]
