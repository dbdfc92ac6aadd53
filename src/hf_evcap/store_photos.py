"""Rows whose keys are what a model's encoder makes of photos; part of the retrieval stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .photo_loading import load_photo


logger = logging.get_logger(__name__)


class PhotoRows:
    """Making and adding rows from photos; a part of the [`RetrievalStore`] classes."""

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
            **settings,
        )
        start = 0
        for batch in batched(dataset, batch_size):
            for column in (image_column, text_column, *columns.values()):
                if column not in batch[0]:
                    raise ValueError(f"The dataset has no column {column!r}; it has {', '.join(batch[0])}.")
            keys, kept = encode_photos(model, processor, [row[image_column] for row in batch], on_error, start)
            store._add_photos([batch[place] for place in kept], keys, text_column, columns)
            start += len(batch)
        return store

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


__all__ = ["PhotoRows", "as_texts", "batched", "encode_photos"]
