"""Which files of a folder go to the Hub: what the package wrote, cards and licences; others only when named."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..store_manifest import CARD_NAME, MANIFEST_NAME, own_files
from .card_facts import RESULTS_NAME


_TEXTS = re.compile(r"README\.md|(LICEN[CS]E|NOTICE|COPYING)([-_.][^.]*)?(\.(md|txt|rst))?", re.IGNORECASE)
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)
_MODEL = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "processor_config.json",
    "preprocessor_config.json",
    RESULTS_NAME,
)
SPACE_FILES = ("app.py", "requirements.txt", "packages.txt", "pre-requirements.txt", "Dockerfile", "index.html")
# What is never uploaded, named or not: hidden files, what training keeps for itself, caches and keys.
_NEVER = (
    ".*",
    "__pycache__",
    "*.pyc",
    "optimizer*.pt",
    "optimizer*.bin",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "training_args.bin",
    "runs",
    "wandb",
    "events.out.tfevents.*",
    "*.pem",
    "*.key",
    "id_rsa*",
    "id_ed25519*",
)
_LEAVES = "a link that leaves the folder"


def store_files(folder: Path) -> list[str]:
    """
    Patterns of the files of the memory, datastore or layers in a folder: those that its manifest lists, but for cards.

    Raises:
        ValueError: The manifest is damaged.
    """
    names = own_files(folder)
    if not names and (folder / MANIFEST_NAME).is_file():
        raise ValueError(f"{folder / MANIFEST_NAME} is damaged. Save the memory or datastore again.")
    return [glob.escape(name) for name in names if Path(name).name != CARD_NAME]


def model_files(folder: Path, tokenizer_folder: str, memory_folder: str) -> list[str]:
    """Patterns of the files of the model in a folder, with those of its tokenizers and its memory."""
    tokenizers = [f"{tokenizer_folder}/{name}" if tokenizer_folder else name for name in _TOKENIZER]
    memory = [f"{glob.escape(memory_folder)}/{pattern}" for pattern in store_files(folder / memory_folder)]
    return [*_MODEL, *_TOKENIZER, *tokenizers, *memory]


@dataclass
class ChosenFiles:
    """
    What of a folder is uploaded.

    Args:
        files (`dict[str, Path]`): Files by their path in the repo, links followed.
        left_out (`dict[str, str]`): The others, folders as a whole, and why.
    """

    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def choose_files(folder: Path, patterns: Sequence[str], include: Sequence[str] = ()) -> ChosenFiles:
    """
    Chooses what of a folder goes to the Hub.

    Args:
        folder (`Path`): The folder.
        patterns (`Sequence[str]`): What the package writes there; `*` stands for a part of a name. READMEs and
            licences of the folder, and of those that patterns name, always belong to it.
        include (`Sequence[str]`): What the user names besides; `*` stands for folders, too.

    Raises:
        ValueError: A file that belongs to the repo is a link that leaves the folder; `include` names nothing.
    """
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":  # a download of the Hub's cache, whose files are links to its blobs
        roots.append(root.parent.parent / "blobs")
    texts_in = {"", *(pattern.rpartition("/")[0] for pattern in patterns)}
    chosen, used = ChosenFiles(), set()
    for place, folders, files in os.walk(root):
        inside = Path(place).relative_to(root).as_posix().removeprefix(".")
        inside = f"{inside}/" if inside else ""
        for name in sorted(folders):
            linked = (Path(place) / name).is_symlink()
            if linked or _is_never(name):
                chosen.left_out[f"{inside}{name}/"] = "a link to a folder" if linked else "never uploaded"
                folders.remove(name)
                if linked and any(pattern.startswith(f"{inside}{name}/") for pattern in patterns):
                    raise ValueError(
                        f"{folder / inside / name} is a link to a folder, which is not followed. Copy it."
                    )
        folders.sort()
        for name in sorted(files):
            whole, path = f"{inside}{name}", Path(place) / name
            own = any(_matches(whole, pattern) for pattern in patterns)
            text = _TEXTS.fullmatch(name) is not None and any(_matches(inside[:-1], one) for one in texts_in)
            named = {pattern for pattern in include if fnmatch.fnmatchcase(whole, pattern)}
            reason = _reason(path, roots) or ("" if own or text or named else "not written by hf_evcap")
            if reason and own:
                raise ValueError(f"{folder / whole} is {reason}. Put the file itself there.")
            if reason:
                chosen.left_out[whole] = reason
            else:
                chosen.files[whole] = path.resolve()
                used |= named
    unused = sorted(set(include) - used)
    if unused:
        raise ValueError(
            f"`include` {unused[0]!r} names nothing in {folder} that is uploaded. Hidden files, keys, caches, what "
            "training keeps for itself and links that leave the folder never are."
        )
    return chosen


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _is_never(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in _NEVER)


def _reason(path: Path, roots: Sequence[Path]) -> str:
    """Why a file is not uploaded even if it is named."""
    if _is_never(path.name):
        return "never uploaded"
    if not path.is_file():
        return "no regular file"
    target = path.resolve()
    return "" if any(target.is_relative_to(root) for root in roots) else _LEAVES


def link_files(chosen: ChosenFiles, target: Path, without: Sequence[str] = ()) -> None:
    """Puts links to chosen files into a folder where it has none of its own, but for some patterns."""
    for name, path in chosen.files.items():
        place = target / name
        if not place.exists() and not any(fnmatch.fnmatchcase(name, pattern) for pattern in without):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)


__all__ = ["SPACE_FILES", "ChosenFiles", "choose_files", "link_files", "model_files", "store_files"]
