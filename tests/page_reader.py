"""
Pages of documentation, run as their readers do: block after block, in one folder and one Python session, against a Hub
on loopback, and with what the page prints compared.

A page shows a result in two ways: `expression  # literal` in a Python block, and a block without a language after a
block whose printed text it is. Numbers may differ in their last digits, `...` stands for anything.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import math
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from documentation_pages import ROOT, RUN, commands_of, words_of
from hub_client import Client

from hf_evcap.cli.main import VERBS


_NUMBER = r"-?\d+(?:,\d{3})*(?:\.\d+)?"
_RUN_PYTHON = """
import ast, contextlib, io, sys, types
names = vars(sys.modules.setdefault("reader", types.ModuleType("reader")))
values, printed = {}, io.StringIO()
with contextlib.redirect_stdout(printed):
    for node in ast.parse(code).body:
        if isinstance(node, ast.Expr):
            values[node.end_lineno] = repr(eval(compile(ast.Expression(node.value), "<page>", "eval"), names))
        else:
            exec(compile(ast.Module([node], []), "<page>", "exec"), names)
result = [values, printed.getvalue()]
"""


@dataclass
class Block:
    """A block of a page, and the text that it prints, if the page shows it."""

    language: str
    code: str
    line: int
    printed: str | None = None


def blocks_of(text: str) -> list[Block]:
    """A page's blocks in their order."""
    found: list[Block] = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        language, code = match.groups()
        if language in ("", "text") and found:
            found[-1].printed = code
        else:
            found.append(Block(language, code, text[: match.start()].count("\n") + 2))
    return found


def shown_values(code: str) -> dict[int, Any]:
    """Results that a Python block shows, by the lines that their expressions end on."""
    ends = {node.end_lineno for node in ast.parse(code).body if isinstance(node, ast.Expr)}
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type != tokenize.COMMENT or token.start[0] not in ends:
            continue
        text = token.string.lstrip("# ")
        try:
            found[token.start[0]] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            assert text[:1] not in "'\"[{(-0123456789", f"no literal, but looks like a result: {text}"
    return found


def same_value(shown: Any, given: Any) -> bool:
    """Whether a result is the one shown: numbers to two per cent, as machines differ."""
    if isinstance(shown, float) and isinstance(given, (int, float)):
        return math.isclose(shown, given, rel_tol=0.02, abs_tol=0.01)
    if isinstance(shown, (list, tuple)):
        return type(shown) is type(given) and len(shown) == len(given) and all(map(same_value, shown, given))
    if isinstance(shown, dict):
        return (
            isinstance(given, dict)
            and list(shown) == list(given)
            and all(same_value(shown[k], given[k]) for k in shown)
        )
    return type(shown) is type(given) and shown == given


def same_text(shown: str, given: str, figures: bool = True) -> bool:
    """
    Whether a text is the one shown.

    Args:
        shown (`str`): `...` in it stands for anything.
        given (`str`): What was printed.
        figures (`bool`, *optional*, defaults to `True`): Whether its numbers are those shown, to two per cent.
    """

    shown, given = (" ".join(text.split()) for text in (shown, given))
    pattern, numbers = "", []
    for anything, number, other in re.findall(rf"(\.\.\.)|({_NUMBER})|(.)", shown):
        pattern += ".*?" if anything else f"({_NUMBER})" if number else re.escape(other)
        numbers += [number] if number else []
    matched = re.fullmatch(pattern, given)
    if matched is None or not figures:
        return matched is not None
    pairs = zip(numbers, matched.groups(), strict=True)
    return all(same_value(*(float(one.replace(",", "")) for one in pair)) for pair in pairs)


@dataclass
class Reader:
    """
    Someone who works through pages in a folder.

    Args:
        client ([`~hub_client.Client`]): The Python session and command line, in a process whose Hub is on loopback.
        folder (`Path`): Where they work.
        replaced (`dict[str, str]`): Owners of repos on the page to those whom the Hub knows.
        added (`dict[str, Sequence[str]]`): Options put behind those of a verb, to make runs short.
        swapped (`dict[str, str]`): Words of commands to others: small things for such as only exist at full size.
        variables (`dict[str, str]`): Of the shell.
    """

    client: Client
    folder: Path
    replaced: Mapping[str, str] = field(default_factory=lambda: {"me": "alice", "USER": "alice"})
    added: Mapping[str, Sequence[str]] = field(default_factory=dict)
    swapped: Mapping[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client("import os\nos.chdir(folder)", folder=str(self.folder))

    def read(self, page: Path, figures: Callable[[str], bool] = lambda printed: True) -> int:
        """
        Runs a page.

        Args:
            page (`Path`): Markdown.
            figures (`Callable`): Whether the numbers of a printed text must be those shown; the layout always must.

        Returns:
            `int`: Results that were compared.
        """
        compared = 0
        for block in blocks_of(page.read_text(encoding="utf-8")):
            place = f"{page.name}:{block.line}"
            if block.language == "python":
                code = self._own(block.code)
                shown = shown_values(code)
                values, printed = self.client(_RUN_PYTHON, code=code)
                for line, value in shown.items():
                    given = ast.literal_eval(values[str(line)])
                    assert same_value(value, given), f"{page.name}:{block.line + line - 1}: {given!r} is not {value!r}"
                compared += len(shown)
            elif block.language == "sh":
                printed = "".join(self.run(command, place) for command in commands_of(self._own(block.code)))
            else:
                assert block.language in ("mermaid", "bibtex", "yaml", "json"), f"{place}: {block.language}?"
                continue
            if block.printed is not None:
                told = f"{place} prints\n{printed}"
                assert same_text(block.printed, printed, figures(block.printed)), told
                compared += 1
        return compared

    def _own(self, code: str) -> str:
        for name, value in self.replaced.items():
            code = re.sub(rf"(?<![\w/.]){name}/(?=[a-z])", f"{value}/", code)
        return code

    def run(self, command: str, place: str) -> str:
        """
        Runs a command of a page.

        Returns:
            `str`: What it prints.

        Raises:
            ValueError: The test does not know how to run it.
        """
        for words, others in self.swapped.items():
            command = command.replace(words, others)
        command = re.sub(r"\$(\w+)", lambda found: self.variables[found[1]], command)
        assigned = re.fullmatch(r"""(\w+)="\$\(python -c '(.+)'\)\"""", command)
        if assigned:
            self.variables[assigned[1]] = subprocess.check_output(
                [sys.executable, "-c", assigned[2]], text=True
            ).strip()
            return ""
        words = words_of(command)
        if words[0] != "hf-evcap":
            check_other(words, place)
            return ""
        if words[1] not in VERBS:
            raise ValueError(f"{place}: hf-evcap has no verb {words[1]!r}.")
        code, out, told = self.client(RUN, argv=[*words[1:], *self.added.get(words[1], ())])
        assert code == 0, f"{place}: {command}\n{told}"
        return out


def check_other(words: Sequence[str], place: str) -> None:
    """
    Checks a command that no test runs: an installation, a script of the repository, a benchmark's options.

    Raises:
        ValueError: It is none of them.
    """
    if words[:2] == ["pip", "install"]:
        return
    if not words[0].startswith("scripts/") or not (ROOT / words[0]).is_file():
        raise ValueError(f"{place}: the test does not know how to run {' '.join(words)}")
    if words[0] == "scripts/benchmark.py":
        path = ROOT / "scripts" / "benchmarks" / f"{words[1]}.py"
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if len(words) > 2:
            module.make_parser().parse_args(list(words[2:]))
