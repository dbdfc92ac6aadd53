"""Evaluation of captioners: captions of a dataset's photos, scores, reports, ablations."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports
from .arguments import EvaluationArguments


if TYPE_CHECKING:
    from .runner import evaluate_captioner as evaluate_captioner

__getattr__ = lazy_exports(__name__, {"evaluate_captioner": "runner"})

__all__ = ["EvaluationArguments", "evaluate_captioner"]
