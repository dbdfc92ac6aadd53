"""SPICE of image captions, through pycocoevalcap and Java."""

from __future__ import annotations

from typing import Any

import evaluate

from hf_evcap.metrics import caption_metric, java_scorers


_DESCRIPTION = """
SPICE compares the scene graphs (objects, attributes, relations) of a caption and of its references. This module runs
the original Java program that pycocoevalcap brings, so it needs `pip install "hf_evcap[coco]"`, a Java runtime and,
once, Stanford's language models: `python -m pycocoevalcap.spice.get_stanford_models`.
"""

_CITATION = """
@inproceedings{anderson2016spice,
    title     = {{SPICE}: Semantic Propositional Image Caption Evaluation},
    author    = {Anderson, Peter and Fernando, Basura and Johnson, Mark and Gould, Stephen},
    booktitle = {European Conference on Computer Vision (ECCV)},
    pages     = {382--398},
    year      = {2016}
}
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions (`list` of `str`): One caption an image.
    references (`list` of `list` of `str`): One or more reference captions an image.{caption_metric.TOKENISATION}
Returns:
    spice (`float`): Mean F-score over the images.
    spice_per_caption (`list` of `float`): F-score of each prediction.
    spice_by_category (`dict` of `str` to `float`): Mean F-score of each kind of tuple (Object, Attribute, Relation,
        Color, Size, Cardinality) over the images that have such tuples.
Examples:
    >>> spice = evaluate.load(hf_evcap.metric_path("spice"))
    >>> results = spice.compute(
    ...     predictions=["a cat sits on a mat"], references=[["A cat is sitting on a mat.", "a cat on a mat"]]
    ... )
"""


class Spice(caption_metric.CaptionMetric):
    """SPICE as an `evaluate` metric."""

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=caption_metric.CAPTION_FEATURES,
        reference_urls=["https://arxiv.org/abs/1607.08822", "https://github.com/tylin/coco-caption"],
    )

    def _download_and_prepare(self, dl_manager: Any) -> None:
        java_scorers.require_java("spice")

    def score(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        """Score tokenised captions."""
        score, scores = java_scorers.score_with_java("spice", predictions, references)
        by_category: dict[str, list[float]] = {}
        for categories in scores:
            for category, figures in categories.items():
                if category != "All" and figures["f"] == figures["f"]:
                    by_category.setdefault(category, []).append(float(figures["f"]))
        return {
            "spice": score,
            "spice_per_caption": [float(categories["All"]["f"]) for categories in scores],
            "spice_by_category": {name: sum(values) / len(values) for name, values in by_category.items()},
        }
