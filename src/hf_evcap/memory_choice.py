"""Which memories a call wants: a model's layers by name, memories, folders and Hub ids, each with its weight."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .memory_evcap import MemoryLayers, VisualNameMemory, check_weight


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


__all__ = ["choose_memories"]
