"""Data collator for photos with captions, by the processor of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .caption_groups import group_captions


@dataclass
class PhotoCaptionCollator:
    """
    Batches for [`CaptionTrainer`]: what the processor makes of photos and captions, with labels.

    Args:
        processor: The model's; `processor(images=photos, suffix=captions)` gives inputs and labels.
        max_caption_length (`int`, *optional*): Longer captions are cut to this many tokens, their end included.
        names (`Callable`, *optional*): `names(row, captions, epoch)` gives a photo's names and captions, where they
            are chosen before the model sees the photo; see [`~prepared_names.PreparedNames`].
        photo_keys (`Callable`, *optional*): `photo_keys(examples, photos)` gives `(batch_size, 2)` keys by which a
            photo finds itself in the memory; see `retrieval_in_training`.
    """

    processor: Any
    max_caption_length: int | None = None
    photo_keys: Callable[[Sequence[dict[str, Any]], list[Any] | None], torch.Tensor] | None = None
    names: Callable[[int, Sequence[str], int], tuple[list[str], list[str]]] | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """
        Args:
            examples (`Sequence[dict]`): Each with `row`, `image` or `vision_hidden_states`, and `caption`, or all
                captions as `caption_group` with the `epoch`.
        """
        if "caption_group" in examples[0]:
            return self._grouped(examples)
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

    def _grouped(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        photos = None
        if "vision_hidden_states" in examples[0]:
            features = [torch.as_tensor(example["vision_hidden_states"]) for example in examples]
            batch["vision_hidden_states"] = torch.stack(features).float()
        else:
            photos = [example["image"] for example in examples]
            batch.update(self.processor.image_processor(photos, return_tensors="pt"))
        groups = [example["caption_group"] for example in examples]
        if self.names is not None:
            drawn = [self.names(e["row"], e["caption_group"], e["epoch"]) for e in examples]
            batch["names"], groups = ([pair[part] for pair in drawn] for part in (0, 1))
        prompt = self.processor.encode_prompt(self.processor.prompt)
        ids = [[self.processor.encode_caption(text, self.max_caption_length) for text in group] for group in groups]
        batch.update(group_captions(prompt, ids, self.processor.tokenizer.pad_token_id))
        batch["labels"] = cut_labels(batch["labels"])
        batch["row"] = torch.tensor([example["row"] for example in examples])
        if self.photo_keys is not None and self.names is None:
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
