"""What options of the command line take: each checks one value and says what is wrong. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any


DTYPES = ("float32", "bfloat16", "float16")
_DEVICE = re.compile(r"(auto|cpu|cuda|mps|xpu|npu|hpu|mlu|meta)(:\d+)?|\d+")


def _number(text: str, kind: type) -> int | float:
    try:
        number = kind(text)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected a {'whole ' if kind is int else ''}number, got {text!r}") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return number


def whole_number(text: str) -> int:
    """A whole number, such as a seed."""
    return int(_number(text, int))


def number(text: str) -> float:
    """A number that is finite."""
    return float(_number(text, float))


def _at_least(low: float, found: Any, text: str) -> Any:
    if found < low:
        raise argparse.ArgumentTypeError(f"must be at least {low}, got {text}")
    return found


def positive_int(text: str) -> int:
    """A number of things: 1 or more."""
    return _at_least(1, whole_number(text), text)


def count(text: str) -> int:
    """A number of things that may be none: 0 or more."""
    return _at_least(0, whole_number(text), text)


def not_negative(text: str) -> float:
    """A number of 0 or more."""
    return _at_least(0, number(text), text)


def above_zero(text: str) -> float:
    """A number above 0."""
    found = number(text)
    if found <= 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return found


def share(text: str) -> float:
    """A share: from 0 to 1."""
    found = number(text)
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {text}")
    return found


def similarity(text: str) -> float:
    """A cosine: from -1 to 1."""
    found = number(text)
    if not -1 <= found <= 1:
        raise argparse.ArgumentTypeError(f"must be from -1 to 1, got {text}")
    return found


def existing_file(text: str) -> str:
    """A file that is there."""
    if os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give a file")
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text


def existing_folder(text: str) -> str:
    """A folder that is there."""
    if os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a file; give a folder")
    if not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"there is no folder {text!r}")
    return text


def existing_path(text: str) -> str:
    """A file or folder that is there."""
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"there is no file or folder {text!r}")
    return text


def photo(text: str) -> str:
    """One photo: a file that is there, or an address."""
    return text if text.startswith(("http://", "https://", "data:")) else existing_file(text)


def output_folder(text: str) -> str:
    """A folder to write, which need not be there."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a folder, got an empty one")
    if os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a file; give a folder")
    above = next((str(folder) for folder in Path(text).absolute().parents if folder.exists()), "/")
    if not os.path.isdir(above):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be made: {above!r} is a file")
    return text


def _dtype_of(*more: str) -> Callable[[str], str]:
    known = (*DTYPES, *more)

    def dtype(text: str) -> str:
        name = text.removeprefix("torch.")
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no precision {text!r}; choose {', '.join(known)}")
        return name

    return dtype


dtype = _dtype_of()
dtype_or_auto = _dtype_of("auto")


def device(text: str) -> str:
    """A device that PyTorch has a name for, and that the installed PyTorch can be built for."""
    if _DEVICE.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"there is no device {text!r}; give cpu, cuda, cuda:1, mps or xpu")
    if (text.startswith("cuda") or text.isdigit()) and not _built_for_gpus():
        raise argparse.ArgumentTypeError(f"{text!r} needs a GPU, and the installed PyTorch is for CPUs only; give cpu")
    return text


def _built_for_gpus() -> bool:
    """Whether the installed PyTorch knows GPUs, told from its `version.py` alone: importing PyTorch takes seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return True  # nothing can be told
    spec = importlib.util.spec_from_file_location("_torch_version", Path(found.origin).with_name("version.py"))
    if spec is None or spec.loader is None:
        return True
    version = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(version)
    except (ImportError, OSError, SyntaxError):
        return True
    return getattr(version, "cuda", "") is not None or getattr(version, "hip", None) is not None


def regex(text: str) -> str:
    """A regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def row_ids(text: str) -> list[int]:
    """Row ids written as `3,8-10`."""
    rows: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if found is None:
            raise argparse.ArgumentTypeError(f"Expected row ids such as 3,8-10; got {text!r}.")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise argparse.ArgumentTypeError(f"Expected row ids such as 3,8-10; {part.strip()!r} goes backwards.")
        if last - first > 10**7:
            raise argparse.ArgumentTypeError(f"{text!r} names more rows than there can be.")
        rows.extend(range(first, last + 1))
    return rows


def pair(text: str) -> tuple[str, str]:
    """Two words with an equals sign between them."""
    first, sign, second = text.partition("=")
    if not sign or not first:
        raise argparse.ArgumentTypeError(f"Expected LEFT=RIGHT, got {text!r}.")
    return first, second


def columns(text: str) -> str:
    """Names of columns, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if text and not all(names):
        raise argparse.ArgumentTypeError(f"expected names of columns such as region,license; got {text!r}")
    return ",".join(names)


def repo_id(text: str) -> str:
    """The id of a repo to publish: `name` or `user/name`."""
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no repo id; give user/name")
    return text


def size_of_file(text: str) -> str:
    """A size such as `5GB`."""
    if re.fullmatch(r"\d+(\.\d+)?\s*([kKMGT]i?B|B)?", text) is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 5GB, got {text!r}")
    return text


def start(*words: str, sources: bool = True) -> Callable[[str], str]:
    """What weights start from: one of some words, `random:SEED`, or the folder or Hub id of a model."""

    def check(text: str) -> str:
        if text in words or re.fullmatch(r"random:\d+", text):
            return text
        if not sources or text.startswith("random"):
            expected = ", ".join([*words, "random:SEED such as random:0"])
            raise argparse.ArgumentTypeError(f"expected {expected}{' or a model' if sources else ''}; got {text!r}")
        return text

    return check
