"""Which rows of a memory come from a photo, which must not find itself in training nor be half known in evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .photo_loading import hash_photo, load_photo
from .store_keys import dictionary_codes


# Columns of a memory that name the photo a row comes from, as the training data names it ...
ID_COLUMNS = ("image_id", "photo")
# ... or that identify it by its pixels.
HASH_COLUMN = "photo_hash"


def _key(text: Any) -> int:
    """A number for an id or a hash; 0 for none."""
    if text is None or text == "":
        return 0
    return int.from_bytes(hashlib.sha256(str(text).encode()).digest()[:8], "little") >> 1 or 1


def photo_keys(examples: Sequence[dict[str, Any]], photos: Sequence[Any] | None = None) -> torch.Tensor:
    """
    Says in numbers, which any sampler and process group can pass on, what photos a batch shows.

    Args:
        examples (`Sequence[dict]`): With `image_id` and, for cached features, `photo_hash`; either may be missing.
        photos (`Sequence`, *optional*): The photos, where there are any.

    Returns:
        `torch.LongTensor` of shape `(batch_size, 2)`: A key of the id and one of the pixels, 0 for none.
    """
    hashes = [example.get("photo_hash") for example in examples]
    if photos is not None:
        hashes = [known or hash_photo(load_photo(photo)) for known, photo in zip(hashes, photos, strict=True)]
    ids = [example.get("image_id") for example in examples]
    return torch.tensor([[_key(image_id), _key(found)] for image_id, found in zip(ids, hashes, strict=True)])


class OwnRows:
    """
    Finds the rows of a memory that come from a photo, by its id or its pixels; follows edits of the memory.

    Args:
        memory ([`RetrievalStore`]): With a column `image_id`, `photo` or `photo_hash`.
    """

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self._seen: Any = None  # the snapshot that is taken up
        self._keys: list[np.ndarray] = []
        self._sorted: list[tuple[np.ndarray, np.ndarray]] = []

    @property
    def known(self) -> bool:
        """`bool`: Whether the memory says which photos its rows come from."""
        return bool({*ID_COLUMNS, HASH_COLUMN} & set(self.memory.columns.column_names))

    def _follow(self) -> None:
        """Takes up new rows; after any other edit, all rows."""
        now, seen = self.memory.snapshot, self._seen
        if now is seen:
            return
        start = len(seen) if seen is not None and now.extends(seen) else 0
        new = [_column_keys(now.columns.slice(start), name) for name in (*ID_COLUMNS, HASH_COLUMN)]
        self._keys = [np.concatenate(pair) for pair in zip(self._keys, new, strict=True)] if start else new
        orders = [np.argsort(keys, kind="stable") for keys in self._keys]
        self._sorted = [(keys[order], order) for keys, order in zip(self._keys, orders, strict=True)]
        self._seen = now

    def __call__(self, keys: np.ndarray) -> list[np.ndarray]:
        """
        Args:
            keys (`np.ndarray` of shape `(batch_size, 2)`): From [`photo_keys`].

        Returns:
            `list[np.ndarray]`: Rows of each photo, ascending.
        """
        self._follow()
        found: list[list[np.ndarray]] = [[] for _ in keys]
        for (ordered, order), which in zip(self._sorted, (0, 0, 1), strict=True):
            starts = np.searchsorted(ordered, keys[:, which], side="left")
            ends = np.searchsorted(ordered, keys[:, which], side="right")
            for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
                if keys[place, which]:
                    found[place].append(order[start:end])
        return [np.unique(np.concatenate([np.zeros(0, np.int64), *rows])) for rows in found]


def _column_keys(columns: Any, name: str) -> np.ndarray:
    """A key of each row's value in a column, 0 for none."""
    if name not in columns.column_names:
        return np.zeros(len(columns), dtype=np.int64)
    encoded = columns[name].combine_chunks().dictionary_encode()
    keys = np.array([_key(value) for value in encoded.dictionary.to_pylist()] + [0], dtype=np.int64)
    return keys[dictionary_codes(encoded)]  # -1, for a missing value, is the last


__all__ = ["HASH_COLUMN", "ID_COLUMNS", "OwnRows", "photo_keys"]
