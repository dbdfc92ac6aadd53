"""A short load: captions of several threads while the memory is edited, by `scripts/benchmark.py load`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def test_captions_while_the_memory_is_edited() -> None:
    script = Path(__file__).parents[2] / "scripts" / "benchmark.py"
    command = [sys.executable, str(script), "load", "--captions", "40", "--edit-every", "5", "--max-new-tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    found = dict(re.split(r"  +", line, maxsplit=1) for line in done.stdout.splitlines())
    assert found, done.stderr[-2000:]
    assert (found["captions"], found["edits"], found["errors"], found["wrong captions"]) == ("40", "8", "0", "0")
    assert int(found["states that differ"]) >= 3  # so short a run says nothing of growth
