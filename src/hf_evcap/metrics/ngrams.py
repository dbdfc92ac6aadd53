"""N-gram counting over many captions at once, on integer arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NgramCounts:
    """How often each n-gram of one order occurs in each caption.

    The three arrays `captions`, `ngrams` and `counts` are parallel and sorted by caption, then by n-gram.

    Attributes:
        order (`int`): Number of words in an n-gram.
        num_ngrams (`int`): Number of different n-grams.
        captions (`np.ndarray` of shape `(entries,)`): Index of the caption.
        ngrams (`np.ndarray` of shape `(entries,)`): Index of the n-gram, from 0 to `num_ngrams - 1`.
        counts (`np.ndarray` of shape `(entries,)`): Occurrences of the n-gram in the caption.
        words (`np.ndarray` of shape `(num_ngrams, order)`): Vocabulary indices of each n-gram's words.
    """

    order: int
    num_ngrams: int
    captions: np.ndarray
    ngrams: np.ndarray
    counts: np.ndarray
    words: np.ndarray


@dataclass(frozen=True)
class CaptionNgrams:
    """N-gram counts of all orders of a list of captions.

    Attributes:
        vocabulary (`list[str]`): The words, by index.
        lengths (`np.ndarray` of shape `(num_captions,)`): Number of words of each caption.
        orders (`list[NgramCounts]`): The counts for n = 1, 2, ...
    """

    vocabulary: list[str]
    lengths: np.ndarray
    orders: list[NgramCounts]


def count_ngrams(captions: Sequence[str], max_order: int = 4) -> CaptionNgrams:
    """
    Count the n-grams of tokenised captions.

    Args:
        captions (`Sequence[str]`):
            Captions whose words are separated by white space.
        max_order (`int`, *optional*, defaults to 4):
            Longest n-gram.

    Returns:
        [`CaptionNgrams`]: Counts for n = 1 to `max_order`; the same n-gram has one index in all captions.
    """
    split = [caption.split() for caption in captions]
    index: dict[str, int] = {}
    words = np.array([index.setdefault(word, len(index)) for caption in split for word in caption], dtype=np.int64)
    lengths = np.array([len(caption) for caption in split], dtype=np.int64)
    # The caption of each word, and how many words of the caption are left from there on, itself included.
    caption_of_word = np.repeat(np.arange(len(split)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))

    orders = []
    starts = np.arange(len(words))
    ngrams, ngram_words = words, np.arange(len(index))[:, None]
    for order in range(1, max_order + 1):
        if order > 1:
            longer = left[starts] >= order
            starts, ngrams = starts[longer], ngrams[longer]
            pairs = ngrams * max(len(index), 1) + words[starts + order - 1]
            pairs, ngrams = np.unique(pairs, return_inverse=True)
            heads, tails = np.divmod(pairs, max(len(index), 1))
            ngram_words = np.concatenate([ngram_words[heads], tails[:, None]], axis=1)
        num_ngrams = len(ngram_words)
        entries, counts = np.unique(caption_of_word[starts] * max(num_ngrams, 1) + ngrams, return_counts=True)
        caption_of_entry, ngram_of_entry = np.divmod(entries, max(num_ngrams, 1))
        orders.append(NgramCounts(order, num_ngrams, caption_of_entry, ngram_of_entry, counts, ngram_words))
    return CaptionNgrams(list(index), lengths, orders)


def find_entries(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Look values up in a sorted array.

    Args:
        keys (`np.ndarray` of shape `(num_keys,)`):
            Sorted, different values.
        wanted (`np.ndarray` of shape `(num_wanted,)`):
            Values to look up.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Of each wanted value the position in `keys`, and whether it is there at all.
    """
    if len(keys) == 0:
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    positions = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return positions, keys[positions] == wanted
