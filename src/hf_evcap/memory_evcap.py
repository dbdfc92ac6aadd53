"""
The external visual-name memory: rows of a key and an object's name, kept as a Hub dataset with a FAISS index; and
layers, several of them in one model: a base, a domain's, a person's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from typing_extensions import Self

from .hub_card import make_card, table_cell
from .retrieval_store import RetrievalStore
from .row_columns import NAME_COLUMNS
from .store_card import MEMORY_WORDS, store_card
from .store_folder import free_name, write_folder
from .store_manifest import (
    CARD_NAME,
    LAYER_NAME,
    LAYERS_FOLDER,
    LAYERS_FORMAT,
    MANIFEST_NAME,
    changed_by_others,
    holds_layers,
    layer_places,
    manifest_text,
    read_manifest,
    read_settled,
    state_of,
)
from .store_photos import PhotoRows
from .store_snapshot import SavedState


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
    >>> memory.add(["quokka"], new_keys)
    >>> memory.save_pretrained("my-memory")
    ```
    """

    text_column: ClassVar[str] = "name"
    usual_text_columns: ClassVar[tuple[str, ...]] = NAME_COLUMNS
    text_word: ClassVar[str] = "name"
    store_word: ClassVar[str] = "memory"
    format_name: ClassVar[str] = "visual-name-memory"
    max_text_characters: ClassVar[int] = 1000
    identity_columns: ClassVar[tuple[str, ...]] = ("kind",)
    column_defaults: ClassVar[dict[str, Any]] = {"kind": "object"}

    @property
    def names(self) -> list[str]:
        """`list[str]`: The name of each row."""
        return self.texts

    @classmethod
    def _read_files(cls, folder: Path, memory_map: bool) -> Any:
        """Loads a memory, or the several of a folder that holds layers."""
        if holds_layers(folder):
            return read_settled(folder, lambda: MemoryLayers.read(folder, memory_map))
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
                Where there is no `image`, the only column of photos is taken.
            name_column (`str`, *optional*, defaults to `"name"`): Column of the names; a list gives several rows.
                Where there is no `name`, it is `label` and the like; numbers of a `ClassLabel` become its names.
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
        return names_in(self.columns, column)

    def card(self, manifest: Mapping[str, Any], repo_id: str | None = None) -> str:
        """The memory card, with the metadata that the Hub reads."""
        return store_card(self, manifest, MEMORY_WORDS, repo_id)


def names_in(columns: pa.Table, column: str) -> pa.Array:
    """Names of a memory's rows as a column words them; see [`VisualNameMemory.names_in`]."""
    names = columns["name"].combine_chunks()
    if column == "name":
        return names
    if column not in columns.column_names:
        others = [name for name in columns.column_names if name.startswith("name")]
        raise ValueError(f"The memory has no column {column!r} to name things by; it has {', '.join(others)}.")
    wordings = columns[column].combine_chunks()
    if not pa.types.is_string(wordings.type):
        raise ValueError(f"The column {column!r} holds {wordings.type}, not names.")
    worded = [None if not text or not text.strip() else text for text in wordings.to_pylist()]
    return pa.array(
        [other if other is not None else name for other, name in zip(worded, names.to_pylist(), strict=True)],
        pa.string(),
    )


class MemoryLayers:
    """
    Named memories of the same encoder that are searched together.

    Args:
        memories (`Mapping[str, VisualNameMemory or str]`): The memories by name; folders and Hub ids are loaded.
        weights (`Mapping[str, float]`, *optional*):
            What a memory's similarities are multiplied by before names compete; 1 where nothing is said. A memory
            whose names shall come first gets more than 1.

    Example:
    ```python
    >>> model.set_memory(MemoryLayers({"lvis": lvis, "my-kitchen": kitchen}, weights={"my-kitchen": 1.2}))
    >>> pipe("photo.jpg", memory=["my-kitchen"])
    ```
    """

    hub_reference = None  # a model's repo carries layers; it does not refer to them

    def __init__(
        self,
        memories: Mapping[str, VisualNameMemory | str | os.PathLike],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not memories:
            raise ValueError("Layers need at least one memory.")
        for name in memories:
            if not LAYER_NAME.fullmatch(name):
                raise ValueError(f"A layer's name may hold letters, digits and . _ -; got {name!r}.")
        unknown = sorted(set(weights or {}) - set(memories))
        if unknown:
            raise ValueError(f"There are weights for {unknown}, the layers are {list(memories)}.")
        self.memories = {
            name: memory if isinstance(memory, VisualNameMemory) else VisualNameMemory.from_pretrained(memory)
            for name, memory in memories.items()
        }
        self.weights = {name: check_weight(name, (weights or {}).get(name, 1.0)) for name in memories}
        self._saved: SavedState | None = None

    def __getitem__(self, name: str) -> VisualNameMemory:
        if name not in self.memories:
            raise KeyError(f"There is no layer {name!r}; the layers are {', '.join(self.memories)}.")
        return self.memories[name]

    def __contains__(self, name: object) -> bool:
        return name in self.memories

    def __iter__(self) -> Iterator[str]:
        return iter(self.memories)

    def __len__(self) -> int:
        """Rows of all layers."""
        return sum(len(memory) for memory in self.memories.values())

    def __repr__(self) -> str:
        layers = ", ".join(
            f"{name}: {len(memory)} rows x {self.weights[name]:g}" for name, memory in self.memories.items()
        )
        return f"MemoryLayers({layers})"

    def save_pretrained(
        self, save_directory: str | os.PathLike, write_index: bool = True, overwrite: bool = False
    ) -> None:
        """
        Writes each memory into `layers/NAME`, and a manifest that lists them: all of them or none; see
        [`VisualNameMemory.save_pretrained`].
        """
        saved: dict[str, VisualNameMemory] = {}
        places: dict[str, str] = {}

        def check(folder: Path) -> None:
            saved.update({name: memory.copy() for name, memory in self.memories.items()})
            if overwrite:
                return
            if self._saved is not None and self._saved.folder == str(folder) and folder.is_dir():
                if state_of(folder) not in (None, self._saved.state):
                    raise ValueError(changed_by_others("layers", folder))
            for memory in saved.values():
                known = memory.snapshot.saved
                if known is not None and Path(known.folder).parent == folder / LAYERS_FOLDER:
                    memory.check_unchanged(Path(known.folder))

        def write_files(folder: Path, present: Path) -> None:
            for name, memory in saved.items():
                places[name] = free_name(present, f"{LAYERS_FOLDER}/{name}")
                (folder / places[name]).mkdir(parents=True)
                memory.write_files(folder / places[name], present / places[name], write_index)
            layers = [
                {"name": name, "weight": self.weights[name], "folder": place.removeprefix(f"{LAYERS_FOLDER}/")}
                for name, place in places.items()
            ]
            manifest = {"format": LAYERS_FORMAT, "format_version": 1, "layers": layers}
            (folder / MANIFEST_NAME).write_text(manifest_text(manifest), encoding="utf-8")
            metadata = {"pretty_name": "Visual-name memories", "tags": ["evcap", "visual-name-memory"]}
            listed = "\n".join(f"- `{table_cell(name)}`: {len(memory):,} rows" for name, memory in saved.items())
            (folder / CARD_NAME).write_text(
                make_card(metadata, f"# Visual-name memories\n\n{listed}"), encoding="utf-8"
            )

        def note(folder: Path, state: str) -> None:
            self._saved = SavedState(str(folder), state)
            for name, place in places.items():
                self.memories[name].note_saved(SavedState(str(folder / place), str(state_of(folder / place))))

        write_folder(save_directory, write_files, check, note)

    @classmethod
    def read(cls, folder: Path, memory_map: bool = False) -> MemoryLayers:
        """Loads what [`save_pretrained`] wrote; [`VisualNameMemory.from_pretrained`] comes here by itself."""
        state = state_of(folder)
        manifest = read_manifest(folder, LAYERS_FORMAT)
        places = layer_places(manifest)
        try:
            weights = {layer["name"]: layer["weight"] for layer in manifest["layers"]}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / MANIFEST_NAME} does not list layers with name and weight ({error!r})."
            ) from error
        if len(places) != len(weights):
            raise ValueError(f"{folder / MANIFEST_NAME} has a layer name that cannot be one: {list(weights)}.")
        memories = {name: VisualNameMemory._read_files(folder / place, memory_map) for name, place in places}
        made = cls(memories, weights)
        made._saved = None if state is None else SavedState(os.path.realpath(folder), state)
        return made


def check_weight(name: str, weight: Any) -> float:
    """Returns a layer's weight as a number above 0."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ValueError(f"The weight of {name!r} must be a number above 0, got {weight!r}.")
    return float(weight)


__all__ = ["MANIFEST_NAME", "MemoryLayers", "VisualNameMemory", "check_weight"]
