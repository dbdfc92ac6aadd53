"""BLEU, ROUGE-L and CIDEr against pycocoevalcap's figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_evcap.metrics.caption_scores import (
    DocumentFrequency,
    bleu_scores,
    cider_scores,
    rouge_l_scores,
)
from hf_evcap.metrics.ngrams import count_ngrams


@pytest.fixture(params=["coco", "tricky"])
def truth(request, coco_caption):
    return coco_caption[request.param]


def test_bleu(truth):
    scores = bleu_scores(truth["tokenized_predictions"], truth["tokenized_references"])
    np.testing.assert_allclose(scores.corpus, truth["bleu"], atol=1e-12)
    np.testing.assert_allclose(scores.per_caption.T, truth["bleu_per_image"], atol=1e-8)


def test_rouge_l(truth):
    scores = rouge_l_scores(truth["tokenized_predictions"], truth["tokenized_references"])
    assert np.mean(scores) == pytest.approx(truth["rouge_l"], abs=1e-12)
    np.testing.assert_allclose(scores, truth["rouge_l_per_image"], atol=1e-8)


def test_cider(truth):
    scores = cider_scores(truth["tokenized_predictions"], truth["tokenized_references"])
    assert np.mean(scores) == pytest.approx(truth["cider"], abs=1e-10)
    np.testing.assert_allclose(scores, truth["cider_per_image"], atol=1e-8)


def test_cider_with_given_frequencies_scores_a_part_like_the_whole(truth):
    predictions, references = truth["tokenized_predictions"], truth["tokenized_references"]
    frequency = DocumentFrequency.from_references(references)
    assert frequency.num_images == len(references)
    part = cider_scores(predictions[:7], references[:7], DocumentFrequency.from_dict(frequency.to_dict()))
    np.testing.assert_allclose(part, cider_scores(predictions, references)[:7], atol=1e-10)
    assert not np.allclose(part, cider_scores(predictions[:7], references[:7]))


def test_cider_by_hand():
    # One bigram and two words in one of two images: idf log 2; equal captions score 10 * (2 orders of 4) = 5.
    assert cider_scores(["a b", "c d"], [["a b"], ["c e"]]) == pytest.approx([5.0, 10 * 0.5 / 4])


def test_document_frequency_by_hand():
    frequency = DocumentFrequency.from_references([["a b", "a a"], ["a b b"]], max_order=2)
    assert frequency.frequencies == {"a": 2, "b": 2, "a b": 2, "a a": 1, "b b": 1}


def test_bleu_takes_the_closest_and_then_the_shorter_reference():
    assert bleu_scores(["a b c"], [["a b", "a b c d", "x"]]).reference_length == 2
    assert bleu_scores(["a b c"], [["a b c d e", "a b c d"]]).reference_length == 4


def test_bleu_brevity_by_hand():
    scores = bleu_scores(["a b"], [["a b c d"]])
    assert scores.corpus[:2] == pytest.approx([math.exp(1 - 4 / 2)] * 2, rel=1e-6)


def test_empty_predictions_and_references():
    for predictions, references in ((["", "a b"], [["a b c"], ["a b"]]), (["", ""], [[""], [""]])):
        assert all(math.isfinite(score) for score in cider_scores(predictions, references))
        assert np.isfinite(bleu_scores(predictions, references).per_caption).all()
    assert rouge_l_scores([""], [["a"]]) == [0.0]
    assert rouge_l_scores([""], [[""]]) == [1.0]  # as coco-caption, where "" is one empty word


def test_no_overlap_at_all():
    assert cider_scores(["x y z", "u v"], [["a b c"], ["d e"]]) == [0.0, 0.0]


def test_rouge_l_beta_weighs_recall():
    assert rouge_l_scores(["a b"], [["a b c d"]], beta=1.0) == pytest.approx([2 * 0.5 / 1.5])


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"num_images": 0, "frequencies": {}},
        {"num_images": True, "frequencies": {}},
        {"num_images": 3},
        {"num_images": 3, "frequencies": {"a": 4}},
        {"num_images": 3, "frequencies": {"a": "2"}},
    ],
)
def test_document_frequency_rejects_other_content(content):
    with pytest.raises(ValueError, match="document frequency"):
        DocumentFrequency.from_dict(content)


def test_ngram_counts_by_hand():
    counted = count_ngrams(["a b a b", "", "b"], max_order=3)
    assert counted.vocabulary == ["a", "b"]
    assert counted.lengths.tolist() == [4, 0, 1]
    bigrams = counted.orders[1]
    assert [
        (caption, [counted.vocabulary[word] for word in bigrams.words[ngram]], count)
        for caption, ngram, count in zip(bigrams.captions, bigrams.ngrams, bigrams.counts, strict=True)
    ] == [(0, ["a", "b"], 2), (0, ["b", "a"], 1)]
    assert counted.orders[2].counts.tolist() == [1, 1]


def test_bad_parameters():
    with pytest.raises(ValueError, match="`sigma` must be positive"):
        cider_scores(["a"], [["a"]], sigma=0)
    with pytest.raises(ValueError, match="`beta` must be positive"):
        rouge_l_scores(["a"], [["a"]], beta=float("nan"))
