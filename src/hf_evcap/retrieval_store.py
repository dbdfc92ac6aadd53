"""What a visual-name memory and a caption datastore share: rows of a key and a text, edited, searched and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers.utils import logging
from typing_extensions import Self

from .store_difference import StoreDifference, compare_rows, row_identities
from .store_files import as_picture, hash_rows, row_batches
from .store_hub import HubStore
from .store_index import RowIndex, TooFewRowsError, default_index_factory, make_index
from .store_keys import KEY_DTYPES, KeyRows, arrow_numbers, check_keys, exact_search, normalize_keys


logger = logging.get_logger(__name__)


class RetrievalStore(HubStore):
    """
    Rows of a key and a text with further columns, and a search by cosine similarity. Subclasses say what the text is.

    Keys lie in a growing buffer, the other columns in an Arrow table, so adding n rows costs O(n) however many there
    are, and copies share what they have in common. An edit either succeeds or leaves the store as it was.

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
        missing = {self.text_column, "key"} - set(table.column_names)
        if missing:
            raise ValueError(
                f"A {self.store_word} needs the columns {self.text_column} and key; {', '.join(sorted(missing))} is "
                "missing."
            )
        kind = table.schema.field("key").type
        if not pa.types.is_fixed_size_list(kind):
            raise ValueError("The column key must hold fixed-size lists of floats, one vector a row.")
        chunks = [arrow_numbers(chunk.flatten()) for chunk in table["key"].iterchunks()]
        values = np.concatenate([*chunks, np.zeros(0, np.float32)])
        if dtype not in KEY_DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(KEY_DTYPES)}; got {dtype!r}.")
        keys = check_keys(values.reshape(len(table), kind.list_size), len(table), None, np.dtype(dtype))
        columns = table.drop_columns(["key"])
        texts = [
            self._check_text(text, f"row {row}") for row, text in enumerate(columns[self.text_column].to_pylist())
        ]
        place = columns.column_names.index(self.text_column)
        checked = pa.array(texts, pa.string()) if texts else pa.nulls(0, pa.string())  # `pa.array` imports pandas
        columns = columns.set_column(place, self.text_column, checked)
        self._set_up(columns, KeyRows.of(keys))
        self.encoder_fingerprint = encoder_fingerprint
        self.query_tokens_hash = query_tokens_hash
        self.preprocessing_hash = preprocessing_hash
        self.retrieval = dict(retrieval or {})
        self.licenses = dict(licenses or {})
        self._index_factory = index_factory

    def _set_up(self, columns: pa.Table, keys: KeyRows) -> None:
        self._parts = [columns]
        self._columns: pa.Table | None = columns
        self.key_rows = keys
        self.origin = object()  # another one after every edit but adding, which only appends rows
        self.repo_id: str | None = None  # set by `from_pretrained` when the rows come unchanged from the Hub
        self.revision: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """`dict`: Everything but the rows, as the constructor takes it."""
        return {
            "encoder_fingerprint": self.encoder_fingerprint,
            "query_tokens_hash": self.query_tokens_hash,
            "preprocessing_hash": self.preprocessing_hash,
            "retrieval": self.retrieval,
            "licenses": self.licenses,
            "index_factory": self._index_factory,
        }

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
        """Puts checked rows into a store without copying them."""
        dtype = np.dtype("float32")
        empty = pa.FixedSizeListArray.from_arrays(pa.nulls(0, pa.from_numpy_dtype(dtype)), keys.dim)
        made = cls(pa.table({cls.text_column: pa.nulls(0, pa.string()), "key": empty}), **settings)
        made._set_up(columns, keys)
        return made

    @classmethod
    def empty(cls, dim: int, **settings: Any) -> Self:
        """Makes a store without rows, for keys of dimension `dim`."""
        return cls.from_rows([], np.zeros((0, dim), dtype=np.float32), **settings)

    @classmethod
    def _check_text(cls, text: Any, place: str) -> str:
        """Returns the text with its white space folded, or says why it cannot be one."""
        word = cls.text_word
        if not isinstance(text, str):
            raise TypeError(f"A {word} must be a string; {place} is {type(text).__name__}.")
        folded = " ".join(text.split())
        if not folded:
            raise ValueError(f"A {word} must not be empty; {place} is {text!r}.")
        if len(folded) > cls.max_text_characters:
            raise ValueError(
                f"A {word} may have at most {cls.max_text_characters:,} characters; {place} has {len(folded):,} "
                f"({folded[:40]!r}...). Shorten it."
            )
        if not folded.isascii():
            try:
                folded.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"A {word} must be valid Unicode; {place} is not ({error.reason}).") from error
        return folded

    @classmethod
    def _check_rows(
        cls, texts: Sequence[str], keys: Any, dim: int | None, dtype: np.dtype, columns: Mapping[str, Any]
    ) -> tuple[pa.Table, np.ndarray]:
        if isinstance(texts, str):
            raise TypeError(f"Expected a list of {cls.text_word}s, got the string {texts!r}; write [{texts!r}].")
        texts = [cls._check_text(text, f"row {row}") for row, text in enumerate(texts)]
        reserved = {cls.text_column, "key"} & set(columns)
        if reserved:
            raise ValueError(f"{sorted(reserved)} cannot be further columns: every row has them already.")
        arrays: dict[str, Any] = {cls.text_column: pa.array(texts, pa.string())}
        for column, values in columns.items():
            if values is None or isinstance(values, (str, bool, int, float)):
                values = [values] * len(texts)
            if len(values) != len(texts):
                raise ValueError(f"Column {column!r} has {len(values)} values for {len(texts)} rows.")
            if not isinstance(values, (pa.Array, pa.ChunkedArray)):
                try:
                    values = pa.array(list(values))
                except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                    raise ValueError(f"Column {column!r} must hold values of one type ({error}).") from error
            arrays[column] = as_picture(values)
        return pa.table(arrays), check_keys(keys, len(texts), dim, dtype, cls.store_word)

    # Reading it

    def __len__(self) -> int:
        return len(self.key_rows)

    def __repr__(self) -> str:
        texts = pc.count_distinct(self.columns[self.text_column]).as_py()
        return f"{type(self).__name__}({len(self)} rows, {texts} {self.text_word}s, dim {self.dim})"

    @property
    def dim(self) -> int:
        """`int`: Dimension of the keys."""
        return self.key_rows.dim

    @property
    def dtype(self) -> str:
        """`str`: Precision in which keys are kept, float32 or float16."""
        return self.key_rows.dtype.name

    @property
    def columns(self) -> pa.Table:
        """`pyarrow.Table`: Every column but the keys, a row each."""
        if self._columns is None:
            self._columns = pa.concat_tables(self._parts)
        return self._columns

    @property
    def table(self) -> pa.Table:
        """`pyarrow.Table`: All columns, with `key`; made when asked for, without copying keys of 4 bytes."""
        return pa.concat_tables(row_batches(self.columns, self.key_rows, self.text_column))

    @property
    def texts(self) -> list[str]:
        """`list[str]`: The text of each row."""
        return self.columns[self.text_column].to_pylist()

    @property
    def keys(self) -> np.ndarray:
        """`np.ndarray` of shape `(rows, dim)`: The key of each row as it was given, not normalised; read-only."""
        keys = self.key_rows.array.view()
        keys.flags.writeable = False
        return keys

    @property
    def key_scale(self) -> np.ndarray:
        """`np.ndarray` of shape `(rows,)`: What each key is multiplied by to be of unit length."""
        return self.key_rows.scale

    @property
    def min_similarity(self) -> float | None:
        """`float` or `None`: Rows less similar than this are not retrieved; see `hf-evcap memory calibrate`."""
        return self.retrieval.get("min_similarity")

    @property
    def fingerprint(self) -> str:
        """`str`: SHA-256 over the ordered texts and keys; the same rows give the same fingerprint anywhere."""
        return hash_rows(self.texts, self.dim, self.key_rows.blocks())

    def describe(self) -> dict[str, Any]:
        """Says in numbers what the store holds: rows, texts, rows a text, sources, and who built it."""
        rows_per_text = Counter(self.texts)
        sources: Counter[str] = Counter()
        if "source" in self.columns.column_names:
            sources = Counter(str(source) for source in self.columns["source"].to_pylist())
        return {
            "rows": len(self),
            f"{self.text_word}s": len(rows_per_text),
            "dim": self.dim,
            "dtype": self.dtype,
            f"rows_per_{self.text_word}": {
                "min": min(rows_per_text.values(), default=0),
                "mean": len(self) / max(len(rows_per_text), 1),
                "max": max(rows_per_text.values(), default=0),
            },
            "sources": dict(sources.most_common()),
            "columns": [self.text_column, "key", *self._further_columns()],
            "encoder_fingerprint": self.encoder_fingerprint,
            "query_tokens_hash": self.query_tokens_hash,
            "preprocessing_hash": self.preprocessing_hash,
            "index_factory": self.index_factory,
            "retrieval": self.retrieval,
            "licenses": self.licenses,
        }

    def _further_columns(self) -> list[str]:
        return [name for name in self.columns.column_names if name != self.text_column]

    # Editing it

    def _change(self, columns: pa.Table, keys: KeyRows) -> Self:
        """The one place where rows are replaced: both at once, after everything that can fail."""
        self._set_up(columns, keys)
        return self

    def add(self, texts: Sequence[str], keys: Any, /, **columns: Any) -> Self:
        """
        Adds rows. Columns that the store has and the call does not name are left empty for the new rows.

        Args:
            texts (`Sequence[str]`): One a row.
            keys (array or tensor of shape `(rows, dim)`): Keys of the same encoder as the store's.
            **columns: Values of further columns, a value a row or one for all.

        Returns:
            The store itself. Models that hold it see the change at their next caption.
        """
        new, keys = self._check_rows(texts, keys, self.dim, self.key_rows.dtype, columns)
        return self._append(new, keys)

    def _append(self, new: pa.Table, keys: np.ndarray) -> Self:
        parts = list(self._parts)
        if new.schema != parts[0].schema:
            try:
                schema = pa.unify_schemas([parts[0].schema, new.schema])
                parts, new = [_aligned(part, schema) for part in parts], _aligned(new, schema)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ValueError(
                    f"A column of the new rows has another type than the {self.store_word}'s: {error}."
                ) from error
        parts.append(new)
        while len(parts) > 1 and len(parts[-2]) < 2 * len(parts[-1]):  # few parts, each row moved O(log rows) times
            last = parts.pop()
            parts[-1] = pa.concat_tables([parts[-1], last]).combine_chunks()
        origin = self.origin
        self._change(parts[0], self.key_rows.append(keys))
        self._parts, self._columns, self.origin = parts, None, origin
        return self

    def remove(self, texts: Iterable[str], /) -> Self:
        """Removes every row of these texts. Unknown ones are an error, and nothing is removed."""
        drop = self._rows_of(texts)
        return self._keep(~drop)

    def _keep(self, mask: np.ndarray) -> Self:
        return self._change(self._filtered(mask), self.key_rows.keep(mask.nonzero()[0]))

    def _filtered(self, mask: np.ndarray) -> pa.Table:
        return self.columns.filter(pa.array(mask))

    def _rows_of(self, texts: Iterable[str]) -> np.ndarray:
        """Marks the rows of some texts, all of which must be known."""
        wanted = [texts] if isinstance(texts, str) else list(texts)
        found = self._marked(wanted)
        known = set(self.columns[self.text_column].filter(pa.array(found)).to_pylist())
        unknown = sorted({str(text) for text in wanted} - known)
        if unknown:
            listed = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
            raise KeyError(f"The {self.store_word} has no {self.text_word} {listed}; see `.{self.text_word}s`.")
        return found

    def _marked(self, texts: Sequence[str]) -> np.ndarray:
        wanted = pa.array([str(text) for text in texts], pa.string())
        return pc.is_in(self.columns[self.text_column], value_set=wanted).to_numpy().astype(bool)

    def rename(self, texts: Mapping[str, str], /) -> Self:
        """Gives texts another wording, `{old: new}`; rows of an old one join those of the new one."""
        rows = self._rows_of(texts)
        new = {old: self._check_text(text, f"the new {self.text_word} of {old!r}") for old, text in texts.items()}
        place = self.columns.column_names.index(self.text_column)
        encoded = self.columns[self.text_column].combine_chunks().dictionary_encode()
        words = pa.array([new.get(text, text) for text in encoded.dictionary.to_pylist()], pa.string())
        column = words.take(encoded.indices) if rows.any() else self.columns[self.text_column]
        return self._change(self.columns.set_column(place, self.text_column, column), self.key_rows)

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
        columns = self.columns
        old = columns[name].to_pylist() if name in columns.column_names else [None] * len(self)
        if values is None:
            return self._change(
                columns.drop_columns([name]) if name in columns.column_names else columns, self.key_rows
            )
        if isinstance(values, Mapping):
            self._rows_of(values)
            new = [values.get(text, value) for text, value in zip(self.texts, old, strict=True)]
        else:
            new = list(values)
        if len(new) != len(self):
            raise ValueError(f"Column {name!r} has {len(new)} values for {len(self)} rows.")
        array = as_picture(pa.array(new))
        if name in columns.column_names:
            columns = columns.set_column(columns.column_names.index(name), name, array)
        else:
            columns = columns.append_column(name, array)
        return self._change(columns, self.key_rows)

    # Making others of it

    def copy(self) -> Self:
        """Returns a store with the same rows, to edit without touching this one. Rows are shared until then."""
        return self._sibling(self.columns, self.key_rows)

    def _sibling(self, columns: pa.Table, keys: KeyRows) -> Self:
        return self.assemble(columns, keys, **self.settings)

    def astype(self, dtype: str) -> Self:
        """Returns a store whose keys are kept as `"float32"` or `"float16"`."""
        if dtype not in KEY_DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(KEY_DTYPES)}; got {dtype!r}.")
        return self._sibling(self.columns, self.key_rows.astype(dtype))

    def subset(self, texts: Iterable[str] | Callable[[str], bool], /) -> Self:
        """Returns a store with the rows of these texts, or of the texts for which a function is true."""
        if callable(texts):
            mask = self._marked([text for text in dict.fromkeys(self.texts) if texts(text)])
        else:
            mask = self._rows_of(texts)
        return self._sibling(self._filtered(mask), self.key_rows.keep(mask.nonzero()[0]))

    def merge(self, other: Self) -> Self:
        """
        Returns a store with this one's rows followed by those of another one that it lacks.

        A row is the same where text and key (and `identity_columns`) are; what stands in both is taken once, as often
        as it stands in the one that repeats it more.

        Raises:
            ValueError: The keys come from different encoders.
        """
        self._check_comparable(other)
        have = Counter(self._row_ids())
        lacking = np.zeros(len(other), dtype=bool)
        for row, identity in enumerate(other._row_ids()):
            lacking[row] = have[identity] == 0
            have[identity] -= not lacking[row]
        rows = lacking.nonzero()[0]
        merged = self.copy()
        merged.licenses = {**other.licenses, **self.licenses}
        merged.encoder_fingerprint = self.encoder_fingerprint or other.encoder_fingerprint
        merged.query_tokens_hash = self.query_tokens_hash or other.query_tokens_hash
        merged.preprocessing_hash = self.preprocessing_hash or other.preprocessing_hash
        if len(rows):
            keys = check_keys(other.key_rows.take(rows), len(rows), self.dim, self.key_rows.dtype)
            merged._append(other.columns.take(pa.array(rows)), keys)
        return merged

    def difference(self, other: Self) -> Self:
        """Returns a store with the rows that another one does not have; see [`merge`] for which are the same."""
        self._check_comparable(other)
        theirs = set(other._row_ids())
        mask = np.array([identity not in theirs for identity in self._row_ids()], dtype=bool)
        return self._sibling(self._filtered(mask), self.key_rows.keep(mask.nonzero()[0]))

    def diff(self, other: Self) -> StoreDifference:
        """Lists what leads from this store to another one, such as a later revision of it."""
        if self.dim != other.dim:
            raise ValueError(f"Keys of dimension {self.dim} and {other.dim} cannot be compared.")
        return compare_rows(
            (self.texts, self._row_ids(), self.key_rows, self.columns.drop_columns([self.text_column])),
            (other.texts, other._row_ids(), other.key_rows, other.columns.drop_columns([self.text_column])),
        )

    def _check_comparable(self, other: RetrievalStore) -> None:
        if not isinstance(other, type(self)):
            raise TypeError(f"Expected a {type(self).__name__}, got {type(other).__name__}.")
        prints = self.encoder_fingerprint, other.encoder_fingerprint
        if self.dim != other.dim or (None not in prints and prints[0] != prints[1]):
            encoders = " and ".join(f"{(fingerprint or 'unknown')[:12]}" for fingerprint in prints)
            raise ValueError(
                f"These {self.store_word} rows come from different encoders ({encoders}, keys of dimension {self.dim} "
                f"and {other.dim}); their keys cannot be compared. Rebuild one with the other's model."
            )
        if None not in (seen := {self.preprocessing_hash, other.preprocessing_hash}) and len(seen) > 1:
            raise ValueError(
                f"The photos of these {self.store_word} rows were prepared by different image processors (sizes, "
                "crops or means); their keys cannot be compared. Rebuild one with the other's processor."
            )

    def _row_ids(self) -> list[bytes]:
        """Identity of each row: hash of text, identity columns and key."""
        present = [name for name in self.identity_columns if name in self.columns.column_names]
        return row_identities(self.texts, self.columns.select(present), self.key_rows)

    # Searching it

    @property
    def index_factory(self) -> str:
        """`str`: FAISS factory string of the index: the one that was asked for, or the default for this many rows."""
        if self._index_factory is not None:
            return self._index_factory
        factory, built = default_index_factory(len(self), self.dim), self.key_rows.buffer.index
        return factory if built is None or factory == "Flat" else built.factory

    @index_factory.setter
    def index_factory(self, factory: str | None) -> None:
        self._index_factory = factory
        self.origin = object()

    @property
    def exact(self) -> bool:
        """`bool`: Whether a search compares with every row."""
        return self.index_factory == "Flat"

    @property
    def index(self) -> Any:
        """`faiss.Index`: Inner-product index over the normalised keys, in the order of the rows."""
        found = None if self.exact else self.row_index()
        if found is None:
            return make_index("Flat", self.key_rows)
        return found.index if found.index.ntotal == len(self) else make_index(found.factory, self.key_rows)

    def row_index(self) -> RowIndex | None:
        """The index that the stores on this buffer share, built when first needed; `None` if the rows are too few."""
        buffer, factory = self.key_rows.buffer, self.index_factory
        if buffer.index is None or buffer.index.factory != factory:
            logger.info(f"Building the index {factory} over {buffer.used} rows.")
            try:
                buffer.index = RowIndex(factory, make_index(factory, KeyRows(buffer, buffer.used)))
            except TooFewRowsError as error:
                logger.warning_once(f"{error} Every row is compared instead.")
                return None
        buffer.index.follow(buffer)
        return buffer.index

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
            fewer than that, the places at the end have the score -inf and the row -1.
        """
        queries = normalize_keys(check_keys(queries, len(queries), self.dim, word=self.store_word))
        keys = self.key_rows if key_rows is None else key_rows
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


__all__ = ["RetrievalStore", "StoreDifference"]
