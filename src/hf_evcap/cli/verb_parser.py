"""The parser of a verb: errors in one line, help that is equal on every Python, spellings with `-` and `_` alike."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn


class VerbFormatter(argparse.RawDescriptionHelpFormatter):
    """Help whose usage is one line, and whose options are written `-k, --rows N` on every Python from 3.10 on."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{"max_help_position": 30, **options})

    def add_argument(self, action: argparse.Action) -> None:
        """Adds an option, and makes room for it and its sub-verbs; Pythons differ in how much."""
        if action.help is argparse.SUPPRESS:
            return
        lengths = [len(self._format_action_invocation(action)) + self._current_indent]
        for sub in self._iter_indented_subactions(action):
            lengths.append(len(self._format_action_invocation(sub)) + self._current_indent)
        self._action_max_length = max(self._action_max_length, *lengths)
        self._add_item(self._format_action, [action])

    def _format_usage(self, usage: str | None, actions: Iterable[argparse.Action], *_: Any) -> str:
        if usage is None:
            actions = list(actions)
            needed = [action for action in actions if action.option_strings and action.required]
            positionals = [action for action in actions if not action.option_strings]
            parts = [self._of_positional(action) for action in positionals]
            parts += [f"{action.option_strings[0]} {self._of_option(action)}".strip() for action in needed]
            if not any(action.nargs == argparse.PARSER for action in actions):
                parts.append("[options]")
            usage = " ".join([self._prog, *parts])
        indent = " " * (len(self._prog) + 8)
        lines = textwrap.wrap(
            f"usage: {usage}", self._width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        return "\n".join(lines) + "\n\n"

    def _of_positional(self, action: argparse.Action) -> str:
        if action.nargs == argparse.PARSER:
            return f"{action.metavar or 'VERB'} ..."
        return self._format_args(action, self._get_default_metavar_for_positional(action))

    def _of_option(self, action: argparse.Action) -> str:
        if action.nargs == 0 or (action.nargs == "?" and action.const is True and not action.default):
            return ""  # a switch; that it may be given with a word, too, need not be said
        return self._format_args(action, self._get_default_metavar_for_optional(action))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        spellings = {option.replace("_", "-"): option for option in reversed(action.option_strings)}
        shown = [option for option in action.option_strings if option in spellings.values()]
        return " ".join(part for part in (", ".join(shown), self._of_option(action)) if part)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fills paragraphs; indented lines, such as commands and lists, stay as they are."""
        lines: list[str] = []
        for line in text.splitlines():
            if lines and lines[-1] and line and not line.startswith(" ") and not lines[-1].startswith(" "):
                lines[-1] += f" {line}"
            else:
                lines.append(line)
        filled = (
            line if line.startswith(" ") else textwrap.fill(line, width, break_on_hyphens=False) for line in lines
        )
        return "\n".join(f"{indent}{line}" for line in filled)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        unsaid = not (
            action.default is None or isinstance(action.default, bool) or action.default in ("", argparse.SUPPRESS)
        )
        unsaid = (unsaid and action.default != []) or action.default is True
        if text and unsaid and action.option_strings and action.nargs != 0 and "default" not in text.lower():
            text = f"{text.rstrip('.')} (default: %(default)s)"
        return text


class VerbParser(argparse.ArgumentParser):
    """
    An `argparse.ArgumentParser` for `hf-evcap VERB`.

    Options are taken with `-` and `_` alike and never shortened; an error is one line on stderr; every leaf has the
    options that [`~main.main`] takes out of the line before it is parsed.

    Args:
        examples (`Sequence[str]`): Commands, without `hf-evcap`, that the help ends with.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        if examples:
            lines = "\n".join(f"  hf-evcap {example}" for example in examples)
            more = options.get("epilog")
            options["epilog"] = f"example{'s'[: len(examples) - 1]}:\n{lines}" + (f"\n\n{more}" if more else "")
        super().__init__(**{"formatter_class": VerbFormatter, "allow_abbrev": False, **options})

    def add_common(self) -> None:
        """Adds, for the help, the options that all verbs have."""
        group = self.add_argument_group("messages")
        for options, text in (
            (("-q", "--quiet"), "show errors only, no progress bars"),
            (("-v", "--verbose"), "show what the libraries report, too"),
            (("--debug",), "show where an error was raised"),
        ):
            free = [option for option in options if option not in self._option_string_actions]
            if free:
                group.add_argument(*free, action=_TakenByMain, help=text)

    def add_subparsers(self, **options: Any) -> Any:
        """Adds sub-verbs, which are called by the words in front of them alone."""
        return super().add_subparsers(**{"prog": self.prog, "required": True, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses; a leaf refuses what it does not know and says what is near."""
        found, rest = self.parse_leniently(args, namespace)
        if rest and self._subparsers is None:
            self.refuse(rest)
        return found, rest

    def parse_leniently(self, args: Sequence[str] | None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parses what is known, and gives the rest."""
        words = [self._own_spelling(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(words, namespace)

    def _own_spelling(self, word: str) -> str:
        name, sign, value = word.partition("=")
        if not name.startswith("--") or name in self._option_string_actions:
            return word
        near = next((one for one in self._option_string_actions if _plain(one) == _plain(name)), None)
        return word if near is None else f"{near}{sign}{value}"

    def refuse(self, words: Sequence[str], others: Iterable[str] = ()) -> NoReturn:
        """Refuses words that no option has taken; `others` are names that could have been meant, too."""
        unknown = next((word for word in words if word.startswith("-") and len(word) > 1), None)
        if unknown is None:
            self.error(
                f"unexpected {' '.join(map(repr, words))}; words of one kind stand together, before the options"
            )
        name = unknown.partition("=")[0]
        shown = [one for action in self._actions if action.help != argparse.SUPPRESS for one in action.option_strings]
        shown += [f"--{_plain(other)}" for other in others]
        self.error(f"there is no option {name}{_meant(name, shown)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        text = f"there is no {value!r}{_meant(str(value), known)}; choose from {', '.join(known)}"
        raise argparse.ArgumentError(action, text)

    def error(self, message: str) -> NoReturn:
        """Says in one line what is wrong and where the options are listed; the status is 2."""
        line = re.sub(r"^argument ", "", " ".join(message.split()))
        self.exit(2, f"{self.prog}: {line} (see {self.prog} --help)\n")


class _TakenByMain(argparse.Action):
    """An option that the entry point has taken already, when it comes here at all."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None, **_: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, *_: Any) -> None:
        pass


def _plain(option: str) -> str:
    return option.replace("_", "-")


def _meant(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(_plain(word), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


__all__ = ["VerbFormatter", "VerbParser"]
