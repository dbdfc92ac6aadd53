"""Data collator for photos with captions, by the processor of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class PhotoCaptionCollator:
    """
    Batches for [`CaptionTrainer`]: what the processor makes of photos and captions, with labels.

    Args:
        processor: The model's; `processor(images=photos, suffix=captions)` gives inputs and labels.
        max_caption_length (`int`, *optional*): Longer captions are cut to this many tokens, their end included.
        photo_keys (`Callable`, *optional*): `photo_keys(examples, photos)` gives `(batch_size, 2)` keys by which a
            photo finds itself in the memory; see `retrieval_in_training`.
    """

    processor: Any
    max_caption_length: int | None = None
    photo_keys: Callable[[Sequence[dict[str, Any]], list[Any] | None], torch.Tensor] | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Args: examples (`Sequence[dict]`): each with `caption`, `row`, and `image` or `vision_hidden_states`."""
        captions = [example["caption"] for example in examples]
        options = {"suffix": captions, "return_tensors": "pt", "max_length": self.max_caption_length}
        photos = None
        if "vision_hidden_states" in examples[0]:
            batch = dict(self.processor(**options))
            features = [torch.as_tensor(example["vision_hidden_states"]) for example in examples]
            batch["vision_hidden_states"] = torch.stack(features).float()
        else:
            photos = [example["image"] for example in examples]
            batch = dict(self.processor(images=photos, **options))
        if "input_ids" in batch:
            batch["labels"] = cut_labels(batch["labels"])
        batch["row"] = torch.tensor([example["row"] for example in examples])
        if self.photo_keys is not None:
            batch["photo_keys"] = self.photo_keys(examples, photos)
        return batch


def cut_labels(labels: torch.Tensor) -> torch.Tensor:
    """
    Labels without the columns that no caption reaches, but one: the last one before a caption predicts its first word.

    Captions stand on the right, so the language model's head is needed there alone (`logits_to_keep`).
    """
    first = int((labels != -100).any(dim=0).to(torch.uint8).argmax())
    return labels[:, max(0, first - 1) :]


def prompts_alone(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Takes the captions off the end of training sequences, to write them anew.

    Args:
        input_ids, attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): Padded on the left.
        labels (`torch.Tensor` of shape `(batch_size, label_length)`): Right-aligned; -100 but for the captions.

    Returns:
        `tuple`: Ids and attention mask of the prompts, padded on the left.
    """
    lengths = (labels != -100).sum(dim=1, keepdim=True)
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    source = columns - lengths  # shifted to the right by the caption's length
    mask = attention_mask.gather(1, source.clamp(min=0)).masked_fill(source < 0, 0)
    ids = input_ids.gather(1, source.clamp(min=0)).masked_fill(mask == 0, pad_token_id)
    used = int(mask.any(dim=0).to(torch.uint8).argmax())
    return ids[:, used:], mask[:, used:]
