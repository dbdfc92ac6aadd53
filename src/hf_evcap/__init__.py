"""EVCap and SmallCap for the Hugging Face libraries: image captioning with a memory that anyone can edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from . import registration
from .lazy_exports import lazy_exports


__version__ = "0.1.0"

# Name -> module. Imported when first used, so that `import hf_evcap` stays cheap.
_PUBLIC = {
    "CaptionDatastore": "datastore_smallcap",
    "ClipEncoder": "clip_encoder",
    "CaptioningPipeline": "pipeline_captioning",
    "EVCapConfig": "configuration_evcap",
    "EVCapForConditionalGeneration": "modeling_evcap",
    "EVCapProcessor": "processing_evcap",
    "EfficientNetLiteConfig": "configuration_efficientnet_lite",
    "EfficientNetLiteModel": "modeling_efficientnet_lite",
    "MemoryLayers": "memory_evcap",
    "SmallCapConfig": "configuration_smallcap",
    "SmallCapForConditionalGeneration": "modeling_smallcap",
    "SmallCapProcessor": "processing_smallcap",
    "VisualNameMemory": "memory_evcap",
    "metric_path": "metrics",
}

if TYPE_CHECKING:  # what type checkers and editors see
    from .clip_encoder import ClipEncoder as ClipEncoder
    from .configuration_efficientnet_lite import EfficientNetLiteConfig as EfficientNetLiteConfig
    from .configuration_evcap import EVCapConfig as EVCapConfig
    from .configuration_smallcap import SmallCapConfig as SmallCapConfig
    from .datastore_smallcap import CaptionDatastore as CaptionDatastore
    from .memory_evcap import MemoryLayers as MemoryLayers
    from .memory_evcap import VisualNameMemory as VisualNameMemory
    from .metrics import metric_path as metric_path
    from .modeling_efficientnet_lite import EfficientNetLiteModel as EfficientNetLiteModel
    from .modeling_evcap import EVCapForConditionalGeneration as EVCapForConditionalGeneration
    from .modeling_smallcap import SmallCapForConditionalGeneration as SmallCapForConditionalGeneration
    from .pipeline_captioning import CaptioningPipeline as CaptioningPipeline
    from .processing_evcap import EVCapProcessor as EVCapProcessor
    from .processing_smallcap import SmallCapProcessor as SmallCapProcessor


def default_model() -> str:
    """
    Path of the embedded default model, evcap-tiny, with its memory.

    Returns:
        `str`: A folder for `from_pretrained` and `pipeline`.
    """
    return str(Path(__file__).parent / "assets" / "evcap-tiny")


def sample_photo(name: str = "cat") -> str:
    """
    Path of one of the photos that come with the package, to try things on; `assets/photos/LICENSES.md` names their
    sources. None was used to train or choose the embedded model.

    Args:
        name (`str`, *optional*, defaults to `"cat"`): Such as `"coffee"` or `"raccoon"`.

    Raises:
        ValueError: There is no such photo; names those there are.
    """
    folder = Path(__file__).parent / "assets" / "photos"
    photo = folder / f"{name}.jpg"
    if not photo.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.jpg")))
        raise ValueError(f"There is no sample photo {name!r}; there are {known}.")
    return str(photo)


__getattr__ = lazy_exports(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


registration.register_when_needed()

__all__ = [*_PUBLIC, "default_model", "sample_photo"]
