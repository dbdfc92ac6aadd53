"""Building memories from photo collections: sources of named photos, and a builder that can be interrupted."""

from __future__ import annotations

from ..store_building import BuildReport
from .builder import build_memory
from .photo_sources import (
    NamedPhotos,
    annotated_boxes,
    captioned_scenes,
    dataset_rows,
    joined,
    photo_folder,
    photo_table,
)


__all__ = [
    "BuildReport",
    "NamedPhotos",
    "annotated_boxes",
    "build_memory",
    "captioned_scenes",
    "dataset_rows",
    "joined",
    "photo_folder",
    "photo_table",
]
