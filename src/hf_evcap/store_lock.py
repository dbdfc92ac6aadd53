"""A folder that one process edits at a time: the second waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils import logging


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


logger = logging.get_logger(__name__)


class _FolderLock:
    """What threads of this process share for one folder."""

    def __init__(self) -> None:
        self.thread_lock = threading.RLock()
        self.depth = 0
        self.descriptor: int | None = None


_LOCKS: dict[str, _FolderLock] = {}
_LOCKS_LOCK = threading.Lock()


@contextmanager
def locked_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """
    Holds a folder for edits against other threads and processes, from loading to saving; whoever comes second waits.

    The lock lies on the folder itself (`flock`), so that no file stays behind and a process that dies lets go of it. A
    thread that holds it may take it again. Where the system has no such locks, threads alone are kept apart.

    Args:
        folder (`str` or `os.PathLike`): Made if it does not exist. Of a symbolic link, the folder that it leads to.

    Yields:
        `Path`: The folder, resolved.
    """
    target = Path(os.path.realpath(folder))
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(str(target), _FolderLock())
    with lock.thread_lock:
        if lock.depth == 0:
            lock.descriptor = _hold(target)
        lock.depth += 1
        try:
            yield target
        finally:
            lock.depth -= 1
            if lock.depth == 0 and lock.descriptor is not None:
                os.close(lock.descriptor)  # and with it the lock
                lock.descriptor = None


def _hold(target: Path) -> int | None:
    while True:
        target.mkdir(parents=True, exist_ok=True)
        if fcntl is None:
            return None
        try:
            descriptor = os.open(target, os.O_RDONLY)
        except FileNotFoundError:  # another process that made it has given it up since
            continue
        try:
            _wait(descriptor, target)
            if os.path.exists(target) and os.path.samestat(os.fstat(descriptor), os.stat(target)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _wait(descriptor: int, target: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning(f"Another process edits {target}; waiting for it to finish.")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        logger.warning_once(f"{target} cannot be locked ({error.strerror}): let one process edit it at a time.")


__all__ = ["locked_folder"]
