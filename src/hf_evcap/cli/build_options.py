"""What the builds of memories and datastores have in common on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..hub.ready_configs import find_config, list_configs


def add_build_options(
    parser: argparse.ArgumentParser,
    batch_size: int | None = 32,
    shard_size: int | None = 512,
    batch_text: str = "photos encoded at once (default: %(default)s)",
    shard_text: str = "photos after which progress is kept (default: %(default)s)",
) -> None:
    """Adds the options by which a build proceeds, and those for the store's card and index."""
    parser.add_argument("--source-name", help="value of the column `source`")
    parser.add_argument("--license", help="licence of the source, for the card")
    parser.add_argument("--batch-size", type=int, default=batch_size, help=batch_text)
    parser.add_argument("--shard-size", type=int, default=shard_size, help=shard_text)
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="photos that cannot be read")
    parser.add_argument("--index", help="FAISS factory string, such as Flat or HNSW32 (default: by size)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the kept keys")
    parser.add_argument("--restart", action="store_true", help="forget an unfinished build")


def follow_recipe(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Takes SOURCE and the options that were not given from a recipe, where SOURCE is one or names one."""
    if arguments.source in list_configs():
        arguments.source = str(Path(find_config(arguments.source)) / "recipe.yaml")
    if Path(arguments.source).suffix.lower() not in (".yaml", ".yml"):
        return arguments
    import yaml

    recipe = yaml.safe_load(Path(arguments.source).read_text(encoding="utf-8"))
    if not isinstance(recipe, dict) or "source" not in recipe:
        raise ValueError(f"The recipe {arguments.source} must be a mapping with `source`.")
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    unknown = sorted(set(recipe) - set(actions))
    if unknown:
        raise ValueError(
            f"The recipe {arguments.source} has unknown entries {unknown}; it may have {sorted(actions)}."
        )
    for name, value in recipe.items():
        given, action = getattr(arguments, name), actions[name]
        if action.choices and value not in action.choices:
            raise ValueError(f"`{name}` in {arguments.source} must be one of {list(action.choices)}; got {value!r}.")
        kind: Any = type(action.default) if action.default is not None else action.type or str
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` in {arguments.source} must be {kind.__name__}; got {value!r}.")
        if given == action.default:
            setattr(arguments, name, value)
    arguments.source = recipe["source"]
    return arguments


def print_report(report: Any, out: str, items: str = "photos") -> int:
    """Says what a build did; only the main process has a report."""
    if report is not None:
        resumed = f", {report.resumed} of {report.shards} shards from an earlier run" if report.resumed else ""
        print(f"{report.rows} rows from {report.photos} {items} written to {out}{resumed}")
        for number, reason in report.skipped.items():
            print(f"skipped photo {number}: {reason}")
    return 0


__all__ = ["add_build_options", "follow_recipe", "print_report"]
