"""Runs a module or script in two processes on the CPU, as `accelerate launch` does with hub_configs/accelerate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


CONFIGS = Path(__file__).parents[1] / "hub_configs" / "accelerate"


def launch(*command: str, config: str = "cpu.yaml", timeout: int = 300) -> str:
    """Args: command (`str`): What follows `accelerate launch --config_file ...`. Returns what was printed."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config)]
    code = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [*launcher, "--main_process_port", "0", *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": code},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
