"""Figures from papers, printed beside one's own."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml


def published_results(dataset: str | None = None, family: str | None = None) -> list[dict[str, Any]]:
    """
    Figures of `published_results.yaml`.

    Args:
        dataset (`str`, *optional*): Only of this benchmark, a name of `KNOWN_DATASETS`.
        family (`str`, *optional*): Only of this family, `"evcap"` or `"smallcap"`.

    Returns:
        `list[dict]`: `model`, `family`, `dataset`, `split`, `metrics` (times 100), `source` and maybe `url`.
    """
    text = resources.files(__package__).joinpath("published_results.yaml").read_text(encoding="utf-8")
    return [
        row
        for row in yaml.safe_load(text)
        if (dataset is None or row["dataset"] == dataset) and (family is None or row["family"] == family)
    ]
