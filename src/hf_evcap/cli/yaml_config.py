"""Options from YAML files: `--config file.yaml` gives defaults, flags win."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def read_config(path: str | Path) -> dict[str, Any]:
    """
    Reads a YAML file of options, `name: value` a line.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not YAML, or not a mapping.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
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
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    unknown = sorted(set(options) - set(actions))
    if unknown:
        raise ValueError(f"Unknown options in {source}: {', '.join(unknown)}. `{parser.prog} --help` lists them.")
    for name, value in options.items():
        action = actions[name]
        checked = [_checked(action, one, source) for one in value] if isinstance(value, list) else value
        action.default = checked if isinstance(value, list) else _checked(action, value, source)
        action.required = False
    parser.set_defaults(**{name: actions[name].default for name in options})


def _checked(action: argparse.Action, value: Any, source: str) -> Any:
    if value is None or isinstance(value, dict):
        return value
    if callable(action.type):
        try:
            value = action.type(str(value))  # YAML reads 1e-4 as text; what the flag makes of the text counts
        except (TypeError, ValueError, argparse.ArgumentTypeError):
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
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_config(only_config)
    path = only_config.parse_known_args(argv)[0].config
    if path is not None:
        set_defaults(parser, read_config(path), path)
    return parser.parse_args(argv)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds `--config` to a parser that has none."""
    if not any(action.dest == "config" for action in parser._actions):
        parser.add_argument("--config", metavar="FILE", help="YAML file of options, by name; flags win")
