"""Builds memories and datastores shard by shard: interrupted, a build goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm
from transformers.utils import logging

from .output_folders import check_output
from .resumable_shards import PLAN_NAME, RESULT_NAME, ResumableShards
from .store_files import read_columns
from .store_keys import KeyBuffer, KeyRows
from .store_manifest import MANIFEST_NAME
from .whole_files import write_json


@dataclass
class BuildReport:
    """
    What a build did.

    Args:
        rows, photos (`int`): Rows of the store and photos (or captions) that they come from.
        skipped (`dict[int, str]`): Numbers of photos (or captions) that could not be used, and why.
        shards, resumed (`int`): Shards of the build, and how many of them an earlier run had made.
    """

    rows: int = 0
    photos: int = 0
    skipped: dict[int, str] = field(default_factory=dict)
    shards: int = 0
    resumed: int = 0


@dataclass
class EncodedRows:
    """
    Rows of a batch.

    Args:
        texts (`list[str]`), keys (`np.ndarray` of shape `(rows, dim)`): Of each row.
        columns (`dict[str, list]`): Further columns.
        skipped (`dict[int, str]`): Numbers of items that could not be used, and why.
    """

    texts: list[str]
    keys: np.ndarray
    columns: dict[str, list[Any]] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)


def build_store(
    store_class: Any,
    items: int,
    encode: Callable[[range], EncodedRows],
    save_directory: str | os.PathLike,
    *,
    dim: int,
    settings: Mapping[str, Any],
    plan: Mapping[str, Any],
    batch_size: int,
    shard_size: int,
    restart: bool = False,
    overwrite: bool = False,
    dtype: str = "float32",
    unit: str = "photo",
) -> BuildReport | None:
    """
    Encodes items into a store's folder.

    Finished shards are kept beside the folder until the store is complete, so a build that was killed goes on from
    there. An item always shares its batch with the same others, so an interrupted build, or one that
    `accelerate launch` spread over processes, gives the same store to the bit on the same kind of machine.

    Args:
        store_class: [`VisualNameMemory`] or [`CaptionDatastore`].
        items (`int`): How many there are.
        encode (`Callable`): Gives the rows of the items of a batch, by their numbers.
        save_directory (`str` or `os.PathLike`): Folder of the store; written when everything is encoded.
        dim (`int`): Dimension of the keys.
        settings (`Mapping`): The store's settings, as its constructor takes them.
        plan (`Mapping`): What else the rows depend on. Shards of another plan are refused.
        batch_size, shard_size (`int`): Items encoded at once, and those after which progress is kept.
        restart (`bool`, *optional*, defaults to `False`): Forget what an earlier run made.
        overwrite (`bool`, *optional*, defaults to `False`): Replace what `save_directory` holds.
        dtype (`str`, *optional*, defaults to `"float32"`): Precision of the kept keys.
        unit (`str`, *optional*, defaults to `"photo"`): What the progress bar counts.

    Returns:
        [`BuildReport`] in the main process, `None` in the others.

    Raises:
        ValueError: An unfinished build of another plan lies beside the folder, or the folder is not empty.
    """
    target = Path(os.path.realpath(save_directory))  # a link is followed now, not when the folder is exchanged
    work = target.with_name(f"{target.name}.building")
    identity = ("encoder_fingerprint", "query_tokens_hash", "preprocessing_hash")
    fingerprints = {name: settings.get(name) for name in identity}
    sizes = {"batch_size": batch_size, "shard_size": shard_size}
    full_plan = {**plan, **fingerprints, **sizes}
    check_output(target, overwrite or (not restart and _is_result(work, full_plan, target)))
    shards = ResumableShards(work, full_plan, items, shard_size, restart=restart)
    processes = shards.processes
    with tqdm(
        total=min(items, len(shards.mine) * shard_size),
        initial=(len(shards.mine) - len(shards.missing)) * shard_size,
        unit=unit,
        disable=not processes.is_main_process or not logging.is_progress_bar_enabled(),
    ) as progress:
        for shard in shards.missing:
            store, skipped, numbers = store_class.empty(dim), {}, shards.items_of(shard)
            for start in range(numbers.start, numbers.stop, batch_size):
                batch = range(start, min(start + batch_size, numbers.stop))
                rows = encode(batch)
                skipped.update(rows.skipped)
                if rows.texts:
                    store.add(rows.texts, rows.keys, **rows.columns)
                progress.update(len(batch))
            metadata = {"skipped": json.dumps({str(number): reason for number, reason in skipped.items()})}
            shards.write(shard, partial(pq.write_table, store.table.replace_schema_metadata(metadata)))
    processes.wait_for_everyone()
    if not processes.is_main_process:
        return None
    report = _merge(store_class, shards.files, work, target, dtype, dim, settings)
    report.photos, report.shards, report.resumed = items, len(shards.files), shards.resumed
    shards.discard()
    return report


def _is_result(work: Path, plan: Mapping[str, Any], target: Path) -> bool:
    """Whether the folder holds what the shards beside it gave, by a run that was killed right after."""
    try:
        planned, result, manifest = (
            json.loads(file.read_text(encoding="utf-8"))
            for file in (work / PLAN_NAME, work / RESULT_NAME, target / MANIFEST_NAME)
        )
        return planned == json.loads(json.dumps(plan)) and result["sha256"] == manifest["sha256"]
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _merge(
    store_class: Any,
    parts: list[Path],
    work: Path,
    target: Path,
    dtype: str,
    dim: int,
    settings: Mapping[str, Any],
) -> BuildReport:
    """Puts the shards together in order. Keys pass through a file, so memory use does not grow with their number."""
    report = BuildReport()
    tables = []
    for part in parts:
        skipped = json.loads((pq.read_schema(part).metadata or {}).get(b"skipped", b"{}"))
        report.skipped.update({int(number): reason for number, reason in skipped.items()})
        tables.append(read_columns([part], store_class.text_column))
    columns = (
        pa.concat_tables(tables, promote_options="default").combine_chunks()
        if tables
        else pa.table({store_class.text_column: pa.array([], pa.string())})
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
    store = store_class.assemble(columns, KeyRows(buffer, buffer.used), **settings)
    write_json(work / RESULT_NAME, {"sha256": store.fingerprint})
    store.save_pretrained(target)
    return report


__all__ = ["BuildReport", "EncodedRows", "build_store"]
