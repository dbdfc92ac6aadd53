"""Evaluation of captioners: captions of a dataset's photos, scores, reports, ablations."""

from .arguments import EvaluationArguments
from .runner import evaluate_captioner


__all__ = ["EvaluationArguments", "evaluate_captioner"]
