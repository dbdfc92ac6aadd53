"""How many captions name the novel object of their photo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import evaluate

from hf_evcap.metrics import caption_metric, name_matching


_DESCRIPTION = """
The share of captions that name the novel object of their photo, an object that the captioner was not trained on.
Plurals, possessives, compounds ("hot-dog", "hotdogs"), names of several words and given synonyms count.
"""

_CITATION = """
@inproceedings{li2024evcap,
    title     = {{EVCap}: Retrieval-Augmented Image Captioning with External Visual-Name Memory for Open-World
                 Comprehension},
    author    = {Li, Jiaxuan and Vo, Duc Minh and Sugimoto, Akihiro and Nakayama, Hideki},
    booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
    year      = {2024}
}
"""

_KWARGS_DESCRIPTION = f"""
Args:
    predictions (`list` of `str`): One caption an image.
    references (`list` of `str`, or `list` of `list` of `str`): Name or names of the novel object(s) of each image.
    synonyms (`dict` of `str` to `list` of `str`): Other names of an object.
    vocabulary (`list` of `str`): Further names, only to tell longer names apart: with "hot dog" in it, a caption with
        "hot dog" does not name a dog.{caption_metric.IMAGE_IDS}
Returns:
    novel_object_recall (`float`): Share of captions that name their novel object, or one of them.
    mean_object_recall (`float`): Mean of the objects' recalls, each object weighing the same.
    per_object (`list` of `dict`): For each object `name`, `images`, `named` and `recall`, by name.
    named_per_caption (`list` of `list` of `str`): The novel objects that each caption names.
Examples:
    >>> recall = evaluate.load(hf_evcap.metric_path("novel_object_recall"))
    >>> results = recall.compute(
    ...     predictions=["two hedgehogs on grass", "a small animal"], references=["hedgehog", "hedgehog"]
    ... )
    >>> results["novel_object_recall"], results["per_object"]
    (0.5, [{{'name': 'hedgehog', 'images': 2, 'named': 1, 'recall': 0.5}}])
"""


class NovelObjectRecall(caption_metric.CheckedMetric):
    """Novel-object recall as an `evaluate` metric."""

    checks = {"predictions": caption_metric.caption, "references": caption_metric.names}

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=caption_metric.CAPTION_FEATURES,
        reference_urls=["https://arxiv.org/abs/2311.15879"],
    )

    def _compute(
        self,
        *,
        predictions: list[str],
        references: list[list[str]],
        synonyms: Mapping[str, Sequence[str]] | None = None,
        vocabulary: Iterable[str] = (),
        image_ids: list[Any] | None = None,
    ) -> dict[str, Any]:
        caption_metric.check_image_ids(image_ids, len(predictions))
        objects = sorted({name for names in references for name in names})
        matcher = name_matching.NameMatcher(
            [*objects, *caption_metric.names_or_none("vocabulary", vocabulary)], synonyms
        )
        images = dict.fromkeys(objects, 0)
        named = dict.fromkeys(objects, 0)
        named_per_caption = []
        for prediction, names in zip(predictions, references, strict=True):
            mentioned = matcher.mentioned(prediction)
            wanted = list(dict.fromkeys(names))
            named_per_caption.append([name for name in wanted if name in mentioned])
            for name in wanted:
                images[name] += 1
                named[name] += name in mentioned
        per_object = [
            {"name": name, "images": images[name], "named": named[name], "recall": named[name] / images[name]}
            for name in objects
        ]
        return {
            "novel_object_recall": sum(map(bool, named_per_caption)) / len(predictions),
            "mean_object_recall": sum(named[name] / images[name] for name in objects) / len(objects),
            "per_object": per_object,
            "named_per_caption": named_per_caption,
        }
