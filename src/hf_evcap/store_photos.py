"""Rows whose keys are what a model's encoder makes of photos; part of the retrieval stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from transformers.utils import logging

from .photo_datasets import undecoded
from .photo_loading import load_photo
from .row_columns import class_names, find_column, find_photo_column, named_classes


logger = logging.get_logger(__name__)

# Steps of an image processor, and the settings by which each is done.
_PREPROCESSING = (
    ("do_resize", ("size", "resample")),
    ("do_center_crop", ("crop_size",)),
    ("do_rescale", ("rescale_factor",)),
    ("do_normalize", ("image_mean", "image_std")),
    ("do_pad", ("pad_size",)),
)


class PhotoRows:
    """Making and adding rows from photos; a part of the [`RetrievalStore`] classes."""

    usual_text_columns: ClassVar[tuple[str, ...]] = ()  # of a dataset, the default one first

    @classmethod
    def _from_photos(
        cls: Any,
        model: Any,
        processor: Any,
        dataset: Iterable[Mapping[str, Any]],
        image_column: str,
        text_column: str,
        batch_size: int,
        columns: Mapping[str, str],
        on_error: str,
        settings: dict[str, Any],
    ) -> Any:
        """
        Encodes photos into a new store; a photo with a list of texts gives a row for each, with the same key.

        Args:
            columns (`Mapping[str, str]`): Further columns of the store, and the dataset's columns they come from.
        """
        store = cls.empty(
            model.memory_key_size,
            encoder_fingerprint=model.encoder_fingerprint,
            query_tokens_hash=model.query_tokens_hash,
            preprocessing_hash=hash_preprocessing(processor),
            **settings,
        )
        start, features = 0, getattr(dataset, "features", None) or {}
        for batch in batched(undecoded(dataset), batch_size):
            names = list(batch[0])
            if start == 0:
                image_column, text_column = cls.find_columns(names, features or batch[0], image_column, text_column)
            for column in (image_column, text_column, *columns.values()):
                if column not in names:
                    raise ValueError(f"The dataset has no column {column!r}; it has {', '.join(names)}.")
            keys, kept = encode_photos(model, processor, [row[image_column] for row in batch], on_error, start)
            classes = class_names(features.get(text_column))
            rows = [{**batch[place], text_column: named_classes(batch[place][text_column], classes)} for place in kept]
            store._add_photos(rows, keys, text_column, columns)
            start += len(batch)
        return store

    @classmethod
    def find_columns(
        cls: Any, names: list[str], features: Mapping[str, Any], image_column: str, text_column: str
    ) -> tuple[str, str]:
        """The columns that were named, or where those are the defaults and are not there, what stands for them."""
        if image_column not in names and image_column == "image":
            image_column = find_photo_column(names, None, features) or image_column
        if text_column not in names and text_column == cls.usual_text_columns[0]:
            text_column = find_column(names, None, cls.usual_text_columns, "") or text_column
        return image_column, text_column

    def _add_photos(
        self: Any, rows: Sequence[Mapping[str, Any]], keys: np.ndarray, text_column: str, columns: Mapping[str, str]
    ) -> None:
        """Adds a row for each text of encoded photos."""
        texts = [as_texts(row[text_column]) for row in rows]
        places = [place for place, of_photo in enumerate(texts) for _ in of_photo]
        if places:
            further = {name: [rows[place].get(column) for place in places] for name, column in columns.items()}
            self.add([text for of_photo in texts for text in of_photo], keys[places], **further)

    def _add_images(
        self: Any,
        model: Any,
        processor: Any,
        images: Sequence[Any],
        texts: Sequence[str] | str,
        batch_size: int,
        on_error: str,
        columns: Mapping[str, Any],
    ) -> Any:
        """Encodes photos and adds a row for each, all of them or, where one fails, none."""
        model.check_memory(self)
        check_preprocessing(self, processor)
        word = self.text_word
        texts = [texts] * len(images) if isinstance(texts, str) else list(texts)
        if len(texts) != len(images):
            raise ValueError(
                f"Got {len(images)} photos and {len(texts)} {word}s; give one {word} a photo, or one for all."
            )
        texts = [self._check_text(text, f"that of photo {place}") for place, text in enumerate(texts)]
        keys: list[np.ndarray] = []
        kept: list[int] = []
        for start in range(0, len(images), batch_size):
            photos = list(images[start : start + batch_size])
            made, places = encode_photos(model, processor, photos, on_error, start)
            keys.append(made)
            kept.extend(start + place for place in places)
        if not kept:
            return self
        further = {
            column: [values[place] for place in kept]
            if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == len(images)
            else values
            for column, values in columns.items()
        }
        return self.add([texts[place] for place in kept], np.concatenate(keys), **further)


def hash_preprocessing(processor: Any) -> str | None:
    """
    Hash of what decides which pixels an encoder sees: sizes, crops, means, whichever class applies them.

    Args:
        processor: A processor with an `image_processor`, or an image processor.

    Returns:
        `str`, or `None` where the processor does not say.
    """
    image_processor = getattr(processor, "image_processor", processor)
    if not hasattr(image_processor, "to_dict"):
        return None
    settings = image_processor.to_dict()
    steps = []
    for switch, names in _PREPROCESSING:
        if settings.get(switch):
            steps.append([switch, *(_plain(settings.get(name)) for name in names)])
    return hashlib.sha256(json.dumps(steps).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A setting as JSON, the same for equal settings: no order, no empty entries, rounded numbers."""
    if isinstance(value, Mapping):
        return sorted([name, _plain(entry)] for name, entry in value.items() if entry is not None)
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, (int, float)) else value


def check_preprocessing(store: Any, processor: Any) -> None:
    """
    Compares a processor with the one that prepared a store's photos.

    Raises:
        ValueError: Photos would be prepared otherwise, so that their vectors could not be compared.
    """
    theirs = store.preprocessing_hash
    ours = None if theirs is None else hash_preprocessing(processor)
    if None not in (theirs, ours) and theirs != ours:
        raise ValueError(
            f"The photos of the {store.store_word} were prepared by another image processor (other sizes, crops or "
            "means) than this one. Use the processor that belongs to the model that built it, or build it anew."
        )


def as_texts(value: Any) -> list[Any]:
    """One text or several of a photo as a list."""
    return list(value) if isinstance(value, (list, tuple, np.ndarray)) else [value]


def batched(rows: Iterable[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    """Goes through rows, `size` at a time."""
    batch: list[Mapping[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def encode_photos(
    model: Any, processor: Any, photos: list[Any], on_error: str, start: int = 0
) -> tuple[np.ndarray, list[int]]:
    """
    Encodes one batch of photos.

    Args:
        on_error (`str`): `"raise"` or `"skip"`.
        start (`int`): Number of the first photo, for messages.

    Returns:
        Keys of the photos that could be read, of shape `(kept, dim)`, and their places in the batch.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"`on_error` must be 'raise' or 'skip'; got {on_error!r}.")
    loaded, places = [], []
    for place, photo in enumerate(photos):
        try:
            loaded.append(load_photo(photo))
            places.append(place)
        except (OSError, ValueError, TypeError) as error:
            if on_error == "raise":
                raise ValueError(f"Photo {start + place} cannot be used: {error}") from error
            logger.warning(f"Skipped photo {start + place}: {error}")
    if not loaded:
        return np.zeros((0, model.memory_key_size), np.float32), places
    return model.encode_memory_keys(processor, loaded).numpy(), places


__all__ = ["PhotoRows", "batched", "check_preprocessing", "encode_photos", "hash_preprocessing"]
