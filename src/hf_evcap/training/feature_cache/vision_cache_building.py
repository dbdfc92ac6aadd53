"""Makes a [`VisionFeatureCache`] shard by shard: it goes on where it was, and many processes share the work."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from ... import __version__
from ...output_folders import check_output
from ...photo_loading import hash_photo, load_photo
from ...resumable_shards import PLAN_NAME, ResumableShards
from .vision_cache import (
    CACHE_FORMAT,
    CACHE_MANIFEST,
    CACHE_VERSION,
    FEATURE_DTYPES,
    FEATURES,
    image_settings,
    read_manifest,
    vision_fingerprint,
)


logger = logging.get_logger(__name__)

_DATASET_FILES = ("dataset_info.json", "state.json")  # with which `datasets.load_from_disk` opens the folder
PLAN_IN_MANIFEST = ("shape", "dtype", "vision_fingerprint", "image_processor", "listing")


@dataclass
class CacheReport:
    """
    What was done.

    Args:
        photos (`int`): Photos whose features are in the cache.
        bytes (`int`): Size of its shards.
        shape (`tuple[int, int]`): Patches of a photo and width of each.
        shards, resumed (`int`): Shards, and how many of them an earlier run had made.
        skipped (`dict[str, str]`): Image ids of photos that could not be used, and why.
    """

    photos: int
    bytes: int
    shape: tuple[int, int]
    shards: int
    resumed: int
    skipped: dict[str, str] = field(default_factory=dict)


def build_feature_cache(
    model: Any,
    processor: Any,
    photos: datasets.Dataset,
    output: str | os.PathLike,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    shard_size: int = 512,
    on_error: str = "raise",
    restart: bool = False,
    overwrite: bool = False,
) -> CacheReport | None:
    """
    Encodes photos with a model's vision encoder into a cache.

    Finished shards are kept beside the folder (`OUTPUT.building`) until the cache is complete. A photo always shares
    its batch with the same others, so an interrupted run, or one that `accelerate launch` spread over processes, gives
    the same cache to the bit on the same kind of machine.

    Args:
        model ([`RetrievalPreTrainedModel`]): Only its vision encoder is used.
        processor: The model's.
        photos (`datasets.Dataset`): Columns `image` and `image_id`, a row a photo; see `load_caption_data`.
        output (`str` or `os.PathLike`): Folder of the cache; written when everything is encoded.
        dtype (`str`, *optional*, defaults to `"float16"`): Precision on disk, or `"float32"`.
        batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
        shard_size (`int`, *optional*, defaults to 512): Photos after which progress is kept.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` leaves out photos that cannot be read.
        restart (`bool`, *optional*, defaults to `False`): Forget what an earlier run made, a whole cache too.
        overwrite (`bool`, *optional*, defaults to `False`): Replace what `output` holds.

    Returns:
        [`CacheReport`] in the main process, `None` in the others.

    Raises:
        OSError: The disk is full, or will be.
        ValueError: Photos without ids or with the same one, a photo that cannot be read, an unfinished or finished
            cache of something else.
    """
    for value, argument, choices in ((dtype, "dtype", FEATURE_DTYPES), (on_error, "on_error", ("raise", "skip"))):
        if value not in choices:
            raise ValueError(f"`{argument}` must be one of {', '.join(choices)}; got {value!r}.")
    output = Path(output)
    image_ids = _checked_ids(photos)
    model.eval()
    patches, width = encode_photos(model, processor, [Image.new("RGB", (64, 48))]).shape[1:]
    plan = {
        "photos": len(image_ids),
        "listing": hashlib.sha256("\n".join(image_ids).encode()).hexdigest(),
        "vision_fingerprint": vision_fingerprint(model),
        "image_processor": image_settings(processor),
        "shape": [patches, width],
        "dtype": dtype,
        "batch_size": batch_size,
        "shard_size": shard_size,
        "on_error": on_error,
    }
    finished = None if overwrite else _finished(output, plan, restart)
    if finished is not None:
        return finished
    work = Path(f"{output}.building")
    shards = ResumableShards(work, plan, len(image_ids), shard_size, suffix=".arrow", restart=restart)
    processes = shards.processes
    undecoded = photos.select_columns(["image", "image_id"])
    if isinstance(photos.features["image"], datasets.Image):
        undecoded = undecoded.cast_column("image", datasets.Image(decode=False))
    writer = _ShardWriter(model, processor, undecoded, (patches, width), dtype, batch_size, on_error)
    photo_bytes = patches * width * np.dtype(dtype).itemsize
    with tqdm(
        total=sum(len(shards.items_of(shard)) for shard in shards.mine),
        initial=sum(len(shards.items_of(shard)) for shard in set(shards.mine) - set(shards.missing)),
        unit="photo",
        disable=not processes.is_main_process or not logging.is_progress_bar_enabled(),
    ) as progress:
        for place, shard in enumerate(shards.missing):
            left = sum(len(shards.items_of(other)) for other in shards.missing[place:]) * photo_bytes
            left *= processes.num_processes
            _check_space(work, left)
            write = partial(
                writer.write, numbers=shards.items_of(shard), sidecar=_sidecar(shards.files[shard]), progress=progress
            )
            try:
                shards.write(shard, write)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise OSError(errno.ENOSPC, _full_disk(work, left)) from error
    processes.wait_for_everyone()
    report = None
    if processes.is_main_process:
        report = _finish(work, output, shards, plan)
    processes.wait_for_everyone()
    return report


def _checked_ids(photos: datasets.Dataset) -> list[str]:
    missing = [column for column in ("image", "image_id") if column not in photos.column_names]
    if missing:
        raise ValueError(
            f"The dataset has no column {' and '.join(missing)}; it has {', '.join(photos.column_names)}. Load it "
            "with `hf_evcap.caption_data.load_caption_data`, or rename its columns."
        )
    image_ids = [str(image_id) for image_id in photos.select_columns(["image_id"])[:]["image_id"]]
    if not image_ids:
        raise ValueError("The dataset has no photos.")
    if len(set(image_ids)) < len(image_ids):
        seen: set[str] = set()
        twice = next(image_id for image_id in image_ids if image_id in seen or seen.add(image_id))  # type: ignore[func-returns-value]
        raise ValueError(f"The id {twice!r} stands for several photos; every photo needs an `image_id` of its own.")
    return image_ids


@torch.no_grad()
def encode_photos(model: Any, processor: Any, photos: Sequence[Image.Image]) -> torch.Tensor:
    """Vision hidden states of photos, `(len(photos), num_patches, hidden_size)`, in float32 on the CPU."""
    pixel_values = processor.image_processor(list(photos), return_tensors="pt")["pixel_values"]
    return model.get_vision_hidden_states(pixel_values).float().cpu()


class _ShardWriter:
    """Encodes photos into Arrow streams as `datasets` keeps them."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        photos: datasets.Dataset,
        shape: tuple[int, int],
        dtype: str,
        batch_size: int,
        on_error: str,
    ) -> None:
        self.model, self.processor, self.photos = model, processor, photos
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.batch_size, self.on_error = batch_size, on_error
        self.schema = feature_columns(shape, dtype).arrow_schema

    def write(self, file: BinaryIO, numbers: range, sidecar: Path, progress: Any) -> None:
        """Writes a shard; photos that cannot be used are listed in a file beside it."""
        skipped: dict[str, str] = {}
        with pa.ipc.new_stream(file, self.schema) as stream:
            for start in range(numbers.start, numbers.stop, self.batch_size):
                batch = range(start, min(start + self.batch_size, numbers.stop))
                opened = dict(self._open(batch, skipped))
                if opened:
                    stream.write_batch(self._record(list(opened), list(opened.values())))
                progress.update(len(batch))
        if skipped:
            sidecar.write_text(json.dumps(skipped), encoding="utf-8")

    def _open(self, batch: range, skipped: dict[str, str]) -> Iterator[tuple[str, Image.Image]]:
        for number in batch:
            row = self.photos[number]
            image_id = str(row["image_id"])
            try:
                yield image_id, load_photo(row["image"])
            except (OSError, ValueError, TypeError) as error:
                if self.on_error == "raise":
                    raise ValueError(f"Photo {image_id!r} (row {number}) cannot be used: {error}") from error
                logger.warning(f"Skipped photo {image_id!r} (row {number}): {error}")
                skipped[image_id] = str(error)

    def _record(self, image_ids: list[str], photos: list[Image.Image]) -> pa.RecordBatch:
        with np.errstate(over="ignore"):
            features = encode_photos(self.model, self.processor, photos).numpy().astype(self.dtype, order="C")
        finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
        if not finite.all():
            limit = " in float16; cache them in float32" if self.dtype == np.float16 else ""
            raise ValueError(f"The features of photo {image_ids[int((~finite).argmax())]!r} are not finite{limit}.")
        patches, width = self.shape
        rows = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), width)
        columns = {
            "image_id": pa.array(image_ids, pa.string()),
            "photo_hash": pa.array([hash_photo(photo) for photo in photos], pa.string()),
            FEATURES: pa.FixedSizeListArray.from_arrays(rows, patches),
            "crc32": pa.array([zlib.crc32(photo) for photo in features], pa.uint32()),
        }
        return pa.record_batch(
            [columns[name].cast(kind) for name, kind in zip(self.schema.names, self.schema.types, strict=True)],
            schema=self.schema,
        )


def feature_columns(shape: tuple[int, int], dtype: str) -> datasets.Features:
    """Columns of a cache."""
    patches, width = shape
    return datasets.Features(
        {
            "image_id": datasets.Value("string"),
            "photo_hash": datasets.Value("string"),
            FEATURES: datasets.List(datasets.List(datasets.Value(dtype), length=width), length=patches),
            "crc32": datasets.Value("uint32"),
        }
    )


def _finished(output: Path, plan: dict[str, Any], restart: bool) -> CacheReport | None:
    """The report of a cache that is there already; refuses to write over another one or into somebody's folder."""
    if not (output / CACHE_MANIFEST).is_file():
        check_output(output, wanted="feature cache")
        return None
    if restart:
        return None
    manifest = read_manifest(output)
    other = sorted(name for name in PLAN_IN_MANIFEST if manifest[name] != plan[name])
    if other:
        raise ValueError(
            f"{output} holds a feature cache that differs in {', '.join(other)}. Choose another folder, or make it "
            "anew with `overwrite=True` (--overwrite)."
        )
    shards = manifest["shards"]
    size = sum(shard["bytes"] for shard in shards)
    return CacheReport(manifest["rows"], size, tuple(manifest["shape"]), len(shards), len(shards), manifest["skipped"])


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, _full_disk(folder, needed))


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _full_disk(folder: Path, needed: int) -> str:
    free = shutil.disk_usage(folder).free
    return (
        f"The disk of {folder} has {_size(free)} left, the features still to come take {_size(needed)}. "
        "Make room, or choose --dtype float16 or another folder; given again, the command goes on where it stopped."
    )


def _finish(work: Path, output: Path, shards: ResumableShards, plan: dict[str, Any]) -> CacheReport:
    """Writes what makes the shards a dataset and a cache, and gives the folder its name."""
    listed, skipped = [], {}
    for file in shards.files:
        with pa.memory_map(str(file)) as mapped:
            rows = sum(batch.num_rows for batch in pa.ipc.open_stream(mapped))
        listed.append({"file": file.name, "rows": rows, "bytes": file.stat().st_size})
        sidecar = _sidecar(file)
        if sidecar.is_file():
            skipped.update(json.loads(sidecar.read_text(encoding="utf-8")))
    manifest = {
        "format": CACHE_FORMAT,
        "version": CACHE_VERSION,
        "hf_evcap_version": __version__,
        **{name: plan[name] for name in PLAN_IN_MANIFEST},
        "rows": sum(shard["rows"] for shard in listed),
        "shards": listed,
        "skipped": skipped,
    }
    datasets.DatasetInfo(features=feature_columns(tuple(plan["shape"]), plan["dtype"])).write_to_directory(str(work))
    state = {  # with `dataset_info.json`, what `datasets.load_from_disk` reads
        "_data_files": [{"filename": shard["file"]} for shard in listed],
        "_fingerprint": plan["vision_fingerprint"][:8] + plan["listing"][:8],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    for name, content in (("state.json", state), (CACHE_MANIFEST, manifest)):
        (work / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    _put_in_place(work, output)
    size = sum(shard["bytes"] for shard in listed)
    return CacheReport(manifest["rows"], size, tuple(plan["shape"]), len(listed), shards.resumed, skipped)


def _put_in_place(work: Path, output: Path) -> None:
    """Gives the finished folder its name. What the package did not write stays in a folder that is replaced."""
    if (output / CACHE_MANIFEST).is_file():
        written = [shard["file"] for shard in read_manifest(output)["shards"]]
        for name in (CACHE_MANIFEST, *written, *_DATASET_FILES):  # the manifest first: what is left is no whole cache
            (output / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        output.rmdir()
    if not output.exists():
        os.replace(work, output)
    else:
        for file in sorted(work.iterdir(), key=lambda file: file.name == CACHE_MANIFEST):
            os.replace(file, output / file.name)
        work.rmdir()
    for left in [output / PLAN_NAME, *output.glob("*.skipped.json")]:
        left.unlink(missing_ok=True)


def _sidecar(shard: Path) -> Path:
    return shard.with_suffix(".skipped.json")


__all__ = ["CacheReport", "build_feature_cache"]
