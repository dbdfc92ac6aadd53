"""Data collator for photos with captions, by the processor of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...chat_messages import photos_of, read_conversation, requests_of
from ...row_columns import CAPTION_COLUMNS, find_column, find_photo_column
from .caption_groups import group_captions


@dataclass
class PhotoCaptionCollator:
    """
    Batches for any trainer: what the processor makes of photos and captions, with labels.

    A row is an example of [`CaptionExamples`], a row of a dataset with a photo and a caption (or several, of which one
    is drawn) in columns called as usual, or a chat: `messages` of which the assistant's last is the caption, the photo
    in them or in the row.

    Args:
        processor: The model's; `processor(images=photos, suffix=captions)` gives inputs and labels.
        max_caption_length (`int`, *optional*): Longer captions are cut to this many tokens, their end included.
        names (`Callable`, *optional*): `names(row, captions, epoch)` gives a photo's names and captions, where they
            are chosen before the model sees the photo; see [`~prepared_names.PreparedNames`].
        photo_keys (`Callable`, *optional*): `photo_keys(examples, photos)` gives `(batch_size, 2)` keys by which a
            photo finds itself in the memory; see `retrieval_in_training`.
        with_rows (`bool`, *optional*, defaults to `False`): Also give the numbers of the rows, as [`CaptionTrainer`]
            takes them; it sets this itself.
    """

    processor: Any
    max_caption_length: int | None = None
    photo_keys: Callable[[Sequence[dict[str, Any]], list[Any] | None], torch.Tensor] | None = None
    names: Callable[[int, Sequence[str], int], tuple[list[str], list[str]]] | None = None
    with_rows: bool = False

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        """
        Args:
            examples (`Sequence[dict]`): Rows with a photo or `vision_hidden_states`, and a caption, or all captions as
                `caption_group` with the `epoch`.

        Returns:
            `dict`: The model's inputs and `labels`, of the columns that a caption reaches.

        Raises:
            ValueError: A row has no photo or caption; names what it has.
        """
        if "caption_group" in examples[0]:
            return self._grouped(examples)
        examples = [read_example(example) for example in examples]
        options: dict[str, Any] = {"suffix": [example["caption"] for example in examples], "return_tensors": "pt"}
        if self.max_caption_length is not None:
            options["max_length"] = self.max_caption_length
        requests = [example.get("request") for example in examples]
        self.processor.tell_of_requests([request for request in requests if request])
        if self.processor.takes_requests and any(requests):
            options["text"] = [request or self.processor.prompt for request in requests]
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
        if self.with_rows:
            batch["row"] = torch.tensor([example.get("row", -1) for example in examples])
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
        if self.with_rows:
            batch["row"] = torch.tensor([example["row"] for example in examples])
        if self.photo_keys is not None and self.names is None:
            batch["photo_keys"] = self.photo_keys(examples, photos)
        return batch


def read_example(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Finds the photo, the caption and what was asked in a row of a dataset.

    Returns:
        `Mapping`: The row with `image` (or `vision_hidden_states`), `caption` and, of a chat, maybe `request`.
    """
    if "messages" in row:
        return {**row, **_read_chat(row)}
    photo = "vision_hidden_states" if "vision_hidden_states" in row else find_photo_column(row, None, row)
    text = "caption" if "caption" in row else find_column(row, None, CAPTION_COLUMNS, "captions")
    if photo is None or text is None:
        raise ValueError(
            f"A row to train on needs {'a photo' if photo is None else 'a caption'}; it has {', '.join(row)}. A "
            "`Trainer` drops columns that the model's `forward` does not name: give it "
            "`CaptionExamples(dataset, processor)`, or set `remove_unused_columns=False`."
        )
    captions = row[text]
    if not isinstance(captions, str):
        if not captions:
            raise ValueError(f"The row has no caption in {text!r}; write one or leave it out.")
        captions = captions[int(torch.randint(len(captions), ()))]
    found = {} if photo == "vision_hidden_states" else {"image": row[photo]}
    return {**row, **found, "caption": captions}


def _read_chat(row: Mapping[str, Any]) -> dict[str, Any]:
    messages = read_conversation(row["messages"])
    *before, answer = messages
    photos = photos_of(messages)
    if not photos:
        beside = row.get("images", row.get("image"))
        photos = list(beside) if isinstance(beside, (list, tuple)) else [] if beside is None else [beside]
    if len(photos) != 1 or answer["role"] != "assistant":
        raise ValueError(
            "A chat to train on needs one photo and ends with the assistant's message, the caption; this one has "
            f"{len(photos)} photos and ends with the role {answer['role']!r}."
        )
    caption = " ".join(part["text"] for part in answer["content"] if part["type"] == "text")
    return {"image": photos[0], "caption": caption, "request": " ".join(requests_of(before)) or None}


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
