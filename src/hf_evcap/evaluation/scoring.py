"""Scores of captions: in all, by domain and of each photo. Figures are times 100, as papers print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..metrics import metric_path
from ..metrics.java_scorers import require_java
from .arguments import METRICS


DEFAULT_METRICS = ("cider", "bleu", "rouge_l", "name_hallucination")
_NEED_REFERENCES = ("cider", "bleu", "rouge_l", "meteor", "spice", "name_hallucination")
_NEED_JAVA = ("meteor", "spice")
_NEED_NAMES = ("name_hallucination", "retrieval_recall")
_NEED_OBJECTS = ("novel_object_recall", "retrieval_recall")

# Results of the modules -> as tables print them, in this order.
PRINTED = {
    "cider": "CIDEr",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "spice": "SPICE",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
    "novel_object_recall": "objects named",
    "hit_at_1": "retrieval hit@1",
    "hit_at_10": "retrieval hit@10",
    "hallucination_per_mention": "unsupported names",
}


@dataclass
class CaptionedPhotos:
    """
    Captions with what they are scored against, a photo each at the same place of every list.

    Args:
        image_ids, captions (`list[str]`): Of the photos.
        references (`list[list[str]]`): Empty lists where the dataset has none.
        retrieved (`list[list[dict]]`): Names (or captions) that were retrieved, with scores.
        groups (`list[str]` or `None`): Domain of each photo.
        objects (`list[list[str]]` or `None`): What each photo shows.
        images (`Sequence`, *optional*): The photos, for CLIPScore.
    """

    image_ids: list[str]
    captions: list[str]
    references: list[list[str]]
    retrieved: list[list[dict[str, Any]]]
    groups: list[str] | None = None
    objects: list[list[str]] | None = None
    images: Sequence[Any] = field(default_factory=list)

    def names(self) -> list[list[str]]:
        """Names retrieved for each photo; empty for captions."""
        return [[entry["name"] for entry in photo if "name" in entry] for photo in self.retrieved]

    def select(self, rows: Sequence[int]) -> CaptionedPhotos:
        """Some of the photos."""

        def take(values: Any) -> Any:
            return values if not values else [values[row] for row in rows]

        return CaptionedPhotos(**{name: take(values) for name, values in vars(self).items()})


@dataclass
class Scores:
    """
    Figures by group, `"all"` first, and each photo's CIDEr.

    Args:
        by_group (`dict[str, dict[str, float]]`): Figures of each group, times 100.
        photos (`dict[str, int]`): Photos of each group.
        cider_per_photo (`list[float]` or `None`): Times 100; document frequencies over all photos.
        details (`dict[str, Any]`): Tables of the name metrics.
    """

    by_group: dict[str, dict[str, float]]
    photos: dict[str, int]
    cider_per_photo: list[float] | None = None
    details: dict[str, Any] = field(default_factory=dict)


def check_metrics(wanted: Sequence[str], references: bool, objects: bool) -> None:
    """
    Checks that metrics can be computed, before hours of captioning.

    Args:
        wanted (`Sequence[str]`): The user's choice of `METRICS`.
        references, objects (`bool`): Whether every photo has reference captions, and the name of what it shows.

    Raises:
        ImportError, RuntimeError: `evaluate`, or what METEOR and SPICE need, is not installed.
        ValueError: The dataset lacks what a metric needs.
    """
    try:
        import evaluate  # noqa: F401
    except ImportError as error:
        raise ImportError('Scores need evaluate: pip install "hf_evcap[eval]".') from error
    for metric in wanted:
        if metric in _NEED_REFERENCES and not references:
            raise ValueError(f"The metric {metric} needs reference captions, which the dataset lacks.")
        if metric in _NEED_OBJECTS and not objects:
            raise ValueError(f"The metric {metric} needs `object_column`: which column says what a photo shows.")
        if metric in _NEED_JAVA:
            require_java(metric)


def choose_metrics(wanted: Sequence[str], photos: CaptionedPhotos) -> list[str]:
    """The metrics that can be computed for these photos, of those wanted or of the usual ones."""
    candidates = wanted or [*DEFAULT_METRICS, *_NEED_OBJECTS]
    lacking: set[str] = set()
    for metrics, there in (
        (_NEED_REFERENCES, all(photos.references)),
        (_NEED_NAMES, any(photos.names())),
        (_NEED_OBJECTS, photos.objects is not None),
    ):
        lacking |= set() if there else set(metrics)
    return [metric for metric in METRICS if metric in candidates and metric not in lacking]


def score(photos: CaptionedPhotos, metrics: Sequence[str], clip_model: str | None = None) -> Scores:
    """
    Scores captions in all and by group.

    A group's CIDEr takes its document frequencies from the group's own references, as if it were a dataset of its own.

    Args:
        photos ([`CaptionedPhotos`]): Captions and what they are scored against.
        metrics (`Sequence[str]`): From [`choose_metrics`].
        clip_model (`str`, *optional*): For `clip_score`.

    Raises:
        ValueError: There are no captions, or an id stands twice.
    """
    if not photos.captions:
        raise ValueError("There are no predictions to score.")
    raw = compute(photos, metrics, clip_model)
    scores = Scores({"all": printed(raw)}, {"all": len(photos.captions)})
    if "cider_per_caption" in raw:
        scores.cider_per_photo = [100 * value for value in raw["cider_per_caption"]]
    for name in ("per_object", "per_name"):
        if name in raw:
            scores.details[name] = raw[name]
    for group in sorted(set(photos.groups or [])):
        part = photos.select([row for row, of in enumerate(photos.groups or []) if of == group])
        scores.by_group[group] = printed(compute(part, choose_metrics(metrics, part), clip_model))
        scores.photos[group] = len(part.captions)
    return scores


def compute(photos: CaptionedPhotos, metrics: Sequence[str], clip_model: str | None = None) -> dict[str, Any]:
    """Results of the metric modules, together."""
    import evaluate

    results: dict[str, Any] = {}
    for name in metrics:
        inputs: dict[str, Any] = {"predictions": photos.captions, "image_ids": photos.image_ids}
        if name in _NEED_REFERENCES:
            inputs["references"] = photos.references
        if name == "name_hallucination":
            inputs["retrieved_names"] = photos.names()
            if photos.objects is not None:
                inputs["annotations"] = photos.objects
        elif name == "clip_score":
            inputs["images"] = list(photos.images)
            inputs |= {"model": clip_model} if clip_model else {}
        elif name == "novel_object_recall":
            inputs["references"] = photos.objects
        elif name == "retrieval_recall":
            inputs |= {"predictions": photos.names(), "references": photos.objects}
        results |= evaluate.load(metric_path(name)).compute(**inputs)
    return results


def printed(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures that tables show, times 100."""
    return {label: 100 * results[name] for name, label in PRINTED.items() if name in results}
