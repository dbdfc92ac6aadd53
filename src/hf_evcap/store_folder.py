"""
A store's folder is replaced so that at every moment it holds the old state or the new one, and loads.

New files are written into a hidden folder inside of the target, moved beside the old ones under names that are free,
and count from the moment when the manifest, which names them, replaces the old one. Then the old ones are taken away.
A run that is killed leaves a journal, by which the next save undoes or completes what was begun. Nothing that the
package did not write is moved or deleted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from .hub_card import merge_cards
from .store_lock import locked_folder
from .store_manifest import CARD_NAME, DATA_FOLDER, INDEX_NAME, LAYERS_FOLDER, MANIFEST_NAME, own_files, state_of
from .whole_files import STAGING_PREFIX


_JOURNAL = "journal.json"
_OLD_CARD, _PINNED_CARD = "README.old.md", "README.pinned.md"
_REPLACED = (MANIFEST_NAME, INDEX_NAME, CARD_NAME)  # have the same name in every state
_ALL_DATA = f"data_files: {DATA_FOLDER}/*.parquet"  # in a card


def write_folder(
    target: str | os.PathLike,
    write_files: Callable[[Path, Path], None],
    check: Callable[[Path], None],
    note: Callable[[Path, str], None],
) -> None:
    """
    Replaces what a store's folder holds.

    Args:
        target (`str` or `os.PathLike`): The folder, or a symbolic link to it; made if it does not exist. Other
            processes that edit it are waited for.
        write_files (`Callable[[Path, Path], None]`):
            Writes the files, the manifest among them, into the folder that it is given first. Names other than those
            of the manifest, the index and the card must be free in the second, the target; see [`free_name`].
        check (`Callable[[Path], None]`): Is given the target when it is held against others, and may raise.
        note (`Callable[[Path, str], None]`): Is given the target and its new state before it is let go.

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there before is unchanged.
    """
    if Path(target).is_file():
        raise NotADirectoryError(f"{target} is a file; give a folder.")
    folder = Path(os.path.realpath(target))
    existed = folder.exists()
    try:
        with _explained(folder), locked_folder(folder):
            recover_folder(folder)
            check(folder)
            _check_foreign(folder)
            staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=folder))
            try:
                write_files(staging, folder)
                _replace_state(staging, folder)
            finally:
                recover_folder(folder)
            note(folder, str(state_of(folder)))
    finally:
        if not existed:
            with suppress(OSError):
                folder.rmdir()  # still empty: nothing could be written


def delete_store(target: str | os.PathLike) -> None:
    """Takes a store's own files out of a folder, and the folder with them if it holds nothing else."""
    with locked_folder(target) as folder:
        recover_folder(folder)
        own = own_files(folder)
        for name in reversed(own):  # the manifest first: without it there is no store
            (folder / name).unlink(missing_ok=True)
        _remove_empty(folder, own)
        with suppress(OSError):
            folder.rmdir()


def free_name(folder: Path, name: str) -> str:
    """A name such as `data/train-00000-of-00001.parquet`, with `-2`, `-3`, ... where the folder has that already."""
    path, number = PurePosixPath(name), 1
    while os.path.lexists(folder / name):
        number += 1
        name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
    return name


def _replace_state(staging: Path, folder: Path) -> None:
    """Makes the files of a staging folder those of the store. What is left to do is done by [`recover_folder`]."""
    new = [file.relative_to(staging).as_posix() for file in sorted(staging.rglob("*")) if file.is_file()]
    added = [name for name in new if name not in _REPLACED]
    old_card = folder / CARD_NAME
    if old_card.is_file():
        text = old_card.read_text(encoding="utf-8")
        merged = merge_cards((staging / CARD_NAME).read_text(encoding="utf-8"), text)
        (staging / CARD_NAME).write_text(merged, encoding="utf-8")
        (staging / _OLD_CARD).write_text(text, encoding="utf-8")
        (staging / _PINNED_CARD).write_text(_pinned(text, own_files(folder)), encoding="utf-8")
    for file in staging.rglob("*"):
        _to_disk(file)
    journal = {
        "state": hashlib.sha256((staging / MANIFEST_NAME).read_bytes()).hexdigest(),
        "added": added,
        "removed": [name for name in own_files(folder) if name not in new],
    }
    unfinished = staging / f"{_JOURNAL}.tmp"
    unfinished.write_text(json.dumps(journal), encoding="utf-8")
    _to_disk(unfinished)
    os.replace(unfinished, staging / _JOURNAL)
    if (staging / _PINNED_CARD).is_file():
        os.replace(staging / _PINNED_CARD, folder / CARD_NAME)  # names the old files while the new ones come
    for name in added:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.rename(staging / name, folder / name)
    for place in {(folder / name).parent for name in added}:
        _to_disk(place)
    os.replace(staging / MANIFEST_NAME, folder / MANIFEST_NAME)
    _to_disk(folder)


def recover_folder(folder: Path) -> None:
    """Undoes or completes what runs that were killed have begun; the folder must be held."""
    for staging in folder.glob(f"{STAGING_PREFIX}*"):
        try:
            journal: dict[str, Any] = json.loads((staging / _JOURNAL).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            journal = {}
        if journal and state_of(folder) == journal["state"]:
            _complete(staging, folder, journal["removed"])
        elif journal:
            for name in journal["added"]:
                if not (staging / name).exists():
                    (folder / name).unlink(missing_ok=True)
            _remove_empty(folder, journal["added"])
            if (staging / _OLD_CARD).is_file() and not (staging / _PINNED_CARD).is_file():
                os.replace(staging / _OLD_CARD, folder / CARD_NAME)
        _clear(staging)


def _clear(staging: Path) -> None:
    """Removes a staging folder; `shutil.rmtree`, when interrupted, may close a descriptor twice."""
    for place, folders, files in os.walk(staging, topdown=False):
        for name in files:
            os.unlink(os.path.join(place, name))
        for name in folders:
            os.rmdir(os.path.join(place, name))
    os.rmdir(staging)


def _complete(staging: Path, folder: Path, removed: list[str]) -> None:
    """What follows when the new manifest is in its place."""
    if (staging / INDEX_NAME).is_file():
        os.replace(staging / INDEX_NAME, folder / INDEX_NAME)
    card = staging / CARD_NAME
    if card.is_file():
        pinned = staging / _PINNED_CARD
        pinned.write_text(_pinned(card.read_text(encoding="utf-8"), own_files(folder)), encoding="utf-8")
        os.replace(pinned, folder / CARD_NAME)  # names the new files while the old ones go
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    _remove_empty(folder, removed)
    if card.is_file():
        os.replace(card, folder / CARD_NAME)


def _pinned(card: str, own: list[str]) -> str:
    """A card that names a store's files one by one, so that `datasets` reads no others."""
    files = ", ".join(name for name in own if name.startswith(f"{DATA_FOLDER}/"))
    return card.replace(_ALL_DATA, f"data_files: [{files}]", 1) if files else card


def _remove_empty(folder: Path, names: list[str]) -> None:
    """Removes folders in which files stood, where nothing is left in them."""
    places = {parent for name in names for parent in PurePosixPath(name).parents if parent.parts}
    for place in sorted(places, key=lambda one: -len(one.parts)):
        if place.parts[0] in (DATA_FOLDER, LAYERS_FOLDER):
            with suppress(OSError):
                (folder / place).rmdir()


def _check_foreign(folder: Path) -> None:
    """Refuses a folder that holds somebody else's index where ours would go."""
    if (folder / INDEX_NAME).exists() and not (folder / MANIFEST_NAME).exists():
        raise FileExistsError(
            f"{folder} holds {INDEX_NAME} but no {MANIFEST_NAME}, so it is not of this package. Choose another folder."
        )


def _to_disk(path: Path) -> None:
    """Waits until a file or the entries of a folder are on the disk, where the system can."""
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Says of a failed write which folder it was about, what it holds now and what to do."""
    before = state_of(target)
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _explain(error, target, before) from error
    except RuntimeError as error:  # how faiss reports that it cannot write
        if "write" not in str(error) and "space" not in str(error):
            raise
        raise _explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), target, before) from error


def _explain(error: OSError, target: Path, before: str | None) -> OSError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    now = "; what was there before is unchanged" if target.exists() else ""
    if state_of(target) != before:
        now = "; the new state is saved, but not all that belongs to the old one is cleared away"
    message = f"Cannot write {target}: {reason}{now}. Free some space or choose another folder"
    return OSError(error.errno, message) if error.errno else OSError(message)


__all__ = ["delete_store", "free_name", "recover_folder", "write_folder"]
