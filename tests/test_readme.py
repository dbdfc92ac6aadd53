"""The README's first example says nothing else than it should; tests/hub/test_pages.py runs all of README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent


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
