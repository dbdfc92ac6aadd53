"""Retrieval from several memories at once, whose names compete with weighted similarities."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from typing_extensions import Self

from .memory_choice import choose_memories
from .memory_evcap import MemoryLayers, VisualNameMemory
from .name_tokens_evcap import EVCapRetrievedNames, NameTokens
from .retrieval_evcap import NameRetriever
from .scene_regression_evcap import SceneRegression
from .searchable_names_evcap import SearchableNames


KEPT_RETRIEVERS = 16


class LayeredNames(SearchableNames):
    """
    Several memories ready for retrieval that answer as one. Rows are numbered through, layer after layer.

    Args:
        layers (`Sequence[tuple[str, SearchableNames, float]]`): Name, memory and weight of each layer.
        name_tokenizer, max_name_length: As in [`SearchableNames`].
    """

    def __init__(
        self, layers: Sequence[tuple[str, SearchableNames, float]], name_tokenizer: Any, max_name_length: int
    ) -> None:
        self.layers = list(layers)
        self.device = torch.device("cpu")
        self.rows = sum(names.rows for _, names, _ in layers)
        self.starts = torch.tensor([0, *(names.rows for _, names, _ in layers)]).cumsum(0)
        self.keys = self.key_scale = None  # each layer is searched by itself
        self._pool_keys, self.pools = {}, {}
        name_ids: dict[str, int] = {}
        ids = [
            torch.tensor([name_ids.setdefault(name, len(name_ids)) for name in names.names], dtype=torch.long)
            for _, names, _ in layers
        ]
        self.names = list(name_ids)
        self.tokens = NameTokens(self.names, name_tokenizer, max_name_length)
        self.scene_counts = torch.zeros(len(self.names), dtype=torch.long)
        self.num_photos = 0
        row_names, row_photos, scene_places, photo_weights = [], [], [], []
        for of_layer, (_, names, weight), start in zip(ids, layers, self.starts.tolist(), strict=False):
            row_names.append(of_layer[names.row_names])
            row_photos.append(names.row_photos + start)
            scene_places.append(torch.where(names.scene_places < 0, -1, names.scene_places + self.num_photos))
            photo_weights.append(torch.full((names.num_photos,), weight))
            self.scene_counts.index_add_(0, of_layer, names.scene_counts)
            self.num_photos += names.num_photos
        self.row_names, self.row_photos = torch.cat(row_names), torch.cat(row_photos)
        self.scene_places, self.photo_weights = torch.cat(scene_places), torch.cat(photo_weights)
        self._begin_fits()

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        moved = super().to(device)
        moved.layers = [(label, names.to(device), weight) for label, names, weight in self.layers]
        return moved

    def nearest(
        self,
        queries: torch.Tensor,
        k: int,
        exclude_rows: torch.LongTensor | None = None,
        kind: str | None = None,
        any_query: bool = False,
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        """The nearest rows of all layers by weighted similarity; see [`SearchableRows.nearest`]."""
        all_scores, all_rows = [], []
        for (_, names, weight), start in zip(self.layers, self.starts.tolist(), strict=False):
            excluded = None
            if exclude_rows is not None:
                inside = (exclude_rows >= start) & (exclude_rows < start + names.rows)
                excluded = torch.where(inside, exclude_rows - start, -1)
            scores, rows = names.nearest(queries, k, excluded, kind, any_query)
            all_scores.append(scores * weight)
            all_rows.append(rows + start)
        scores, order = torch.cat(all_scores, dim=-1).sort(dim=-1, descending=True, stable=True)
        return scores[..., :k], torch.cat(all_rows, dim=-1).gather(-1, order)[..., :k]

    def rows_of_kind(self, kind: str) -> torch.LongTensor:
        """Rows of all layers with this value in the column `kind`, in order."""
        starts = self.starts.tolist()
        return torch.cat([names.rows_of_kind(kind) + starts[place] for place, (_, names, _) in enumerate(self.layers)])

    def unit_keys(self, rows: torch.LongTensor) -> torch.Tensor:
        """Keys of some rows, ascending, at length 1, `(rows, dim)`."""
        bounds = torch.searchsorted(rows, self.starts.to(rows.device)).tolist()
        return torch.cat(
            [
                names.unit_keys(rows[begin:end] - start)
                for (_, names, _), start, begin, end in zip(
                    self.layers, self.starts.tolist(), bounds, bounds[1:], strict=False
                )
            ]
        )

    def _fit_scenes(self, penalty: float, photo_weights: torch.Tensor | None = None) -> SceneRegression:
        """A layer's photos count as often in the regression as its weight says."""
        return super()._fit_scenes(penalty, self.photo_weights)

    def retrieved(
        self, name_ids: torch.LongTensor, scores: torch.Tensor, row_ids: torch.LongTensor
    ) -> EVCapRetrievedNames:
        retrieved = super().retrieved(name_ids, scores, row_ids)
        places = torch.searchsorted(self.starts.to(row_ids.device), row_ids.clamp(min=0), right=True) - 1
        labels = [label for label, _, _ in self.layers]
        retrieved.memories = [
            [labels[place] for place, name in zip(of_photo, names, strict=True) if name >= 0]
            for of_photo, names in zip(places.tolist(), name_ids.tolist(), strict=True)
        ]
        return retrieved


class LayeredRetriever(NameRetriever):
    """
    Several memories that are searched as one and followed like one, each taken once a call.

    Args:
        layers (`Sequence[tuple[str, NameRetriever, float]]`): Name, retriever and weight of each memory.
        name_tokenizer, max_name_length: As in [`NameRetriever`].
    """

    def __init__(
        self, layers: Sequence[tuple[str, NameRetriever, float]], name_tokenizer: Any, max_name_length: int
    ) -> None:
        self.layers = list(layers)
        self.name_tokenizer = name_tokenizer
        self.max_name_length = max_name_length
        self._begin()

    def ready(self, device: torch.device | None = None) -> LayeredNames:
        """The layers' present rows, ready for retrieval; see [`RowRetriever.ready`]."""
        with self._lock:
            layers = [(label, retriever.ready(), weight) for label, retriever, weight in self.layers]
            made: LayeredNames | None = self._ready
            if made is None or any(
                new is not old for (_, new, _), (_, old, _) in zip(layers, made.layers, strict=True)
            ):
                self._ready = LayeredNames(layers, self.name_tokenizer, self.max_name_length)
                self._elsewhere = {}
            return self._on(device)


class Retrievers:
    """
    Retrievers of the memories that calls have asked for, made when first needed and following edits.

    Args:
        name_tokenizer, max_name_length: As in [`NameRetriever`].
    """

    def __init__(self, name_tokenizer: Any, max_name_length: int) -> None:
        self.name_tokenizer = name_tokenizer
        self.max_name_length = max_name_length
        self.loaded: dict[str, VisualNameMemory] = {}  # folders and Hub ids that calls named
        self._made: dict[Hashable, NameRetriever] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"name_tokenizer": self.name_tokenizer, "max_name_length": self.max_name_length}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def of(
        self,
        attached: VisualNameMemory | MemoryLayers | None,
        wanted: Any,
        name_column: str | None,
        check: Callable[[VisualNameMemory], None],
    ) -> NameRetriever | None:
        """
        The retriever of one call.

        Args:
            attached, wanted: As in [`~memory_choice.choose_memories`].
            name_column (`str`, *optional*): Column that words the names; each memory's own choice when absent.
            check (`Callable`): Called with each memory that is not attached; raises if it does not fit the model.

        Returns:
            [`NameRetriever`], or `None` if there is no memory.
        """
        chosen = choose_memories(attached, wanted, self.loaded)
        known = [attached] if not isinstance(attached, MemoryLayers) else list(attached.memories.values())
        for _, memory, _ in chosen:
            if not any(memory is one for one in known):
                check(memory)
        worded = [name_column is None or name_column in memory.columns.column_names for _, memory, _ in chosen]
        layers = [
            # Of several memories, those that lack the column keep their names; if none has it, that is an error.
            (label, self._single(memory, name_column if has_it or not any(worded) else "name"), weight)
            for (label, memory, weight), has_it in zip(chosen, worded, strict=True)
        ]
        if not layers:
            return None
        if len(layers) == 1 and layers[0][2] == 1 and not isinstance(attached, MemoryLayers):
            return layers[0][1]
        key = tuple((label, id(retriever), weight) for label, retriever, weight in layers)
        return self._keep(key, lambda: LayeredRetriever(layers, self.name_tokenizer, self.max_name_length))

    def _single(self, memory: VisualNameMemory, name_column: str | None) -> NameRetriever:
        column = name_column or memory.retrieval.get("name_column") or "name"
        return self._keep(
            (id(memory), column), lambda: NameRetriever(memory, self.name_tokenizer, self.max_name_length, column)
        )

    def _keep(self, key: Hashable, make: Callable[[], NameRetriever]) -> NameRetriever:
        """Keeps what was used last; a retriever holds its memory (or layers), so an id stays that of the same one."""
        with self._lock:
            made = self._made.pop(key, None) or make()
            self._made[key] = made
            while len(self._made) > KEPT_RETRIEVERS:
                self._made.pop(next(iter(self._made)))
        return made


__all__ = ["LayeredNames", "LayeredRetriever", "Retrievers"]
