"""Evaluations that are killed and go on, and that many processes share, give what one run of one process gives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate_launch import launch

from hf_evcap.evaluation import EvaluationArguments, evaluate_captioner
from hf_evcap.pipeline_captioning import CaptioningPipeline


KILLED_AFTER = 3
_KILL = f"""
import os, signal, sys
from hf_evcap.cli.main import main
from hf_evcap.resumable_shards import ResumableShards

written, write = [], ResumableShards.write

def write_and_die(self, shard, writer):
    if self.suffix == ".jsonl" and len(written) == {KILLED_AFTER}:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, shard, writer)
    written.extend([shard] * (self.suffix == ".jsonl"))

ResumableShards.write = write_and_die
main(sys.argv[1:])
"""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def options(model: Path, dataset: Path, output: Path, **more: Any) -> list[str]:
    values = {"model": model, "dataset": dataset, "output": output, "batch-size": 2, "report-photos": 0, **more}
    return ["evaluate", *(str(word) for name, value in values.items() for word in (f"--{name}", value))]


def figures(output: Path) -> list[Any]:
    results = json.loads((output / "results.json").read_text())
    return [(variant["name"], variant["metrics"], variant["settings"]) for variant in results["variants"]]


def files(output: Path) -> dict[str, tuple[str, int]]:
    return {
        str(file.relative_to(output)): (file.read_text(), file.stat().st_mtime_ns)
        for file in sorted(output.rglob("part-*.jsonl"))
    }


@pytest.fixture(scope="module")
def whole(tiny_dir: Path, captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes without interruption."""
    output = tmp_path_factory.mktemp("whole")
    arguments = EvaluationArguments(str(captioned), str(output), model=str(tiny_dir), batch_size=2, report_photos=0)
    evaluate_captioner(arguments)
    return output


def same(output: Path, whole: Path) -> bool:
    for name in ("predictions.json", "photos.jsonl", "results.md"):
        assert (output / name).read_text() == (whole / name).read_text()
    assert {name: text for name, (text, _) in files(output).items()} == {
        name: text for name, (text, _) in files(whole).items()
    }
    return figures(output) == figures(whole)


def test_killed_and_resumed_equals_uninterrupted(
    tiny_dir: Path, captioned: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", _KILL, *options(tiny_dir, captioned, tmp_path)]
    killed = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = files(tmp_path)
    assert len(before) == KILLED_AFTER and not (tmp_path / "results.json").exists()

    captioned_now: list[Any] = []
    forward = CaptioningPipeline._forward
    monkeypatch.setattr(
        CaptioningPipeline,
        "_forward",
        lambda self, inputs, **more: (
            captioned_now.append(len(inputs["pixel_values"])) or forward(self, inputs, **more)
        ),
    )
    evaluate_captioner(
        EvaluationArguments(str(captioned), str(tmp_path), model=str(tiny_dir), batch_size=2, report_photos=0)
    )
    done = sum(len(text.splitlines()) for text, _ in before.values())
    assert sum(captioned_now) == 10 - done  # five photos, with and without the memory; none twice
    assert {name: entry for name, entry in files(tmp_path).items() if name in before} == before
    assert same(tmp_path, whole)

    captioned_now.clear()
    evaluate_captioner(
        EvaluationArguments(str(captioned), str(tmp_path), model=str(tiny_dir), batch_size=2, report_photos=0)
    )
    assert captioned_now == [] and same(tmp_path, whole)


def test_two_processes_equal_one(tiny_dir: Path, captioned: Path, whole: Path, tmp_path: Path) -> None:
    printed = launch("-m", "hf_evcap.cli.main", *options(tiny_dir, captioned, tmp_path))
    assert json.loads((tmp_path / "results.json").read_text())["processes"] == 2
    assert printed.count("| as it is |") == 1  # one of them prints
    assert same(tmp_path, whole)
