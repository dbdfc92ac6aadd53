"""Several memories in one model: a base, a domain's, a person's own, weighted and chosen for each call."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .memory_evcap import VisualNameMemory
from .store_files import CARD_NAME, LAYERS_FOLDER, LAYERS_FORMAT, MANIFEST_NAME, read_manifest, write_folder


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
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"A layer's name may hold letters, digits and . _ -; got {name!r}.")
        unknown = sorted(set(weights or {}) - set(memories))
        if unknown:
            raise ValueError(f"There are weights for {unknown}, the layers are {list(memories)}.")
        self.memories = {
            name: memory if isinstance(memory, VisualNameMemory) else VisualNameMemory.from_pretrained(memory)
            for name, memory in memories.items()
        }
        self.weights = {name: check_weight(name, (weights or {}).get(name, 1.0)) for name in memories}

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

    def save_pretrained(self, save_directory: str | os.PathLike, write_index: bool = True) -> None:
        """Writes each memory into `layers/NAME`, and a manifest that lists them."""

        def write_files(folder: Path) -> None:
            for name, memory in self.memories.items():
                memory.save_pretrained(folder / LAYERS_FOLDER / name, write_index)
            layers = [{"name": name, "weight": self.weights[name]} for name in self.memories]
            manifest = {"format": LAYERS_FORMAT, "format_version": 1, "layers": layers}
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
            listed = "\n".join(f"- `{name}`: {len(memory):,} rows" for name, memory in self.memories.items())
            (folder / CARD_NAME).write_text(f"# Visual-name memories\n\n{listed}\n", encoding="utf-8")

        write_folder(save_directory, write_files)

    @classmethod
    def read(cls, folder: Path, memory_map: bool = False) -> MemoryLayers:
        """Loads what [`save_pretrained`] wrote; [`VisualNameMemory.from_pretrained`] comes here by itself."""
        manifest = read_manifest(folder, LAYERS_FORMAT)
        try:
            weights = {layer["name"]: layer["weight"] for layer in manifest["layers"]}
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder / MANIFEST_NAME} does not list layers with name and weight ({error!r})."
            ) from error
        if not all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) for name in weights):
            raise ValueError(f"{folder / MANIFEST_NAME} has a layer name that cannot be one: {sorted(weights)}.")
        places = {name: folder / LAYERS_FOLDER / name for name in weights}
        return cls({name: VisualNameMemory._read_files(place, memory_map) for name, place in places.items()}, weights)


def check_weight(name: str, weight: Any) -> float:
    """Returns a layer's weight as a number above 0."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ValueError(f"The weight of {name!r} must be a number above 0, got {weight!r}.")
    return float(weight)


def choose_memories(
    attached: VisualNameMemory | MemoryLayers | None, wanted: Any, loaded: dict[str, VisualNameMemory]
) -> list[tuple[str, VisualNameMemory, float]]:
    """
    Finds out which memories a call wants.

    Args:
        attached ([`VisualNameMemory`] or [`MemoryLayers`]): What the model holds.
        wanted: `None` for what is attached; otherwise the name of a layer, a memory, a folder or Hub id, a list of
            these, or a dictionary of them to weights.
        loaded (`dict[str, VisualNameMemory]`): Folders and Hub ids that earlier calls loaded; added to.

    Returns:
        `list[tuple[str, VisualNameMemory, float]]`: Name, memory and weight of each.
    """
    if wanted is None:
        if isinstance(attached, MemoryLayers):
            return [(name, memory, attached.weights[name]) for name, memory in attached.memories.items()]
        return [] if attached is None else [("memory", attached, 1.0)]
    if isinstance(wanted, MemoryLayers):
        return choose_memories(wanted, None, loaded)
    if isinstance(wanted, (str, os.PathLike, VisualNameMemory)):
        wanted = [wanted]
    weights = dict(wanted) if isinstance(wanted, Mapping) else {}
    chosen = []
    for place, one in enumerate(wanted):
        if isinstance(one, VisualNameMemory):
            name, memory, weight = f"memory {place}", one, 1.0
        elif isinstance(attached, MemoryLayers) and one in attached:
            name, memory, weight = one, attached[one], attached.weights[one]
        elif isinstance(one, (str, os.PathLike)):
            name, weight = os.fspath(one), 1.0
            if name not in loaded:
                loaded[name] = _load(name, attached)
            memory = loaded[name]
        else:
            raise TypeError(
                f"`memory` takes names of layers, memories, folders and Hub ids; got {type(one).__name__}."
            )
        chosen.append((name, memory, check_weight(name, weights.get(one, weight))))
    return chosen


def _load(source: str, attached: VisualNameMemory | MemoryLayers | None) -> VisualNameMemory:
    try:
        memory = VisualNameMemory.from_pretrained(source)
    except FileNotFoundError as error:
        layers = (
            f"the layers are {', '.join(attached)}" if isinstance(attached, MemoryLayers) else "there are no layers"
        )
        raise ValueError(f"{source!r} is neither a layer of the model ({layers}) nor a memory: {error}") from error
    if isinstance(memory, MemoryLayers):
        raise ValueError(f"{source!r} holds layers; attach them with `model.set_memory` and choose among them.")
    return memory


__all__ = ["MemoryLayers", "choose_memories"]
