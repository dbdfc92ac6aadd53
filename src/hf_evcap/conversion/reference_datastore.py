"""Reads the datastore of SmallCap's release: a flat FAISS index of keys and a JSON list of their captions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..caption_data.text_files import parse_json, read_text
from ..datastore_smallcap import CaptionDatastore
from ..store_index import import_faiss


REFERENCE_ENCODER = "open_clip:RN50x64/openai"
_BLOCK_ROWS = 65536


def load_smallcap_datastore(
    index_path: str | os.PathLike, captions_path: str | os.PathLike, **settings: Any
) -> CaptionDatastore:
    """
    Reads `coco_index` and `coco_index_captions.json`.

    The released files hold 565,497 captions of COCO under keys of CLIP RN50x64 (1,024 numbers). Which photos the
    captions are of is not in them. Queries must be of the same CLIP ([`OpenClipEncoder`]); or encode the captions
    anew with another: `hf-evcap datastore build FOLDER --clip openai/clip-vit-base-patch32 --output NEW`.

    Args:
        index_path (`str` or `os.PathLike`): The index, of any kind that can give back its vectors unchanged (flat).
        captions_path (`str` or `os.PathLike`): JSON list of strings, one for each vector, in the same order.
        settings: Passed to [`CaptionDatastore.from_rows`], such as `source`, `licenses`, `retrieval`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an index, not a flat one, not a list of strings, or of another length than the index.
    """
    faiss = import_faiss()
    index_file, captions_file = Path(index_path), Path(captions_path)
    for file in (index_file, captions_file):
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {str(file)!r}.")
    captions = parse_json(read_text(captions_file), captions_file)
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{captions_file} must hold a list of captions, strings only.")
    try:
        opened = faiss.read_index(str(index_file))
    except RuntimeError as error:
        raise ValueError(f"{index_file} is not a FAISS index ({str(error).splitlines()[0][:200]}).") from error
    index = faiss.downcast_index(opened)  # a view of `opened`, which owns the vectors
    if not isinstance(index, faiss.IndexFlat):
        raise ValueError(
            f"{index_file} is a {type(index).__name__}, which does not keep vectors as they were; expected a flat one."
        )
    if index.ntotal != len(captions):
        raise ValueError(
            f"{index_file} holds {index.ntotal:,} vectors and {captions_file} {len(captions):,} captions; they are "
            "not of the same datastore."
        )
    kept = {"source": "SmallCap reference", "retrieval": {"encoder": REFERENCE_ENCODER}, **settings}
    keys = np.empty((index.ntotal, index.d), np.float32)
    for start in range(0, index.ntotal, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, index.ntotal)
        keys[start:stop] = index.reconstruct_n(start, stop - start)
    del index, opened  # gigabytes, at the released size
    return CaptionDatastore.from_rows(captions, keys, **kept)


__all__ = ["REFERENCE_ENCODER", "load_smallcap_datastore"]
