"""The README's example gives what the README prints."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from transformers import pipeline

import hf_evcap


ROOT = Path(__file__).parent.parent


def test_readme_example() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = ast.literal_eval(re.search(r'answer\["generated_text"\]  # (.+)', readme)[1])
    names = ast.literal_eval(re.search(r'answer\["retrieved_names"\]\[:2\]  # (.+)', readme)[1])
    photo = re.search(r'pipe\("(src/.+?)"\)', readme)[1]
    [answer] = pipeline("image-to-text", model=hf_evcap.default_model())(str(ROOT / photo))
    assert answer["generated_text"] == text
    assert [name["name"] for name in answer["retrieved_names"][:2]] == [name["name"] for name in names]
    for given, printed in zip(answer["retrieved_names"], names, strict=False):
        assert abs(given["score"] - printed["score"]) < 0.01
