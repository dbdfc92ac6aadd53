"""Random SmallCap models that the tests of this folder share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_smallcap import make_model, make_processor

from hf_evcap import SmallCapProcessor


@pytest.fixture(scope="session")
def smallcap() -> Any:
    """Random GPT-2 model with CLIP queries and a datastore. Tests must not change it."""
    return make_model()


@pytest.fixture(scope="session")
def smallcap_processor() -> SmallCapProcessor:
    """Processor of the random models. Tests must not change it."""
    return make_processor()


@pytest.fixture(scope="session")
def smallcap_dir(smallcap: Any, smallcap_processor: SmallCapProcessor, tmp_path_factory: Any) -> Path:
    """Folder of `smallcap` and its processor. Tests must not change it."""
    folder = tmp_path_factory.mktemp("smallcap")
    smallcap.save_pretrained(folder)
    smallcap_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pixels(smallcap_processor: SmallCapProcessor, photos: list[Image.Image]) -> Any:
    """Pixel values of eight photos: the four, and their mirror images."""
    mirrored = [photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for photo in photos]
    return smallcap_processor(images=[*photos, *mirrored], return_tensors="pt")["pixel_values"]
