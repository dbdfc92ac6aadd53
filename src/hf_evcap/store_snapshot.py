"""One unchangeable state of a retrieval store: what a reader takes once, and what an edit makes another one of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging

from .store_difference import row_identities
from .store_index import RowIndex, TooFewRowsError, default_index_factory, make_index
from .store_keys import KeyRows, check_keys, dictionary_codes, exact_search, normalize_keys
from .store_manifest import hash_rows
from .store_settings import StoreSettings


logger = logging.get_logger(__name__)


class StoreRows(Protocol):
    """What a retriever reads of a store, all of it of one state; see [`StoreSnapshot`] for what each part gives."""

    origin: object
    change: int
    settings: StoreSettings

    def __len__(self) -> int: ...

    @property
    def dim(self) -> int:
        """`int`: Dimension of the keys."""

    @property
    def exact(self) -> bool:
        """`bool`: Whether a search shall compare with every key, so that the keys are read as a whole."""

    @property
    def columns(self) -> pa.Table:
        """`pyarrow.Table`: Every column but the keys."""

    def unit_keys(self, rows: np.ndarray) -> np.ndarray:
        """Keys of some rows at length 1, of shape `(len(rows), dim)`."""

    def search(
        self, queries: Any, k: int, rows: KeyRows | None = None, exclude_rows: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows nearest to queries."""


@dataclass(frozen=True)
class PublishedState:
    """A repo and commit on the Hub that hold a snapshot's rows, and the settings that they hold."""

    repo_id: str
    revision: str
    settings: StoreSettings


@dataclass(frozen=True)
class SavedState:
    """The folder from which a snapshot's rows come, or to which they were saved last, and its state then."""

    folder: str
    state: str


@dataclass(frozen=True, eq=False)
class StoreSnapshot:
    """
    The rows and settings of a store at one moment.

    Nothing of a snapshot changes, whatever happens to the store that it was taken of, so everything a reader learns
    from one fits together. Taking one costs nothing; snapshots share what they have in common.

    Args:
        text_column (`str`): Name of the column of texts.
        parts (`tuple[pyarrow.Table, ...]`): The columns but the keys, in few pieces, at least one.
        keys ([`KeyRows`]): The key of each row.
        settings ([`StoreSettings`]): Everything else.
        next_number (`int`): Number of the row that is added next.
        origin (`object`): The same as an earlier snapshot's where rows were only added since.
        change (`int`): Counts the edits that led here.
        published ([`PublishedState`], *optional*): Where on the Hub the same rows lie.
        saved ([`SavedState`], *optional*): Where they, or those that they were made of, lie on this machine.
    """

    text_column: str
    parts: tuple[pa.Table, ...]
    keys: KeyRows
    settings: StoreSettings
    next_number: int
    origin: object = field(default_factory=object)
    change: int = 0
    published: PublishedState | None = None
    saved: SavedState | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}

    # Reading

    @property
    def snapshot(self) -> StoreSnapshot:
        """[`StoreSnapshot`]: Itself, as a store gives the one of its present state."""
        return self

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dim(self) -> int:
        """`int`: Dimension of the keys."""
        return self.keys.dim

    @cached_property
    def columns(self) -> pa.Table:
        """`pyarrow.Table`: Every column but the keys, a row each."""
        return pa.concat_tables(self.parts)

    @property
    def texts(self) -> list[str]:
        """`list[str]`: The text of each row."""
        return self.columns[self.text_column].to_pylist()

    @property
    def further_columns(self) -> list[str]:
        """`list[str]`: Names of the columns other than text and key."""
        return [name for name in self.columns.column_names if name != self.text_column]

    @property
    def min_similarity(self) -> float | None:
        """`float` or `None`: Rows less similar than this are not retrieved."""
        return self.settings.retrieval.get("min_similarity")

    @cached_property
    def fingerprint(self) -> str:
        """`str`: SHA-256 over the ordered texts and keys."""
        return hash_rows(self.texts, self.dim, self.keys.blocks())

    def identities(self, columns: Sequence[str]) -> list[bytes]:
        """Identity of each row: hash of its text, its key and its values in those of `columns` that there are."""
        present = [name for name in columns if name in self.columns.column_names]
        return row_identities(self.texts, self.columns.select(present), self.keys)

    def unit_keys(self, rows: np.ndarray) -> np.ndarray:
        """Keys of some rows at length 1, of shape `(len(rows), dim)`, float32."""
        return normalize_keys(self.keys.take(rows))

    def rows_by_value(self, column: str) -> dict[Any, np.ndarray]:
        """Rows of each value of a column, ascending; `None` has none."""
        if column not in self._rows_by_value:
            encoded = self.columns[column].combine_chunks().dictionary_encode()
            codes = dictionary_codes(encoded)
            order = np.argsort(codes, kind="stable")
            starts = np.searchsorted(codes[order], np.arange(len(encoded.dictionary) + 1))
            self._rows_by_value[column] = {
                value: order[starts[place] : starts[place + 1]]
                for place, value in enumerate(encoded.dictionary.to_pylist())
            }
        return self._rows_by_value[column]

    @cached_property
    def _rows_by_value(self) -> dict[str, dict[Any, np.ndarray]]:
        return {}

    def marked(self, column: str, values: Sequence[Any]) -> np.ndarray:
        """Marks the rows that have one of some values in a column."""
        kind = self.columns.schema.field(column).type
        try:
            wanted = pa.array(values).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ValueError(f"The column {column!r} holds {kind}, of which {list(values)!r} are none.") from error
        return pc.is_in(self.columns[column], value_set=wanted).to_numpy().astype(bool)

    def extends(self, earlier: StoreSnapshot) -> bool:
        """Whether the rows are those of an earlier snapshot, in the same places, and maybe others after them."""
        return self.origin is earlier.origin and len(self) >= len(earlier)

    def same_rows(self, other: StoreSnapshot) -> bool:
        """Whether only settings that do not touch the rows or their index differ."""
        return self.parts is other.parts and self.keys is other.keys and self.origin is other.origin

    # Searching

    @property
    def index_factory(self) -> str:
        """`str`: FAISS factory string of the index: the one that was asked for, or the default for this many rows."""
        if self.settings.index_factory is not None:
            return self.settings.index_factory
        factory, built = default_index_factory(len(self), self.dim), self.keys.buffer.index
        return factory if built is None or factory == "Flat" else built.factory

    @property
    def exact(self) -> bool:
        """`bool`: Whether a search compares with every row."""
        return self.index_factory == "Flat"

    def row_index(self) -> RowIndex | None:
        """The index that the stores on this buffer share, built when first needed; `None` if the rows are too few."""
        buffer = self.keys.buffer
        with buffer.index_lock:
            factory = self.index_factory
            if buffer.index is None or buffer.index.factory != factory:
                rows = KeyRows(buffer, buffer.used)
                logger.info(f"Building the index {factory} over {len(rows)} rows.")
                try:
                    buffer.index = RowIndex(factory, make_index(factory, rows))
                except TooFewRowsError as error:
                    logger.warning_once(f"{error} Every row is compared instead.")
                    return None
            return buffer.index

    def search(
        self, queries: Any, k: int, rows: KeyRows | None = None, exclude_rows: Any = None, word: str = "store"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the rows nearest in cosine similarity, as [`RetrievalStore.search`] says; `rows` is its `key_rows`."""
        queries = normalize_keys(check_keys(queries, len(queries), self.dim, word=word))
        keys = self.keys if rows is None else rows
        excluded = None if exclude_rows is None else np.asarray(exclude_rows, dtype=np.int64)
        if excluded is not None and (excluded.ndim != 2 or len(excluded) != len(queries)):
            raise ValueError(
                f"`exclude_rows` must have the shape ({len(queries)}, n), a line a query; got {excluded.shape}."
            )
        k = min(k, len(keys))
        if k <= 0 or not len(queries):
            return np.zeros((len(queries), max(k, 0)), np.float32), np.zeros((len(queries), max(k, 0)), np.int64)
        wanted = k if excluded is None else min(k + excluded.shape[1], len(keys))
        index = None if self.exact else self.row_index()
        found = exact_search(queries, keys, wanted) if index is None else index.search(queries, keys, wanted)
        return found if excluded is None else _without(*found, excluded, k)

    # The next one

    def with_settings(self, settings: StoreSettings) -> StoreSnapshot:
        """The same rows under other settings."""
        other_index = settings.index_factory != self.settings.index_factory
        origin = object() if other_index else self.origin  # what was made ready for one index is not for another
        return replace(self, settings=settings, origin=origin, change=self.change + 1)

    def with_rows(self, columns: pa.Table, keys: KeyRows) -> StoreSnapshot:
        """Other rows, or rows in other places, under the same settings."""
        return replace(self, parts=(columns,), keys=keys, origin=object(), change=self.change + 1, published=None)

    def keeping(self, mask: np.ndarray) -> StoreSnapshot:
        """The marked rows alone."""
        return self.with_rows(self.columns.filter(pa.array(mask)), self.keys.keep(mask.nonzero()[0]))

    def followed_by(self, new: pa.Table, keys: np.ndarray) -> StoreSnapshot:
        """
        These rows and others after them. Costs the number of the others, however many there are: columns lie in
        pieces of falling size, so that each row is moved O(log rows) times.

        Raises:
            ValueError: A column of the new rows has another type than here.
        """
        parts = list(self.parts)
        if new.schema != parts[0].schema:
            try:
                schema = pa.unify_schemas([parts[0].schema, new.schema])
                parts, new = [_aligned(part, schema) for part in parts], _aligned(new, schema)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ValueError(
                    f"A column of the new rows has another type than the present rows': {error}."
                ) from error
        parts.append(new)
        while len(parts) > 1 and len(parts[-2]) < 2 * len(parts[-1]):
            last = parts.pop()
            parts[-1] = pa.concat_tables([parts[-1], last]).combine_chunks()
        return replace(
            self,
            parts=tuple(parts),
            keys=self.keys.append(keys, self.next_number),
            next_number=self.next_number + len(keys),
            change=self.change + 1,
            published=None,
        )


def _without(scores: np.ndarray, rows: np.ndarray, excluded: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` of found rows that are not among a query's excluded ones."""
    barred = (rows[:, :, None] == excluded[:, None, :]).any(-1)
    order = np.argsort(barred, axis=1, kind="stable")[:, :k]
    barred = np.take_along_axis(barred, order, 1)
    scores = np.where(barred, np.float32(-np.inf), np.take_along_axis(scores, order, 1))
    return scores, np.where(barred, -1, np.take_along_axis(rows, order, 1))


def _aligned(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Gives a table the columns of a schema, empty where it has none."""
    return (
        table if table.schema == schema else pa.concat_tables([schema.empty_table(), table], promote_options="default")
    )


__all__ = ["PublishedState", "SavedState", "StoreRows", "StoreSnapshot"]
