"""Data collators: lists of token ids and cached vision features to the tensors that a stage trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..fine_tuning.name_lists import join_names


def pad(sequences: Sequence[Sequence[int]], value: int, length: int | None = None) -> torch.Tensor:
    """Pads token ids on the right to the longest (or `length`) as `(batch_size, length)`."""
    length = max(map(len, sequences)) if length is None else length
    return torch.tensor([[*sequence, *[value] * (length - len(sequence))] for sequence in sequences])


@dataclass
class NamesAsTextCollator:
    """
    Batches for the language model alone, which reads the names as plain tokens before the caption.

    A row is laid out as the captioner's: placeholders of a photo, `name <sep> ... <sep> <sep>` over `max_name_length`
    places, `<s> caption </s>`; only the caption is learned. Padding stands on the right, behind the caption, where a
    causal model needs no mask for it.

    Args:
        tokenizer: With `bos_token`, `eos_token`, `pad_token` and `sep_token`.
        max_name_length (`int`): Tokens of the names.
        max_caption_length (`int`): Tokens of the caption, at most.
        photo_ids (`Sequence[int]`, *optional*): Tokens that stand for a photo.
    """

    tokenizer: Any
    max_name_length: int
    max_caption_length: int
    photo_ids: Sequence[int] = ()

    @property
    def max_length(self) -> int:
        """Places before the caption."""
        return len(self.photo_ids) + self.max_name_length

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Args: examples (`Sequence[dict]`): each with `names` and `caption` as token ids."""
        tokenizer = self.tokenizer
        names = [join_names(example["names"], tokenizer.sep_token_id, self.max_name_length) for example in examples]
        captions = [example["caption"][: self.max_caption_length] + [tokenizer.eos_token_id] for example in examples]
        prompt = pad([[*self.photo_ids, *ids] for ids in names], tokenizer.sep_token_id, self.max_length)
        targets = pad(captions, tokenizer.pad_token_id)
        start = torch.full((len(examples), 1), tokenizer.bos_token_id)
        labels = torch.cat([torch.full_like(start, -100), pad(captions, -100)], dim=1)
        return {
            "input_ids": torch.cat([prompt, start, targets], dim=1),
            "labels": labels,
            "logits_to_keep": labels.shape[1],
        }


@dataclass
class CaptionCollator:
    """
    Batches for an EVCap model with given names and, where there are any, cached vision features.

    Args:
        tokenizer: The language model's, which reads the names too.
        image_token_id (`int`): Placeholder of the photo's vectors.
        num_prefix_tokens (`int`): How many of them a photo takes.
        max_name_length (`int`): Tokens of the names, at most.
        max_caption_length (`int`): Tokens of the caption, at most.
        vision_features (`Callable`): Gives the cached vision hidden states of examples,
            `(batch_size, num_patches, vision_hidden_size)`; zeros for text without a photo.
        prompt_ids (`Sequence[int]`): Prompt between the photo and the caption.
    """

    tokenizer: Any
    image_token_id: int
    num_prefix_tokens: int
    max_name_length: int
    max_caption_length: int
    vision_features: Callable[[Sequence[dict[str, Any]]], torch.Tensor]
    prompt_ids: Sequence[int]

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Args: examples (`Sequence[dict]`): each with `names` and `caption` as token ids, and what features need."""
        tokenizer = self.tokenizer
        names = [join_names(example["names"], tokenizer.sep_token_id, self.max_name_length) for example in examples]
        captions = [example["caption"][: self.max_caption_length] + [tokenizer.eos_token_id] for example in examples]
        before = [self.image_token_id] * self.num_prefix_tokens + list(self.prompt_ids)
        prompt = torch.tensor([before] * len(examples))
        ignored = torch.full((len(examples), 1), -100)
        labels = torch.cat([ignored, pad(captions, -100)], dim=1)  # the prompt's last token predicts the first word
        return {
            "input_ids": torch.cat([prompt, pad(captions, tokenizer.pad_token_id)], dim=1),
            "labels": labels,
            "logits_to_keep": labels.shape[1],
            "name_input_ids": pad(names, tokenizer.sep_token_id),
            "name_attention_mask": pad([[1] * len(ids) for ids in names], 0),
            "vision_hidden_states": self.vision_features(examples),
        }
