"""Building caption datastores: captions from any source, encoders, and a build that can be interrupted."""

from __future__ import annotations

from .builder import build_datastore, captions_within
from .caption_sources import CaptionList, captioned_photos, open_captions, photos_with_captions_within
from .open_clip_encoder import OpenClipEncoder, load_retrieval_encoder


__all__ = [
    "CaptionList",
    "OpenClipEncoder",
    "build_datastore",
    "captioned_photos",
    "captions_within",
    "load_retrieval_encoder",
    "open_captions",
    "photos_with_captions_within",
]
