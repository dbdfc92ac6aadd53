"""An exception as the one line that a user reads."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..shown_text import shown


_MORE = " (--debug shows all)"
_LONGEST = 700
# The last line of a traceback that another library has put into its message, such as transformers' pipelines do.
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|NotFound): (?P<message>\S.*)$", re.MULTILINE)
_EXPECTED = (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)


def one_line(error: BaseException) -> str:
    """
    What an exception says, in one line.

    Messages that this package writes are one line already. Of longer ones, which other libraries write, the first line
    stays, or the error inside of them that tells most.
    """
    text = _text(error)
    if "Traceback (most recent call last)" in text:
        found = [match["message"] for match in _RAISED.finditer(text)]
        text = found[0] + _MORE if found else _first(text)
    else:
        text = _first(text)
    if not text:
        text = f"{type(error).__name__} without a message{_MORE}"
    elif not isinstance(error, _EXPECTED):
        text = f"{type(error).__name__}: {text}{'' if text.endswith(_MORE) else _MORE}"
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rsplit(" ", 1)[0] + f" ...{_MORE}"
    return str(shown(text))


def _text(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, UnicodeDecodeError):
        return f"this is no UTF-8 text: {error}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        reasons = {
            FileNotFoundError: "there is no file or folder {}",
            IsADirectoryError: "{} is a folder; give a file",
            NotADirectoryError: "{} is a file; give a folder",
            PermissionError: "{} may not be read or written (permission denied)",
        }
        words = reasons.get(type(error), error.strerror + ": {}")
        return words.format(repr(str(error.filename)))
    return str(error)


def _first(text: str) -> str:
    lines = [line.strip() for line in _lines(text)]
    if not lines:
        return ""
    taken = 2 if lines[0].endswith(":") and len(lines) > 1 else 1
    return " ".join(lines[:taken]) + (_MORE if len(lines) > taken else "")


def _lines(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if line.strip())


__all__ = ["one_line"]
