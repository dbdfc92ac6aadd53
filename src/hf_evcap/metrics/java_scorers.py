"""METEOR and SPICE, which only exist as Java programs: found through pycocoevalcap, never imitated."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


_INSTALL = 'pip install "hf_evcap[coco]"'
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def require_java(metric: str) -> None:
    """
    Check what a Java metric needs.

    Args:
        metric (`str`):
            `"meteor"` or `"spice"`.

    Raises:
        ImportError: If pycocoevalcap is not installed.
        RuntimeError: If there is no Java runtime.
        FileNotFoundError: If SPICE's language models are missing.
    """
    name = metric.upper()
    folder = _scorer_folder(metric)
    if folder is None:
        raise ImportError(
            f"{name} runs the original Java program through pycocoevalcap, which is not installed. Install it with "
            f"{_INSTALL}, and a Java runtime (for example apt install default-jre-headless)."
        )
    if shutil.which("java") is None:
        raise RuntimeError(
            f"{name} runs the original Java program, but there is no `java` on the path. Install a Java runtime (for "
            f"example apt install default-jre-headless); pycocoevalcap is there already ({_INSTALL})."
        )
    if metric == "spice":
        missing = [jar for jar in _SPICE_JARS if not (folder / "lib" / jar).is_file()]
        if missing:
            raise FileNotFoundError(
                f"SPICE needs Stanford's language models, but {' and '.join(missing)} are not in {folder / 'lib'}. "
                "Fetch them once, with a network: python -m pycocoevalcap.spice.get_stanford_models (some hundred MB)."
            )


def _scorer_folder(metric: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(f"pycocoevalcap.{metric}.{metric}")
    except ModuleNotFoundError:
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def score_with_java(
    metric: str, predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[Any]]:
    """
    Run pycocoevalcap's METEOR or SPICE.

    Args:
        metric (`str`):
            `"meteor"` or `"spice"`.
        predictions (`Sequence[str]`):
            Tokenised prediction of each image.
        references (`Sequence[Sequence[str]]`):
            Tokenised references of each image.

    Returns:
        `tuple[float, list]`: The corpus score and what pycocoevalcap gives for each image.

    Raises:
        RuntimeError: If the Java program fails.
    """
    require_java(metric)
    scorer = getattr(importlib.import_module(f"pycocoevalcap.{metric}.{metric}"), metric.capitalize())()
    try:
        score, scores = scorer.compute_score(
            {index: list(captions) for index, captions in enumerate(references)},
            {index: [caption] for index, caption in enumerate(predictions)},
        )
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        lock = getattr(scorer, "lock", None)
        if lock is not None and lock.locked():
            lock.release()  # pycocoevalcap keeps it after an error, and would wait for it when the scorer goes
        raise RuntimeError(
            f"The Java program of {metric.upper()} failed ({type(error).__name__}: {error}). {_java_messages(scorer)}"
            "METEOR asks for 2 GB of memory and SPICE for 8 GB; SPICE was written for Java 8."
        ) from error
    return float(score), list(scores)


def _java_messages(scorer: Any) -> str:
    """What the METEOR process wrote to its error stream before it ended, if it ended."""
    process = getattr(scorer, "meteor_p", None)
    if process is None:
        return ""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        return ""
    message = process.stderr.read().decode(errors="replace").strip()
    return f"Java said: {message} " if message else ""
