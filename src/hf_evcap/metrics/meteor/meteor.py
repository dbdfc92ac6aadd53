"""METEOR 1.5 of image captions, through pycocoevalcap and Java."""

from __future__ import annotations

from typing import Any

import evaluate

from hf_evcap.metrics import caption_metric, java_scorers


_DESCRIPTION = """
METEOR 1.5 as coco-caption reports it. This module runs the original Java program that pycocoevalcap brings, so it
needs `pip install "hf_evcap[coco]"` and a Java runtime. It is not the METEOR of NLTK, whose figures differ.
"""

_CITATION = """
@inproceedings{denkowski2014meteor,
    title     = {Meteor Universal: Language Specific Translation Evaluation for Any Target Language},
    author    = {Denkowski, Michael and Lavie, Alon},
    booktitle = {Proceedings of the Ninth Workshop on Statistical Machine Translation},
    pages     = {376--380},
    year      = {2014}
}
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions (`list` of `str`): One caption an image.
    references (`list` of `list` of `str`): One or more reference captions an image.{caption_metric.TOKENISATION}
Returns:
    meteor (`float`): METEOR of the corpus, from the statistics of all captions; not the mean of the captions' scores.
    meteor_per_caption (`list` of `float`): METEOR of each prediction.
Examples:
    >>> meteor = evaluate.load(hf_evcap.metric_path("meteor"))
    >>> results = meteor.compute(
    ...     predictions=["a cat sits on a mat"], references=[["A cat is sitting on a mat.", "a cat on a mat"]]
    ... )
    >>> round(results["meteor"], 4)
    0.8803
"""


class Meteor(caption_metric.CaptionMetric):
    """METEOR 1.5 as an `evaluate` metric."""

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=caption_metric.CAPTION_FEATURES,
        reference_urls=["https://www.cs.cmu.edu/~alavie/METEOR/", "https://github.com/tylin/coco-caption"],
    )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        java_scorers.require_java("meteor")

    def score(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        """Score tokenised captions."""
        score, scores = java_scorers.score_with_java("meteor", predictions, references)
        return {"meteor": score, "meteor_per_caption": scores}
