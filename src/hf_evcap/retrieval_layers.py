"""Retrieval from several memories at once, whose names compete with weighted similarities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .memory_choice import choose_memories
from .memory_evcap import MemoryLayers, VisualNameMemory
from .retrieval_evcap import EVCapRetrievedNames, NameRetriever, NameTokens
from .retrieval_rows import GrowingRows


KEPT_RETRIEVERS = 16


class LayeredRetriever(NameRetriever):
    """
    Several retrievers that answer as one. Rows are numbered through, layer after layer.

    Args:
        layers (`Sequence[tuple[str, NameRetriever, float]]`): Name, retriever and weight of each memory.
        name_tokenizer, max_name_length: As in [`NameRetriever`].
    """

    def __init__(
        self, layers: Sequence[tuple[str, NameRetriever, float]], name_tokenizer: Any, max_name_length: int
    ) -> None:
        self.layers = list(layers)
        self.device = torch.device("cpu")
        self.sizes = [retriever.rows for _, retriever, _ in layers]
        self.rows = sum(self.sizes)
        self.starts = torch.tensor([0, *self.sizes]).cumsum(0)
        name_ids: dict[str, int] = {}
        row_names, self.num_photos = [], 0
        counts: list[tuple[torch.Tensor, torch.Tensor]] = []
        row_photos: list[torch.Tensor] = []
        for _, retriever, _ in layers:
            ids = torch.tensor(
                [name_ids.setdefault(name, len(name_ids)) for name in retriever.names], dtype=torch.long
            )
            row_names.append(ids[retriever.row_names.cpu()])
            counts.append((ids, retriever.scene_counts.cpu()))
            row_photos.append(retriever.row_photos.cpu() + self.starts[len(row_photos)])
            self.num_photos += retriever.num_photos
        self.names = list(name_ids)
        self._row_names = GrowingRows(torch.cat(row_names))
        self.tokens = NameTokens(self.names, name_tokenizer, max_name_length)
        self.scene_counts = torch.zeros(len(self.names), dtype=torch.long)
        for ids, of_layer in counts:
            self.scene_counts.index_add_(0, ids, of_layer)
        self.row_photos = torch.cat(row_photos)

    @property
    def stale(self) -> bool:
        """`bool`: Whether a layer's memory was edited since."""
        return any(
            retriever.stale or len(retriever.memory) != size
            for (_, retriever, _), size in zip(self.layers, self.sizes, strict=True)
        )

    def to(self, device: torch.device) -> LayeredRetriever:
        """Moves all layers to a device, in place."""
        for _, retriever, _ in self.layers:
            retriever.to(device)
        if self.device != device:
            self.device = device
            self.tokens.to(device)
            self._row_names.to(device)
            self.scene_counts, self.row_photos = self.scene_counts.to(device), self.row_photos.to(device)
        return self

    def nearest(
        self,
        queries: torch.Tensor,
        k: int,
        exclude_rows: torch.LongTensor | None = None,
        kind: str | None = None,
        any_query: bool = False,
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        """The nearest rows of all layers by weighted similarity; see [`NameRetriever.nearest`]."""
        all_scores, all_rows = [], []
        for (_, retriever, weight), start, size in zip(self.layers, self.starts.tolist(), self.sizes, strict=False):
            excluded = None
            if exclude_rows is not None:
                inside = (exclude_rows >= start) & (exclude_rows < start + size)
                excluded = torch.where(inside, exclude_rows - start, -1)
            scores, rows = retriever.nearest(queries, k, excluded, kind, any_query)
            all_scores.append(scores * weight)
            all_rows.append(rows + start)
        scores, order = torch.cat(all_scores, dim=-1).sort(dim=-1, descending=True, stable=True)
        return scores[..., :k], torch.cat(all_rows, dim=-1).gather(-1, order)[..., :k]

    def _output(
        self, name_ids: torch.LongTensor, scores: torch.Tensor, row_ids: torch.LongTensor
    ) -> EVCapRetrievedNames:
        retrieved = super()._output(name_ids, scores, row_ids)
        places = torch.searchsorted(self.starts.to(row_ids.device), row_ids.clamp(min=0), right=True) - 1
        labels = [label for label, _, _ in self.layers]
        retrieved.memories = [
            [labels[place] for place, name in zip(of_photo, names, strict=True) if name >= 0]
            for of_photo, names in zip(places.tolist(), name_ids.tolist(), strict=True)
        ]
        return retrieved


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
        self._made: dict[tuple, NameRetriever] = {}

    def of(
        self, attached: VisualNameMemory | MemoryLayers | None, wanted: Any, name_column: str | None, check: Any
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
        layers = [(label, self._single(memory, name_column), weight) for label, memory, weight in chosen]
        if not layers:
            return None
        if len(layers) == 1 and layers[0][2] == 1 and not isinstance(attached, MemoryLayers):
            return layers[0][1]
        key = tuple((label, id(retriever), weight) for label, retriever, weight in layers)
        return self._keep(key, lambda: LayeredRetriever(layers, self.name_tokenizer, self.max_name_length))

    def _single(self, memory: VisualNameMemory, name_column: str | None) -> NameRetriever:
        column = name_column or memory.retrieval.get("name_column") or "name"
        made = self._keep(
            (id(memory), column), lambda: NameRetriever(memory, self.name_tokenizer, self.max_name_length, column)
        )
        return made.to(made.device)

    def _keep(self, key: tuple, make: Callable[[], NameRetriever]) -> NameRetriever:
        """Keeps what was used last; a retriever holds its memory, so an id stays that of the same one."""
        made = self._made.pop(key, None)
        if made is None or made.stale:
            made = make()
        self._made[key] = made
        while len(self._made) > KEPT_RETRIEVERS:
            self._made.pop(next(iter(self._made)))
        return made


__all__ = ["LayeredRetriever", "Retrievers"]
