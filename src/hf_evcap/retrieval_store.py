"""What a visual-name memory and a caption datastore share: rows of a key and a text, edited, searched and kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import Self

from .store_additions import AddedRows
from .store_card import describe_rows
from .store_checks import check_columns, check_comparable, check_text, select_rows, split_table, with_column
from .store_difference import StoreDifference, compare_rows, unmatched_rows
from .store_files import row_batches
from .store_hub import HubStore
from .store_index import RowIndex, make_index
from .store_keys import KEY_DTYPES, KeyRows, check_keys
from .store_settings import Setting, StoreSettings
from .store_snapshot import StoreSnapshot


class RetrievalStore(HubStore):
    """
    Rows of a key and a text with further columns, and a search by cosine similarity. Subclasses say what the text is.

    Any number of threads may read and edit a store at once. Its state is one unchangeable [`StoreSnapshot`]: an edit
    makes the next one and swaps it in, so that it succeeds whole or leaves the store as it was, and no edit is lost;
    a reader (a search, a caption, a save, a difference) takes the present one and keeps it to the end, so that it sees
    every edit whole or not at all. Adding n rows costs O(n) however many there are, and copies share what they have in
    common.

    Args:
        table (`pyarrow.Table`): Columns for the text (string) and `key` (fixed-size list of floats), and any others.
        encoder_fingerprint (`str`, *optional*):
            Identity of the encoder that made the keys; a model refuses a store of another encoder. `None` means
            unknown and is accepted.
        query_tokens_hash (`str`, *optional*): Hash of the image queries when the keys were made; shown, not enforced.
        preprocessing_hash (`str`, *optional*):
            What [`~store_photos.hash_preprocessing`] gives for the image processor that prepared the photos. Photos
            prepared otherwise are not added.
        retrieval (`dict`, *optional*): Retrieval settings that suit these rows.
        licenses (`dict[str, str]`, *optional*): Licence of each source, for the card.
        index_factory (`str`, *optional*): FAISS index factory string. `Flat` is exact. `None` chooses by size.
        dtype (`str`, *optional*, defaults to `"float32"`): Precision of the kept keys, or `"float16"`.
    """

    text_column: ClassVar[str] = "text"
    text_word: ClassVar[str] = "text"
    store_word: ClassVar[str] = "store"
    format_name: ClassVar[str] = "retrieval-store"
    max_text_characters: ClassVar[int] = 10_000
    identity_columns: ClassVar[tuple[str, ...]] = ()  # that tell rows of the same text and key apart
    column_defaults: ClassVar[dict[str, Any]] = {}  # what an empty cell of a further column stands for

    encoder_fingerprint = Setting()
    query_tokens_hash = Setting()
    preprocessing_hash = Setting()
    retrieval = Setting()
    licenses = Setting()

    def __init__(
        self,
        table: pa.Table,
        *,
        encoder_fingerprint: str | None = None,
        query_tokens_hash: str | None = None,
        preprocessing_hash: str | None = None,
        retrieval: dict[str, Any] | None = None,
        licenses: dict[str, str] | None = None,
        index_factory: str | None = None,
        dtype: str = "float32",
    ) -> None:
        columns, keys = split_table(table, self.text_column, self.store_word, dtype)
        texts = [
            self._check_text(text, f"row {row}") for row, text in enumerate(columns[self.text_column].to_pylist())
        ]
        place = columns.column_names.index(self.text_column)
        checked = pa.array(texts, pa.string()) if texts else pa.nulls(0, pa.string())  # `pa.array` imports pandas
        columns = columns.set_column(place, self.text_column, checked)
        settings = StoreSettings.of(
            {
                "encoder_fingerprint": encoder_fingerprint,
                "query_tokens_hash": query_tokens_hash,
                "preprocessing_hash": preprocessing_hash,
                "retrieval": retrieval,
                "licenses": licenses,
                "index_factory": index_factory,
            }
        )
        self._begin(self._first_snapshot(columns, KeyRows.of(keys), settings))

    def _begin(self, snapshot: StoreSnapshot) -> None:
        self._snapshot = snapshot
        self._lock = threading.Lock()
        self._of_thread = threading.local()  # `added`: what each thread added last

    @classmethod
    def _first_snapshot(cls, columns: pa.Table, keys: KeyRows, settings: StoreSettings) -> StoreSnapshot:
        return StoreSnapshot(cls.text_column, (cls._complete(columns),), keys, settings, next_number=len(keys))

    @classmethod
    def _of(cls, snapshot: StoreSnapshot) -> Self:
        """A store of its own that begins with a snapshot."""
        made = cls.__new__(cls)
        made._begin(snapshot)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {"snapshot": self.snapshot}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["snapshot"])

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    @property
    def snapshot(self) -> StoreSnapshot:
        """[`StoreSnapshot`]: The present rows and settings, which no later edit changes."""
        return self._snapshot

    @property
    def settings(self) -> dict[str, Any]:
        """`dict`: Everything but the rows, as the constructor takes it."""
        return self.snapshot.settings.to_dict()

    # Making one

    @classmethod
    def from_rows(
        cls,
        texts: Sequence[str],
        keys: Any,
        /,
        *,
        encoder_fingerprint: str | None = None,
        query_tokens_hash: str | None = None,
        preprocessing_hash: str | None = None,
        retrieval: dict[str, Any] | None = None,
        licenses: dict[str, str] | None = None,
        index_factory: str | None = None,
        dtype: str = "float32",
        **columns: Any,
    ) -> Self:
        """
        Makes a store from texts and their keys.

        Args:
            texts (`Sequence[str]`): One a row; a text may stand in many rows.
            keys (array or tensor of shape `(rows, dim)`): Made by the model's encoder; copied.
            **columns: Further columns, one value a row, or one string, number or boolean for all rows.

        Raises:
            ValueError: Empty or overlong texts, keys that are not finite or are zero, lengths that differ.
        """
        if dtype not in KEY_DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(KEY_DTYPES)}; got {dtype!r}.")
        checked, new_keys = cls._check_rows(texts, keys, None, np.dtype(dtype), columns)
        return cls.assemble(
            checked,
            KeyRows.of(new_keys),
            encoder_fingerprint=encoder_fingerprint,
            query_tokens_hash=query_tokens_hash,
            preprocessing_hash=preprocessing_hash,
            retrieval=retrieval,
            licenses=licenses,
            index_factory=index_factory,
        )

    @classmethod
    def assemble(cls, columns: pa.Table, keys: KeyRows, **settings: Any) -> Self:
        """Puts checked rows into a store without copying them; `settings` as the constructor takes them."""
        return cls._of(cls._first_snapshot(columns, keys, StoreSettings.of(settings)))

    @classmethod
    def empty(cls, dim: int, **settings: Any) -> Self:
        """Makes a store without rows, for keys of dimension `dim`."""
        return cls.from_rows([], np.zeros((0, dim), dtype=np.float32), **settings)

    @classmethod
    def _complete(cls, columns: pa.Table) -> pa.Table:
        """Gives new rows the columns that every row of this kind of store has."""
        return columns

    @classmethod
    def _check_text(cls, text: Any, place: str) -> str:
        """Returns the text with its white space folded, or says why it cannot be one."""
        return check_text(text, place, cls.text_word, cls.max_text_characters)

    @classmethod
    def _check_rows(
        cls, texts: Sequence[str], keys: Any, dim: int | None, dtype: np.dtype, columns: Mapping[str, Any]
    ) -> tuple[pa.Table, np.ndarray]:
        if isinstance(texts, str):
            raise TypeError(f"Expected a list of {cls.text_word}s, got the string {texts!r}; write [{texts!r}].")
        word, longest = cls.text_word, cls.max_text_characters
        texts = [check_text(text, row, word, longest) for row, text in enumerate(texts)]
        checked = check_columns(cls.text_column, texts, columns)
        return cls._complete(checked), check_keys(keys, len(texts), dim, dtype, cls.store_word)

    # Reading it

    def __len__(self) -> int:
        return len(self.snapshot)

    def __repr__(self) -> str:
        rows = self.snapshot
        texts = pc.count_distinct(rows.columns[self.text_column]).as_py()
        return f"{type(self).__name__}({len(rows)} rows, {texts} {self.text_word}s, dim {rows.dim})"

    @property
    def dim(self) -> int:
        """`int`: Dimension of the keys."""
        return self.snapshot.dim

    @property
    def dtype(self) -> str:
        """`str`: Precision in which keys are kept, float32 or float16."""
        return self.snapshot.keys.dtype.name

    @property
    def columns(self) -> pa.Table:
        """`pyarrow.Table`: Every column but the keys, a row each."""
        return self.snapshot.columns

    @property
    def table(self) -> pa.Table:
        """`pyarrow.Table`: All columns, with `key`; made when asked for, without copying keys of 4 bytes."""
        rows = self.snapshot
        return pa.concat_tables(row_batches(rows.columns, rows.keys, self.text_column))

    @property
    def texts(self) -> list[str]:
        """`list[str]`: The text of each row."""
        return self.snapshot.texts

    @property
    def keys(self) -> np.ndarray:
        """`np.ndarray` of shape `(rows, dim)`: The key of each row as it was given, not normalised; read-only."""
        keys = self.snapshot.keys.array.view()
        keys.flags.writeable = False
        return keys

    @property
    def key_rows(self) -> KeyRows:
        """[`KeyRows`]: The keys, to select some of for [`search`]."""
        return self.snapshot.keys

    @property
    def min_similarity(self) -> float | None:
        """`float` or `None`: Rows less similar than this are not retrieved; see `hf-evcap memory calibrate`."""
        return self.snapshot.min_similarity

    @property
    def fingerprint(self) -> str:
        """`str`: SHA-256 over the ordered texts and keys; the same rows give the same fingerprint anywhere."""
        return self.snapshot.fingerprint

    def describe(self) -> dict[str, Any]:
        """Says in numbers what the store holds: rows, texts, rows a text, sources, and who built it."""
        return self._describe(self.snapshot)

    def _describe(self, rows: StoreSnapshot) -> dict[str, Any]:
        return describe_rows(rows, self.text_word)

    # Editing it

    def edit(self, change: Callable[[StoreSnapshot], StoreSnapshot]) -> StoreSnapshot:
        """Swaps in what a function makes of the present state, as every edit does, and returns it."""
        with self._lock:
            self._snapshot = changed = change(self._snapshot)
        return changed

    def change_settings(self, change: Callable[[StoreSettings], StoreSettings]) -> Self:
        """Swaps in the settings that a function makes of the present ones."""
        self.edit(lambda rows: rows.with_settings(change(rows.settings)))
        return self

    def add(self, texts: Sequence[str], keys: Any, /, **columns: Any) -> Self:
        """
        Adds rows. Columns that the store has and the call does not name are left empty for the new rows.

        Args:
            texts (`Sequence[str]`): One a row.
            keys (array or tensor of shape `(rows, dim)`): Keys of the same encoder as the store's.
            **columns: Values of further columns, a value a row or one for all.

        Returns:
            The store itself. Models that hold it see the change at their next caption; [`last_added`] tells the new
            rows and takes them back.
        """
        before = self.snapshot
        new, checked = self._check_rows(texts, keys, before.dim, before.keys.dtype, columns)
        rows, count = before, len(checked)
        if count:
            rows = self.edit(lambda rows: rows.followed_by(new, checked))
        self._of_thread.added = AddedRows(self, range(rows.next_number - count, rows.next_number))
        return self

    @property
    def last_added(self) -> AddedRows | None:
        """[`AddedRows`] or `None`: What the calling thread added last to this store; other threads have their own."""
        return getattr(self._of_thread, "added", None)

    def remove(
        self, texts: Iterable[str] | None = None, /, *, rows: Iterable[int] | None = None, **columns: Any
    ) -> Self:
        """
        Removes rows: those of some texts, or with certain ids or column values, or what all of these have in common.

        Args:
            texts (`Iterable[str]`, *optional*): Their rows; all rows when absent.
            rows (`Iterable[int]`, *optional*): Row ids, as [`search`] gives them.
            **columns: A value of a further column, or several: `source="mine"`, `kind=["object", "scene"]`.

        Raises:
            KeyError: A text has no such row, or there is none at all. Nothing is removed then.
            ValueError: There is no such column, or nothing says what to remove.

        Example:
        ```python
        >>> memory.remove(["umbrella"])
        >>> memory.remove(["umbrella"], source="my photos")  # those that came with the memory stay
        ```
        """
        if texts is None and rows is None and not columns:
            raise ValueError(f"Say what to remove: {self.text_word}s, `rows`, or values of a column.")
        self.edit(lambda now: now.keeping(~select_rows(self, now, texts, rows, columns)))
        return self

    def rename(self, texts: Mapping[str, str], /) -> Self:
        """Gives texts another wording, `{old: new}`; rows of an old one join those of the new one."""
        new = {old: self._check_text(text, f"the new {self.text_word} of {old!r}") for old, text in texts.items()}

        def renamed(rows: StoreSnapshot) -> StoreSnapshot:
            select_rows(self, rows, texts)
            place = rows.columns.column_names.index(self.text_column)
            encoded = rows.columns[self.text_column].combine_chunks().dictionary_encode()
            words = pa.array([new.get(text, text) for text in encoded.dictionary.to_pylist()], pa.string())
            return rows.with_rows(
                rows.columns.set_column(place, self.text_column, words.take(encoded.indices)), rows.keys
            )

        self.edit(renamed)
        return self

    def set_column(self, name: str, values: Mapping[str, Any] | Sequence[Any] | None) -> Self:
        """
        Sets a further column, for example the names in another language.

        Args:
            name (`str`): The column; made if there is none.
            values (`Mapping`, `Sequence` or `None`):
                `{text: value}` (other rows keep what they have), a value a row, or `None` to drop the column.
        """
        if name in (self.text_column, "key"):
            raise ValueError(f"{name!r} is not a further column; use `rename` for {self.text_word}s.")

        def changed(rows: StoreSnapshot) -> StoreSnapshot:
            columns, known = rows.columns, name in rows.columns.column_names
            if values is None:
                return rows.with_rows(self._complete(columns.drop_columns([name]) if known else columns), rows.keys)
            new = list(values)
            if isinstance(values, Mapping):
                select_rows(self, rows, values)
                old = columns[name].to_pylist() if known else [None] * len(rows)
                new = [values.get(text, value) for text, value in zip(rows.texts, old, strict=True)]
            if len(new) != len(rows):
                raise ValueError(f"Column {name!r} has {len(new)} values for {len(rows)} rows.")
            return rows.with_rows(self._complete(with_column(columns, name, pa.array(new))), rows.keys)

        self.edit(changed)
        return self

    # Making others of it

    def copy(self) -> Self:
        """Returns a store with the same rows, to edit without touching this one. Rows are shared until then."""
        return self._of(self.snapshot)

    def astype(self, dtype: str) -> Self:
        """Returns a store whose keys are kept as `"float32"` or `"float16"`."""
        if dtype not in KEY_DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(KEY_DTYPES)}; got {dtype!r}.")
        rows = self.snapshot
        return self._of(rows.with_rows(rows.columns, rows.keys.astype(dtype)))

    def subset(self, texts: Iterable[str] | Callable[[str], bool], /) -> Self:
        """Returns a store with the rows of these texts, or of the texts for which a function is true."""
        rows = self.snapshot
        if callable(texts):
            mask = rows.marked(self.text_column, [text for text in dict.fromkeys(rows.texts) if texts(text)])
        else:
            mask = select_rows(self, rows, texts)
        return self._of(rows.keeping(mask))

    def merge(self, other: Self) -> Self:
        """
        Returns a store with this one's rows followed by those of another one that it lacks.

        A row is the same where text and key (and `identity_columns`) are; what stands in both is taken once, as often
        as it stands in the one that repeats it more.

        Raises:
            ValueError: The keys come from different encoders.
        """
        rows, theirs = self._comparable(other)
        missing = unmatched_rows(theirs.identities(self.identity_columns), rows.identities(self.identity_columns))
        merged = rows.with_settings(rows.settings.completed_by(theirs.settings))
        if len(missing):
            keys = check_keys(theirs.keys.take(np.array(missing)), len(missing), rows.dim, rows.keys.dtype)
            merged = merged.followed_by(theirs.columns.take(pa.array(missing)), keys)
        return self._of(merged)

    def difference(self, other: Self) -> Self:
        """Returns a store with the rows that another one does not have; see [`merge`] for which are the same."""
        rows, theirs = self._comparable(other)
        have = set(theirs.identities(self.identity_columns))
        lacking = [identity not in have for identity in rows.identities(self.identity_columns)]
        return self._of(rows.keeping(np.array(lacking, dtype=bool)))

    def diff(self, other: Self) -> StoreDifference:
        """Lists what leads from this store to another one, such as a later revision of it."""
        states = self.snapshot, other.snapshot
        if states[0].dim != states[1].dim:
            raise ValueError(f"Keys of dimension {states[0].dim} and {states[1].dim} cannot be compared.")
        old, new = (
            (rows.texts, rows.identities(self.identity_columns), rows.keys, rows.columns.select(rows.further_columns))
            for rows in states
        )
        return compare_rows(old, new)

    def _comparable(self, other: RetrievalStore) -> tuple[StoreSnapshot, StoreSnapshot]:
        """The present rows of both, whose keys can be compared."""
        if not isinstance(other, type(self)):
            raise TypeError(f"Expected a {type(self).__name__}, got {type(other).__name__}.")
        check_comparable(self.snapshot, other.snapshot, self.store_word)
        return self.snapshot, other.snapshot

    # Searching it

    @property
    def index_factory(self) -> str:
        """`str`: FAISS factory string of the index: the one that was asked for, or the default for this many rows."""
        return self.snapshot.index_factory

    @index_factory.setter
    def index_factory(self, factory: str | None) -> None:
        self.change_settings(lambda settings: replace(settings, index_factory=factory))

    @property
    def exact(self) -> bool:
        """`bool`: Whether a search compares with every row."""
        return self.snapshot.exact

    @property
    def index(self) -> Any:
        """`faiss.Index`: Inner-product index over the normalised keys, in the order of the rows."""
        rows = self.snapshot
        found = None if rows.exact else rows.row_index()
        return make_index("Flat", rows.keys) if found is None else found.over(rows.keys)

    def row_index(self) -> RowIndex | None:
        """The index that the stores on this buffer share, built when first needed; `None` if the rows are too few."""
        return self.snapshot.row_index()

    def search(
        self, queries: Any, k: int, key_rows: KeyRows | None = None, exclude_rows: Any = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        Finds the rows nearest in cosine similarity.

        Args:
            queries (array or tensor of shape `(num_queries, dim)`): Normalised here; need not be before.
            k (`int`): Rows wanted for each query; fewer come back when the store holds fewer.
            key_rows ([`KeyRows`], *optional*):
                Some of the store's rows, from `store.key_rows.select(rows)`, to search only those; row ids then count
                in them.
            exclude_rows (array of shape `(num_queries, n)`, *optional*):
                Rows that each query must not find (its own, in training); -1 excludes nothing.

        Returns:
            `scores` and `row_ids`, both of shape `(num_queries, min(k, rows))`, best first. Where exclusions leave
            fewer than that, the places at the end have the score -inf and the row -1. A thread that edits meanwhile
            may have moved rows: take `store.snapshot` and use its `search`, `texts` and `columns` together.
        """
        return self.snapshot.search(queries, k, key_rows, exclude_rows, self.store_word)


__all__ = ["RetrievalStore", "StoreDifference"]
