"""BLEU of image captions, equal to coco-caption's, without Java."""

from __future__ import annotations

from typing import Any

import evaluate

from hf_evcap.metrics import caption_metric, caption_scores


_DESCRIPTION = """
BLEU-1 to BLEU-4 of image captions with the closest reference length, as coco-caption (pycocoevalcap) computes them,
tokenisation included, without Java. Not the BLEU of machine translation tools: tokenisation and smoothing differ.
"""

_CITATION = """
@inproceedings{papineni2002bleu,
    title     = {{BLEU}: a Method for Automatic Evaluation of Machine Translation},
    author    = {Papineni, Kishore and Roukos, Salim and Ward, Todd and Zhu, Wei-Jing},
    booktitle = {Proceedings of the 40th Annual Meeting of the Association for Computational Linguistics},
    pages     = {311--318},
    year      = {2002}
}
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions (`list` of `str`): One caption an image.
    references (`list` of `list` of `str`): One or more reference captions an image.{caption_metric.TOKENISATION}
Returns:
    bleu_1, bleu_2, bleu_3, bleu_4 (`float`): BLEU of the corpus.
    bleu_1_per_caption, ... (`list` of `float`): BLEU of each prediction.
    prediction_length, reference_length (`int`): Words of the predictions and of the references closest in length.
Examples:
    >>> bleu = evaluate.load(hf_evcap.metric_path("bleu"))
    >>> results = bleu.compute(
    ...     predictions=["a cat sits on a mat"], references=[["A cat is sitting on a mat.", "a cat on a mat"]]
    ... )
    >>> round(results["bleu_1"], 4), round(results["bleu_4"], 4)
    (0.8333, 0.0001)
"""


class Bleu(caption_metric.CaptionMetric):
    """coco-caption's BLEU as an `evaluate` metric."""

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=caption_metric.CAPTION_FEATURES,
        reference_urls=["https://aclanthology.org/P02-1040/", "https://github.com/tylin/coco-caption"],
    )

    def score(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        """Score tokenised captions."""
        scores = caption_scores.bleu_scores(predictions, references)
        results = {f"bleu_{order}": score for order, score in enumerate(scores.corpus, start=1)}
        for order, per_caption in enumerate(scores.per_caption.T.tolist(), start=1):
            results[f"bleu_{order}_per_caption"] = per_caption
        results["prediction_length"] = scores.prediction_length
        results["reference_length"] = scores.reference_length
        return results
