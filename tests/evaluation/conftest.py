"""Captioned photos for evaluations with random models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from caption_files import write_lines
from tiny_models import PHOTOS


NAMES = ("astronaut", "cat", "coffee", "flower", "raccoon")


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos with captions and domains, as JSONL. Tests must not change it."""
    folder = tmp_path_factory.mktemp("captioned")
    for name in NAMES:
        shutil.copy(PHOTOS / f"{name}.jpg", folder)
    rows = [
        {
            "image": f"{name}.jpg",
            "image_id": number,
            "captions": [f"A {name} in a photo.", f"There is a {name}, it seems."],
            "domain": "in-domain" if number % 2 else "out-domain",
            "shown": [name],
        }
        for number, name in enumerate(NAMES)
    ]
    return write_lines(folder, rows)
