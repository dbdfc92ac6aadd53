"""Finds the evaluated photos that stand in the model's memory: their captions are half known, and figures too high."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np

from ..photo_loading import hash_photo, load_photo
from ..photo_rows import OwnRows, photo_keys
from ..resumable_shards import ResumableShards


# Cosine similarity of a photo's key and a row from which both are taken to be the same photo. Embedded model: a photo
# in another size or shape has at least 0.93 with itself, the validation photos at most 0.75 with any row. Keys of the
# query space, and CLIP's, lie closer together, so there only what is all but equal counts.
SAME_PHOTO = {"vision": 0.9, "clip": 0.98, "query": 0.999}


def photos_in_memory(
    pipe: Any, data: datasets.Dataset, folder: Path, plan: Mapping[str, Any], arguments: Any
) -> list[int]:
    """
    Rows of a dataset whose photo is in the model's memory: by id, by its pixels, or by a key that is nearly the same.

    Args:
        pipe: The pipeline.
        data (`datasets.Dataset`): From [`~caption_data.load_caption_data`].
        folder (`Path`): Where progress is kept, on a disk that all processes share.
        plan (`Mapping`): What the answer depends on.
        arguments ([`EvaluationArguments`]): Batch size and whether to start again.
    """
    memory = pipe.model.memory
    stores = [] if memory is None else list(getattr(memory, "memories", {"": memory}).values())
    stores = [store for store in stores if len(store)]
    if not stores:
        return []
    plan = {**plan, "memory": [store.fingerprint for store in stores]}
    shards = ResumableShards(
        folder,
        plan,
        len(data),
        arguments.batch_size,
        ".json",
        arguments.restart,
        what="comparison with the memory",
        finished=Path(arguments.output) / "results.json",
    )
    images = data.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))["image"]
    ids, finders = data["image_id"], [OwnRows(store) for store in stores]
    for shard in shards.missing:
        rows = list(shards.items_of(shard))
        found = _in_memory(pipe, [images[row] for row in rows], [ids[row] for row in rows], finders)
        shards.write(shard, partial(_write, [row for row, seen in zip(rows, found, strict=True) if seen]))
    shards.processes.wait_for_everyone()
    return [row for file in shards.files for row in json.loads(file.read_text(encoding="utf-8"))]


def _in_memory(pipe: Any, images: list[Any], ids: list[Any], finders: list[OwnRows]) -> np.ndarray:
    """Which photos of a batch are in the memory; one that cannot be read is not, and is reported by the captioning."""
    seen = np.zeros(len(images), dtype=bool)
    photos = {}
    for place, image in enumerate(images):
        try:
            photos[place] = load_photo(image)
        except (OSError, TypeError, ValueError):
            continue
    if not photos:
        return seen
    places = np.array(list(photos))
    examples = [{"image_id": ids[place], "photo_hash": hash_photo(photos[place])} for place in photos]
    keys = photo_keys(examples).numpy()
    queries = _keys_of_photos(pipe, list(photos.values()))
    limit = SAME_PHOTO[getattr(pipe.model.config, "retrieval_space", "query")]
    for finder in finders:
        seen[places] |= [len(rows) > 0 for rows in finder(keys)]
        if queries is not None:
            scores, _ = finder.memory.search(queries, 1)
            seen[places] |= scores[:, 0] >= limit
    return seen


def _keys_of_photos(pipe: Any, photos: list[Any]) -> np.ndarray | None:
    """Memory keys of photos, or `None` for a model whose keys are made elsewhere."""
    if pipe.model.memory_key_size is None:
        return None
    return pipe.model.encode_memory_keys(pipe.processor, photos).numpy()


def _write(rows: list[int], file: BinaryIO) -> None:
    file.write(json.dumps(rows).encode())


__all__ = ["SAME_PHOTO", "photos_in_memory"]
