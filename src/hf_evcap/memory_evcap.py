"""The external visual-name memory: rows of a key and an object's name, kept as a Hub dataset with a FAISS index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from typing_extensions import Self

from .retrieval_store import RetrievalStore
from .store_card import MEMORY_WORDS, store_card
from .store_files import MANIFEST_NAME, holds_layers
from .store_photos import PhotoRows


class VisualNameMemory(PhotoRows, RetrievalStore):
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
            name_column (`str`, *optional*, defaults to `"name"`): Column of the names; a list gives several rows.
            batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
            columns (`Sequence[str]`, *optional*): Further columns of the dataset that the memory keeps.
            on_error (`str`, *optional*, defaults to `"raise"`):
                `"skip"` leaves out photos that cannot be read and says which; `"raise"` stops at the first.
            settings: `dtype`, `index_factory`, `licenses`, `retrieval`; see the class.
        """
        return cls._from_photos(
            model,
            processor,
            dataset,
            image_column,
            name_column,
            batch_size,
            {column: column for column in columns},
            on_error,
            settings,
        )

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
        return self._add_images(model, processor, images, names, batch_size, on_error, columns)

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
        return store_card(self, manifest, MEMORY_WORDS, repo_id)


__all__ = ["MANIFEST_NAME", "VisualNameMemory"]
