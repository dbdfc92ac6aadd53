"""Rows that one call added to a retrieval store, to look at or to take back."""

from __future__ import annotations

from typing import Any

import numpy as np


class AddedRows:
    """
    The rows that one call of `add`, `add_images` or `add_captions` added, whatever other threads have done since.

    Args:
        store ([`RetrievalStore`]): The store.
        numbers (`range`): Their numbers, which rows keep as long as they live.

    Example:
    ```python
    >>> added = memory.add_images(model, processor, photos, "quokka").last_added
    >>> added.row_ids  # where they stand now
    >>> added.undo()
    ```
    """

    def __init__(self, store: Any, numbers: range) -> None:
        self.store = store
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.row_ids)

    def __repr__(self) -> str:
        return f"AddedRows({len(self)} of {len(self.numbers)} rows)"

    @property
    def row_ids(self) -> np.ndarray:
        """`np.ndarray` of shape `(rows,)`: Where in the store those of them that it still holds stand now."""
        return self.rows_in(self.store.snapshot)

    def rows_in(self, snapshot: Any) -> np.ndarray:
        """Their row ids in one state of the store."""
        return np.arange(*np.searchsorted(snapshot.keys.numbers, (self.numbers.start, self.numbers.stop)))

    def undo(self) -> int:
        """Removes those of them that the store still holds, and returns how many those were."""
        taken: list[int] = []

        def without(now: Any) -> Any:
            mine = self.rows_in(now)
            taken.append(len(mine))
            return now.keeping(~np.isin(np.arange(len(now)), mine)) if len(mine) else now

        self.store.edit(without)
        return taken[0]


__all__ = ["AddedRows"]
