"""CIDEr of image captions, equal to coco-caption's, without Java."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate

from hf_evcap.metrics import caption_metric, caption_scores


_DESCRIPTION = """
CIDEr scores a caption by the tf-idf weighted n-grams (n = 1 to 4) that it shares with the reference captions of its
image. The figures equal those of coco-caption (pycocoevalcap), tokenisation included, without Java.
"""

_CITATION = """
@inproceedings{vedantam2015cider,
    title     = {CIDEr: Consensus-based Image Description Evaluation},
    author    = {Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
    booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
    pages     = {4566--4575},
    year      = {2015}
}
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions (`list` of `str`): One caption an image.
    references (`list` of `list` of `str`): One or more reference captions an image.
    document_frequency (`dict`, path of a JSON file, or `DocumentFrequency`): In how many images' references each
        n-gram occurs, as `hf_evcap.metrics.caption_scores.DocumentFrequency.to_dict` gives it. Default: counted over
        the references given, as coco-caption does; then a single image scores 0.
    sigma (`float`): Width of the length penalty in words. Default 6.0.{caption_metric.TOKENISATION}
Returns:
    cider (`float`): Mean over the images. Papers print it times 100.
    cider_per_caption (`list` of `float`): Score of each prediction.
Examples:
    >>> cider = evaluate.load(hf_evcap.metric_path("cider"))
    >>> results = cider.compute(
    ...     predictions=["a cat sits on a mat", "two dogs run"],
    ...     references=[["a cat sits on a mat"], ["two dogs are running", "dogs run on grass"]],
    ... )
    >>> round(results["cider"], 4)
    6.2701
"""


class Cider(caption_metric.CaptionMetric):
    """CIDEr as an `evaluate` metric."""

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=caption_metric.CAPTION_FEATURES,
        reference_urls=["https://arxiv.org/abs/1411.5726", "https://github.com/tylin/coco-caption"],
    )

    def score(
        self, predictions: list[str], references: list[list[str]], document_frequency: Any = None, sigma: float = 6.0
    ) -> dict[str, Any]:
        """Score tokenised captions."""
        document_frequency = _read_document_frequency(document_frequency)
        scores = caption_scores.cider_scores(predictions, references, document_frequency, sigma=sigma)
        return {"cider": sum(scores) / len(scores), "cider_per_caption": scores}


def _read_document_frequency(source: Any) -> caption_scores.DocumentFrequency | None:
    if source is None or isinstance(source, caption_scores.DocumentFrequency):
        return source
    if isinstance(source, (str, Path)):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"There is no document frequency file {path}; expected JSON.")
        try:
            source = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}. Write it from `DocumentFrequency.to_dict()`.") from error
    if not isinstance(source, dict):
        raise TypeError(f"`document_frequency` must be a dict or a path of a JSON file, got {type(source).__name__}.")
    return caption_scores.DocumentFrequency.from_dict(source)
