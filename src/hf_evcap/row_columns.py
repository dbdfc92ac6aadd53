"""Which columns of a dataset hold photos, captions and names, where nobody says, and what class numbers mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image


# Names of columns that are found without being told, the likeliest first.
PHOTO_COLUMNS = ("image", "file_name", "filename", "image_path", "path", "photo", "image_name", "img", "jpg", "png")
CAPTION_COLUMNS = (
    "captions", "crowd_captions", "references", "annotations_captions", "sentences", "caption", "sentence", "text",
    "comment",
)  # fmt: skip
NAME_COLUMNS = ("name", "names", "label", "labels", "class_name", "class", "category")


def find_column(names: Iterable[str], wanted: str | None, candidates: Iterable[str], option: str) -> str | None:
    """
    Chooses a column.

    Args:
        names (`Iterable[str]`): Columns that exist.
        wanted (`str`, *optional*): The user's choice.
        candidates (`Iterable[str]`): Usual names, likeliest first.
        option (`str`): What the user's choice is called, for the message.

    Returns:
        `str`, or `None` where there is none of the usual names.

    Raises:
        ValueError: There is no column of the name that was chosen.
    """
    names = list(names)
    if wanted is not None:
        if wanted not in names:
            raise ValueError(f"There is no column {wanted!r} (`{option}`); the columns are {', '.join(names)}.")
        return wanted
    return next((name for name in candidates if name in names), None)


def find_photo_column(
    names: Iterable[str], wanted: str | None = None, features: Mapping[str, Any] | None = None
) -> str | None:
    """
    Chooses the column of the photos: the user's, `image`, the only one of photos, or one with another usual name.

    Args:
        names, wanted: As in [`find_column`].
        features (`Mapping`, *optional*): Of a dataset of `datasets`, or a row, by whose values photos are told.
    """
    names = list(names)
    if wanted is None and PHOTO_COLUMNS[0] not in names:
        photos = [name for name in names if features is not None and _is_photo(features.get(name))]
        wanted = photos[0] if len(photos) == 1 else None
    return find_column(names, wanted, PHOTO_COLUMNS, "image_column")


def _is_photo(feature: Any) -> bool:
    """Whether a feature of `datasets`, or a value of a row, is a photo's."""
    if isinstance(feature, Mapping):
        return bool(feature) and set(feature) <= {"bytes", "path"}
    return isinstance(feature, Image.Image) or type(feature).__name__ == "Image"


def need_column(found: str | None, names: Iterable[str], option: str, what: str) -> str:
    """Gives a column that was found, or raises `ValueError` that names those there are."""
    if found is None:
        raise ValueError(f"{what}; the columns are {', '.join(names)}. Tell which with `{option}`.")
    return found


def class_names(feature: Any) -> Sequence[str] | None:
    """Names of the classes that a `ClassLabel` of `datasets`, or a list of them, numbers; `None` of other features."""
    feature = getattr(feature, "feature", feature)
    return getattr(feature, "names", None) if type(feature).__name__ == "ClassLabel" else None


def named_classes(value: Any, names: Sequence[str] | None) -> Any:
    """
    A number or list of numbers as the names of [`class_names`]; values of other features as they are.

    Raises:
        ValueError: A number has no name, such as the -1 of photos without a label.
    """
    if names is None or value is None:
        return value
    if isinstance(value, (list, tuple)):
        return [named_classes(one, names) for one in value]
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise ValueError(f"There is no name for the label {value!r}; the labels are 0 to {len(names) - 1}.")
    return names[value]


__all__ = [
    "CAPTION_COLUMNS",
    "NAME_COLUMNS",
    "PHOTO_COLUMNS",
    "class_names",
    "find_column",
    "find_photo_column",
    "named_classes",
    "need_column",
]
