"""What the `evaluate` modules of this package share: checks of the inputs and the captions' tokenisation.

A metric script imports this module and not its classes: `evaluate` takes the first metric class it finds in a script.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import evaluate

from hf_evcap.metrics.ptb_tokenizer import tokenize_captions


TOKENISATION = """
    tokenize (`bool`): Tokenise with the rules of Stanford's PTB tokeniser as coco-caption does. Set to False when the
        captions are tokenised already. Default True.
    image_ids (`list`): Optional ids of the images, only checked: one an image, none twice."""


class CheckedMetric(evaluate.Metric):
    """A metric that checks its inputs before `evaluate` stores them, and leaves nothing behind after an error.

    `evaluate` itself turns NaN and numbers into strings and tells of a mismatch only when it writes the batch. A
    subclass says in `checks` how each of its inputs is checked.
    """

    checks: dict[str, str] = {"predictions": "caption", "references": "captions"}

    def add_batch(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> None:
        """Check and store a batch."""
        inputs = {"predictions": predictions, "references": references, **inputs}
        inputs = {name: value for name, value in inputs.items() if name in self.checks or value is not None}
        self._check({name: _as_list(name, value) for name, value in inputs.items() if name in self.checks})
        super().add_batch(**inputs)

    def add(self, *, prediction: Any = None, reference: Any = None, **inputs: Any) -> None:
        """Check and store one example."""
        inputs = {"predictions": prediction, "references": reference, **inputs}
        self._check({name: [value] for name, value in inputs.items() if name in self.checks})
        inputs.pop("predictions"), inputs.pop("references")
        super().add(prediction=prediction, reference=reference, **inputs)

    def compute(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> dict[str, Any] | None:
        """Compute the metric."""
        try:
            return super().compute(predictions=predictions, references=references, **inputs)
        except BaseException:
            self._discard_stored()
            raise

    def _check(self, inputs: dict[str, list[Any]]) -> None:
        sizes = {name: len(inputs[name]) for name in self.checks}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                "All inputs need one entry an image, in the same order. Got "
                + ", ".join(f"{size} {name}" for name, size in sizes.items())
                + "."
            )
        if not sizes["predictions"]:
            raise ValueError("Got no predictions: there is nothing to score.")
        for name, check in self.checks.items():
            for index, value in enumerate(inputs[name]):
                _CHECKS[check](f"{name}[{index}]", value)

    def _discard_stored(self) -> None:
        """Release the locks and delete the files of stored examples."""
        stored: dict[str, Any] = vars(self)
        for lock, path in zip(stored["filelocks"] or [], stored["file_paths"] or [], strict=False):
            if os.path.exists(path):
                os.remove(path)
            lock.release()
        if stored["filelock"] is not None:
            stored["filelock"].release()
        stored.update(dict.fromkeys(["data", "writer", "buf_writer", "cache_file_name", "selected_feature_format"]))
        stored.update(dict.fromkeys(["filelock", "filelocks", "file_paths"]))


def _as_list(name: str, value: Any) -> list[Any]:
    if value is None:
        raise ValueError(f"`{name}` is missing: give one entry an image.")
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list with one entry an image, got {type(value).__name__}.")
    return list(value)


def _check_string(name: str, value: Any) -> None:
    if not isinstance(value, str):
        shown = repr(value) if isinstance(value, (int, float, type(None))) else type(value).__name__
        raise TypeError(f"{name} must be a string, got {shown}.")


def _check_strings(name: str, value: Any) -> None:
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        shown = repr(value) if isinstance(value, (int, float, type(None))) else type(value).__name__
        raise TypeError(f"{name} must be a list of strings, got {shown}.")
    for index, item in enumerate(value):
        _check_string(f"{name}[{index}]", item)


def _check_captions(name: str, value: Any) -> None:
    _check_strings(name, value)
    if len(value) == 0:
        raise ValueError(f"{name} is empty: each prediction needs at least one reference caption.")


def _check_names(name: str, value: Any) -> None:
    _check_strings(name, value)
    for index, item in enumerate(value):
        if not item.strip():
            raise ValueError(f"{name}[{index}] is a blank name.")


_CHECKS = {"caption": _check_string, "captions": _check_captions, "names": _check_names}


def check_image_ids(image_ids: Sequence[Any] | None, num_images: int) -> None:
    """
    Check optional image ids.

    Args:
        image_ids (`Sequence`, *optional*):
            Ids of the images.
        num_images (`int`):
            Number of predictions.

    Raises:
        ValueError: If their number differs from the predictions', or one is missing, NaN, or there twice.
    """
    if image_ids is None:
        return
    image_ids = list(image_ids)
    if len(image_ids) != num_images:
        raise ValueError(f"Got {len(image_ids)} image ids for {num_images} predictions.")
    seen: dict[Any, int] = {}
    for index, image_id in enumerate(image_ids):
        if image_id is None or image_id != image_id:
            raise ValueError(f"image_ids[{index}] is {image_id!r}: every image needs an id.")
        if image_id in seen:
            raise ValueError(
                f"Image id {image_id!r} stands twice, at {seen[image_id]} and {index}: give one prediction an image."
            )
        seen[image_id] = index


def prepare_captions(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokenize: bool
) -> tuple[list[str], list[list[str]]]:
    """
    Tokenise predictions and references as coco-caption does, each of the two in one run.

    Args:
        predictions (`Sequence[str]`):
            Prediction of each image.
        references (`Sequence[Sequence[str]]`):
            References of each image.
        tokenize (`bool`):
            Whether to tokenise at all.

    Returns:
        `tuple[list[str], list[list[str]]]`: Tokenised predictions and references.
    """
    if not tokenize:
        return list(predictions), [list(captions) for captions in references]
    flat = iter(tokenize_captions([caption for captions in references for caption in captions]))
    return tokenize_captions(predictions), [[next(flat) for _ in captions] for captions in references]
