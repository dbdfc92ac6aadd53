"""Captioned photos from the formats that the field uses, as one kind of `datasets.Dataset`."""

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports
from .known_datasets import FORMATS, KNOWN_DATASETS, KnownDataset


if TYPE_CHECKING:
    from .loading import load_caption_data as load_caption_data

__getattr__ = lazy_exports(__name__, {"load_caption_data": "loading"})

__all__ = ["FORMATS", "KNOWN_DATASETS", "KnownDataset", "load_caption_data"]
