"""Captioned photos from the formats that the field uses, as one kind of `datasets.Dataset`."""

from .known_datasets import KNOWN_DATASETS, KnownDataset
from .loading import FORMATS, load_caption_data


__all__ = ["FORMATS", "KNOWN_DATASETS", "KnownDataset", "load_caption_data"]
