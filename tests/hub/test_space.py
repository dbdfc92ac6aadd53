"""The demo Space: what its buttons do, called without a browser."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from huggingface_hub import RepoCard
from PIL import Image

import hf_evcap
from hf_evcap import VisualNameMemory
from hf_evcap.hub.ready_repo import prepare_repo


SPACE = Path(__file__).parents[2] / "hub_configs" / "space"


class PageError(Exception):
    """Stands for gradio's, which shows a message to the visitor."""


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The Space's module; its page needs gradio, what it does does not."""
    gradio = ModuleType("gradio")
    gradio.Error, gradio.Blocks = PageError, object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["evcap", "smallcap"])
def test_a_visitor_edits_a_memory_of_their_own(
    family: str, app: ModuleType, tiny_dir: Path, smallcap_dir: Path, photo_paths: list[str]
) -> None:
    folder = {"evcap": tiny_dir, "smallcap": smallcap_dir}[family]
    captioner = app.load_captioner(str(folder))
    visit, other = app.Visit(captioner), app.Visit(captioner)
    before = captioner.model.memory.fingerprint
    photo = Image.open(photo_paths[1]).convert("RGB")
    text, found = visit.caption(photo, 2)
    assert text == captioner(photo, num_beams=2)[0]["generated_text"] and len(found) > 1
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    said = visit.add(" a grey cat ", photo_paths[1:2])
    assert said.startswith("Added 'a grey cat' with 1 photo. The ")

    def retrieved(of: Any) -> list[str]:
        return [text for text, _ in of.caption(photo)[1]]

    assert retrieved(visit)[0] == "a grey cat"
    assert visit.memory.columns["source"].to_pylist()[-1] == "visitor"
    assert "a grey cat" not in retrieved(other)  # what a visitor adds, others do not see
    visit.remove("a grey cat")
    assert "a grey cat" not in retrieved(visit)
    assert captioner.model.memory.fingerprint == other.memory.fingerprint == before


def test_mistakes_are_told_and_change_nothing(
    app: ModuleType, tiny_dir: Path, photo_paths: list[str], tmp_path: Path
) -> None:
    visit = app.Visit(app.load_captioner(str(tiny_dir)))
    before = visit.memory.fingerprint
    (tmp_path / "text.png").write_text("not a photo")
    for call, message in (
        (lambda: visit.caption(None), "Choose a photo first"),
        (lambda: visit.add("", photo_paths[:1]), "Give a name and at least one photo"),
        (lambda: visit.add("cat", None), "Give a name and at least one photo"),
        (lambda: visit.add("cat", photo_paths * 3), "At most 10 photos"),
        (lambda: visit.add("cat", [photo_paths[0], str(tmp_path / "text.png")]), "Photo 1 cannot be used"),
        (lambda: visit.remove(" , "), "Give a name to remove"),
        (lambda: visit.remove("dog, unicorn"), "The memory has no name 'unicorn'"),
        (lambda: visit.swap(str(tiny_dir / "memory")), "Give a dataset repo on the Hub"),
        (lambda: visit.swap("nonsense"), "neither a folder nor a Hub repo id"),
    ):
        with pytest.raises(PageError, match=message):
            call()
    assert visit.memory.fingerprint == before


def test_swapping_the_memory(
    app: ModuleType, tiny_dir: Path, photo_paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = app.Visit(app.load_captioner(str(tiny_dir)))
    owls = visit.memory.subset(["owl"])
    stranger = owls.copy()
    stranger.encoder_fingerprint = "another"
    on_the_hub = {"org/owls": owls, "org/stranger": stranger}
    monkeypatch.setattr(VisualNameMemory, "from_pretrained", lambda source, **options: on_the_hub[source])
    assert visit.swap(" org/owls ") == "Now with org/owls. The memory holds 1 names in 2 rows."
    assert [name for name, _ in visit.caption(Image.open(photo_paths[0]))[1]] == ["owl"]
    with pytest.raises(PageError, match="was built by the encoder another"):
        visit.swap("org/stranger")
    assert visit.describe() == "The memory holds 1 names in 2 rows."
    assert visit.swap("").startswith("Back to the captioner's own. The memory holds 7 names")


def test_another_memory_from_the_settings(app: ModuleType, tiny_dir: Path, tmp_path: Path) -> None:
    assert app.MODEL == hf_evcap.default_model() and app.MEMORY is None
    VisualNameMemory.from_pretrained(tiny_dir / "memory").subset(["dog"]).save_pretrained(tmp_path / "dogs")
    visit = app.Visit(app.load_captioner(str(tiny_dir), str(tmp_path / "dogs")))
    assert visit.describe() == "The memory holds 1 names in 2 rows."


def test_it_is_pushed_as_it_is(tmp_path: Path) -> None:
    ready = prepare_repo("space", str(SPACE), tmp_path, "alice/demo")
    assert (ready.repo_type, ready.space_sdk) == ("space", "gradio")
    assert set(ready.files) == {"README.md", "app.py", "requirements.txt"}
    header = RepoCard.load(SPACE / "README.md").data.to_dict()
    assert header["app_file"] == "app.py" and len(header["short_description"]) <= 60
    assert (SPACE / "requirements.txt").read_text() == "hf_evcap\n"


def test_the_page_is_laid_out(tiny_dir: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed; Spaces bring it")
    spec = importlib.util.spec_from_file_location("space_page", SPACE / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.build_page(module.load_captioner(str(tiny_dir)))
    labels = {block.label for block in page.blocks.values() if getattr(block, "label", None)}
    assert {"Photo", "Caption", "Retrieved names", "New name", "Another memory"} <= labels


def test_other_memories_are_read_without_the_token_of_the_space(
    app: ModuleType, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = app.load_captioner(str(tiny_dir))
    asked = {}

    def read(source: str, **options: Any) -> VisualNameMemory:
        asked[source] = options
        return captioner.model.memory.copy()

    monkeypatch.setattr(captioner.model.memory_class, "from_pretrained", read)
    app.Visit(captioner).swap("someone/private")
    assert asked == {"someone/private": {"token": False}}
