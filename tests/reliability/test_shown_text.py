"""Names come from anybody: what a terminal and a card show of them commands nothing and links to nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_evcap import CaptionDatastore, VisualNameMemory
from hf_evcap.cli.main import main
from hf_evcap.shown_text import shown


HOSTILE = [
    "cat\x1b[31m\x1b]0;owned\x07",
    "dog\x9b2J",
    "gnp\u202eexe.",
    "\u2066bird",
    "![x](http://example.invalid/pixel.png)",
    "[click](javascript:alert(1))",
    "<script>alert(1)</script>",
    "a | b",
]
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture(params=[VisualNameMemory, CaptionDatastore], ids=["memory", "datastore"])
def stores(request: Any, tmp_path: Path) -> tuple[str, Path, Path]:
    """A verb, and two folders that differ in all hostile texts."""
    keys = np.random.default_rng(0).normal(size=(len(HOSTILE) + 1, 16)).astype(np.float32)
    folders = tmp_path / "all", tmp_path / "one"
    request.param.from_rows(["sea", *HOSTILE], keys).save_pretrained(folders[0])
    request.param.from_rows(["sea"], keys[:1]).save_pretrained(folders[1])
    return request.param.store_word, *folders


def test_the_terminal(stores: Any, capsys: Any) -> None:
    verb, folder, one = stores
    for words in (
        ["info", str(folder)],
        ["info", str(folder), "--json"],
        ["diff", str(one), str(folder)],
        ["diff", str(one), str(folder), "--json"],
        ["diff", str(folder), str(one)],
    ):
        assert main([verb, *words]) == 0
        told = capsys.readouterr()
        assert not CONTROLS.search(told.out + told.err), words
        assert words[0] != "diff" or "\\u001b[31m" in told.out
    assert main([verb, "remove", str(one), "no\x1b[31msuch"]) == 1
    told = capsys.readouterr()
    assert not CONTROLS.search(told.out + told.err) and "such" in told.err


def test_what_is_logged(tmp_path: Path, caplog: Any) -> None:
    """A warning names a file, whose folder somebody else named."""
    keys = np.random.default_rng(0).normal(size=(90, 16)).astype(np.float32)
    folder = tmp_path / "m\x1b[31m"
    VisualNameMemory.from_rows(["sea"] * 90, keys, index_factory="IVF2,SQ8").save_pretrained(folder)
    (folder / "index.faiss").unlink()
    assert main(["memory", "search", str(folder), "--name", "sea"]) == 0
    assert "m\\u001b[31m" in caplog.text and "index will be rebuilt" in caplog.text
    assert not CONTROLS.search(caplog.text)


def test_a_report(tmp_path: Path, capsys: Any) -> None:
    """`info --report` lists names."""
    keys = np.random.default_rng(0).normal(size=(len(HOSTILE), 16)).astype(np.float32)
    VisualNameMemory.from_rows(HOSTILE, keys).save_pretrained(tmp_path / "memory")
    assert main(["memory", "info", str(tmp_path / "memory"), "--report"]) == 0
    assert not CONTROLS.search(capsys.readouterr().out)


def test_the_card(stores: Any) -> None:
    card = (stores[1] / "README.md").read_text(encoding="utf-8")
    assert not CONTROLS.search(card)
    assert "click" in card and "pixel.png" in card
    assert "](javascript" not in card and "](http://example.invalid" not in card and "<script" not in card


def test_languages_that_are_written_from_right_to_left() -> None:
    text = "قطة\u200f a\u200d👩\u200d🚀\tb\n"
    assert shown(text) == text
