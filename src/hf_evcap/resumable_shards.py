"""Long work in shards: interrupted, it goes on where it was; many processes share it and give what one would give."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .output_folders import check_output
from .processes import process_state
from .whole_files import write_json


PLAN_NAME = "plan.json"
RESULT_NAME = "result.json"  # what the shards were put together to, for a run that is killed right after
_OWN_FILES = (
    f"{PLAN_NAME}*",
    f"{RESULT_NAME}*",
    "part-*",
    "keys.tmp",
    "dataset_info.json",
    "state.json",
    "feature_cache.json",
)


class ResumableShards:
    """
    A working folder that holds a file for each finished shard, and the plan by which they were made.

    Shards are dealt out in turn to the processes of `accelerate launch`; a file that exists is finished.

    Args:
        work (`Path`): The working folder; made by the main process if it does not exist.
        plan (`Mapping[str, Any]`): What shards depend on. Shards of another plan are refused.
        items (`int`): Items in all.
        shard_size (`int`): Items a shard.
        suffix (`str`, *optional*, defaults to `".parquet"`): Ending of the shards' files.
        restart (`bool`, *optional*, defaults to `False`): Forget what an earlier run made.
        what (`str`, *optional*, defaults to `"build"`): What the work is, for messages.
        finished (`Path`, *optional*): File that is written when all is done, for messages.

    Raises:
        ValueError: The folder holds shards of another plan, or other things.
    """

    def __init__(
        self,
        work: Path,
        plan: Mapping[str, Any],
        items: int,
        shard_size: int,
        suffix: str = ".parquet",
        restart: bool = False,
        what: str = "build",
        finished: Path | None = None,
    ) -> None:
        if shard_size < 1:
            raise ValueError(f"`shard_size` must be at least 1, got {shard_size}.")
        self.work, self.items, self.shard_size, self.suffix = work, items, shard_size, suffix
        self.processes = process_state()
        if self.processes.is_main_process:
            self._begin(dict(plan), restart, what, finished)
        self.processes.wait_for_everyone()
        shards = range(-(-items // shard_size))
        self.files = [work / f"part-{shard:06d}{suffix}" for shard in shards]
        self.mine = [shard for shard in shards if shard % self.processes.num_processes == self.processes.process_index]
        self.missing = [shard for shard in self.mine if not self.files[shard].is_file()]
        self.resumed = sum(file.is_file() for file in self.files)
        self.processes.wait_for_everyone()  # all have counted before one finishes a shard

    def _begin(self, plan: dict[str, Any], restart: bool, what: str, finished: Path | None) -> None:
        """Makes the working folder, or checks that the work in it is of the same plan."""
        file = self.work / PLAN_NAME
        if restart:
            self.discard()
        if file.is_file():
            earlier = json.loads(file.read_text(encoding="utf-8"))
            other = sorted(name for name in {**plan, **earlier} if plan.get(name) != earlier.get(name))
            if other and any(self.work.glob(f"part-*{self.suffix}")):
                done = finished is not None and finished.is_file() and finished.stat().st_mtime >= file.stat().st_mtime
                state, begin = ("a finished", "Choose") if done else ("an unfinished", "Finish that one, choose")
                raise ValueError(
                    f"{self.work} holds {state} {what} that differs in {', '.join(other)}. {begin} another folder, or "
                    "start again with `restart=True` (`--restart`)."
                )
            if other:  # nothing was done by the other plan
                write_json(file, plan)
            for left in self.work.glob("part-*.tmp"):  # of a run that was killed while it wrote
                left.unlink()
            return
        check_output(self.work, own=_OWN_FILES, wanted=f"folder of an unfinished {what}")
        self.work.mkdir(parents=True, exist_ok=True)
        for left in self.work.glob("part-*"):  # of a finished run that was killed while it cleared up, of any plan
            left.unlink()
        write_json(file, plan)

    def discard(self) -> None:
        """Deletes what was kept of the work, and its folder unless somebody put other things there."""
        if not self.work.is_dir():
            return
        for path in sorted(self.work.iterdir(), key=lambda path: path.name != PLAN_NAME):  # no shard counts without it
            if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _OWN_FILES):
                path.unlink()
        with contextlib.suppress(OSError):
            self.work.rmdir()

    def items_of(self, shard: int) -> range:
        """Numbers of a shard's items."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.items))

    def write(self, shard: int, write: Callable[[BinaryIO], Any]) -> None:
        """Writes a shard's file, whole or not at all."""
        file = self.files[shard]
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            with unfinished.open("wb") as opened:
                write(opened)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)


__all__ = ["ResumableShards"]
