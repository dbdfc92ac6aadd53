"""
Saves, edits and builds that are killed or interrupted at their file-system calls leave the old state or the new one.

A sample of the calls is taken here, another one for each kind of stop; docs/reliability.md says how to take all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="attempts are forks, which this system has not")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With a compiler the calls of every library are counted, without one those that Python makes."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return dict(os.environ)
    library = tmp_path_factory.mktemp("fault") / "fault_points.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, HERE / "fault_points.c", "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


@pytest.mark.parametrize(("how", "every", "first"), [("kill", 16, 3), ("interrupt", 16, 11)])
def test_old_state_or_new_state(how: str, every: int, first: int, environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "interrupted_writes.py"), "all", how, str(tmp_path), str(every), str(first)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == 13, done.stderr[-2000:]
    assert {result["scenario"]: result["problems"] for result in results if result["problems"]} == {}
    assert all(result["tried"] >= 1 for result in results)
    assert sum(result["tried"] for result in results) > 50
    assert {state for result in results for state in result["seen"]} == {"old", "new"}


@pytest.mark.parametrize(("how", "every", "first"), [("kill", 16, 3), ("interrupt", 16, 11)])
def test_a_push_is_whole_or_not_there(
    how: str, every: int, first: int, environment: dict[str, str], tmp_path: Path
) -> None:
    if "LD_PRELOAD" not in environment:
        pytest.skip("without a C compiler what is sent is not seen")
    command = [sys.executable, str(HERE / "interrupted_pushes.py"), how, str(tmp_path), str(every), str(first)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    assert done.stdout, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["problems"] == []
    assert result["tried"] >= 3
    assert result["seen"] == ["new", "old"]
