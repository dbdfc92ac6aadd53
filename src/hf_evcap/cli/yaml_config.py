"""Options from YAML files: `--config file.yaml` gives defaults, flags win."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_yaml(path: str | Path, what: str = "configuration file") -> Any:
    """
    What a YAML (or JSON) file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no {what} {path}.")
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f", line {place.line + 1}, column {place.column + 1}" if place is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{path} is not YAML{where}: {problem}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: it is no UTF-8 text.") from error


def read_config(path: str | Path) -> dict[str, Any]:
    """
    Reads a YAML file of options, `name: value` a line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, or not a mapping.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `option: value` lines, got {type(content).__name__}.")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def set_defaults(parser: argparse.ArgumentParser, options: Mapping[str, Any], source: str) -> None:
    """
    Makes options of a file the defaults of a parser, checked as if they had been flags.

    Args:
        parser (`argparse.ArgumentParser`): Changed.
        options (`Mapping[str, Any]`): From [`read_config`].
        source (`str`): Where they are from, for messages.

    Raises:
        ValueError: There is no such option, or its value is none that the flag takes.
    """
    named = {name: action_of(parser, name) for name in options}
    unknown = sorted(name for name, action in named.items() if action is None)
    if unknown:
        raise ValueError(f"Unknown options in {source}: {', '.join(unknown)}. `{parser.prog} --help` lists them.")
    for name, value in options.items():
        action = named[name]
        assert action is not None
        if isinstance(action, argparse._AppendAction) and value is not None and not isinstance(value, list):
            value = [value]
        several = isinstance(value, list)
        action.default = [checked(action, one, source) for one in value] if several else checked(action, value, source)
        action.required = False
        parser.set_defaults(**{action.dest: action.default})


def action_of(parser: argparse.ArgumentParser, name: str) -> argparse.Action | None:
    """The option that a file means by a name with `_`: by its own name, or by an older spelling."""
    by_name = {
        action.dest: action for action in reversed(parser._actions) if action.dest not in ("help", "==SUPPRESS==")
    }
    by_spelling = {
        option.lstrip("-").replace("-", "_"): action
        for option, action in parser._option_string_actions.items()
        if action.dest in by_name
    }
    return by_name.get(name) or by_spelling.get(name)


def checked(action: argparse.Action, value: Any, source: str) -> Any:
    """A value of a file, as the flag would have made it."""
    if value is None or isinstance(value, dict):
        return value
    if callable(action.type):
        try:
            value = action.type(str(value))  # YAML reads 1e-4 as text; what the flag makes of the text counts
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"`{action.dest}` in {source}: {error}.") from None
        except (TypeError, ValueError):
            kind = getattr(action.type, "__name__", "of another kind")
            raise ValueError(f"`{action.dest}` in {source} must be {kind}; got {value!r}.") from None
    elif action.nargs == 0 and not isinstance(value, bool):
        raise ValueError(f"`{action.dest}` in {source} must be true or false; got {value!r}.")
    if action.choices is not None and value not in action.choices:
        raise ValueError(f"`{action.dest}` in {source} must be one of {list(action.choices)}; got {value!r}.")
    return value


def parse_with_config(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """
    Parses options where `--config FILE` may give some of them.

    Args:
        parser (`argparse.ArgumentParser`): Gets `--config` if it has none.
        argv (`Sequence[str]`, *optional*): Words of the command line.
    """
    add_config(parser)
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False, prog=parser.prog)
    only_config.error = parser.error  # type: ignore[method-assign]
    add_config(only_config)
    path = only_config.parse_known_args(argv)[0].config
    if path is not None:
        set_defaults(parser, read_config(path), path)
    return parser.parse_args(argv)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` to a parser that has none."""
    if not any(action.dest == "config" for action in parser._actions):
        parser.add_argument("--config", metavar="FILE", help="YAML file of options, by name; flags win")
