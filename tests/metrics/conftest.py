"""Ground truth of the metrics and a loader of the modules."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate
import pytest

import hf_evcap


@pytest.fixture(scope="session")
def coco_caption() -> dict[str, Any]:
    """Captions and what pycocoevalcap gives for them."""
    path = Path(__file__).parent / "fixtures" / "coco_caption.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="session")
def load_metric() -> Callable[[str], evaluate.Metric]:
    return lambda name: evaluate.load(hf_evcap.metric_path(name))
