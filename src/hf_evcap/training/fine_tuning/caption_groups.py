"""Several captions of a photo in one sequence: the prompt with the photo's vectors runs once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def group_captions(
    prompt: Sequence[int], groups: Sequence[Sequence[Sequence[int]]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """
    Lays a photo's captions out one after the other behind its prompt, each blind to the others.

    The prompt's last token, which predicts a caption's first, stands in front of each caption instead of at the end
    of the prompt. A caption's loss is what it would be in a sequence of its own.

    Args:
        prompt (`Sequence[int]`): Token ids of the prompt, the same for all photos; its last token is text.
        groups (`Sequence[Sequence[Sequence[int]]]`): Token ids of each caption of each photo.
        pad_token_id (`int`): Fills short rows at their end.

    Returns:
        `dict[str, torch.Tensor]`: `input_ids`, `position_ids` and `labels` of shape `(batch_size, sequence_length)`
        and `attention_mask`, boolean, of shape `(batch_size, 1, sequence_length, sequence_length)`.
    """
    start = len(prompt) - 1
    rows, positions, labels, owners = [], [], [], []
    for captions in groups:
        rows.append(list(prompt[:start]))
        positions.append(list(range(start)))
        labels.append([-100] * start)
        owners.append([0] * start)
        for number, caption in enumerate(captions, start=1):
            rows[-1] += [prompt[start], *caption]
            positions[-1] += range(start, start + 1 + len(caption))
            labels[-1] += [-100, *caption]
            owners[-1] += [number] * (1 + len(caption))
    length = max(map(len, rows))

    def padded(lists: list[list[int]], fill: int) -> torch.Tensor:
        return torch.tensor([values + [fill] * (length - len(values)) for values in lists])

    owner = padded(owners, -1)
    seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    return {
        "input_ids": padded(rows, pad_token_id),
        "position_ids": padded(positions, 0),
        "attention_mask": (seen & torch.ones(length, length, dtype=torch.bool).tril())[:, None],
        "labels": padded(labels, -100),
    }


__all__ = ["group_captions"]
