"""Captions one after the other in blocks of equal length, to train a language model without padding."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch


class PackedCaptions:
    """
    Blocks of `length` tokens cut from shuffled captions, shuffled anew in every epoch.

    Args:
        captions (`Sequence[list[int]]`): Token ids of each caption, its start and end among them.
        length (`int`): Tokens of a block.
        num_blocks (`int`): Blocks, over as many epochs as they need.
        seed (`int`, *optional*, defaults to 0): Seed of the order.
    """

    def __init__(self, captions: Sequence[list[int]], length: int, num_blocks: int, seed: int = 0) -> None:
        tokens: list[int] = []
        epoch = 0
        while len(tokens) < length * num_blocks + 1:
            order = list(range(len(captions)))
            random.Random(seed + epoch).shuffle(order)
            tokens.extend(token for index in order for token in captions[index])
            epoch += 1
        self.tokens = torch.tensor(tokens[: length * num_blocks + 1], dtype=torch.int32)
        self.length, self.num_blocks = length, num_blocks

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, item: int) -> torch.Tensor:
        """A block and the first token of the next, `(length + 1,)`."""
        return self.tokens[item * self.length : (item + 1) * self.length + 1].long()


def collate_packed(blocks: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Stacks blocks; labels are the tokens themselves, and the trainer shifts them."""
    tokens = torch.stack(list(blocks))
    return {"input_ids": tokens, "labels": tokens}
