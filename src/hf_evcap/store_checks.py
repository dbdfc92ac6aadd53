"""What rows of a retrieval store may be, which of them a condition means, and which stores can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from .store_files import as_picture
from .store_keys import KEY_DTYPES, arrow_numbers, check_keys
from .store_snapshot import StoreSnapshot


def check_text(text: Any, place: str | int, word: str, max_characters: int) -> str:
    """
    Returns a row's text with its white space folded, or says why it cannot be one.

    Args:
        place (`str` or `int`), word (`str`): Where it stands, or its row, and what it is called, for messages.
        max_characters (`int`): It may have.
    """
    if not isinstance(text, str):
        raise TypeError(f"A {word} must be a string; {_named(place)} is {type(text).__name__}.")
    folded = " ".join(text.split())
    if not folded:
        raise ValueError(f"A {word} must not be empty; {_named(place)} is {text!r}.")
    if len(folded) > max_characters:
        raise ValueError(
            f"A {word} may have at most {max_characters:,} characters; {_named(place)} has {len(folded):,} "
            f"({folded[:40]!r}...). Shorten it."
        )
    if not folded.isascii():
        try:
            folded.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"A {word} must be valid Unicode; {_named(place)} is not ({error.reason}).") from error
    return folded


def _named(place: str | int) -> str:
    return f"row {place}" if isinstance(place, int) else place


def split_table(table: pa.Table, text_column: str, word: str, dtype: str) -> tuple[pa.Table, np.ndarray]:
    """Takes a table apart into its columns but the keys, and the keys, checked, of shape `(rows, dim)`."""
    missing = {text_column, "key"} - set(table.column_names)
    if missing:
        raise ValueError(f"A {word} needs the columns {text_column} and key; {', '.join(sorted(missing))} is missing.")
    kind = table.schema.field("key").type
    if not pa.types.is_fixed_size_list(kind):
        raise ValueError("The column key must hold fixed-size lists of floats, one vector a row.")
    chunks = [arrow_numbers(chunk.flatten()) for chunk in table["key"].iterchunks()]
    values = np.concatenate([*chunks, np.zeros(0, np.float32)])
    if dtype not in KEY_DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(KEY_DTYPES)}; got {dtype!r}.")
    keys = check_keys(values.reshape(len(table), kind.list_size), len(table), None, np.dtype(dtype))
    return table.drop_columns(["key"]), keys


def check_columns(text_column: str, texts: list[str], columns: Mapping[str, Any]) -> pa.Table:
    """Makes a table of checked texts and further columns: a value a row, or one for all."""
    reserved = {text_column, "key"} & set(columns)
    if reserved:
        raise ValueError(f"{sorted(reserved)} cannot be further columns: every row has them already.")
    arrays: dict[str, Any] = {text_column: pa.array(texts, pa.string())}
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
    return pa.table(arrays)


def with_column(columns: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Puts a further column into a table, in the place of one of the same name where there is one."""
    if name in columns.column_names:
        return columns.set_column(columns.column_names.index(name), name, as_picture(values))
    return columns.append_column(name, as_picture(values))


def select_rows(
    store: Any,
    now: StoreSnapshot,
    texts: Iterable[str] | None = None,
    rows: Iterable[int] | None = None,
    columns: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """
    Marks the rows that fulfil all conditions.

    Args:
        store ([`RetrievalStore`]): Whose words messages use, and whose `column_defaults` count.
        now ([`StoreSnapshot`]): The rows.
        texts (`Iterable[str]`, *optional*): Rows of these texts, each of which must have one.
        rows (`Iterable[int]`, *optional*): Rows with these ids.
        columns (`Mapping[str, Any]`, *optional*): Rows with this value of a column, or one of these.

    Raises:
        KeyError: A text has no such row, or there is none at all.
        ValueError: There is no such column.
    """
    columns, count = columns or {}, len(now)
    mask = np.ones(count, dtype=bool)
    for column, values in columns.items():
        mask &= _with_value(store, now, column, values)
    if rows is not None:
        ids = np.asarray(list(rows), dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < count:
            raise KeyError(f"The {store.store_word} has {count} rows, and none with the id {ids[ids.argmax()]}.")
        chosen = np.zeros(count, dtype=bool)
        chosen[ids] = True
        mask &= chosen
    if texts is not None:
        wanted = [str(text) for text in ([texts] if isinstance(texts, str) else texts)]
        mask &= now.marked(now.text_column, wanted)
        unknown = sorted(set(wanted) - set(now.columns[now.text_column].filter(pa.array(mask)).to_pylist()))
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            such = f"no {store.text_word}" if rows is None and not columns else "no such row of"
            listed = ", ".join(map(repr, unknown[:5]))
            raise KeyError(f"The {store.store_word} has {such} {listed}{more}; see `.{store.text_word}s`.")
    elif not mask.any() and (columns or rows is not None):
        asked = [f"{column}={value!r}" for column, value in columns.items()]
        raise KeyError(f"The {store.store_word} has no row with {', '.join(asked) or 'these ids'}.")
    return mask


def _with_value(store: Any, now: StoreSnapshot, column: str, values: Any) -> np.ndarray:
    wanted = [values] if values is None or isinstance(values, (str, bool, int, float)) else list(values)
    default = store.column_defaults.get(column)
    if column not in now.columns.column_names:
        if default is None:
            have = ", ".join(now.further_columns) or "none"
            raise ValueError(f"The {store.store_word} has no column {column!r}; its further columns are: {have}.")
        return np.full(len(now), default in wanted)
    mask = now.marked(column, wanted)
    if default is not None and default in wanted:
        mask |= now.columns[column].is_null().to_numpy()
    return mask


def check_comparable(rows: StoreSnapshot, theirs: StoreSnapshot, word: str) -> None:
    """
    Compares where the keys of two stores come from.

    Raises:
        ValueError: They come from different encoders, or from photos that were prepared differently.
    """
    prints = rows.settings.encoder_fingerprint, theirs.settings.encoder_fingerprint
    if rows.dim != theirs.dim or (None not in prints and prints[0] != prints[1]):
        encoders = " and ".join(f"{(fingerprint or 'unknown')[:12]}" for fingerprint in prints)
        raise ValueError(
            f"These {word} rows come from different encoders ({encoders}, keys of dimension {rows.dim} and "
            f"{theirs.dim}); their keys cannot be compared. Rebuild one with the other's model."
        )
    prepared = {rows.settings.preprocessing_hash, theirs.settings.preprocessing_hash}
    if None not in prepared and len(prepared) > 1:
        raise ValueError(
            f"The photos of these {word} rows were prepared by different image processors (sizes, crops or means); "
            "their keys cannot be compared. Rebuild one with the other's processor."
        )


__all__ = ["check_columns", "check_comparable", "check_text", "select_rows", "split_table", "with_column"]
