"""Folders of tiny pretrained parts; tests must not change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import make_name_tokenizer
from tiny_parts import save_blip2, save_language_model, save_tower, text_tokenizer


def made_once(make: Callable[[Path, str], Path], factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder of each kind when it is first asked for."""
    made: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in made:
            made[kind] = make(factory.mktemp(kind), kind)
        return made[kind]

    return folder_of


@pytest.fixture(scope="session")
def language_model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny language model by its type."""
    return made_once(save_language_model, tmp_path_factory)


@pytest.fixture(scope="session")
def tower_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder (or weight file) of a tiny vision tower by its type."""
    return made_once(save_tower, tmp_path_factory)


@pytest.fixture(scope="session")
def reference_parts(converted: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The conformance data's BLIP-2 and Llama as folders, and its name tokenizer."""
    root = tmp_path_factory.mktemp("reference-parts")
    blip2 = save_blip2(root / "blip2", converted.model, max_shard_size="300KB")
    converted.model.language_model.save_pretrained(root / "llama")
    text_tokenizer("sentencepiece").save_pretrained(root / "llama")
    return SimpleNamespace(blip2=blip2, llama=root / "llama", name_tokenizer=make_name_tokenizer())
