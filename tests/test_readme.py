"""The README's example gives what the README prints."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
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


def test_readme_example_says_nothing_else() -> None:
    """A first look at the package must not begin with warnings, whichever version of transformers there is."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"```python\n(import hf_evcap\n.+?)```", readme, flags=re.DOTALL)[:1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    said = [line for line in re.split(r"[\r\n]+", done.stderr) if line and not line.startswith("Loading weights:")]
    assert done.returncode == 0 and said == []
    assert 'pipeline("image-to-text"' in snippet  # the task that transformers says is gone
