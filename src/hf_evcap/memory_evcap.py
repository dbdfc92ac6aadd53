"""The external visual-name memory: rows of a key and an object's name, kept as a Hub dataset with a FAISS index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from transformers.utils import logging
from typing_extensions import Self

from .memory_card import memory_card
from .processing_evcap import load_photo
from .retrieval_store import RetrievalStore
from .store_files import MANIFEST_NAME, holds_layers


logger = logging.get_logger(__name__)


class VisualNameMemory(RetrievalStore):
    r"""
    Rows of `(key, name)`: what the encoder saw of an object, and what people call it (EVCap, section 3.2).

    Every further column (`source`, `synthetic`, a thumbnail, the name in another language) travels along. On disk and
    on the Hub a memory is an ordinary dataset; see [`~VisualNameMemory.save_pretrained`].

    Args:
        table (`pyarrow.Table`): Columns `name` (string) and `key` (fixed-size list of floats), and any others.
        encoder_fingerprint (`str`, *optional*):
            What [`EVCapForConditionalGeneration.encoder_fingerprint`] gives for the model that made the keys. A model
            refuses a memory of another encoder. `None` means unknown and is accepted.
        query_tokens_hash (`str`, *optional*): Hash of the image queries when the keys were made; shown, not enforced.
        retrieval (`dict`, *optional*): Retrieval settings that suit this memory; `min_similarity` is heeded.
        licenses (`dict[str, str]`, *optional*): Licence of each source, for its card.
        index_factory (`str`, *optional*): FAISS index factory string. `Flat` is exact. `None` chooses by size.
        dtype (`str`, *optional*, defaults to `"float32"`): Precision of the kept keys, or `"float16"`.

    Example:
    ```python
    >>> memory = VisualNameMemory.from_rows(["cat", "dog"], keys)
    >>> memory.add(["axolotl"], new_keys)
    >>> memory.save_pretrained("my-memory")
    ```
    """

    text_column: ClassVar[str] = "name"
    text_word: ClassVar[str] = "name"
    store_word: ClassVar[str] = "memory"
    format_name: ClassVar[str] = "visual-name-memory"
    max_text_characters: ClassVar[int] = 1000
    identity_columns: ClassVar[tuple[str, ...]] = ("kind",)

    @property
    def names(self) -> list[str]:
        """`list[str]`: The name of each row."""
        return self.texts

    @classmethod
    def _read_files(cls, folder: Path, memory_map: bool) -> Any:
        """Loads a memory, or the several of a folder that holds layers."""
        if holds_layers(folder):
            from .memory_layers import MemoryLayers

            return MemoryLayers.read(folder, memory_map)
        return super()._read_files(folder, memory_map)

    # Photos

    @classmethod
    def from_images(
        cls,
        model: Any,
        processor: Any,
        dataset: Iterable[Mapping[str, Any]],
        *,
        image_column: str = "image",
        name_column: str = "name",
        batch_size: int = 32,
        columns: Sequence[str] = (),
        on_error: str = "raise",
        **settings: Any,
    ) -> Self:
        """
        Encodes photos of named objects into a memory for `model`.

        Args:
            model ([`EVCapForConditionalGeneration`]): Its encoder makes the keys.
            processor ([`EVCapProcessor`]): Its image processor prepares the photos.
            dataset (`Iterable[dict]`): Rows with a photo and a name; a `datasets.Dataset`, a list, a generator.
            image_column (`str`, *optional*, defaults to `"image"`): Column of the photos (PIL image, path or URL).
            name_column (`str`, *optional*, defaults to `"name"`): Column of the names.
            batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
            columns (`Sequence[str]`, *optional*): Further columns of the dataset that the memory keeps.
            on_error (`str`, *optional*, defaults to `"raise"`):
                `"skip"` leaves out photos that cannot be read and says which; `"raise"` stops at the first.
            settings: `dtype`, `index_factory`, `licenses`, `retrieval`; see the class.
        """
        memory = cls.empty(
            model.memory_key_size,
            encoder_fingerprint=model.encoder_fingerprint,
            query_tokens_hash=model.query_tokens_hash,
            **settings,
        )
        start = 0
        for batch in batched(dataset, batch_size):
            for column in (image_column, name_column, *columns):
                if column not in batch[0]:
                    raise ValueError(f"The dataset has no column {column!r}; it has {', '.join(batch[0])}.")
            photos = [row[image_column] for row in batch]
            keys, kept = encode_photos(model, processor, photos, on_error, start)
            rows = [batch[place] for place in kept]
            further = {column: [row[column] for row in rows] for column in columns}
            if rows:
                memory.add([row[name_column] for row in rows], keys, **further)
            start += len(batch)
        return memory

    def add_images(
        self,
        model: Any,
        processor: Any,
        images: Sequence[Any],
        names: Sequence[str] | str,
        *,
        batch_size: int = 32,
        on_error: str = "raise",
        **columns: Any,
    ) -> Self:
        """
        Encodes photos with `model` and adds them, all of them or, where one fails, none.

        Args:
            images (`Sequence`): Photos: paths, URLs, PIL images.
            names (`Sequence[str]` or `str`): One name a photo, or one for all.
            batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
            on_error (`str`, *optional*, defaults to `"raise"`): As in [`from_images`].
            columns: Values of further columns, a value a photo or one for all.
        """
        model.check_memory(self)
        names = [names] * len(images) if isinstance(names, str) else list(names)
        if len(names) != len(images):
            raise ValueError(
                f"Got {len(images)} photos and {len(names)} names; give one name a photo, or one for all."
            )
        names = [self._check_text(name, f"that of photo {place}") for place, name in enumerate(names)]
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
        return self.add([names[place] for place in kept], np.concatenate(keys), **further)

    # Names in other languages

    def names_in(self, column: str) -> pa.Array:
        """
        Names as another column words them, for example `name_ko`; rows that lack it keep their `name`.

        Raises:
            ValueError: There is no such column, or it does not hold names.
        """
        names = self.columns["name"].combine_chunks()
        if column == "name":
            return names
        if column not in self.columns.column_names:
            others = [name for name in self.columns.column_names if name.startswith("name")]
            raise ValueError(f"The memory has no column {column!r} to name things by; it has {', '.join(others)}.")
        wordings = self.columns[column].combine_chunks()
        if not pa.types.is_string(wordings.type):
            raise ValueError(f"The column {column!r} holds {wordings.type}, not names.")
        worded = [None if not text or not text.strip() else text for text in wordings.to_pylist()]
        return pa.array(
            [other if other is not None else name for other, name in zip(worded, names.to_pylist(), strict=True)],
            pa.string(),
        )

    def card(self, manifest: Mapping[str, Any], repo_id: str | None = None) -> str:
        """The memory card, with the metadata that the Hub reads."""
        return memory_card(self, manifest, repo_id)


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


__all__ = ["MANIFEST_NAME", "VisualNameMemory"]
