"""Recall@k of retrieved object names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from hf_evcap.metrics import caption_metric, name_matching


_DESCRIPTION = """
Recall@k of the names that a memory gives for a photo: the share of a photo's true names that stand among the first k
retrieved. Names agree when they differ in number, case, hyphens, underscores or a synonym.
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
    predictions (`list` of `list` of `str`): Names retrieved for each image, best first. May be empty.
    references (`list` of `list` of `str`, or `list` of `str`): True name or names of each image.
    k (`int` or `list` of `int`): How many retrieved names count. Default [1, 5, 10].
    synonyms (`dict` of `str` to `list` of `str`): Other names of a true name.{caption_metric.IMAGE_IDS}
Returns:
    recall_at_1, ... (`float`): Share of an image's true names among its first k retrieved, mean over the images.
    hit_at_1, ... (`float`): Share of images with at least one true name among the first k.
    mean_reciprocal_rank (`float`): Mean of 1 / rank of the first true name, 0 where there is none.
    ranks_per_image (`list` of `list` of `int`): Rank (from 1) of each true name, 0 if it was not retrieved.
Examples:
    >>> recall = evaluate.load(hf_evcap.metric_path("retrieval_recall"))
    >>> results = recall.compute(
    ...     predictions=[["dogs", "cat"], ["fire_hydrant", "car"]], references=[["cat"], ["car", "bus"]], k=[1, 2]
    ... )
    >>> results["recall_at_1"], results["recall_at_2"], results["hit_at_2"]
    (0.0, 0.75, 1.0)
"""


class RetrievalRecall(caption_metric.CheckedMetric):
    """Recall@k of retrieved names as an `evaluate` metric."""

    checks = {"predictions": caption_metric.names_or_none, "references": caption_metric.names}

    module_info = evaluate.MetricInfo(
        description=_DESCRIPTION,
        citation=_CITATION,
        inputs_description=_KWARGS_DESCRIPTION,
        features=datasets.Features(
            {
                "predictions": datasets.Sequence(datasets.Value("string")),
                "references": datasets.Sequence(datasets.Value("string")),
            }
        ),
        reference_urls=["https://arxiv.org/abs/2311.15879"],
    )

    def _compute(
        self,
        *,
        predictions: list[list[str]],
        references: list[list[str]],
        k: int | Sequence[int] = (1, 5, 10),
        synonyms: Mapping[str, Sequence[str]] | None = None,
        image_ids: list[Any] | None = None,
    ) -> dict[str, Any]:
        caption_metric.check_image_ids(image_ids, len(predictions))
        cutoffs = [k] if isinstance(k, int) else list(k)
        if not cutoffs or any(
            isinstance(cutoff, bool) or not isinstance(cutoff, int) or cutoff < 1 for cutoff in cutoffs
        ):
            raise ValueError(f"`k` must be one or more positive integers, got {k!r}.")
        matcher = name_matching.NameMatcher((name for true_names in references for name in true_names), synonyms)
        ranks = []
        for retrieved, true_names in zip(predictions, references, strict=True):
            objects = [matcher.objects(name) for name in retrieved]
            ranks.append(
                [next((rank for rank, found in enumerate(objects, 1) if name in found), 0) for name in true_names]
            )
        results: dict[str, Any] = {}
        for cutoff in cutoffs:
            found = [[0 < rank <= cutoff for rank in image_ranks] for image_ranks in ranks]
            results[f"recall_at_{cutoff}"] = sum(sum(image) / len(image) for image in found) / len(found)
            results[f"hit_at_{cutoff}"] = sum(any(image) for image in found) / len(found)
        firsts = [min((rank for rank in image_ranks if rank), default=0) for image_ranks in ranks]
        results["mean_reciprocal_rank"] = sum(1 / rank if rank else 0.0 for rank in firsts) / len(firsts)
        results["ranks_per_image"] = ranks
        return results
