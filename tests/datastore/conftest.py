"""A tiny CLIP model and a datastore of its keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_clip import CAPTIONS, write_clip

from hf_evcap import CaptionDatastore, ClipEncoder


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a CLIP model."""
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


@pytest.fixture(scope="session")
def encoder(clip_dir: Path) -> ClipEncoder:
    """The model, loaded. Tests must not change it."""
    return ClipEncoder.from_pretrained(clip_dir)


@pytest.fixture
def datastore(encoder: ClipEncoder) -> CaptionDatastore:
    """Six captions of three photos and one that nobody knows."""
    captions, ids = zip(*CAPTIONS, strict=True)
    return CaptionDatastore.from_captions(encoder, captions, image_ids=ids, source="tests", batch_size=4)
