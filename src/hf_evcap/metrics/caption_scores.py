"""BLEU, ROUGE-L and CIDEr over tokenised captions, equal to coco-caption's figures.

All three take captions as [`hf_evcap.metrics.ptb_tokenizer.tokenize_captions`] gives them: one prediction an image and
one or more references an image. The `evaluate` modules of these names add tokenisation and checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_evcap.metrics.ngrams import CaptionNgrams, count_ngrams, find_entries


# coco-caption keeps BLEU's quotients defined with these.
_BLEU_SMALL = 1e-9
_BLEU_TINY = 1e-15


@dataclass(frozen=True)
class BleuScores:
    """BLEU of a corpus and of each caption.

    Attributes:
        corpus (`list[float]`): BLEU-1 to BLEU-n of the corpus.
        per_caption (`np.ndarray` of shape `(num_images, n)`): BLEU-1 to BLEU-n of each prediction.
        prediction_length (`int`): Words of all predictions.
        reference_length (`int`): Words of the references closest in length.
    """

    corpus: list[float]
    per_caption: np.ndarray
    prediction_length: int
    reference_length: int


def bleu_scores(predictions: Sequence[str], references: Sequence[Sequence[str]], max_order: int = 4) -> BleuScores:
    """
    BLEU with the closest reference length and coco-caption's smoothing constants.

    Args:
        predictions (`Sequence[str]`):
            Tokenised prediction of each image.
        references (`Sequence[Sequence[str]]`):
            Tokenised references of each image, at least one.
        max_order (`int`, *optional*, defaults to 4):
            Longest n-gram.

    Returns:
        [`BleuScores`]: Corpus and per-caption scores.
    """
    num_images = len(predictions)
    image_of_reference, ngrams = _count_together(predictions, references, max_order)
    lengths, reference_lengths = ngrams.lengths[:num_images], ngrams.lengths[num_images:]

    # Of the references of an image the closest in length, the shorter one of two equally close.
    order = np.lexsort(
        (reference_lengths, np.abs(reference_lengths - lengths[image_of_reference]), image_of_reference)
    )
    first = np.searchsorted(image_of_reference[order], np.arange(num_images))
    closest = reference_lengths[order][first]

    guesses = np.maximum(lengths[:, None] - np.arange(max_order), 0)
    matches = np.zeros((num_images, max_order))
    for column, counts in enumerate(ngrams.orders):
        mine = counts.captions < num_images
        keys = counts.captions[mine] * counts.num_ngrams + counts.ngrams[mine]
        images = image_of_reference[counts.captions[~mine] - num_images]
        positions, found = find_entries(keys, images * counts.num_ngrams + counts.ngrams[~mine])
        allowed = np.zeros(len(keys), dtype=np.int64)
        np.maximum.at(allowed, positions[found], counts.counts[~mine][found])
        clipped = np.minimum(counts.counts[mine], allowed)
        matches[:, column] = np.bincount(counts.captions[mine], weights=clipped, minlength=num_images)

    per_caption = _bleu(matches, guesses, lengths, closest)
    corpus = _bleu(matches.sum(0)[None], guesses.sum(0)[None], lengths.sum()[None], closest.sum()[None])[0]
    return BleuScores(corpus.tolist(), per_caption, int(lengths.sum()), int(closest.sum()))


def _bleu(matches: np.ndarray, guesses: np.ndarray, lengths: np.ndarray, reference_lengths: np.ndarray) -> np.ndarray:
    precisions = np.cumprod((matches + _BLEU_TINY) / (guesses + _BLEU_SMALL), axis=1)
    bleu = precisions ** (1.0 / np.arange(1, matches.shape[1] + 1))
    ratio = (lengths + _BLEU_TINY) / (reference_lengths + _BLEU_SMALL)
    return bleu * np.exp(np.minimum(1 - 1 / ratio, 0.0))[:, None]


def rouge_l_scores(predictions: Sequence[str], references: Sequence[Sequence[str]], beta: float = 1.2) -> list[float]:
    """
    ROUGE-L of each caption: the F-measure of the best precision and the best recall over the references.

    Args:
        predictions (`Sequence[str]`):
            Tokenised prediction of each image.
        references (`Sequence[Sequence[str]]`):
            Tokenised references of each image, at least one.
        beta (`float`, *optional*, defaults to 1.2):
            Weight of recall, coco-caption's value.

    Returns:
        `list[float]`: One score an image; coco-caption's corpus score is their mean.

    Raises:
        ValueError: If `beta` is not positive.
    """
    if not beta > 0:
        raise ValueError(f"`beta` must be positive, got {beta!r}.")
    scores = []
    for prediction, image_references in zip(predictions, references, strict=True):
        words = prediction.split(" ")
        masks: dict[str, int] = {}
        for position, word in enumerate(words):
            masks[word] = masks.get(word, 0) | 1 << position
        best_precision = best_recall = 0.0
        for reference in image_references:
            reference_words = reference.split(" ")
            common = _longest_common_subsequence(masks, len(words), reference_words)
            best_precision = max(best_precision, common / len(words))
            best_recall = max(best_recall, common / len(reference_words))
        if best_precision == 0 or best_recall == 0:
            scores.append(0.0)
        else:
            weighted = (1 + beta**2) * best_precision * best_recall
            scores.append(weighted / (best_recall + beta**2 * best_precision))
    return scores


def _longest_common_subsequence(masks: Mapping[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence, a column of the table at a time as the bits of one integer.

    Hyyrö, "Bit-parallel LCS-length computation revisited" (2004). A zero bit is a step of the column.
    """
    column = full = (1 << length) - 1
    for word in words:
        matched = column & masks.get(word, 0)
        column = ((column + matched) | (column - matched)) & full
    return length - column.bit_count()


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many images' references each n-gram occurs.

    Attributes:
        num_images (`int`): Images of the corpus the frequencies come from.
        frequencies (`Mapping[str, int]`): Images by n-gram, the n-gram's words joined by single spaces.
    """

    num_images: int
    frequencies: Mapping[str, int]

    @classmethod
    def from_references(cls, references: Sequence[Sequence[str]], max_order: int = 4) -> DocumentFrequency:
        """
        Count over the references of a corpus.

        Args:
            references (`Sequence[Sequence[str]]`):
                Tokenised references of each image.
            max_order (`int`, *optional*, defaults to 4):
                Longest n-gram.
        """
        image_of_reference, ngrams = _count_together([], references, max_order)
        frequencies: dict[str, int] = {}
        for counts in ngrams.orders:
            images = image_of_reference[counts.captions]
            for words, frequency in zip(
                counts.words.tolist(),
                _images_with_ngram(images, counts.ngrams, counts.num_ngrams).tolist(),
                strict=True,
            ):
                frequencies[" ".join(ngrams.vocabulary[word] for word in words)] = int(frequency)
        return cls(len(references), frequencies)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DocumentFrequency:
        """
        Read what [`DocumentFrequency.to_dict`] gives.

        Raises:
            ValueError: If `num_images` or `frequencies` is missing, of another type, or does not fit the other.
        """
        num_images, frequencies = content.get("num_images"), content.get("frequencies")
        if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"`num_images` of a document frequency must be a positive integer, got {num_images!r}.")
        if not isinstance(frequencies, Mapping):
            raise ValueError(
                "`frequencies` of a document frequency must map n-grams to numbers of images, got "
                f"{type(frequencies).__name__}."
            )
        for ngram, frequency in frequencies.items():
            if not isinstance(frequency, int) or not 0 <= frequency <= num_images:
                raise ValueError(
                    f"The document frequency of {ngram!r} must be a number of images from 0 to {num_images}, got "
                    f"{frequency!r}."
                )
        return cls(num_images, frequencies)

    def to_dict(self) -> dict[str, Any]:
        """Give the content as plain types, for JSON."""
        return {"num_images": self.num_images, "frequencies": dict(self.frequencies)}


def cider_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    document_frequency: DocumentFrequency | None = None,
    max_order: int = 4,
    sigma: float = 6.0,
) -> list[float]:
    """
    CIDEr of each caption as coco-caption computes it (with clipped counts and the length penalty, known as CIDEr-D).

    Vedantam et al., "CIDEr: Consensus-based image description evaluation" (CVPR 2015).

    Args:
        predictions (`Sequence[str]`):
            Tokenised prediction of each image.
        references (`Sequence[Sequence[str]]`):
            Tokenised references of each image, at least one.
        document_frequency ([`DocumentFrequency`], *optional*):
            Frequencies of another corpus; those of `references` when missing.
        max_order (`int`, *optional*, defaults to 4):
            Longest n-gram.
        sigma (`float`, *optional*, defaults to 6.0):
            Width of the length penalty, in words.

    Returns:
        `list[float]`: One score an image, 10 for a prediction equal to all its references. The corpus score is their
        mean; papers print it times 100.

    Raises:
        ValueError: If `sigma` is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"`sigma` must be positive, got {sigma!r}.")
    num_images = len(predictions)
    image_of_reference, ngrams = _count_together(predictions, references, max_order)
    num_documents = num_images if document_frequency is None else document_frequency.num_images
    lengths, reference_lengths = ngrams.lengths[:num_images], ngrams.lengths[num_images:]
    difference = (lengths[image_of_reference] - reference_lengths).astype(np.float64)
    penalty = np.exp(-(difference**2) / (2 * sigma**2))

    similarity = np.zeros(len(image_of_reference))
    for counts in ngrams.orders:
        is_prediction = counts.captions < num_images
        images = image_of_reference[counts.captions[~is_prediction] - num_images]
        if document_frequency is None:
            frequency = _images_with_ngram(images, counts.ngrams[~is_prediction], counts.num_ngrams)
        else:
            frequency = _given_frequency(document_frequency, ngrams.vocabulary, counts.words)
        inverse_frequency = np.log(float(num_documents)) - np.log(np.maximum(1.0, frequency))
        weights = counts.counts * inverse_frequency[counts.ngrams]
        norms = np.sqrt(np.bincount(counts.captions, weights=weights**2, minlength=len(ngrams.lengths)))

        keys = counts.captions[is_prediction] * counts.num_ngrams + counts.ngrams[is_prediction]
        positions, found = find_entries(keys, images * counts.num_ngrams + counts.ngrams[~is_prediction])
        reference_weights = weights[~is_prediction][found]
        products = np.minimum(weights[is_prediction][positions[found]], reference_weights) * reference_weights
        dots = np.bincount(
            counts.captions[~is_prediction][found] - num_images, weights=products, minlength=len(similarity)
        )
        norm = norms[:num_images][image_of_reference] * norms[num_images:]
        similarity += np.divide(dots, norm, out=np.zeros_like(norm), where=norm != 0)

    sums = np.bincount(image_of_reference, weights=similarity * penalty, minlength=num_images)
    num_references = np.bincount(image_of_reference, minlength=num_images)
    return (10.0 * sums / max_order / num_references).tolist()


def _count_together(
    predictions: Sequence[str], references: Sequence[Sequence[str]], max_order: int
) -> tuple[np.ndarray, CaptionNgrams]:
    """Count the n-grams of the predictions and, behind them, of all references; also gives each reference's image."""
    image_of_reference = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
    captions = [*predictions, *(caption for captions in references for caption in captions)]
    return image_of_reference, count_ngrams(captions, max_order)


def _images_with_ngram(images: np.ndarray, ngrams: np.ndarray, num_ngrams: int) -> np.ndarray:
    pairs = np.sort(images * max(num_ngrams, 1) + ngrams)
    new = np.ones(len(pairs), dtype=bool)
    new[1:] = pairs[1:] != pairs[:-1]
    return np.bincount(pairs[new] % max(num_ngrams, 1), minlength=num_ngrams).astype(np.float64)


def _given_frequency(document_frequency: DocumentFrequency, vocabulary: list[str], words: np.ndarray) -> np.ndarray:
    frequencies = document_frequency.frequencies
    found = [frequencies.get(" ".join([vocabulary[word] for word in ngram]), 0) for ngram in words.tolist()]
    return np.array(found, dtype=np.float64)
