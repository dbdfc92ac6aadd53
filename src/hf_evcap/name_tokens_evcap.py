"""Names as a model reads them: normalised, tokenised once, joined for the fusion Q-Former (EVCap, section 3.2)."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput


_FOLDED_CHARACTERS = re.compile(r"[\s_!,'\"()*#:;~]+")


def normalize_name(name: str) -> str:
    """Lower-cases a name and turns the characters that the released implementation drops into single spaces."""
    return _FOLDED_CHARACTERS.sub(" ", name.lower()).strip() or name.strip().lower()


@dataclass
class EVCapRetrievedNames(ModelOutput):
    """
    Names retrieved for a batch of photos, at most K a photo, best first.

    Args:
        names (`list[list[str]]`): Normalised names of each photo.
        scores (`torch.Tensor` of shape `(batch_size, K)`): Similarity of each name's best row; 0 where there is none.
        row_ids (`torch.LongTensor` of shape `(batch_size, K)`): That row of the memory; -1 where there is none.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The names joined by separators.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 for tokens, 0 for padding.
        memories (`list[list[str]]`, *optional*): Which of several memories each name came from.
    """

    names: list[list[str]] | None = None
    scores: torch.Tensor | None = None
    row_ids: torch.LongTensor | None = None
    input_ids: torch.LongTensor | None = None
    attention_mask: torch.LongTensor | None = None
    memories: list[list[str]] | None = None


class NameTokens:
    """
    Names tokenised once, so that any K of them are joined for the fusion Q-Former by indexing.

    Args:
        names (`Sequence[str]`): Normalised names.
        tokenizer: The name tokenizer; needs a `sep_token`, which stands between names and at the end.
        max_length (`int`): Joined names are cut at this many tokens, the last of which stays the separator.
    """

    def __init__(self, names: Sequence[str], tokenizer: Any, max_length: int) -> None:
        if tokenizer.sep_token_id is None:
            raise ValueError(
                "The name tokenizer has no sep_token to stand between names; set one, for example "
                "`tokenizer.add_special_tokens({'sep_token': '[SEP]'})`."
            )
        self.tokens = torch.zeros(1, dtype=torch.long)
        self.lengths = torch.zeros(0, dtype=torch.long)
        self.offsets = torch.zeros(0, dtype=torch.long)
        self.max_length = max_length
        self.sep_token_id: int = tokenizer.sep_token_id
        self.cls_token_id: int | None = tokenizer.cls_token_id
        self.pad_token_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.sep_token_id
        self._append(names, tokenizer)

    def followed_by(self, names: Sequence[str], tokenizer: Any) -> NameTokens:
        """These names and others after them, tokenised by the same tokenizer."""
        if not names:
            return self
        more = copy.copy(self)
        more._append(names, tokenizer)
        return more

    def _append(self, names: Sequence[str], tokenizer: Any) -> None:
        if not names:
            return
        # Special tokens inside a name ("[SEP]") are spelled out: a name cannot pass for two.
        encoded = tokenizer(
            list(names),
            add_special_tokens=False,
            truncation=True,
            max_length=self.max_length,
            split_special_tokens=True,
        )["input_ids"]
        device = self.tokens.device
        lengths = torch.tensor([len(ids) for ids in encoded], dtype=torch.long, device=device)
        tokens = torch.tensor([token for ids in encoded for token in ids], dtype=torch.long, device=device)
        self.offsets = torch.cat([self.offsets, len(self.tokens) + torch.cumsum(lengths, 0) - lengths])
        self.lengths = torch.cat([self.lengths, lengths])
        self.tokens = torch.cat([self.tokens, tokens])

    def to(self, device: torch.device) -> NameTokens:
        """The same table on another device."""
        moved = copy.copy(self)
        moved.tokens, moved.lengths, moved.offsets = (t.to(device) for t in (self.tokens, self.lengths, self.offsets))
        return moved

    def join(self, name_ids: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Joins names as `[CLS] name [SEP] name [SEP]`.

        Args:
            name_ids (`torch.LongTensor` of shape `(batch_size, K)`): Indices of names, -1 (only at the end) for none.

        Returns:
            `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`. Without a name, a separator
            remains, so that the fusion has something to attend to.
        """
        present = name_ids >= 0
        known = name_ids.clamp(min=0)
        prefix = int(self.cls_token_id is not None)
        if self.lengths.numel():
            lengths, offsets = self.lengths[known], self.offsets[known]
        else:
            lengths = offsets = torch.zeros_like(known)
        spans = torch.where(present, lengths + 1, 0)  # a name and its separator
        ends = torch.cumsum(spans, 1) + prefix
        totals = torch.clamp(spans.sum(1, keepdim=True), min=1) + prefix
        if not name_ids.shape[1] or not name_ids.shape[0]:
            length = prefix + 1
        elif torch.compiler.is_compiling():  # an exported graph has one length
            length = self.max_length
        else:
            length = min(int(totals.max()), self.max_length)
        positions = torch.arange(length, device=name_ids.device).expand(name_ids.shape[0], -1).contiguous()
        input_ids = torch.full_like(positions, self.sep_token_id)
        if name_ids.shape[1]:
            slots = torch.searchsorted(ends, positions, right=True).clamp(max=name_ids.shape[1] - 1)
            within = positions - (ends - spans).gather(1, slots)
            inside = (within >= 0) & (within < lengths.gather(1, slots)) & present.gather(1, slots)
            indices = (offsets.gather(1, slots) + within).clamp(0, self.tokens.numel() - 1)
            input_ids = torch.where(inside, self.tokens[indices], input_ids)
        if self.cls_token_id is not None:
            input_ids[:, 0] = self.cls_token_id
        totals = totals.clamp(max=self.max_length)
        attention_mask = (positions < totals).long()
        input_ids = torch.where(positions == totals - 1, self.sep_token_id, input_ids)
        return input_ids.masked_fill(attention_mask == 0, self.pad_token_id), attention_mask


__all__ = ["EVCapRetrievedNames", "NameTokens", "normalize_name"]
