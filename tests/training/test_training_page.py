"""The snippets of docs/training.md, run one after the other on a folder of photos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from documentation_pages import read_page, snippets
from PIL import Image
from transformers import pipeline


def test_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for number, caption in enumerate(["a red square", "a green square", "a blue square"]):
        Image.new("RGB", (64, 64), ["red", "green", "blue"][number]).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": caption})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", "true")
    on_page = snippets(read_page("training.md"))
    assert len(on_page) == 3 and len(on_page[0].strip().splitlines()) <= 14
    names: dict[str, Any] = {}
    for snippet in on_page:
        exec(snippet, names)
        assert names["trainer"].state.global_step == 1
    assert pipeline("image-to-text", model=str(tmp_path / "out"))(str(folder / "0.png"))[0]["generated_text"]
