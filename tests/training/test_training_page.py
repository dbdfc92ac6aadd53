"""The snippets of docs/training.md, run one after the other on a folder of photos."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import pipeline


PAGE = Path(__file__).parents[2] / "docs" / "training.md"


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
    snippets = re.findall(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(snippets) == 3 and len(snippets[0].strip().splitlines()) <= 14
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)
        assert names["trainer"].state.global_step == 1
    assert pipeline("image-to-text", model=str(tmp_path / "out"))(str(folder / "0.png"))[0]["generated_text"]
