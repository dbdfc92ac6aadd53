"""Builds a memory shard by shard: interrupted, it goes on where it was; many processes give what one would give."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm
from transformers.utils import logging

from ..memory_evcap import VisualNameMemory
from ..photo_loading import load_photo
from ..store_files import read_columns
from ..store_keys import KeyBuffer, KeyRows
from ..store_photos import encode_photos
from .photo_sources import NamedPhotos
from .resumable_shards import ResumableShards


logger = logging.get_logger(__name__)


@dataclass
class BuildReport:
    """
    What a build did.

    Args:
        rows, photos (`int`): Rows of the memory and photos that they come from.
        skipped (`dict[int, str]`): Numbers of photos that could not be used, and why.
        shards, resumed (`int`): Shards of the build, and how many of them an earlier run had made.
    """

    rows: int = 0
    photos: int = 0
    skipped: dict[int, str] = field(default_factory=dict)
    shards: int = 0
    resumed: int = 0


def build_memory(
    model: Any,
    processor: Any,
    photos: NamedPhotos,
    save_directory: str | os.PathLike,
    *,
    batch_size: int = 32,
    shard_size: int = 512,
    on_error: str = "raise",
    restart: bool = False,
    index_factory: str | None = None,
    dtype: str = "float32",
    licenses: Mapping[str, str] | None = None,
) -> BuildReport | None:
    """
    Encodes named photos into a memory folder.

    Finished shards are kept beside the folder until the memory is complete, so a build that was killed goes on from
    there. A photo always shares its batch with the same others, so an interrupted build, or one that
    `accelerate launch` spread over processes, gives the same memory to the bit on the same kind of machine.

    Args:
        model ([`EVCapForConditionalGeneration`]), processor ([`EVCapProcessor`]): Encode the photos.
        photos ([`NamedPhotos`]): What to encode.
        save_directory (`str` or `os.PathLike`): Folder of the memory; written when everything is encoded.
        batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
        shard_size (`int`, *optional*, defaults to 512): Photos after which progress is kept.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` leaves out photos that cannot be read.
        restart (`bool`, *optional*, defaults to `False`): Forget what an earlier run made.
        index_factory, dtype, licenses: As in [`VisualNameMemory`].

    Returns:
        [`BuildReport`] in the main process, `None` in the others.

    Raises:
        ValueError: An unfinished build of other photos, or by another encoder, lies beside the folder.
    """
    work = Path(f"{Path(save_directory)}.building")
    plan = {
        "photos": len(photos),
        "listing": photos.identity,
        "encoder_fingerprint": model.encoder_fingerprint,
        "query_tokens_hash": model.query_tokens_hash,
        "batch_size": batch_size,
        "shard_size": shard_size,
        "on_error": on_error,
    }
    shards = ResumableShards(work, plan, len(photos), shard_size, restart=restart)
    processes = shards.processes
    with tqdm(
        total=min(len(photos), len(shards.mine) * shard_size),
        initial=(len(shards.mine) - len(shards.missing)) * shard_size,
        unit="photo",
        disable=not processes.is_main_process or not logging.is_progress_bar_enabled(),
    ) as progress:
        for shard in shards.missing:
            memory, skipped = _encode(model, processor, photos, shards.items_of(shard), batch_size, on_error, progress)
            metadata = {"skipped": json.dumps({str(number): reason for number, reason in skipped.items()})}
            table = memory.table.replace_schema_metadata(metadata)
            shards.write(shard, partial(pq.write_table, table))
    processes.wait_for_everyone()
    if not processes.is_main_process:
        return None
    settings = {
        "encoder_fingerprint": model.encoder_fingerprint,
        "query_tokens_hash": model.query_tokens_hash,
        "index_factory": index_factory,
        "licenses": {**photos.licenses, **(licenses or {})},
    }
    report = _merge(shards.files, work, save_directory, dtype, model.memory_key_size, settings)
    report.photos, report.shards, report.resumed = len(photos), len(shards.files), shards.resumed
    shutil.rmtree(work)
    return report


def _encode(
    model: Any,
    processor: Any,
    photos: NamedPhotos,
    numbers: range,
    batch_size: int,
    on_error: str,
    progress: Any,
) -> tuple[VisualNameMemory, dict[int, str]]:
    """Encodes the photos of one shard."""
    memory = VisualNameMemory.empty(model.memory_key_size)
    skipped: dict[int, str] = {}
    for start in range(numbers.start, numbers.stop, batch_size):
        batch = range(start, min(start + batch_size, numbers.stop))
        rows, loaded = [], []
        for number in batch:
            try:
                row = photos[number]
                image = row["image"]
                loaded.append(load_photo(image() if callable(image) else image))
                rows.append(row)
            except (OSError, ValueError, TypeError) as error:
                if on_error != "skip":
                    raise ValueError(f"Photo {number} cannot be used: {error}") from error
                logger.warning(f"Skipped photo {number}: {error}")
                skipped[number] = str(error)
        if loaded:
            keys, _ = encode_photos(model, processor, loaded, "raise", start)
            places = [place for place, row in enumerate(rows) for _ in row["names"]]
            columns = sorted({column for row in rows for column in row} - {"image", "names"})
            memory.add(
                [name for row in rows for name in row["names"]],
                keys[places],
                **{column: [rows[place].get(column) for place in places] for column in columns},
            )
        progress.update(len(batch))
    return memory, skipped


def _merge(
    parts: list[Path], work: Path, target: str | os.PathLike, dtype: str, dim: int, settings: dict[str, Any]
) -> BuildReport:
    """Puts the shards together in order. Keys pass through a file, so memory use does not grow with their number."""
    report = BuildReport()
    tables = []
    for part in parts:
        skipped = json.loads((pq.read_schema(part).metadata or {}).get(b"skipped", b"{}"))
        report.skipped.update({int(number): reason for number, reason in skipped.items()})
        tables.append(read_columns([part], "name"))
    columns = (
        pa.concat_tables(tables, promote_options="default").combine_chunks() if tables else pa.table({"name": []})
    )
    report.rows = len(columns)
    kind = np.dtype(dtype)
    scratch = work / "keys.tmp"
    shape = (max(report.rows, 1), dim)
    room = np.memmap(scratch, dtype=kind, mode="w+", shape=shape)
    buffer = KeyBuffer(np.empty((0, dim), kind), spare=shape[0], array=room)
    for part in parts:
        with pq.ParquetFile(part) as opened:
            for group in range(opened.num_row_groups):
                for chunk in opened.read_row_group(group, columns=["key"])["key"].iterchunks():
                    buffer.append(chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim).astype(kind))
    memory = VisualNameMemory.assemble(columns, KeyRows(buffer, buffer.used), **settings)
    memory.save_pretrained(target)
    return report


__all__ = ["BuildReport", "build_memory"]
