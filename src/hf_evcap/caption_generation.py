"""Writing captions with a language model inside: embeddings, positions, and one prefill a photo for all its beams."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin

from .cache_name import CACHE, pop_cache
from .frozen_encoder import OUTPUT_OPTIONS


_BEAM_OPTIONS = ("early_stopping", "length_penalty")
_ASSISTANTS = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


def generation_config_for(generation_config: GenerationConfig, num_beams: int) -> GenerationConfig:
    """A generation config without the options that are of no use to so many beams."""
    if num_beams > 1 or all(getattr(generation_config, name) is None for name in _BEAM_OPTIONS):
        return generation_config
    single = copy.deepcopy(generation_config)
    for name in _BEAM_OPTIONS:
        setattr(single, name, None)
    return single


class CaptionGenerationMixin(GenerationMixin):
    """For models whose captions are written by `self.language_model` from an embedded prompt."""

    config: Any
    language_model: Any
    generation_config: Any

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the language model's."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replaces the language model's."""
        self.language_model.set_output_embeddings(new_embeddings)

    def position_inputs(
        self, attention_mask: torch.Tensor | None, position_ids: torch.LongTensor | None, length: int
    ) -> dict[str, torch.Tensor]:
        """Positions that count from the first token that is not padding, for language models that take them."""
        if "position_ids" not in inspect.signature(self.language_model.forward).parameters:
            return {}
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        return {} if position_ids is None else {"position_ids": position_ids}

    def run_language_model(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None = None,
        *,
        cache: Cache | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.LongTensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor | None, Any]:
        """
        Runs the language model over an embedded sequence.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, text_hidden_size)`): All it reads.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 for padding; or
                what each place sees, `(batch_size, 1, sequence_length, sequence_length)`, boolean, with positions.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Counted from the
                mask when absent.
            cache (`Cache`, *optional*): Of the tokens before.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): -100 where there is
                nothing to learn; shifted inside. Fewer than the sequence has are those of its end. Where logits are
                kept of some tokens only (`logits_to_keep`), theirs count.
            shift_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Labels that are
                shifted already, such as a context-parallel `Trainer` gives.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*): What the loss is divided by, from the `Trainer`.
            kwargs: Further arguments of the language model.

        Returns:
            `tuple`: The loss (`None` without labels) and the language model's output.
        """
        if attention_mask is not None and attention_mask.ndim == 4 and attention_mask.dtype == torch.bool:
            seen, dtype = attention_mask, self.language_model.dtype  # not every attention takes a boolean mask
            attention_mask = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        for name in OUTPUT_OPTIONS:
            if getattr(self.config, name, False):  # set for the whole model
                kwargs.setdefault(name, True)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            return_dict=True,
            **{CACHE: cache},
            **self.position_inputs(attention_mask, position_ids, inputs_embeds.shape[1]),
            **kwargs,
        )
        if shift_labels is None and labels is not None:
            missing = inputs_embeds.shape[1] - labels.shape[1]
            shift_labels = nn.functional.pad(labels, (missing, 1), value=-100)[:, 1:]
        if shift_labels is None:
            return None, outputs
        kept = kwargs.get("logits_to_keep", 0)
        shift_labels = shift_labels[:, slice(-kept, None) if isinstance(kept, int) else kept]
        logits = outputs.logits
        items = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
        loss = self.loss_function(
            logits=logits, labels=None, shift_labels=shift_labels.contiguous(), vocab_size=logits.shape[-1], **items
        )
        return loss, outputs

    def write_captions(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_inputs: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Generates from an embedded prompt.

        With several beams the prompt runs once a photo, and its cache is then given to the beams.

        Args:
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, text_hidden_size)`): The prompts.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): 0 for padding, on the left.
            decoder_inputs (`dict[str, torch.Tensor]`, *optional*): Further inputs, a row a photo.
            kwargs: Options of [`~transformers.GenerationMixin.generate`].

        Returns:
            The new tokens, without the prompt.

        Raises:
            ValueError: An option needs the prompt's tokens.
        """
        for name in _ASSISTANTS:
            if self._generation_option(kwargs, name, None) is not None:
                raise ValueError(
                    f"`{name}` cannot help here: assistants draft from the prompt's token ids, and a caption's prompt "
                    "is embedded, with the photo in it. Leave it out."
                )
        inputs = decoder_inputs or {}
        cache = pop_cache(kwargs)
        if cache is None:
            cache = self._shared_prefill(inputs_embeds, attention_mask, inputs, kwargs)
        if cache is not None:
            kwargs[CACHE] = cache
        beams = self._generation_option(kwargs, "num_beams", 1)
        self.language_model.generation_config = generation_config_for(self.generation_config, beams)
        return self.language_model.generate(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, **inputs, **kwargs
        )

    def _generation_option(self, options: dict[str, Any], name: str, default: Any) -> Any:
        """What `generate` goes by: its argument, the given configuration's value or the model's."""
        value = options.get(name)
        if value is None:
            value = getattr(options.get("generation_config") or self.generation_config, name, None)
        return default if value is None else value

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves the model; a generation config with one beam goes without options of beam search, which it refuses."""
        generation_config = self.generation_config
        self.generation_config = generation_config_for(generation_config, generation_config.num_beams or 1)
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.generation_config = generation_config

    def _empty_cache(self) -> Cache:
        return DynamicCache(config=self.config.get_text_config(decoder=True))

    def _shared_prefill(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_inputs: dict[str, torch.Tensor],
        options: dict[str, Any],
    ) -> Cache | None:
        """Runs the prompt but for its last token once a photo and repeats the cache for the beams that share it."""
        option = partial(self._generation_option, options)
        copies = max(option("num_beams", 1), option("num_return_sequences", 1))
        plain = option("use_cache", True) and option("cache_implementation", None) in (None, "dynamic")
        # What is asked for of the first step covers the whole prompt, so that has to be run in it.
        plain &= not (option("output_attentions", False) or option("output_hidden_states", False))
        if copies == 1 or not plain or inputs_embeds.shape[1] < 2:
            return None
        cache = self._empty_cache()
        self_attention = getattr(cache, "self_attention_cache", cache)
        if not all(hasattr(layer, "batch_repeat_interleave") for layer in self_attention.layers):
            return None  # layers that keep a state instead of keys and values
        mask = attention_mask[:, :-1]
        self.language_model.base_model(
            inputs_embeds=inputs_embeds[:, :-1],
            attention_mask=mask,
            use_cache=True,
            **{CACHE: cache},
            **decoder_inputs,
            **self.position_inputs(mask, None, mask.shape[1]),
        )
        cache.batch_repeat_interleave(copies)
        return cache


__all__ = ["CaptionGenerationMixin"]
