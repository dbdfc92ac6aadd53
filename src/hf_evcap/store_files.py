"""Files of a retrieval store: parquet rows, manifest and hashes, written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .store_keys import BLOCK_ROWS, KeyBuffer, KeyRows, arrow_numbers, dictionary_codes


MANIFEST_NAME = "memory_config.json"
INDEX_NAME = "index.faiss"
DATA_FOLDER = "data"
LAYERS_FOLDER = "layers"  # of several memories in one folder
LAYERS_FORMAT = "visual-name-memory-layers"
CARD_NAME = "README.md"
FORMAT_VERSION = 1
FILE_BYTES = 480 << 20  # of keys in one parquet file; the Hub likes files below 500 MB
ROW_GROUP_BYTES = 64 << 20
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_OWN_ENTRIES = {DATA_FOLDER, LAYERS_FOLDER, MANIFEST_NAME, INDEX_NAME, CARD_NAME}
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


# Hashes


def hash_rows(texts: Iterable[str], dim: int, keys: Iterable[np.ndarray]) -> str:
    """SHA-256 over ordered names (or captions) and keys as float32; the same rows give the same hash anywhere."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    digest.update(dim.to_bytes(4, "little"))
    for block in keys:
        digest.update(np.ascontiguousarray(block, dtype="<f4").data)
    return digest.hexdigest()


def hash_columns(table: pa.Table) -> str:
    """SHA-256 over the values of columns, whatever their chunks and whichever order the columns stand in."""
    digest = hashlib.sha256()
    for name in sorted(table.column_names):
        column = table[name]
        digest.update(f"{name}:{column.type}".encode())
        if pa.types.is_nested(column.type):
            for chunk in column.iterchunks():
                for value in chunk:
                    digest.update(repr(value.as_py()).encode())
            continue
        encoded = column.combine_chunks().dictionary_encode()
        chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
        for chunk in chunks:
            digest.update(repr(chunk.dictionary.to_pylist()).encode())
            digest.update(dictionary_codes(chunk).astype("<i4").data)
    return digest.hexdigest()


# Rows


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


def write_rows(folder: Path, batches: Iterable[pa.Table], rows: int, dim: int) -> list[str]:
    """
    Streams rows into `data/train-*.parquet`.

    Returns:
        `list[str]`: The files, relative to `folder`.
    """
    (folder / DATA_FOLDER).mkdir(exist_ok=True)
    row_bytes = 4 * max(dim, 1)
    files = max(1, -(-rows * row_bytes // FILE_BYTES))
    rows_per_file = -(-rows // files) or 1
    group_rows = max(1024, ROW_GROUP_BYTES // row_bytes)
    names = [f"{DATA_FOLDER}/train-{number:05d}-of-{files:05d}.parquet" for number in range(files)]
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


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        if isinstance(error, ValueError) and not isinstance(error, (pa.ArrowException, UnicodeDecodeError)):
            raise
        raise ValueError(f"The rows in {file} cannot be read ({error}). Restore or rebuild them.") from error


# Manifest


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Reads `memory_config.json` and checks that it is one, of this kind and of a known version."""
    file = folder / MANIFEST_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {kind.replace('-', ' ')}: {MANIFEST_NAME} is missing.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{file} must hold a JSON object, it holds {type(manifest).__name__}.")
    if manifest.get("format") != kind:
        raise ValueError(f"{file} describes a {manifest.get('format')!r}, not a {kind!r}.")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{file} is of format {version}, this hf_evcap reads up to {FORMAT_VERSION}. Upgrade with "
            "`pip install -U hf_evcap`."
        )
    return manifest


def holds_layers(folder: Path) -> bool:
    """Whether a folder holds several memories."""
    try:
        return read_manifest(folder, LAYERS_FORMAT)["format"] == LAYERS_FORMAT
    except (OSError, ValueError):
        return False


def data_files(folder: Path) -> list[Path]:
    """The parquet files of a store, in order."""
    files = sorted((folder / DATA_FOLDER).glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no rows: there is no {DATA_FOLDER}/*.parquet.")
    return files


# Folders


def write_folder(target: str | os.PathLike, write_files: Callable[[Path], None]) -> None:
    """
    Writes a folder under another name and puts it in the place of an earlier one when it is complete.

    Args:
        target (`str` or `os.PathLike`): The folder. Entries that are not a store's own, such as `.git`, are kept.
        write_files (`Callable[[Path], None]`): Writes the files into the folder that it is given.

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there before is unchanged.
    """
    target = Path(target)
    if target.is_file():
        raise NotADirectoryError(f"{target} is a file; give a folder.")
    staging: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        write_files(staging)
        staging.chmod(0o755)
        if target.exists():
            _exchange(staging, target)
            for entry in staging.iterdir():  # now the earlier one
                if entry.name not in _OWN_ENTRIES:
                    shutil.move(str(entry), target / entry.name)
        else:
            os.replace(staging, target)
    except OSError as error:
        raise _explain(error, target) from error
    except RuntimeError as error:  # how faiss reports that it cannot write
        if "write" not in str(error) and "space" not in str(error):
            raise
        raise _explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), target) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _exchange(first: Path, second: Path) -> None:
    """Swaps two folders: in one step where the system can, so that `second` exists at every moment."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            names = os.fsencode(first), os.fsencode(second)
            if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
                return
    aside = Path(tempfile.mkdtemp(prefix=f".{second.name}-old-", dir=second.parent))
    os.replace(second, aside)
    os.replace(first, second)
    os.replace(aside, first)


def _explain(error: OSError, target: Path) -> OSError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    before = "; what was there before is unchanged" if target.exists() else ""
    message = f"Cannot write {target}: {reason}{before}. Free some space or choose another folder"
    return OSError(error.errno, message) if error.errno else OSError(message)


__all__ = ["MANIFEST_NAME", "hash_columns", "hash_rows", "read_columns", "read_keys", "read_manifest", "write_folder"]
