"""Builds a memory from photos, or a datastore that is keyed by photos."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ..memory_evcap import VisualNameMemory
from ..photo_bytes import check_address
from ..photo_loading import hash_photo, load_photo
from ..store_building import BuildReport, EncodedRows, build_store
from ..store_photos import encode_photos, hash_preprocessing
from .photo_sources import NamedPhotos


logger = logging.get_logger(__name__)


def build_memory(
    model: Any,
    processor: Any,
    photos: NamedPhotos,
    save_directory: str | os.PathLike,
    *,
    batch_size: int = 32,
    shard_size: int = 512,
    on_error: str = "raise",
    allow_urls: bool = False,
    restart: bool = False,
    overwrite: bool = False,
    index_factory: str | None = None,
    dtype: str = "float32",
    licenses: Mapping[str, str] | None = None,
    store_class: Any = VisualNameMemory,
    features: Any = None,
) -> BuildReport | None:
    """
    Encodes photos into the folder of a memory, or of a datastore that is keyed by photos; see [`build_store`].

    Args:
        model ([`EVCapForConditionalGeneration`]), processor ([`EVCapProcessor`]): Encode the photos.
        photos ([`NamedPhotos`]): What to encode.
        save_directory (`str` or `os.PathLike`): Folder of the memory; written when everything is encoded.
        batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
        shard_size (`int`, *optional*, defaults to 512): Photos after which progress is kept.
        on_error (`str`, *optional*, defaults to `"raise"`): `"skip"` leaves out photos that cannot be read.
        allow_urls (`bool`, *optional*, defaults to `False`): Fetch photos that the listing names by an address.
        restart (`bool`, *optional*, defaults to `False`): Forget what an earlier run made.
        overwrite (`bool`, *optional*, defaults to `False`): Replace what `save_directory` holds.
        index_factory, dtype, licenses: As in [`VisualNameMemory`].
        store_class (*optional*): [`CaptionDatastore`] where the photos' names are captions.
        features ([`VisionFeatureCache`], *optional*): Of this model; photos in it are not encoded again.

    Returns:
        [`BuildReport`] in the main process, `None` in the others.

    Raises:
        ValueError: An unfinished build of other photos, or by another encoder, lies beside the folder.
    """

    def encode(numbers: range) -> EncodedRows:
        return _encode_photos(model, processor, photos, numbers, on_error, allow_urls, features)

    return build_store(
        store_class,
        len(photos),
        encode,
        save_directory,
        dim=model.memory_key_size,
        settings={
            "encoder_fingerprint": model.encoder_fingerprint,
            "query_tokens_hash": model.query_tokens_hash,
            "preprocessing_hash": hash_preprocessing(processor),
            "index_factory": index_factory,
            "licenses": {**photos.licenses, **(licenses or {})},
        },
        plan={
            "photos": len(photos),
            "listing": photos.identity,
            "on_error": on_error,
            **({"allow_urls": True} if allow_urls else {}),
            **({} if features is None else {"features": features.dtype}),
        },
        batch_size=batch_size,
        shard_size=shard_size,
        restart=restart,
        overwrite=overwrite,
        dtype=dtype,
    )


def _encode_photos(
    model: Any,
    processor: Any,
    photos: NamedPhotos,
    numbers: range,
    on_error: str,
    allow_urls: bool,
    features: Any,
) -> EncodedRows:
    """Encodes a batch of photos; each gives a row for every name, with the same key."""
    rows, loaded, skipped = [], [], {}
    for number in numbers:
        try:
            row = photos[number]
            image = row["image"]
            check_address(image, allow_urls)
            loaded.append(load_photo(image() if callable(image) else image))
            rows.append({**row, "photo_hash": hash_photo(loaded[-1])})  # by which training leaves a photo's rows out
        except (OSError, ValueError, TypeError) as error:
            if on_error != "skip":
                raise ValueError(f"Photo {number} cannot be used: {error}") from error
            logger.warning(f"Skipped photo {number}: {error}")
            skipped[number] = str(error)
    if not loaded:
        return EncodedRows([], np.zeros((0, model.memory_key_size), np.float32), skipped=skipped)
    hashes = [row["photo_hash"] for row in rows]
    if features is not None and features.holds(hashes):
        hidden_states = features.of_photos(hashes).to(model.device)
        with torch.no_grad():
            keys = model.get_memory_keys(vision_hidden_states=hidden_states).float().cpu().numpy()
    else:
        keys, _ = encode_photos(model, processor, loaded, "raise", numbers.start)
    places = [place for place, row in enumerate(rows) for _ in row["names"]]
    names = [name for row in rows for name in row["names"]]
    further = sorted({column for row in rows for column in row} - {"image", "names"})
    columns = {column: [rows[place].get(column) for place in places] for column in further}
    return EncodedRows(names, keys[places], columns, skipped)


__all__ = ["build_memory"]
