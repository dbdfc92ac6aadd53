"""Rows of a retrieval store as parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .store_folder import free_name
from .store_keys import BLOCK_ROWS, KeyBuffer, KeyRows, arrow_numbers
from .store_manifest import DATA_FOLDER


FILE_BYTES = 480 << 20  # of keys in one parquet file; the Hub likes files below 500 MB
ROW_GROUP_BYTES = 64 << 20
MAX_DIM = 1 << 16
UNPACKED_BYTES = 256 << 20  # of keys that any file may claim to hold ...
UNPACKED_RATIO = 200  # ... and how many times its own size a larger one may: rows of one photo share a key
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def key_column(block: np.ndarray) -> pa.FixedSizeListArray:
    """Keys of shape `(rows, dim)` as an Arrow column. Blocks stay far below the 2**31 values an array may hold."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(block).reshape(-1)), block.shape[1])


def row_batches(columns: pa.Table, keys: KeyRows, text_column: str) -> Iterator[pa.Table]:
    """Goes through rows as tables that hold the text, the key and then the further columns."""
    order = [text_column, "key", *(name for name in columns.column_names if name != text_column)]
    start = 0
    for block in keys.blocks(BLOCK_ROWS):
        batch = columns.slice(start, len(block)).append_column("key", key_column(block))
        yield batch.select(order)
        start += len(block)
    if start == 0:
        empty = key_column(np.zeros((0, keys.dim), keys.dtype))
        yield columns.append_column("key", empty).select(order)


def write_rows(folder: Path, batches: Iterable[pa.Table], rows: int, dim: int, present: Path) -> list[str]:
    """
    Streams rows into `data/train-*.parquet`.

    Args:
        folder (`Path`): Where to.
        batches (`Iterable[pyarrow.Table]`): The rows; `rows` of them, with keys of dimension `dim`.
        present (`Path`): Folder to which the files will move; names that are free there are chosen.

    Returns:
        `list[str]`: The files, relative to `folder`.
    """
    (folder / DATA_FOLDER).mkdir(exist_ok=True)
    row_bytes = 4 * max(dim, 1)
    files = max(1, -(-rows * row_bytes // FILE_BYTES))
    rows_per_file = -(-rows // files) or 1
    group_rows = max(1024, ROW_GROUP_BYTES // row_bytes)
    names = [free_name(present, f"{DATA_FOLDER}/train-{number:05d}-of-{files:05d}.parquet") for number in range(files)]
    pending: list[pa.Table] = []
    writer, written, number = None, 0, 0

    def flush() -> None:
        nonlocal writer, pending
        if pending:
            table = pa.concat_tables(pending)
            if writer is None:
                # Random floats do not fold in a dictionary; repeated ones do under zstd.
                repeating = [name for name in table.column_names if name != "key"]
                schema = _with_features(table.schema)
                writer = pq.ParquetWriter(folder / names[number], schema, compression="zstd", use_dictionary=repeating)
            writer.write_table(table.replace_schema_metadata(writer.schema.metadata), row_group_size=group_rows)
            pending = []

    try:
        for batch in batches:
            while True:
                room = rows_per_file - written
                pending.append(batch.slice(0, room))
                written += min(room, len(batch))
                if written < rows_per_file or number + 1 == files:
                    break
                flush()
                if writer is not None:
                    writer.close()
                writer, written, number, batch = None, 0, number + 1, batch.slice(room)
            if sum(map(len, pending)) >= group_rows:
                flush()
        flush()
    finally:
        if writer is not None:
            writer.close()
    return names[: number + 1]


def as_picture(column: Any) -> Any:
    """Gives a column of encoded pictures, `{"bytes": ..., "path": ...}`, the type by which `datasets` knows them."""
    if pa.types.is_struct(column.type) and {field.name for field in column.type} == {"bytes", "path"}:
        return column.cast(PICTURE)
    return column


def _with_features(schema: pa.Schema) -> pa.Schema:
    """Marks columns of encoded pictures as such for `datasets`, which otherwise shows bytes."""
    pictures = [field.name for field in schema if field.type == PICTURE]
    if not pictures:
        return schema.remove_metadata()
    from datasets import Features, Image

    features = Features.from_arrow_schema(schema.remove_metadata())
    for name in pictures:
        features[name] = Image()
    return schema.with_metadata(features.arrow_schema.metadata)


def read_columns(files: list[Path], text_column: str) -> pa.Table:
    """Reads every column but the keys."""
    tables = []
    for file in files:
        with _readable(file):
            schema = pq.read_schema(file)
            missing = {text_column, "key"} - set(schema.names)
            if missing:
                raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; it holds {schema.names}.")
            with pq.ParquetFile(file) as opened:  # `pq.read_table` would import pandas
                tables.append(opened.read(columns=[name for name in schema.names if name != "key"]))
    try:
        table = pa.concat_tables(tables).replace_schema_metadata(None)
    except pa.ArrowInvalid as error:
        raise ValueError(f"The files in {files[0].parent} have different columns ({error}).") from error
    texts = table[text_column]
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)) or texts.null_count:
        raise ValueError(f"The column {text_column!r} in {files[0].parent} must hold a string in every row.")
    return table


def read_keys(files: list[Path]) -> KeyRows:
    """Reads the keys, a row group at a time, with room for some more."""
    rows, kinds = 0, []
    for file in files:
        with _readable(file):
            metadata, kind = pq.read_metadata(file), pq.read_schema(file).field("key").type
            if not pa.types.is_fixed_size_list(kind) or not pa.types.is_floating(kind.value_type):
                raise ValueError(f"The column 'key' in {file} must hold fixed-size lists of floats, it holds {kind}.")
            _check_claim(file, metadata.num_rows, kind.list_size)
            rows += metadata.num_rows
            kinds.append(kind)
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"The files in {files[0].parent} hold different keys: {', '.join(sorted(map(str, kinds)))}.")
    dim, dtype = kinds[0].list_size, np.float16 if pa.types.is_float16(kinds[0].value_type) else np.float32
    buffer = KeyBuffer(np.empty((0, dim), dtype), spare=rows + rows // 4 + 64)
    for file in files:
        with _readable(file), pq.ParquetFile(file) as opened:
            for group in range(opened.num_row_groups):
                for chunk in opened.read_row_group(group, columns=["key"])["key"].iterchunks():
                    values = chunk.flatten()  # unlike `.values` it follows the chunk's offset
                    if chunk.null_count or values.null_count or len(values) != len(chunk) * dim:
                        raise ValueError(f"Keys in {file} have missing numbers.")
                    buffer.append(arrow_numbers(values).reshape(len(chunk), dim))
    return KeyRows(buffer, buffer.used)


def _check_claim(file: Path, rows: int, dim: int) -> None:
    """Refuses a file that says it holds more than it can, before room is made for it."""
    claimed, size = 4 * rows * dim, file.stat().st_size
    if not 0 < dim <= MAX_DIM:
        raise ValueError(f"The keys in {file} have dimension {dim:,}; it must lie between 1 and {MAX_DIM:,}.")
    if claimed > max(UNPACKED_BYTES, UNPACKED_RATIO * size):
        raise ValueError(f"{file}, of {size:,} bytes, says that it holds {rows:,} keys of {dim} numbers: it cannot.")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        if isinstance(error, ValueError) and not isinstance(error, (pa.ArrowException, UnicodeDecodeError)):
            raise
        raise ValueError(f"The rows in {file} cannot be read ({error}). Restore or rebuild them.") from error


__all__ = ["as_picture", "key_column", "read_columns", "read_keys", "row_batches", "write_rows"]
