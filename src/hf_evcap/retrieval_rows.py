"""Search in a retrieval store as tensors on the query's device; what the retrievers of names and captions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Self

from .retrieval_store import RetrievalStore


def keep_first(kept: torch.BoolTensor, k: int, *values: torch.Tensor, fill: Sequence[float]) -> list[torch.Tensor]:
    """Moves the first `k` marked places of each row to the front and fills the rest, for each of `values`."""
    k = min(k, kept.shape[1])
    order = torch.sort(~kept, dim=1, stable=True).indices[:, :k]
    present = kept.gather(1, order)
    return [torch.where(present, value.gather(1, order), filler) for value, filler in zip(values, fill, strict=True)]


class GrowingRows:
    """A tensor with a value a row, to which rows are added without copying the others each time."""

    def __init__(self, values: torch.Tensor) -> None:
        self._room = values
        self.values = values

    def extend(self, values: torch.Tensor) -> None:
        """Adds rows at the end."""
        start, stop = len(self.values), len(self.values) + len(values)
        if stop > len(self._room):
            room = self._room.new_empty(stop + stop // 2)
            room[:start] = self.values
            self._room = room
        self._room[start:stop] = values.to(self._room.device)
        self.values = self._room[:stop]

    def to(self, device: torch.device) -> None:
        """Moves to a device, in place."""
        self._room = self.values = self.values.to(device)


class RowRetriever:
    """
    A store's keys, ready for search on the device of the queries.

    Follows the store: rows that were added to it are taken up, after any other edit the retriever is stale and has to
    be made anew.

    Args:
        memory ([`RetrievalStore`]): The memory or datastore.
    """

    def __init__(self, memory: RetrievalStore) -> None:
        self.memory = memory
        self.origin = memory.origin
        self.rows = 0
        self.device = torch.device("cpu")
        self.exact = memory.exact
        self.pools: dict[str, torch.LongTensor | None] = {}  # rows by `kind`; None stands for all of them
        self._follow()

    @property
    def stale(self) -> bool:
        """`bool`: Whether the store was edited since, otherwise than by adding rows."""
        return self.memory.origin is not self.origin or self.memory.exact != self.exact

    def _follow(self) -> None:
        """Takes up the store's new rows; subclasses take up what else they keep of a row first."""
        self.rows = len(self.memory)
        self.keys: torch.Tensor | None = None
        self.key_scale: torch.Tensor | None = None
        if self.exact:
            self.keys = torch.from_numpy(self.memory.key_rows.array).float().to(self.device)
            self.key_scale = torch.from_numpy(self.memory.key_rows.scale).to(self.device)
        self._pool_cache: dict[str, Any] = {}

    def to(self, device: torch.device) -> Self:
        """Takes up what was added to the store, and moves everything to a device, in place."""
        if len(self.memory) != self.rows:
            self._follow()
        if self.device != device:
            self.device = device
            self._move(device)
        return self

    def _move(self, device: torch.device) -> None:
        self.pools = {kind: None if rows is None else rows.to(device) for kind, rows in self.pools.items()}
        if self.exact:
            self.keys, self.key_scale = self.keys.to(device), self.key_scale.to(device)
        self._pool_cache.clear()

    def nearest(
        self,
        queries: torch.Tensor,
        k: int,
        exclude_rows: torch.LongTensor | None = None,
        kind: str | None = None,
        any_query: bool = False,
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        """
        Finds the rows nearest to each query in cosine similarity.

        Args:
            queries (`torch.Tensor` of shape `(batch_size, num_queries, dim)`): Need not be normalised.
            k (`int`): Rows for each query.
            exclude_rows (`torch.LongTensor` of shape `(batch_size, n)`, *optional*):
                Rows that each photo must not retrieve (itself, in training); -1 excludes nothing.
            kind (`str`, *optional*): Only rows with this value in the store's column `kind`.
            any_query (`bool`, *optional*, defaults to `False`):
                One answer a photo, the rows nearest to any of its queries, as if it had a single query.

        Returns:
            `scores` and `row_ids` of shape `(batch_size, num_queries, at most k)`, best first. A row that must not be
            used has the score -inf.
        """
        pool = self.pools.get(kind, torch.arange(0)) if kind is not None else None
        rows_there = self.rows if pool is None else len(pool)
        wanted = min(k + (0 if exclude_rows is None else exclude_rows.shape[1]), rows_there)
        if wanted == 0:
            shape = (len(queries), 1 if any_query else queries.shape[1], 0)
            return queries.new_zeros(shape, dtype=torch.float), queries.new_zeros(shape, dtype=torch.long)
        if self.exact:
            keys, scale = self._pool_keys(kind, pool)
            similarities = torch.nn.functional.normalize(queries.float(), dim=-1) @ keys.T * scale
            if any_query:
                similarities = similarities.amax(dim=1, keepdim=True)
            scores, rows = similarities.topk(wanted, dim=-1)
        else:
            scores, rows = self._search_index(queries, wanted, kind, pool, any_query)
        if pool is not None:
            rows = pool[rows]
        if exclude_rows is not None:
            excluded = (rows[..., None] == exclude_rows[:, None, None, :].to(rows.device)).any(-1)
            scores = scores.masked_fill(excluded, -torch.inf)
        threshold = self.memory.min_similarity
        if threshold is not None and kind != "scene":
            scores = scores.masked_fill(scores < threshold, -torch.inf)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        return scores[..., :k], rows.gather(-1, order)[..., :k]

    def rows_of_kind(self, kind: str) -> torch.LongTensor:
        """Rows with this value in the store's column `kind`, in order."""
        pool = self.pools.get(kind, torch.arange(0, device=self.device))
        return torch.arange(self.rows, device=self.device) if pool is None else pool

    def unit_keys(self, rows: torch.LongTensor) -> torch.Tensor:
        """Keys of some rows at length 1, `(rows, dim)`."""
        if self.exact:
            keys = self.keys[rows]
        else:
            keys = torch.from_numpy(self.memory.key_rows.select(rows.cpu().numpy()).array).float().to(self.device)
        return torch.nn.functional.normalize(keys, dim=-1)

    def _pool_keys(self, kind: str | None, pool: torch.LongTensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if pool is None:
            return self.keys, self.key_scale
        if kind not in self._pool_cache:
            self._pool_cache[kind] = self.keys[pool], self.key_scale[pool]
        return self._pool_cache[kind]

    def _search_index(
        self, queries: torch.Tensor, k: int, kind: str | None, pool: torch.LongTensor | None, any_query: bool
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        if pool is not None and kind not in self._pool_cache:
            self._pool_cache[kind] = self.memory.key_rows.select(pool.cpu().numpy())
        key_rows = None if pool is None else self._pool_cache[kind]
        found = self.memory.search(queries.reshape(-1, queries.shape[-1]), k, key_rows)
        scores, rows = (torch.from_numpy(values).to(queries.device) for values in found)
        scores = scores.masked_fill(rows < 0, -torch.inf)  # an approximate index may find fewer
        if not any_query:
            return scores.view(*queries.shape[:2], -1), rows.view(*queries.shape[:2], -1)
        scores, rows = scores.view(len(queries), 1, -1), rows.view(len(queries), 1, -1)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        rows, same_row = rows.gather(-1, order).sort(dim=-1, stable=True)
        scores = scores.gather(-1, same_row)
        repeated = torch.zeros_like(rows, dtype=torch.bool)
        repeated[..., 1:] = rows[..., 1:] == rows[..., :-1]
        return scores.masked_fill(repeated, -torch.inf), rows


__all__ = ["GrowingRows", "RowRetriever", "keep_first"]
