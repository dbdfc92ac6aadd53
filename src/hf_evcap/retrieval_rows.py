"""Search in a retrieval store as tensors on the query's device; what the retrievers of names and captions share."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import torch
from typing_extensions import Self

from .store_keys import KeyRows
from .store_snapshot import StoreSnapshot


def keep_first(kept: torch.BoolTensor, k: int, *values: torch.Tensor, fill: Sequence[float]) -> list[torch.Tensor]:
    """Moves the first `k` marked places of each row to the front and fills the rest, for each of `values`."""
    k = min(k, kept.shape[1])
    order = torch.sort(~kept, dim=1, stable=True).indices[:, :k]
    present = kept.gather(1, order)
    return [torch.where(present, value.gather(1, order), filler) for value, filler in zip(values, fill, strict=True)]


class SearchableRows:
    """
    One snapshot of a store, ready for search on one device. Nothing of it changes, so that any number of threads may
    search it while the store is edited.

    Args:
        snapshot ([`StoreSnapshot`]): The rows.
        earlier ([`SearchableRows`], *optional*):
            Those of an earlier snapshot on the CPU; what they have in common is taken over.
    """

    pools: dict[str, torch.LongTensor | None]

    def __init__(self, snapshot: StoreSnapshot, earlier: Self | None = None) -> None:
        self.snapshot = snapshot
        self.rows = len(snapshot)
        self.device = torch.device("cpu")
        self.pools = {}  # rows by `kind`; None stands for all of them
        self.keys: torch.Tensor | None = None  # where a search compares with every row
        self.key_scale: torch.Tensor | None = None
        if snapshot.exact:
            self.keys = torch.from_numpy(snapshot.keys.array).float()
            self.key_scale = torch.from_numpy(snapshot.keys.scale)
        self._pool_keys: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._pool_rows: dict[str, KeyRows] = {}

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        moved = copy.copy(self)
        moved.device = device
        moved.pools = {kind: None if rows is None else rows.to(device) for kind, rows in self.pools.items()}
        if self.keys is not None and self.key_scale is not None:
            moved.keys, moved.key_scale = self.keys.to(device), self.key_scale.to(device)
        moved._pool_keys = {}
        return moved

    def under(self, snapshot: StoreSnapshot) -> Self:
        """The same rows under a snapshot's other settings."""
        other = copy.copy(self)
        other.snapshot = snapshot
        return other

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
            shape = (queries.shape[0], 1 if any_query else queries.shape[1], 0)
            return queries.new_zeros(shape, dtype=torch.float), queries.new_zeros(shape, dtype=torch.long)
        if self.keys is None:
            scores, rows = self._search_index(queries, wanted, kind, pool, any_query)
        else:
            keys, scale = self._keys_of(kind, pool)
            similarities = torch.nn.functional.normalize(queries.float(), dim=-1) @ keys.T * scale
            if any_query:
                similarities = similarities.amax(dim=1, keepdim=True)
            scores, rows = similarities.topk(wanted, dim=-1)
        if pool is not None:
            rows = pool[rows]
        if exclude_rows is not None:
            excluded = (rows[..., None] == exclude_rows[:, None, None, :].to(rows.device)).any(-1)
            scores = scores.masked_fill(excluded, -torch.inf)
        threshold = self.snapshot.min_similarity
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
        if self.keys is not None:
            return torch.nn.functional.normalize(self.keys[rows], dim=-1)
        return torch.from_numpy(self.snapshot.unit_keys(rows.cpu().numpy())).to(self.device)

    def _keys_of(self, kind: str | None, pool: torch.LongTensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if kind is None or pool is None:
            return self.keys, self.key_scale
        if kind not in self._pool_keys:
            self._pool_keys[kind] = self.keys[pool], self.key_scale[pool]
        return self._pool_keys[kind]

    def _search_index(
        self, queries: torch.Tensor, k: int, kind: str | None, pool: torch.LongTensor | None, any_query: bool
    ) -> tuple[torch.Tensor, torch.LongTensor]:
        key_rows = None
        if kind is not None and pool is not None:
            if kind not in self._pool_rows:
                self._pool_rows[kind] = self.snapshot.keys.select(pool.cpu().numpy())
            key_rows = self._pool_rows[kind]
        found = self.snapshot.search(queries.reshape(-1, queries.shape[-1]), k, key_rows)
        scores, rows = (torch.from_numpy(values).to(queries.device) for values in found)
        scores = scores.masked_fill(rows < 0, -torch.inf)  # an approximate index may find fewer
        if not any_query:
            return scores.view(*queries.shape[:2], -1), rows.view(*queries.shape[:2], -1)
        scores, rows = scores.view(queries.shape[0], 1, -1), rows.view(queries.shape[0], 1, -1)
        scores, order = scores.sort(dim=-1, descending=True, stable=True)
        rows, same_row = rows.gather(-1, order).sort(dim=-1, stable=True)
        scores = scores.gather(-1, same_row)
        repeated = torch.zeros_like(rows, dtype=torch.bool)
        repeated[..., 1:] = rows[..., 1:] == rows[..., :-1]
        return scores.masked_fill(repeated, -torch.inf), rows


class RowRetriever:
    """
    A store attached to a model, which it follows: every call searches the rows that the store has when it begins, to
    its end. After rows were added only they are made ready, after any other edit all are.

    Args:
        memory ([`RetrievalStore`]): The memory or datastore.
    """

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._ready: Any = None
        self._elsewhere: dict[torch.device, Any] = {}  # the same on other devices

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_ready", "_elsewhere")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _prepare(self, snapshot: StoreSnapshot, earlier: Any) -> Any:
        """Makes a snapshot ready for search on the CPU."""
        return SearchableRows(snapshot, earlier)

    def ready(self, device: torch.device | None = None) -> Any:
        """
        The store's present rows, ready for search.

        Args:
            device (`torch.device`, *optional*): Where; the CPU when absent.

        Returns:
            [`SearchableRows`], or what a retriever makes of them.
        """
        with self._lock:
            now, earlier = self.memory.snapshot, self._ready
            if earlier is None or earlier.snapshot is not now:
                same_rows = earlier is not None and now.same_rows(earlier.snapshot)
                self._ready = earlier.under(now) if same_rows else self._prepare(now, earlier)
                self._elsewhere = {}
            return self._on(device)

    def _on(self, device: torch.device | None) -> Any:
        if device is None or device == self._ready.device:
            return self._ready
        if device not in self._elsewhere:
            self._elsewhere[device] = self._ready.to(device)
        return self._elsewhere[device]

    def nearest(self, queries: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.LongTensor]:
        """Finds the present rows nearest to each query; see [`SearchableRows.nearest`]."""
        return self.ready(queries.device).nearest(queries, *args, **kwargs)

    @property
    def rows(self) -> int:
        """`int`: Rows that a call would search now."""
        return self.ready().rows

    @property
    def keys(self) -> torch.Tensor | None:
        """`torch.Tensor` of shape `(rows, dim)` or `None`: What queries are multiplied by; `None` with an index."""
        return self.ready().keys


__all__ = ["RowRetriever", "SearchableRows", "keep_first"]
