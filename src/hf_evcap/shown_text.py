"""Text that others wrote, as a terminal or a card may show it: names of a memory come from anybody."""

from __future__ import annotations

import re
from typing import Any, TextIO


# Controls but tab and newline (an escape begins a command to the terminal), and marks that turn the writing around.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def shown(text: Any) -> str:
    r"""
    Text with its control characters written out, such as `\u001b`, as JSON writes them.

    Args:
        text: Is made a `str`.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


class ShownStream:
    """
    A text stream whose control characters are written out: the command line's standard output.

    Args:
        stream (`TextIO`): Where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes the text with its control characters written out; gives its length."""
        self.stream.write(shown(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


__all__ = ["ShownStream", "shown"]
