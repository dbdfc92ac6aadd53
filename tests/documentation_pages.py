"""Pages of the documentation as their readers run them: commands of shell blocks, snippets of Python blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

from hf_evcap.cli.main import VERBS
from hf_evcap.hub.ready_configs import find_config


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

# For a `hub_client.Client`: runs a command there.
RUN = """
import contextlib, io
from hf_evcap.cli.main import main
told = io.StringIO()
with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()) as printed:
    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code or 0
result = [code, printed.getvalue(), told.getvalue()[-2000:]]
"""


def read_page(name: str) -> str:
    """A page of docs/, by its name."""
    return (DOCS / name).read_text(encoding="utf-8")


def blocks(text: str) -> list[tuple[str, str]]:
    """A page's blocks of code in their order: the language, and the code."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def snippets(text: str) -> list[str]:
    """A page's Python blocks."""
    return [code for language, code in blocks(text) if language == "python"]


def commands_of(code: str) -> list[str]:
    """Commands of a shell block, each on one line, without comments."""
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    return [command for command in (re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines) if command]


def commands(text: str) -> list[str]:
    """Commands of a page's shell blocks, each on one line."""
    return [command for language, code in blocks(text) if language == "sh" for command in commands_of(code)]


def words_of(command: str) -> list[str]:
    """Words of a command; what `accelerate launch` starts is the command itself, once its configuration is read."""
    command = re.sub(r"\$\(hf-evcap configs ([\w./-]+)\)", lambda found: find_config(found[1]), command)
    words = shlex.split(command)
    if words[:2] == ["accelerate", "launch"]:
        launched = launch_command_parser().parse_args(words[2:])
        assert Path(launched.config_file).is_file() and launched.module
        words = [launched.training_script, *launched.training_script_args]
        words[0] = "hf-evcap" if words[0] == "hf_evcap.cli.main" else words[0]
    return words


def arguments_of(
    command: str, replaced: Mapping[str, str] | None = None, added: Mapping[str, Sequence[str]] | None = None
) -> list[str]:
    """
    Words of a command after `hf-evcap`, as a test runs it.

    Args:
        command (`str`): From [`commands`].
        replaced (`Mapping[str, str]`, *optional*): Owners of repos to others.
        added (`Mapping[str, Sequence[str]]`, *optional*): Verbs to options that are put behind theirs.

    Raises:
        ValueError: It is another program, or a verb that there is not.
    """
    words = words_of(command)
    for name, value in (replaced or {}).items():
        words = [re.sub(rf"^{name}/", f"{value}/", word) for word in words]
    if words[0] != "hf-evcap" or words[1] not in VERBS:
        raise ValueError(f"The page has a command that the test does not know: {command}")
    return [*words[1:], *(added or {}).get(words[1], [])]
