"""Rows of token ids with a photo's place in them: cut, padded and described as a tokenizer does with plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


# Options of a tokenizer that have no meaning for rows that hold a photo's place.
_REFUSED = ("text_pair", "text_target", "text_pair_target", "is_split_into_words", "return_overflowing_tokens")


@dataclass
class PromptRow:
    """
    A prompt, maybe with a caption to learn after it.

    Args:
        ids (`list[int]`): Tokens.
        offsets (`list[tuple[int, int]]`): Characters of each token in the text with the photo's tokens written out.
        labels (`list[int]`): -100 but for the caption.
        replacements (`list[dict]`): The photo's place in the text, before and after its tokens are written out.
    """

    ids: list[int] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    replacements: list[dict[str, Any]] = field(default_factory=list)
    length: int = 0  # of the text

    def add(self, ids: Sequence[int], text: str, offsets: Sequence[tuple[int, int]] | None = None) -> None:
        """Appends a piece of text; its tokens span all of it where there are no offsets."""
        spans = [(0, len(text))] * len(ids) if offsets is None else offsets
        self.offsets += [(start + self.length, end + self.length) for start, end in spans]
        self.ids += ids
        self.labels += [-100] * len(ids)
        self.length += len(text)

    def add_photo(self, token_id: int, token: str, count: int) -> None:
        """Appends a photo's tokens."""
        start = self.length
        spans = [(place * len(token), (place + 1) * len(token)) for place in range(count)]
        self.add([token_id] * count, token * count, spans)
        self.replacements.append(
            {
                "type": "image",
                "span": (start, start + len(token)),
                "new_span": (start, self.length),
                "text": token,
                "replacement": token * count,
            }
        )

    def add_caption(self, ids: Sequence[int]) -> None:
        """Appends a caption to learn."""
        self.offsets += [(self.length, self.length)] * len(ids)
        self.ids += ids
        self.labels += ids

    def cut(self, limit: int, image_token_id: int) -> None:
        """Cuts the row on the right; a caption keeps its end. Raises if a photo's tokens would go."""
        if len(self.ids) <= limit:
            return
        photo_end = max((place + 1 for place, token in enumerate(self.ids) if token == image_token_id), default=0)
        learned = self.labels[-1:] != [-100]
        if limit < photo_end + learned:
            raise ValueError(
                f"`max_length={limit}` would cut off the photo's tokens, which reach to token {photo_end}; give at "
                f"least {photo_end + learned} or leave `truncation` out."
            )
        kept = limit - learned
        for values in (self.ids, self.offsets, self.labels):
            del values[kept : len(values) - learned]


def refuse_options(options: dict[str, Any]) -> None:
    """Raises `ValueError` for tokenizer options that rows with a photo cannot have."""
    given = [name for name in _REFUSED if options.get(name)]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be used with photos or captions to learn; leave them out.")


def collate_rows(
    rows: list[PromptRow], tokenizer: Any, options: dict[str, Any], image_token_id: int, labels: bool
) -> dict[str, list[Any]]:
    """
    Cuts and pads rows.

    Args:
        rows (`list[PromptRow]`): Cut in place.
        tokenizer: Of whose padding token, side and length limit use is made.
        options (`dict`): `padding`, `truncation`, `max_length`, `padding_side`, `pad_to_multiple_of` and the
            `return_...` of a tokenizer's call.
        image_token_id (`int`): Token of a photo.
        labels (`bool`): Whether to return them.

    Returns:
        `dict[str, list]`: `input_ids` and what else was asked for, a list a row.
    """
    padding, limit = options.get("padding"), options.get("max_length")
    if options.get("truncation") not in (None, False, "do_not_truncate"):
        most = limit or tokenizer.model_max_length
        for row in rows:
            row.cut(most, image_token_id)
    length = 0
    if padding not in (None, False, "do_not_pad"):
        length = max((len(row.ids) for row in rows), default=0)
        if padding == "max_length":
            if limit is None or limit < length:
                raise ValueError(f'`padding="max_length"` needs a `max_length` of at least {length}.')
            length = limit
        multiple = options.get("pad_to_multiple_of") or 1
        length = -(-length // multiple) * multiple
    special = set(tokenizer.all_special_ids)
    columns: dict[str, tuple[list[list[Any]], Any]] = {
        "input_ids": ([row.ids for row in rows], tokenizer.pad_token_id),
        "attention_mask": ([[1] * len(row.ids) for row in rows], 0),
        "labels": ([row.labels for row in rows], -100),
        "token_type_ids": ([[0] * len(row.ids) for row in rows], 0),
        "mm_token_type_ids": ([[int(token == image_token_id) for token in row.ids] for row in rows], 0),
        "special_tokens_mask": ([[int(token in special) for token in row.ids] for row in rows], 1),
        "offset_mapping": ([row.offsets for row in rows], (0, 0)),
    }
    wanted = {"input_ids": True, "attention_mask": options.get("return_attention_mask") is not False, "labels": labels}
    for column, option in (
        ("token_type_ids", "return_token_type_ids"),
        ("mm_token_type_ids", "return_mm_token_type_ids"),
        ("special_tokens_mask", "return_special_tokens_mask"),
        ("offset_mapping", "return_offsets_mapping"),
    ):
        wanted[column] = bool(options.get(option))
    left = (options.get("padding_side") or tokenizer.padding_side) == "left"
    batch: dict[str, list[Any]] = {
        column: [_pad(values, fill, length, left) for values in rows_of_column]
        for column, (rows_of_column, fill) in columns.items()
        if wanted[column]
    }
    if options.get("return_length"):
        batch["length"] = [len(ids) for ids in batch["input_ids"]]
    if options.get("return_text_replacement_offsets"):
        batch["text_replacement_offsets"] = [row.replacements for row in rows]
    return batch


def _pad(values: list[Any], fill: Any, length: int, left: bool) -> list[Any]:
    missing = [fill] * (length - len(values))
    return missing + values if left else values + missing


__all__ = ["PromptRow", "collate_rows", "refuse_options"]
