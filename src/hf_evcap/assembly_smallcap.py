"""Assembles a SmallCap from a vision encoder and a decoder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig

from .assembly import Assembly, draw_weights
from .configuration_smallcap import DECODERS, RELEASED_DECODERS, SmallCapConfig
from .language_models import marks_spaces
from .model_source import ModelSource
from .part_sources import PartSource
from .vision_towers import find_efficientnet_lite, find_vision_tower, plain_vision_space, size_vision_space


class SmallCapAssembly(Assembly):
    """
    A SmallCap made of pretrained parts: first its config and its processor, then, with [`load`], the model.

    Args:
        processor_class (`type`): [`SmallCapProcessor`].
        encoder, decoder (`str` or `os.PathLike`): Its parts.
        options: As for [`SmallCapForConditionalGeneration.from_encoder_decoder_pretrained`], and arguments of
            [`SmallCapProcessor`] in `processor_options`.

    Raises:
        ValueError: The parts cannot work together.
    """

    config_class = SmallCapConfig

    def __init__(
        self,
        processor_class: Any,
        encoder: str | os.PathLike,
        decoder: str | os.PathLike,
        *,
        processor: Any = None,
        image_processor: Any = None,
        vision_space_photos: Any = None,
        gguf_file: str | None = None,
        seed: int = 0,
        processor_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(decoder, gguf_file, processor, vision_space_photos, options)
        self.seed = seed
        if self.text_config.model_type not in DECODERS:
            raise ValueError(
                f"{self.text_source.given!r} is a {self.text_config.model_type!r} model: SmallCap's cross-attention "
                f"is put into decoders of the types {', '.join(DECODERS)}. With other language models assemble an "
                "EVCap."
            )
        processor_options = self._wording(processor_options or {})
        changes = self.fields.pop("vision_config", None) or {}
        self._parts: dict[str, list[PartSource]] = {"language_model": [PartSource(self.text_source)]}
        if Path(encoder).is_file():
            tower = find_efficientnet_lite(encoder, changes)
        else:
            source = ModelSource(encoder, **self.download)
            tower = find_vision_tower(source, changes)
            if isinstance(source.config, CLIPConfig):  # its projection makes queries for captions
                tower.config.projection_dim = source.config.projection_dim
                self._parts["visual_projection"] = [PartSource(source, ("visual_projection.",))]
        self._parts["vision_model"] = [tower.weights]
        self.fields["vision_config"] = tower.config
        space = self.fields.setdefault("retrieval_space", "clip" if "visual_projection" in self._parts else "vision")
        if space != "clip":
            self._parts.pop("visual_projection", None)
        if space == "vision":
            size_vision_space(self.fields, None if self.photos is None else len(self.photos))
        elif self.photos is not None:
            raise ValueError(f"`vision_space_photos` fit the retrieval space 'vision'; this model's is {space!r}.")
        if processor is None:
            image_processor = image_processor if image_processor is not None else tower.image_processor
            if image_processor is None:
                raise ValueError(
                    f"The encoder {os.fspath(encoder)!r} has no preprocessor_config.json: pass its `image_processor`."
                )
            processor = processor_class(image_processor, self.tokenizer, **processor_options)
        self.processor = processor
        tokens = {"pad_token_id": processor.tokenizer.pad_token_id, "eos_token_id": processor.tokenizer.eos_token_id}
        self.config = SmallCapConfig(**{**tokens, **self.fields, "text_config": self.text_config})

    def _wording(self, processor_options: Mapping[str, Any]) -> dict[str, Any]:
        """
        Lets a decoder read and write the prompt as the text that it was trained on: a caption's first word comes with
        its space. The released GPT-2 and OPT learnt a prompt that ends in a space.
        """
        if self.text_config.model_type in RELEASED_DECODERS:
            return dict(processor_options)
        self.fields.setdefault("add_bos_token", bool(self.tokenizer("")["input_ids"]))
        for field in ("prompt_template", "prompt_without_captions"):
            self.fields.setdefault(field, getattr(SmallCapConfig, field).rstrip())
        spaced = self.fields["prompt_template"][-1:].isspace() or not marks_spaces(self.tokenizer)
        vocabulary, own = self.tokenizer.get_vocab(), self.tokenizer
        tokens = {
            "pad_token": "!" if "!" in vocabulary else own.pad_token or own.unk_token or own.eos_token,
            "end_token": "." if "." in vocabulary else own.eos_token,
        }
        return {"caption_prefix": "" if spaced else " ", **tokens, **processor_options}

    @property
    def parts(self) -> dict[str, list[PartSource]]:
        """`dict[str, list[PartSource]]`: Where each part lies."""
        return self._parts

    def drawn(
        self, expected: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The cross-attention, and what compares pooled features as they are."""
        places = ("crossattention.", "ln_cross_attn.")
        empty = {
            name: expected[name]
            for name in expected
            if name.startswith("vision_model.pooler.") or any(f".{place}" in name for place in places)
        }
        empty = {name: place for name, place in empty.items() if name not in weights}
        drawn = draw_weights(empty, self.seed, getattr(self.text_config, "initializer_range", 0.02))
        for name in drawn:
            if name.endswith(("crossattention.c_proj.weight", "crossattention.out_proj.weight")):
                drawn[name].zero_()  # the decoder begins as it was
        return {**drawn, **plain_vision_space(expected, weights)}

    def finish(self, model: Any) -> None:
        """Gives the model the tokenizer of the prompts; its generation config is the family's."""
        model.tokenizer = self.processor.tokenizer


__all__ = ["SmallCapAssembly"]
