"""What the `evaluate` modules of this package share: checks of the inputs and the captions' tokenisation.

A metric script imports this module and not its classes: `evaluate` takes the first metric class it finds in a script.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import datasets
import evaluate

from hf_evcap.metrics.ptb_tokenizer import tokenize_captions


IMAGE_IDS = """
    image_ids (`list`): Optional ids of the images, only checked: one an image, none missing, none twice."""
TOKENISATION = f"""
    tokenize (`bool`): Tokenise with the rules of Stanford's PTB tokeniser as coco-caption does. Set to False when the
        captions are tokenised already. Default True.{IMAGE_IDS}"""


class CheckedMetric(evaluate.Metric):
    """A metric that checks its inputs before `evaluate` stores them, and leaves nothing behind after an error.

    `evaluate` by itself turns NaN and numbers into strings and drops arguments it has no feature for.

    Attributes:
        module_info (`evaluate.MetricInfo`): Description, citation, features and sources.
        checks (`dict[str, Callable]`): For each input a function of the entry's name and value that raises on bad
            values and gives the value to store.
        optional (`frozenset[str]`): Inputs that may be missing; an empty list an image is stored then.
    """

    module_info: evaluate.MetricInfo
    checks: dict[str, Callable[[str, Any], Any]]
    optional: frozenset[str] = frozenset()

    def _info(self) -> evaluate.MetricInfo:
        return copy.copy(self.module_info)  # `evaluate` writes the instance's names into it

    def add_batch(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> None:
        """Check and store a batch."""
        super().add_batch(**self._checked({"predictions": predictions, "references": references, **inputs}))

    def add(self, *, prediction: Any = None, reference: Any = None, **inputs: Any) -> None:
        """Check and store one example."""
        inputs = {"predictions": prediction, "references": reference, **inputs}
        batch = self._checked({name: None if value is None else [value] for name, value in inputs.items()})
        super().add_batch(**batch)

    def compute(self, *, predictions: Any = None, references: Any = None, **inputs: Any) -> dict[str, Any] | None:
        """Compute the metric."""
        if references is not None and "references" not in self.checks:
            raise TypeError(f"{self.name} takes no `references`; its inputs are {', '.join(self.checks)}.")
        if predictions is not None:
            inputs = {**dict.fromkeys(self.optional - {"references"}), **inputs}
        try:
            return super().compute(predictions=predictions, references=references, **inputs)
        except BaseException:
            self._discard_stored()
            raise

    def _checked(self, inputs: dict[str, Any]) -> dict[str, list[Any]]:
        unknown = sorted(name for name, value in inputs.items() if name not in self.checks and value is not None)
        if unknown:
            raise TypeError(f"{self.name} has no input {', '.join(unknown)}; its inputs are {', '.join(self.checks)}.")
        batch = {name: _as_list(name, inputs.get(name)) for name in self.checks if not self._left_out(name, inputs)}
        if len({len(values) for values in batch.values()}) > 1:
            sizes = ", ".join(f"{len(values)} {name}" for name, values in batch.items())
            raise ValueError(f"All inputs need one entry an image, in the same order. Got {sizes}.")
        num_images = len(batch["predictions"])
        if not num_images:
            raise ValueError("Got no predictions: there is nothing to score.")
        for name, values in batch.items():
            batch[name] = [self.checks[name](f"{name}[{index}]", value) for index, value in enumerate(values)]
        return {name: batch.get(name, [[] for _ in range(num_images)]) for name in self.checks}

    def _left_out(self, name: str, inputs: dict[str, Any]) -> bool:
        return name in self.optional and inputs.get(name) is None

    def _discard_stored(self) -> None:
        """Release the locks and delete the files of stored examples."""
        stored = self.__dict__
        for lock, path in zip(stored["filelocks"] or [], stored["file_paths"] or [], strict=False):
            if os.path.exists(path):
                os.remove(path)
            lock.release()
        if stored["filelock"] is not None:
            stored["writer"] = None
            if stored["cache_file_name"] is not None and os.path.exists(stored["cache_file_name"]):
                os.remove(stored["cache_file_name"])
            stored["filelock"].release()
        for name in (
            "data", "writer", "buf_writer", "filelock", "filelocks", "file_paths", "cache_file_name",
            "selected_feature_format",
        ):  # fmt: skip
            stored[name] = None


def _as_list(name: str, value: Any) -> list[Any]:
    if value is None:
        raise ValueError(f"`{name}` is missing: give one entry an image.")
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list with one entry an image, got {_shown(value)}.")
    return list(value)


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, (int, float, type(None))) else type(value).__name__


def caption(name: str, value: Any) -> str:
    """Check a caption, which may be empty."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {_shown(value)}.")
    return str(value)


def captions_or_none(name: str, value: Any) -> list[str]:
    """Check a list of captions, which may be empty."""
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of strings, got {_shown(value)}.")
    return [caption(f"{name}[{index}]", item) for index, item in enumerate(value)]


def captions(name: str, value: Any) -> list[str]:
    """Check a list of at least one caption."""
    value = captions_or_none(name, value)
    if not value:
        raise ValueError(f"{name} is empty: each prediction needs at least one reference caption.")
    return value


def names_or_none(name: str, value: Any) -> list[str]:
    """Check a list of names, which may be empty; a single name may stand without a list."""
    value = captions_or_none(name, [value] if isinstance(value, str) else value)
    for index, item in enumerate(value):
        if not any(character.isalnum() for character in item):
            raise ValueError(f"{name}[{index}] is {item!r}, which holds no word: expected a name.")
    return value


def names(name: str, value: Any) -> list[str]:
    """Check a list of at least one name; a single name may stand without a list."""
    value = names_or_none(name, value)
    if not value:
        raise ValueError(f"{name} is empty: expected at least one name.")
    return value


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
        return list(predictions), [list(references_of_image) for references_of_image in references]
    flat = iter(tokenize_captions([text for references_of_image in references for text in references_of_image]))
    tokenized = [[next(flat) for _ in references_of_image] for references_of_image in references]
    return tokenize_captions(predictions), tokenized


# A caption an image, and the captions that people gave it.
CAPTION_FEATURES = datasets.Features(
    {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
)
CAPTION_CHECKS: dict[str, Callable] = {"predictions": caption, "references": captions}


class CaptionMetric(CheckedMetric):
    """A metric of captions against reference captions.

    Attributes:
        score (`Callable`): Method of a subclass: scores tokenised predictions and references, with options of its own.
    """

    checks = CAPTION_CHECKS
    score: Callable[..., dict[str, Any]]

    def _compute(
        self,
        *,
        predictions: list[str],
        references: list[list[str]],
        tokenize: bool = True,
        image_ids: list[Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        check_image_ids(image_ids, len(predictions))
        predictions, references = prepare_captions(predictions, references, tokenize)
        return self.score(predictions, references, **options)
