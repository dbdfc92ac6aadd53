"""The documentation is whole: links and references lead somewhere, and the site builds without a warning."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_evcap


ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "build_docs.py"
_spec = importlib.util.spec_from_file_location("build_docs", SCRIPT)
build_docs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_docs)
PAGES = {"README": ROOT / "README.md", **{page.stem: page for page in (ROOT / "docs").glob("*.md")}}


def test_links_lead_somewhere() -> None:
    assert len(PAGES) > 10
    assert build_docs.broken_links(PAGES) == []


def test_references_of_docstrings_lead_somewhere() -> None:
    assert build_docs.broken_references(build_docs.PACKAGE) == []


def test_readme_names_every_page() -> None:
    readme = PAGES["README"].read_text(encoding="utf-8")
    assert [name for name in PAGES if name != "README" and f"docs/{name}.md" not in readme] == []


def test_citation() -> None:
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cff) and cff["version"] == hf_evcap.__version__
    readme = PAGES["README"].read_text(encoding="utf-8")
    assert [one["url"] for one in cff["references"] if one["url"] not in readme] == []


@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="pdoc is not installed (extra docs)")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    assert {f"{name}.html" for name in PAGES} - {"README.html"} <= {path.name for path in tmp_path.iterdir()}
    reference = (tmp_path / "api" / "hf_evcap.html").read_text(encoding="utf-8")
    for name in ("EVCapForConditionalGeneration", "VisualNameMemory.from_images", "sample_photo", "SmallCapProcessor"):
        assert f'id="{name}"' in reference
    assert '<a href="#EVCapForConditionalGeneration.get_image_features">' in reference  # a reference, linked
    assert "[<code>" not in reference and 'href="how-it-works.html"' in (tmp_path / "index.html").read_text()


# The test of the test


def test_what_is_broken_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_docs, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# Two words\n[a](page.md#two-words) [b](gone.md) [c](#no) [d](https://x.org)\n```\n[e](e.md)\n```\n"
    )
    assert build_docs.broken_links({"page": page}) == [
        "page.md: there is no gone.md",
        "page.md: page.md has no heading no",
    ]
    package = tmp_path / "package"
    package.mkdir()
    source = '"""[`Here`], [`Here.there`], [`~module.Here`], [`Gone`]."""\nclass Here:\n    """[`~torch.nn.Module`] '
    (package / "module.py").write_text(source + '[`~torch.nn.Gone`]"""\n    def there(self):\n        pass\n')
    problems = build_docs.broken_references(package)
    assert [problem.split("[`")[1].split("`")[0] for problem in problems] == ["Gone", "torch.nn.Gone"]
