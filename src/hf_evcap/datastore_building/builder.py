"""Builds a datastore from captions alone, with the text side of a CLIP model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers.utils import logging

from ..datastore_smallcap import CaptionDatastore
from ..store_building import BuildReport, EncodedRows, build_store
from .caption_sources import CaptionList


logger = logging.get_logger(__name__)

MAX_TOKENS = 25  # the paper's limit
_TOKENIZED_AT_ONCE = 4096


def captions_within(captions: CaptionList, tokenizer: Any, max_tokens: int = MAX_TOKENS) -> CaptionList:
    """
    Leaves out captions that are longer than the prompt has room for.

    Each caption is measured by itself: padding to the longest of a batch would count too.

    Args:
        captions ([`CaptionList`]): All of them.
        tokenizer: The captioner's, which will read them in its prompt.
        max_tokens (`int`, *optional*, defaults to 25): Tokens that a caption may have.
    """
    kept: list[int] = []
    for start in range(0, len(captions), _TOKENIZED_AT_ONCE):
        texts = captions.captions[start : start + _TOKENIZED_AT_ONCE]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        kept += [start + place for place, ids in enumerate(encoded) if len(ids) <= max_tokens]
    if not kept:
        raise ValueError(f"No caption has at most {max_tokens} tokens.")
    return CaptionList(
        [captions.captions[place] for place in kept],
        [captions.image_ids[place] for place in kept],
        captions.source,
        captions.licenses,
    )


def build_datastore(
    encoder: Any,
    captions: CaptionList,
    save_directory: str | os.PathLike,
    *,
    batch_size: int = 256,
    shard_size: int = 16384,
    restart: bool = False,
    overwrite: bool = False,
    index_factory: str | None = None,
    dtype: str = "float32",
    licenses: Mapping[str, str] | None = None,
    retrieval: Mapping[str, Any] | None = None,
) -> BuildReport | None:
    """
    Encodes captions into a datastore's folder; see [`~store_building.build_store`] for interruptions.

    Args:
        encoder ([`~clip_encoder.ClipEncoder`] or [`OpenClipEncoder`]): Makes the keys.
        captions ([`CaptionList`]): What to hold, in this order.
        save_directory (`str` or `os.PathLike`): Folder of the datastore; written when everything is encoded.
        batch_size (`int`, *optional*, defaults to 256): Captions encoded at once.
        shard_size (`int`, *optional*, defaults to 16384): Captions after which progress is kept.
        restart (`bool`, *optional*, defaults to `False`): Forget what an earlier run made.
        overwrite (`bool`, *optional*, defaults to `False`): Replace what `save_directory` holds.
        index_factory, dtype, licenses, retrieval: As in [`CaptionDatastore`].

    Returns:
        [`BuildReport`] in the main process, `None` in the others.

    Raises:
        ValueError: An unfinished build of other captions, or by another encoder, lies beside the folder.
    """

    def encode(numbers: range) -> EncodedRows:
        texts = captions.captions[numbers.start : numbers.stop]
        ids = captions.image_ids[numbers.start : numbers.stop]
        columns: dict[str, list[Any]] = {"image_id": ids, "source": [captions.source] * len(texts)}
        return EncodedRows(texts, encoder.encode_captions(texts), columns)

    return build_store(
        CaptionDatastore,
        len(captions),
        encode,
        save_directory,
        dim=encoder.key_size,
        settings=encoder.store_settings({
            "index_factory": index_factory,
            "licenses": {**captions.licenses, **(licenses or {})},
            "retrieval": dict(retrieval or {}),
        }),
        plan={"captions": len(captions), "listing": captions.identity},
        batch_size=batch_size,
        shard_size=shard_size,
        restart=restart,
        overwrite=overwrite,
        dtype=dtype,
        unit="caption",
    )  # fmt: skip


__all__ = ["MAX_TOKENS", "build_datastore", "captions_within"]
