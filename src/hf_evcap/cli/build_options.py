"""What the builds of memories and datastores have in common on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..hub.ready_configs import find_config, list_configs


RECIPES = """\
  a .yaml file    a recipe: `source` and any of the options below, by name with _ for -; options given here win
  {example:<15} a recipe of the package, by its name in `hf-evcap configs`"""
RESUMES = """\
A build that was interrupted goes on when the same command is given again. `accelerate launch -m hf_evcap.cli.main
{kind} build ...` shares the work among processes, with the same result."""


def add_build_verb(
    verbs: Any, kind: str, run: Callable[[argparse.Namespace], int], source: str, help: str, description: str
) -> argparse.ArgumentParser:
    """
    Adds `build` to the verbs of a kind of store: SOURCE, which may be a recipe, and the folder of the result.

    Args:
        verbs: Sub-parsers of `hf-evcap KIND`.
        kind (`str`): `"memory"` or `"datastore"`.
        run (`Callable`): Builds; it is given the arguments with those of the recipe.
        source (`str`): What SOURCE holds.
        help, description (`str`): Of the verb; how builds go on is said behind it.

    Returns:
        `argparse.ArgumentParser`: For the kind's own options.
    """
    parser = verbs.add_parser(
        "build",
        help=help,
        description=f"{description}\n\n{RESUMES.format(kind=kind)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help=source)
    parser.add_argument("--out", required=True, help=f"folder for the {kind}")
    parser.set_defaults(run=lambda arguments: run(follow_recipe(arguments, parser)))
    return parser


def add_build_options(
    parser: argparse.ArgumentParser,
    batch_size: int | None = 32,
    shard_size: int | None = 512,
    batch_text: str = "photos encoded at once (default: %(default)s)",
    shard_text: str = "photos after which progress is kept (default: %(default)s)",
) -> None:
    """Adds the options by which a build proceeds, and those for the store's card and index; see [`build_options`]."""
    parser.add_argument("--source-name", help="value of the column `source`")
    parser.add_argument("--license", help="licence of the source, for the card")
    parser.add_argument("--batch-size", type=int, default=batch_size, help=batch_text)
    parser.add_argument("--shard-size", type=int, default=shard_size, help=shard_text)
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="photos that cannot be read")
    parser.add_argument("--allow-urls", action="store_true", help="fetch photos that SOURCE names by their address")
    parser.add_argument("--index", help="FAISS factory string, such as Flat or HNSW32 (default: by size)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the kept keys")
    parser.add_argument("--restart", action="store_true", help="forget an unfinished build")
    add_overwrite(parser)


def add_overwrite(parser: Any) -> None:
    """Adds `--overwrite`, which every verb has that writes a folder."""
    parser.add_argument("--overwrite", action="store_true", help="replace what the folder holds already")


def build_options(arguments: argparse.Namespace, source: str, batch_size: int, shard_size: int) -> dict[str, Any]:
    """
    What every builder takes of the options that [`add_build_options`] added.

    Args:
        source (`str`): Value of the column `source`, which `--license` is the licence of.
        batch_size, shard_size (`int`): Where the options were not given.
    """
    return {
        "batch_size": batch_size if arguments.batch_size is None else arguments.batch_size,
        "shard_size": shard_size if arguments.shard_size is None else arguments.shard_size,
        "restart": arguments.restart,
        "overwrite": arguments.overwrite,
        "index_factory": arguments.index,
        "dtype": arguments.dtype,
        "licenses": {source: arguments.license} if arguments.license else {},
    }


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
    # A recipe comes with the data it speaks of; what is risked for them is for its user to say.
    actions = {name: action for name, action in actions.items() if name not in ("allow_urls", "overwrite")}
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


def load_encoder(source: str, device: Any) -> tuple[Any, Any]:
    """
    Loads the model whose encoder makes the keys of photos, without a store of its own, and its processor.

    Raises:
        ValueError: The model makes no keys of photos.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(source, memory=False).to(device).eval()
    if getattr(model, "memory_key_size", None) is None:
        raise ValueError(
            f"{source} is a {type(model).__name__} that makes no keys of photos; give --model a captioner that "
            "retrieves with its own vision encoder."
        )
    return model, AutoProcessor.from_pretrained(source)


def print_report(report: Any, out: str, items: str = "photos") -> int:
    """Says what a build did; only the main process has a report."""
    if report is not None:
        resumed = f", {report.resumed} of {report.shards} shards from an earlier run" if report.resumed else ""
        print(f"{report.rows} rows from {report.photos} {items} written to {out}{resumed}")
        for number, reason in report.skipped.items():
            print(f"skipped photo {number}: {reason}")
    return 0


__all__ = [
    "RECIPES",
    "add_build_options",
    "add_build_verb",
    "add_overwrite",
    "build_options",
    "follow_recipe",
    "load_encoder",
    "print_report",
]
