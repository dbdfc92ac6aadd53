"""ROUGE-L of image captions, equal to coco-caption's, without Java."""

from __future__ import annotations

from typing import Any

import evaluate

from hf_evcap.metrics import caption_metric, caption_scores


_DESCRIPTION = """
ROUGE-L scores a caption by its longest common subsequence with the reference captions of its image. The figures equal
those of coco-caption (pycocoevalcap; beta 1.2), tokenisation included, without Java.
"""

_CITATION = """
@inproceedings{lin2004rouge,
    title     = {{ROUGE}: A Package for Automatic Evaluation of Summaries},
    author    = {Lin, Chin-Yew},
    booktitle = {Text Summarization Branches Out},
    pages     = {74--81},
    year      = {2004}
}
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions (`list` of `str`): One caption an image.
    references (`list` of `list` of `str`): One or more reference captions an image.
    beta (`float`): Weight of recall in the F-measure. Default 1.2.{caption_metric.TOKENISATION}
Returns:
    rouge_l (`float`): Mean over the images.
    rouge_l_per_caption (`list` of `float`): Score of each prediction.
Examples:
    >>> rouge_l = evaluate.load(hf_evcap.metric_path("rouge_l"))
    >>> results = rouge_l.compute(
    ...     predictions=["a cat sits on a mat"], references=[["A cat is sitting on a mat.", "a cat on a mat"]]
    ... )
    >>> round(results["rouge_l"], 4)
    0.9242
"""


class RougeL(caption_metric.CaptionMetric):
    """coco-caption's ROUGE-L as an `evaluate` metric."""

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=caption_metric.CAPTION_FEATURES,
        reference_urls=["https://aclanthology.org/W04-1013/", "https://github.com/tylin/coco-caption"],
    )

    def score(self, predictions: list[str], references: list[list[str]], beta: float = 1.2) -> dict[str, Any]:
        """Score tokenised captions."""
        scores = caption_scores.rouge_l_scores(predictions, references, beta)
        return {"rouge_l": sum(scores) / len(scores), "rouge_l_per_caption": scores}
