"""Keeps captions to words: known ones, and the words of the names that were retrieved for the photo."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessor

from .configuration_evcap import EVCapConfig


_SPACE_MARKS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece write the space before a word


class EVCapSpelling(nn.Module):
    """
    Knows which tokens are words by themselves, so that a small language model does not garble a rare name.

    A word of one token may always be written if the training text has it. A word of several tokens may be written
    only as a retrieved name spells it, and once begun it is spelled to its end. What to name, and whether, stays the
    language model's choice.

    Args:
        config ([`EVCapConfig`]): Gives the size of the language model's vocabulary.
    """

    is_word: torch.Tensor
    starts_inside: torch.Tensor
    ends_inside: torch.Tensor

    def __init__(self, config: EVCapConfig) -> None:
        super().__init__()
        size = config.text_config.get_text_config().vocab_size
        for name in ("is_word", "starts_inside", "ends_inside"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.bool))

    @torch.no_grad()
    def reset_buffers(self) -> None:
        """As before any fit: no token is a word."""
        for buffer in self.buffers():
            nn.init.zeros_(buffer)

    @torch.no_grad()
    def fit(self, tokenizer: Any, texts: Sequence[str], min_count: int = 3) -> None:
        """
        Learns from text which tokens are words.

        Args:
            tokenizer: The language model's; words begin with its space mark.
            texts (`Sequence[str]`): Captions as they are trained on.
            min_count (`int`, *optional*, defaults to 3): How often a token must be seen as a word.
        """
        special = set(tokenizer.all_special_ids)
        for token, index in tokenizer.get_vocab().items():
            if index < len(self.is_word) and index not in special:
                self.starts_inside[index] = token[:1].isalnum() and not token.startswith(_SPACE_MARKS)
                self.ends_inside[index] = token[-1:].isalnum() and token not in _SPACE_MARKS
        counts = torch.zeros(len(self.is_word), dtype=torch.long)
        for start in range(0, len(texts), 10_000):
            encoded = tokenizer(list(texts[start : start + 10_000]), add_special_tokens=False)["input_ids"]
            ids = torch.tensor([token for row in encoded for token in (*row, tokenizer.eos_token_id)])
            joined = torch.zeros(len(ids) + 1, dtype=torch.bool)  # to the token before
            joined[1:-1] = self.ends_inside[ids[:-1]] & self.starts_inside[ids[1:]]
            counts += torch.bincount(ids[~joined[:-1] & ~joined[1:]], minlength=len(counts))
        self.is_word.copy_(counts >= min_count)
        self.is_word[sorted(index for index in special if index < len(self.is_word))] = True

    def processor(self, names: Iterable[Sequence[int]], separator: int, max_length: int) -> SpellingLogitsProcessor:
        """
        Args:
            names (`Iterable[Sequence[int]]`): Token ids of each photo's names, with separators and without padding.
            separator (`int`): Token between names.
            max_length (`int`): Tokens at which names were cut; what stands last in a list so long is not used.

        Returns:
            [`SpellingLogitsProcessor`]: For `generate`, with any number of beams or sequences a photo.
        """
        return SpellingLogitsProcessor(self, [self._words(list(ids), separator, max_length) for ids in names])

    def _words(self, ids: list[int], separator: int, max_length: int) -> set[tuple[int, ...]]:
        """Words of one photo's names, each as its tokens."""
        starts, ends = self.starts_inside.tolist(), self.ends_inside.tolist()
        words: list[tuple[int, ...]] = []
        cut = len(ids) >= max_length
        for place, token in enumerate(ids):
            if token == separator:
                continue
            if place and ids[place - 1] != separator and ends[ids[place - 1]] and starts[token]:
                words[-1] = (*words[-1], token)
            else:
                words.append((token,))
        return set(words[:-1] if cut else words)


class SpellingLogitsProcessor(LogitsProcessor):
    """
    Forbids tokens that would spell a word which is neither known nor a retrieved name's.

    Args:
        spelling ([`EVCapSpelling`]): Which tokens are words.
        words (`Sequence[set[tuple[int, ...]]]`): Words of each photo's names, as tokens.
    """

    def __init__(self, spelling: EVCapSpelling, words: Sequence[set[tuple[int, ...]]]) -> None:
        device = spelling.is_word.device
        self.starts = spelling.starts_inside.tolist()
        self.ends = spelling.ends_inside.tolist()
        self.known = spelling.is_word.tolist()
        self.words = words
        self.next_tokens: list[dict[tuple[int, ...], set[int]]] = []
        begin = spelling.is_word.repeat(len(words), 1)
        for number, of_photo in enumerate(words):
            following: dict[tuple[int, ...], set[int]] = {}
            for word in of_photo:
                begin[number, word[0]] = True
                for place in range(1, len(word)):
                    following.setdefault(word[:place], set()).add(word[place])
            self.next_tokens.append(following)
        self.begin = begin.to(device)
        self.begin_after_letter = begin.to(device) & ~spelling.starts_inside

    def open_word(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """The last tokens of a caption, as far back as they are one word."""
        place = len(tokens) - 1
        while place > 0 and self.ends[tokens[place - 1]] and self.starts[tokens[place]]:
            place -= 1
        return tuple(tokens[max(place, 0) :])

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Sets the scores of forbidden tokens to minus infinity; rows of one photo stand together."""
        copies = max(1, len(scores) // max(1, len(self.words)))
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        for row, tokens in enumerate(input_ids.tolist()):
            photo = row // copies
            word = self.open_word(tokens)
            following = self.next_tokens[photo].get(word, ())
            unfinished = (
                bool(following) and word not in self.words[photo] and not (len(word) == 1 and self.known[word[0]])
            )
            if not unfinished:
                after_letter = bool(word) and self.ends[word[-1]]
                vocabulary = self.begin_after_letter if after_letter else self.begin
                allowed[row, : vocabulary.shape[1]] = vocabulary[photo]
            if following:
                allowed[row, list(following)] = True
        return scores.masked_fill(~allowed, -torch.inf)


__all__ = ["EVCapSpelling", "SpellingLogitsProcessor"]
