"""Captions as training text: which of a photo's to learn first, and what a scene memory would retrieve for one."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from ...caption_data.caption_words import content_words, normalize_caption, shared_words


def agreement_weights(captions: Sequence[str], sharpness: float = 2.0) -> list[float]:
    """
    Weights of one photo's captions by how much their content words agree: what most people say is learned first.

    Args:
        captions (`Sequence[str]`): Captions of one photo, normalised.
        sharpness (`float`, *optional*, defaults to 2.0): 0 weighs all alike.

    Returns:
        `list[float]`: Exponentials of the mean F1 of words with the other captions, relative to the photo's mean.
    """
    words = [set(content_words(caption)) for caption in captions]
    means = []
    for number, own in enumerate(words):
        others = [other for index, other in enumerate(words) if index != number]
        shared = [2 * len(own & other) / max(1, len(own) + len(other)) for other in others]
        means.append(sum(shared) / max(1, len(shared)))
    centre = sum(means) / len(means)
    return [float(np.exp(sharpness * (mean - centre) / max(centre, 1e-3))) for mean in means]


def read_captions(path: str | Path) -> list[str]:
    """Reads a text file (`.gz` or plain) of one caption a line, normalised; empty lines are left out."""
    path = Path(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [text for text in map(normalize_caption, lines) if text]


def vote_scene_words(
    similarities: torch.Tensor, membership: torch.Tensor, temperature: float, offset: float, exponent: float
) -> torch.Tensor:
    """
    Scores scene words by votes of near photos, discounted by how common a word is; the scene part of rule `vote`.

    Args:
        similarities (`torch.Tensor` of shape `(batch_size, photos)`): To each photo of the memory.
        membership (`torch.Tensor` of shape `(photos, words)`): 1 where a photo shows a word.
        temperature, offset, exponent (`float`): As `config.retrieval_options` names them.

    Returns:
        `torch.Tensor` of shape `(batch_size, words)`.
    """
    weights = torch.softmax(similarities / temperature, dim=-1)
    frequency = membership.mean(0)
    return (weights @ membership) / (frequency + offset) ** exponent


class SceneTextSimulator:
    """
    Guesses which scene words a memory would return for a photo of which only a caption is known.

    A caption is compared with the captions of the memory's photos (TF-IDF cosine), noise stands for what a vision
    encoder confuses, and the nearest photos vote as they do in retrieval. So a language model learns from plain text
    to write from the kind of lists that it will get.

    Args:
        photo_captions (`Sequence[Sequence[str]]`): Captions of the memory's photos, normalised.
        corpus (`Sequence[str]`): Captions from which word frequencies are counted.
        vocabulary_size (`int`, *optional*, defaults to 6000): Most frequent content words that are compared.
    """

    def __init__(
        self, photo_captions: Sequence[Sequence[str]], corpus: Sequence[str], vocabulary_size: int = 6000
    ) -> None:
        counts = Counter(word for caption in corpus for word in set(content_words(caption)))
        vocabulary = [word for word, _ in counts.most_common(vocabulary_size)]
        self.vocabulary = {word: index for index, word in enumerate(vocabulary)}
        self.idf = torch.tensor([np.log(len(corpus) / (counts[word] + 1)) for word in vocabulary], dtype=torch.float32)
        self.scene_words = [shared_words(captions) for captions in photo_captions]
        self.words = sorted({word for words in self.scene_words for word in words})
        index = {word: number for number, word in enumerate(self.words)}
        self.membership = torch.zeros(len(photo_captions), len(self.words))
        for photo, words in enumerate(self.scene_words):
            self.membership[photo, [index[word] for word in words]] = 1.0
        photos = torch.stack([torch.log1p(self._count(captions).sum(0)) for captions in photo_captions])
        self.photos = torch.nn.functional.normalize(photos * self.idf, dim=-1)

    def _count(self, captions: Iterable[str]) -> torch.Tensor:
        rows = [[self.vocabulary[w] for w in set(content_words(c)) if w in self.vocabulary] for c in captions]
        counts = torch.zeros(len(rows), len(self.vocabulary))
        for row, words in enumerate(rows):
            counts[row, words] = 1.0
        return counts

    def similarities(self, captions: Sequence[str]) -> torch.Tensor:
        """TF-IDF cosine of captions and the memory's photos, `(captions, photos)`."""
        vectors = torch.nn.functional.normalize(self._count(captions) * self.idf, dim=-1)
        return vectors @ self.photos.T

    def simulate(
        self, captions: Sequence[str], noises: Sequence[float], num_words: int = 10, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Makes lists of scene words for captions.

        Args:
            captions (`Sequence[str]`): Normalised captions.
            noises (`Sequence[float]`): Standard deviations of the noise on the similarities, one list for each.
            num_words (`int`, *optional*, defaults to 10): Words of a list.
            seed (`int`, *optional*, defaults to 0): Seed of the noise.

        Returns:
            Word indices `(captions, noises, num_words)`, the nearest photo of each caption and its similarity.
        """
        generator = torch.Generator().manual_seed(seed)
        num_words = min(num_words, len(self.words))
        lists = np.zeros((len(captions), len(noises), num_words), dtype=np.int16)
        nearest, closeness = np.zeros(len(captions), dtype=np.int64), np.zeros(len(captions), dtype=np.float32)
        for start in range(0, len(captions), 2048):
            similarities = self.similarities(captions[start : start + 2048])
            rows = slice(start, start + len(similarities))
            best = similarities.max(dim=1)
            nearest[rows], closeness[rows] = best.indices.numpy(), best.values.numpy()
            for number, noise in enumerate(noises):
                noisy = similarities + noise * torch.randn(similarities.shape, generator=generator)
                scores = vote_scene_words(noisy, self.membership, temperature=0.08, offset=0.02, exponent=0.35)
                lists[rows, number] = scores.topk(num_words).indices.numpy()
        return lists, nearest, closeness
