"""
Kills a write at each of its file-system calls in turn (kill -9, or Ctrl-C), and looks at what is left.

    python interrupted_writes.py SCENARIO|all kill|interrupt FOLDER [EVERY [FIRST]]

Prints what was tried and every problem as JSON, a line a scenario; with EVERY, stops at each so-manieth call only.
With `fault_points.c` preloaded the calls of every library count; otherwise those that Python's audit hooks see. Each
attempt is a fork of this process, so that hundreds take minutes.
"""

from __future__ import annotations

import ctypes
import faulthandler
import glob
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml
from transformers.utils import logging

import hf_evcap
from hf_evcap import CaptionDatastore, MemoryLayers, VisualNameMemory, default_model
from hf_evcap.cli.main import main as command_line
from hf_evcap.store_building import EncodedRows, build_store


USERS = {".git/HEAD": "ref", "notes.txt": "mine", "data/notes.parquet": "mine too", "layers/notes.txt": "and mine"}
PHOTO = Path(hf_evcap.__file__).parent / "assets/photos/cat.jpg"
AUDITED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "shutil", "tempfile")


def rows(count: int, seed: int, store_class: type = VisualNameMemory, **options: object) -> object:
    keys = np.random.default_rng(seed).standard_normal((count, 8))
    return store_class.from_rows([f"thing {row % 9}" for row in range(count)], keys, source="x", **options)


OLD, NEW = rows(90, 0, index_factory="IVF2,SQ8"), rows(80, 1, index_factory="IVF2,SQ8")
OLD_CAPTIONS = rows(50, 2, CaptionDatastore)
LAYERS = MemoryLayers({"one": rows(40, 3), "two": rows(30, 4)})
EMBEDDED = Path(default_model())  # photos are added with its encoder
OF_EMBEDDED = VisualNameMemory.from_pretrained(EMBEDDED / "memory").subset(["dog", "cat", "bicycle"])


def build(folder: Path) -> None:
    texts, keys = NEW.texts, NEW.keys
    build_store(
        VisualNameMemory,
        len(texts),
        lambda numbers: EncodedRows(
            [texts[n] for n in numbers], keys[list(numbers)], {"source": ["x"] * len(numbers)}
        ),
        folder,
        dim=8,
        settings={"index_factory": "IVF2,SQ8"},
        plan={},
        overwrite=True,
        batch_size=20,
        shard_size=40,
    )


def run(*words: object) -> None:
    if command_line([str(word) for word in words]):
        raise SystemExit(1)


def add_and_save(folder: Path) -> None:
    memory = VisualNameMemory.from_pretrained(folder)
    memory.add(["axolotl"], np.ones((1, 8))).save_pretrained(folder)


# What is there before (None: nothing), and what is done.
SCENARIOS: dict[str, tuple[object, Callable[[Path], None]]] = {
    "first save": (None, lambda folder: NEW.save_pretrained(folder, overwrite=True)),
    "save": (OLD, lambda folder: NEW.save_pretrained(folder, overwrite=True)),
    "save without index": (OLD, lambda folder: NEW.save_pretrained(folder, write_index=False, overwrite=True)),
    "save of a datastore": (OLD_CAPTIONS, lambda folder: rows(60, 5, CaptionDatastore).save_pretrained(folder)),
    "layers over a memory": (OLD, lambda folder: LAYERS.save_pretrained(folder, overwrite=True)),
    "layers over layers": (
        MemoryLayers({"one": OLD, "old": NEW}),
        lambda folder: LAYERS.save_pretrained(folder, overwrite=True),
    ),
    "a memory over layers": (LAYERS, lambda folder: NEW.save_pretrained(folder, overwrite=True)),
    "add": (OLD, add_and_save),
    "memory add": (
        OF_EMBEDDED,
        lambda folder: run("memory", "add", folder, "axolotl", PHOTO, "--model", EMBEDDED),
    ),
    "memory remove": (OLD, lambda folder: run("memory", "remove", folder, "thing 3")),
    "datastore remove": (OLD_CAPTIONS, lambda folder: run("datastore", "remove", folder, "thing 3")),
    "memory build": (None, build),
    "memory build over one": (OLD, build),
}


def state(folder: Path) -> str:
    """What a folder holds, by its rows."""
    if not (folder / "memory_config.json").exists():
        return "nothing"
    kind = json.loads((folder / "memory_config.json").read_text(encoding="utf-8"))["format"]
    store_class = CaptionDatastore if kind == "caption-datastore" else VisualNameMemory
    loaded = store_class.from_pretrained(folder)
    return " ".join(one.fingerprint for one in getattr(loaded, "memories", {"": loaded}).values())


def rows_for_datasets(folder: Path) -> list[list[str]]:
    """The texts that `datasets` reads, by the card and by nothing else."""
    card = folder / "README.md"
    if not card.exists():
        return []
    parts = card.read_text(encoding="utf-8").split("---\n")
    metadata = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
    if "configs" not in metadata:
        return []
    listed = metadata["configs"][0]["data_files"]
    files = [file for pattern in ([listed] if isinstance(listed, str) else listed)
             for file in sorted(glob.glob(str(folder / pattern))) if not file.endswith("notes.parquet")]  # fmt: skip
    return [sum((pq.read_table(file)[0].to_pylist() for file in files), [])]


def users_files(folder: Path) -> dict[str, str]:
    found = {name: folder / name for name in USERS}
    return {name: file.read_text(encoding="utf-8") for name, file in found.items() if file.exists()}


def attempts(
    target: Path,
    before: Path,
    act: Callable[[Path], None],
    how: str,
    every: int,
    first: int,
    watched: Path | None = None,
) -> Iterator[tuple[int, int]]:
    """Each (or each so-manieth) call's number and the status of the process that was stopped there, to the last."""
    libc = ctypes.CDLL(None)
    stop = signal.SIGKILL if how == "kill" else signal.SIGINT
    number = first - every
    while True:
        number += every
        for left in target.parent.glob(f"{target.name}*"):
            shutil.rmtree(left)
        if before.exists():
            shutil.copytree(before, target, symlinks=True)
        child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(60, exit=True)
            stop_at(libc, watched or target, number, stop)
            try:
                act(target)
            except (KeyboardInterrupt, SystemExit):  # the command line makes an exit status of it
                os._exit(3)
            except BaseException as error:  # noqa: BLE001 - a child that goes on would run the parent's loop
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(4)
            os._exit(counted(libc) < number and 9)
        status = os.waitpid(child, 0)[1]
        yield number, status
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) in (4, 9):
            return


CALLS = [0]


def stop_at(libc: ctypes.CDLL, target: Path, number: int, stop: int) -> None:
    if hasattr(libc, "arm"):
        libc.arm(str(target).encode(), number, stop)
        return

    def hook(event: str, arguments: tuple) -> None:
        if not event.startswith(AUDITED) or str(target) not in str(arguments[:2]):
            return
        CALLS[0] += 1
        if CALLS[0] == number:
            os.kill(os.getpid(), stop)

    sys.addaudithook(hook)


def counted(libc: ctypes.CDLL) -> int:
    return libc.counted() if hasattr(libc, "arm") else CALLS[0]


def main(scenario: str, how: str, root: Path, every: int = 1, first: int = 1) -> None:
    before, target = root / "before", root / "memory"
    start, act = SCENARIOS[scenario]
    if start is not None:
        start.save_pretrained(before)
        for name, text in USERS.items():
            (before / name).parent.mkdir(exist_ok=True)
            (before / name).write_text(text, encoding="utf-8")
    old, old_rows = state(before), rows_for_datasets(before)
    shutil.copytree(before, root / "finished") if before.exists() else None
    act(root / "finished")
    new, new_rows = state(root / "finished"), rows_for_datasets(root / "finished")
    finished = {str(file.relative_to(root / "finished")) for file in (root / "finished").rglob("*") if file.is_file()}
    problems, tried, seen = [], 0, set()
    for number, status in attempts(target, before, act, how, every, first):
        tried, place = tried + 1, f"call {number}"
        try:
            found = state(target) if target.exists() else "nothing"
            seen.add("old" if found == old else "new")
            if found not in (old, new):
                problems.append(f"{place}: another state, {found[:12]}")
            if status == 0 and found != new:
                problems.append(f"{place}: it said it was done, and was not")
            if target.exists() and rows_for_datasets(target) not in (old_rows, new_rows, []):
                problems.append(f"{place}: `datasets` reads a mixture")
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 4:
                problems.append(f"{place}: ended in an error")
            if start is not None and users_files(target) != USERS:
                problems.append(f"{place}: files of the user are gone: {set(USERS) - set(users_files(target))}")
            act(target)  # again, now to the end
            if state(target) != new and scenario not in ("add", "memory add", "memory remove", "datastore remove"):
                problems.append(f"{place}: the next run gave another state")
            left = {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
            if {name.replace("-2", "") for name in left} != {name.replace("-2", "") for name in finished}:
                problems.append(f"{place}: left over or missing: {left ^ finished}")
            if [file.name for file in root.glob("memory*")] != ["memory"]:
                problems.append(f"{place}: left beside the folder: {[file.name for file in root.glob('memory*')]}")
        except SystemExit:
            if found != new or "remove" not in scenario:  # what is gone cannot be removed again
                problems.append(f"{place}: the next run failed")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            problems.append(f"{place}: {type(error).__name__}: {error}")
    found = {"scenario": scenario, "how": how, "tried": tried - 1, "seen": sorted(seen), "problems": problems}
    print(json.dumps(found), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    logging.set_verbosity_error()
    logging.get_logger("hf_evcap").setLevel("ERROR")
    logging.disable_progress_bar()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - of the command line
    for place, name in enumerate(SCENARIOS if sys.argv[1] == "all" else [sys.argv[1]]):
        folder = Path(sys.argv[3]) / str(place)
        folder.mkdir()
        main(name, sys.argv[2], folder, *map(int, sys.argv[4:]))
        shutil.rmtree(folder)
