"""Photos with their captions as training examples: which caption in which epoch, and what happens to bad ones."""

from __future__ import annotations

import random
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow
import torch
from transformers.utils import logging

from ...photo_datasets import undecoded
from ...photo_loading import load_photo
from ...row_columns import CAPTION_COLUMNS, class_names, find_column, find_photo_column, named_classes, need_column


logger = logging.get_logger(__name__)

CAPTION_CHOICES = ("one", "all", "first", "together")


class CaptionExample(UserDict):
    """A row with `caption`. Not a `dict`, from which transformers' `Trainer` would drop photo and caption."""


class _CheckedCaptions:
    """What both kinds of examples share: checks of captions and photos, and the count of those left out."""

    def __init__(
        self, processor: Any, captions: str, max_caption_length: int | None, truncate: bool, on_error: str, seed: int
    ) -> None:
        if captions not in CAPTION_CHOICES:
            raise ValueError(f"`captions` must be one of {', '.join(CAPTION_CHOICES)}; got {captions!r}.")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"`on_error` must be raise or skip; got {on_error!r}.")
        self.processor = processor
        self.captions = captions
        self.max_caption_length = max_caption_length
        self.truncate = truncate
        self.on_error = on_error
        self.seed = seed
        # Shared memory, so that worker processes see the epoch and this process sees what they left out.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._skipped_captions = torch.zeros((), dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Tells the epoch, from which `captions="one"` draws."""
        self._epoch.fill_(epoch)

    @property
    def skipped_captions(self) -> int:
        """`int`: Captions left out so far, empty ones and those over the limit."""
        return int(self._skipped_captions)

    def _usable(self, captions: Any, label: str) -> list[str]:
        """The captions of a photo that can be learned; raises or counts for the others."""
        captions = [captions] if isinstance(captions, str) else list(captions or [])
        if not captions and self.on_error == "raise":
            raise ValueError(f"{label} has no caption. Give it one, or leave such photos out with on_error='skip'.")
        usable = []
        for caption in captions:
            problem = self._problem(caption)
            if problem is None:
                usable.append(caption.strip())
            elif self.on_error == "raise":
                raise ValueError(f"{label}: {problem}, or leave such captions out with on_error='skip'.")
            else:
                self._skipped_captions += 1
                logger.warning(f"Caption left out. {label}: {problem}.")
        return usable[:1] if self.captions == "first" else usable

    def _problem(self, caption: Any) -> str | None:
        if not isinstance(caption, str):
            return f"a caption is {type(caption).__name__} instead of text; correct it"
        if not caption.strip():
            return "a caption is empty; write one"
        limit = self.max_caption_length
        if limit is None or self.truncate or len(caption.encode()) < limit:  # a token is a byte at least
            return None
        length = len(self.processor.encode_caption(caption.strip()))
        if length <= limit:
            return None
        return (
            f"the caption {caption[:40]!r}... has {length} tokens, the limit is {limit}; raise max_caption_length, "
            "cut such captions with truncate_captions"
        )

    def _choose(self, captions: list[str], row: Any) -> str:
        return random.Random(f"{self.seed}-{int(self._epoch)}-{row}").choice(captions)

    def _caption(self, captions: list[str], row: int, number: int = 0) -> dict[str, Any]:
        """What an example says of a photo: one caption, or all of them."""
        if self.captions == "together":
            return {"row": row, "caption_group": captions, "epoch": int(self._epoch)}
        return {"row": row, "caption": self._choose(captions, row) if self.captions == "one" else captions[number]}

    def _load(self, row: dict[str, Any], label: str) -> dict[str, Any]:
        """The row with its photo opened, unless it brings the encoder's features."""
        if "vision_hidden_states" in row:
            return row
        try:
            if row.get("image") is None:
                raise FileNotFoundError("There is no photo.")
            return {**row, "image": load_photo(row["image"])}
        except OSError as error:  # also of a missing file
            raise type(error)(f"{label}: {error}") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{label}: {error}") from error


def _label(number: int, image_id: Any) -> str:
    return f"Photo {number} of the dataset" + (f" (image_id {image_id!r})" if image_id is not None else "")


def with_captions(dataset: Any) -> Any:
    """
    Gives a dataset, however its columns are called, the columns `image` and `captions`.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): With a column of photos, or of their files' names,
            and one of captions: a string or a list of them a row, or class numbers with names.

    Raises:
        ValueError: There is no such column; names those there are.
    """
    if dataset.features is None:  # a stream that does not know its columns
        first: dict[str, Any] = next(iter(dataset), {})
        if {"image", "captions"} <= set(first) and isinstance(first["captions"], list):
            return dataset
        dataset = dataset._resolve_features()
    features = dataset.features
    image = find_photo_column(features, None, features)
    if "vision_hidden_states" not in (dataset.column_names or features):  # of a feature cache, no column of the data
        image = need_column(image, features, "rename_column(NAME, 'image')", "The dataset has no column `image`")
    text = find_column(features, None, CAPTION_COLUMNS, "captions")
    text = need_column(text, features, "rename_column(NAME, 'captions')", "The dataset has no column `captions`")
    classes = class_names(features[text])
    if classes is None and not (_is_text(features[text]) or _are_texts(features[text])):
        raise ValueError(f"The column {text!r} must hold a caption or a list of captions, not {features[text]}.")
    if image not in (None, "image"):
        dataset = dataset.rename_column(image, "image")
    if image is not None and _is_text(features[image]):
        dataset = dataset.cast_column("image", datasets.Image())
    if text == "captions" and _are_texts(features[text]):
        return dataset

    def listed(row: dict[str, Any]) -> dict[str, Any]:
        value = named_classes(row[text], classes)
        return {"captions": [value] if isinstance(value, str) else list(value or [])}

    captions = datasets.List(datasets.Value("string"))
    if isinstance(dataset, datasets.IterableDataset):
        others = {name: feature for name, feature in dataset.features.items() if name != text}
        made = undecoded(dataset).map(listed, remove_columns=[text] if text != "captions" else [])
        return made.cast(datasets.Features({**others, "captions": captions}))
    texts = [listed(row)["captions"] for row in dataset.select_columns([text])]
    return dataset.remove_columns(text).add_column("captions", texts, feature=captions)


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) == "string"


def _are_texts(feature: Any) -> bool:
    return _is_text(getattr(feature, "feature", None))


class CaptionExamples(_CheckedCaptions, torch.utils.data.Dataset):
    """
    Examples of a dataset of captioned photos.

    Args:
        dataset (`datasets.Dataset`): Photos (or `vision_hidden_states`) and captions, in columns that are called as
            usual or are the only ones of their kind, and optionally `image_id`; see [`with_captions`].
        processor: The model's; tells how many tokens a caption has.
        captions (`str`, *optional*, defaults to `"all"`): `"all"`: an example for each photo and caption. `"one"`: an
            example a photo, its caption drawn anew in each epoch. `"first"`: each photo with its first caption.
            `"together"`: an example a photo with all its captions, for [`~caption_groups.group_captions`].
        max_caption_length (`int`, *optional*): Tokens of a caption at most, with its end.
        truncate (`bool`, *optional*, defaults to `False`): Longer captions are good, the collator cuts them.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` leaves out captions that are empty or too long,
            and photos that cannot be read, and counts them; the next photo stands in for one that cannot be read.
        seed (`int`, *optional*, defaults to 0): Of the draw of captions.

    Raises:
        ValueError, FileNotFoundError: A caption or photo is bad; the error names the row and its image id.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        processor: Any,
        captions: str = "all",
        max_caption_length: int | None = None,
        truncate: bool = False,
        on_error: str = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__(processor, captions, max_caption_length, truncate, on_error, seed)
        self.dataset = undecoded(with_captions(dataset))
        texts = self.dataset.select_columns(["captions"])[:]["captions"]
        ids = self.dataset.select_columns(["image_id"])[:]["image_id"] if "image_id" in dataset.column_names else None
        self.references = {
            row: self._usable(text, _label(row, ids[row] if ids else None)) for row, text in enumerate(texts)
        }
        self.references = {row: usable for row, usable in self.references.items() if usable}
        if captions == "all":
            self.items = [(row, number) for row, usable in self.references.items() for number in range(len(usable))]
        else:
            self.items = [(row, 0) for row in self.references]
        if not self.items:
            raise ValueError(f"None of the {len(texts)} photos of the dataset has a caption that can be used.")
        self._unreadable = torch.zeros(len(texts), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def skipped_photos(self) -> int:
        """`int`: Photos that could not be read so far."""
        return int(self._unreadable.sum())

    def __getitem__(self, item: int) -> CaptionExample:
        for place in range(len(self.items)):
            row, number = self.items[(item + place) % len(self.items)]
            if self._unreadable[row]:
                continue
            content = self.dataset[row]
            try:
                example = self._load(content, _label(row, content.get("image_id")))
            except (OSError, ValueError) as error:
                if self.on_error == "raise":
                    raise
                logger.warning(f"Photo left out. {error}")
                self._unreadable[row] = True
                continue
            return CaptionExample({**example, **self._caption(self.references[row], row, number)})
        raise ValueError(f"None of the {len(self._unreadable)} photos of the dataset can be read.")


class StreamedCaptionExamples(_CheckedCaptions, torch.utils.data.IterableDataset):
    """
    Examples of a streamed dataset, pass after pass without an end; training ends by `max_steps`.

    Args:
        dataset (`datasets.IterableDataset`): As for [`CaptionExamples`]; shuffle it before.
        processor, captions, max_caption_length, truncate, on_error, seed: As for [`CaptionExamples`].
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        processor: Any,
        captions: str = "all",
        max_caption_length: int | None = None,
        truncate: bool = False,
        on_error: str = "raise",
        seed: int = 0,
    ) -> None:
        super().__init__(processor, captions, max_caption_length, truncate, on_error, seed)
        self.dataset = undecoded(with_captions(dataset))
        self._unreadable = torch.zeros((), dtype=torch.long).share_memory_()

    @property
    def skipped_photos(self) -> int:
        """`int`: Photos that could not be read so far, in all passes."""
        return int(self._unreadable)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the passes are counted here, so that a resumed run finds its place in any of them."""

    def __iter__(self) -> Iterator[CaptionExample]:
        for epoch in range(2**31):
            self._epoch.fill_(epoch)
            self.dataset.set_epoch(epoch)
            found = False
            for example in self._one_pass():
                found = True
                yield example
            if not found:
                raise ValueError("The stream ended without a single photo and caption that can be used.")

    def _one_pass(self) -> Iterator[CaptionExample]:
        for row, content in enumerate(self._rows()):
            label = _label(row, content.get("image_id"))
            usable = self._usable(content["captions"], label)
            if not usable:
                continue
            try:
                example = self._load(content, label)
            except (OSError, ValueError) as error:
                if self.on_error == "raise":
                    raise
                logger.warning(f"Photo left out. {error}")
                self._unreadable += 1
                continue
            for number in range(len(usable) if self.captions == "all" else 1):
                yield CaptionExample({**example, **self._caption(usable, row, number)})

    def _rows(self) -> Iterator[dict[str, Any]]:
        count = 0
        try:
            for content in self.dataset:
                yield content
                count += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise ValueError(f"The stream is damaged after {count} photos: {error}. Fetch the data anew.") from error


def caption_examples(dataset: Any, processor: Any, **options: Any) -> Any:
    """
    Makes examples of a dataset of `datasets`; anything else is what its owner made it for, and comes back as it is.

    Args:
        dataset (*optional*): What a trainer was given.
        processor: The model's.
        options: Of [`CaptionExamples`].

    Raises:
        ValueError: There are several splits.
    """
    if isinstance(dataset, datasets.DatasetDict):
        raise ValueError(f"Choose a split of the dataset, such as dataset[{next(iter(dataset))!r}].")
    if isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        if _is_chat(dataset):
            return dataset
        kind = CaptionExamples if isinstance(dataset, datasets.Dataset) else StreamedCaptionExamples
        return kind(dataset, processor, **options)
    return dataset


def _is_chat(dataset: Any) -> bool:
    return "messages" in (dataset.column_names or [])
