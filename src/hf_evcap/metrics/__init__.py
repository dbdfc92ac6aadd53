"""Metrics for captioning with names, as modules for the `evaluate` library.

`evaluate.load(metric_path("cider"))` loads a module from the installed package: no download, no cache to go stale,
since `evaluate` keys its copy of the script by the script's content and the shared parts are imported from here.
"""

from __future__ import annotations

from pathlib import Path


METRICS = (
    "bleu",
    "cider",
    "clip_score",
    "meteor",
    "name_hallucination",
    "novel_object_recall",
    "retrieval_recall",
    "rouge_l",
    "spice",
)


def metric_path(name: str) -> str:
    """
    Path of a metric module for `evaluate.load`.

    Args:
        name (`str`):
            One of `hf_evcap.metrics.METRICS`.

    Returns:
        `str`: The module's folder inside the installed package.

    Raises:
        ValueError: If there is no metric of that name.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}. Available metrics: {', '.join(METRICS)}.")
    return str(Path(__file__).parent / name)
