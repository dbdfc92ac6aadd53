"""
Kills a push at each of its file-system calls and network writes in turn (kill -9, or Ctrl-C), and looks at what is
left on this side and on the Hub's.

    python interrupted_pushes.py kill|interrupt FOLDER [EVERY [FIRST]]

Prints what was tried and every problem as JSON, as `interrupted_writes.py` does. The Hub is the tests' server on
loopback, whose client is `huggingface_hub`'s own. Needs `fault_points.c` preloaded: Python's audit hooks do not see
what is sent.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent.parent / "hub"))
from hub_server import HubServer  # noqa: E402


def main(hub: HubServer, how: str, root: Path, every: int = 1, first: int = 1) -> None:
    from interrupted_writes import NEW, OLD, USERS, attempts

    before, target, branch = root / "before", root / "memory", "attempt-0"
    OLD.push_to_hub("alice/pushed")
    NEW.save_pretrained(before)
    for name, text in USERS.items():
        (before / name).parent.mkdir(exist_ok=True)
        (before / name).write_text(text, encoding="utf-8")
    mine = contents(before)
    (root / "tmp").mkdir()  # what a stopped push leaves here is the system's to clean
    tempfile.tempdir = str(root / "tmp")

    def pushed(revision: str) -> dict[str, bytes] | None:
        found = hub.repos["dataset", "alice/pushed"].resolve(revision)
        return found and hub.files("dataset", "alice/pushed", revision)

    def push(folder: Path) -> None:
        from hf_evcap.cli.main import main as command_line

        if command_line(["push", "memory", str(folder), "alice/pushed", "--revision", branch]):
            raise SystemExit(1)

    push(before)
    old, new, problems, tried, seen = pushed("main"), pushed(branch), [], 0, set()
    assert old != new

    def act(folder: Path) -> None:
        nonlocal branch
        branch = f"attempt-{tried + 1}"
        push(folder)

    for number, status in attempts(target, before, act, how, every, first, watched=root):
        tried, place = tried + 1, f"call {number}"
        branch = f"attempt-{tried}"
        found = pushed(branch)
        seen.add("new" if found == new else "old")
        if found not in (None, old, new):
            problems.append(f"{place}: half a commit, {sorted(found)}")
        if status == 0 and found != new:
            problems.append(f"{place}: it said it was done, and was not")
        if contents(target) != mine:
            problems.append(f"{place}: the folder changed")
        push(target)  # again, now to the end
        if pushed(branch) != new:
            problems.append(f"{place}: the next push gave another state")
    print(
        json.dumps({"scenario": "push", "how": how, "tried": tried - 1, "seen": sorted(seen), "problems": problems}),
        file=sys.__stdout__,
        flush=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    server = HubServer()
    where = Path(sys.argv[2])
    for name, value in (
        ("HF_ENDPOINT", server.url),
        ("HF_HOME", str(where / "home")),
        ("HF_TOKEN", "hf_alice"),
        ("HF_HUB_OFFLINE", "0"),
        ("HF_HUB_DISABLE_XET", "1"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("NO_PROXY", "127.0.0.1,localhost"),
    ):
        os.environ[name] = value
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - of the command line
    main(server, sys.argv[1], where, *map(int, sys.argv[3:]))
