"""Photos of datasets as bytes instead of decoded, so that a bad one does not end the iteration."""

from __future__ import annotations

from typing import Any


def undecoded(images: Any) -> Any:
    """
    Gives the same rows with photos as `{"bytes": ..., "path": ...}`, which [`load_photo`] reads.

    A photo that cannot be read is then named, or left out with `on_error="skip"`, where the photo is loaded; decoded
    by `datasets` it would break the access to its row, and end a stream for good.

    Args:
        images: A `datasets.Dataset` or `IterableDataset`, one of its columns, a `KeyDataset` of transformers. Anything
            else, and what a transform of the user's or an image mode decides on, comes back as it is.
    """
    if hasattr(images, "source") and hasattr(images, "column_name"):  # a column
        source = undecoded(images.source)
        return images if source is images.source else type(images)(source, images.column_name)
    if hasattr(images, "dataset") and hasattr(images, "key"):
        dataset = undecoded(images.dataset)
        return images if dataset is images.dataset else type(images)(dataset, images.key)
    features = getattr(images, "features", None)
    if not isinstance(features, dict) or not hasattr(images, "cast_column"):
        return images
    if getattr(images, "_format_type", None) == "custom":  # the transform expects what it was written for
        return images
    for name, feature in features.items():
        if type(feature).__name__ == "Image" and feature.decode and feature.mode is None:
            images = images.cast_column(name, type(feature)(decode=False))
    return images


__all__ = ["undecoded"]
