"""What the builds of memories and datastores have in common on the command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..hub.ready_configs import find_config, list_configs
from ..output_folders import check_output
from .common_options import add_device, add_output, add_overwrite, add_reading, add_shards, alias
from .options import count, positive_int
from .verb_parser import VerbParser
from .yaml_config import action_of, checked, read_yaml


RECIPES = """\
  a .yaml                      a recipe: `source` and options below by name; flags win
  {example:<28} a recipe of the package, by its name in `hf-evcap configs`"""
RESUMES = """\
A build that was interrupted goes on when the same command is given again. `accelerate launch -m hf_evcap.cli.main
{kind} build ...` shares the work among processes, with the same result."""


def add_build_verb(
    verbs: Any,
    kind: str,
    run: Callable[[argparse.Namespace], int],
    source: str,
    help: str,
    description: str,
    examples: Sequence[str],
) -> VerbParser:
    """
    Adds `build` to the verbs of a kind of store: SOURCE, which may be a recipe, and the folder of the result.

    Args:
        verbs: Sub-parsers of `hf-evcap KIND`.
        kind (`str`): `"memory"` or `"datastore"`.
        run (`Callable`): Builds; it is given the arguments with those of the recipe.
        source (`str`): What SOURCE holds.
        help, description (`str`): Of the verb; how builds go on is said behind it.
        examples (`Sequence[str]`): Commands that the help ends with.

    Returns:
        [`VerbParser`]: For the kind's own options.
    """
    parser = verbs.add_parser(
        "build", help=help, description=f"{description}\n\n{RESUMES.format(kind=kind)}", examples=examples
    )
    parser.add_argument("source", metavar="SOURCE", help=source)
    add_output(parser, f"the {kind}")
    parser.set_defaults(run=lambda arguments: run(follow_recipe(arguments, parser)))
    return parser


def add_build_options(
    parser: argparse.ArgumentParser,
    batch_size: int | None = 32,
    shard_size: int | None = 512,
    batch_text: str = "photos encoded at once",
    shard_text: str = "photos after which progress is kept",
) -> None:
    """Adds the options by which a build proceeds, and those for the store's card and index; see [`build_options`]."""
    parser.add_argument("--source-name", metavar="NAME", help="value of the column `source` (default: SOURCE's name)")
    parser.add_argument("--license", metavar="LICENSE", help="licence of the source, for the card")
    add_device(parser)
    add_shards(parser, batch_size, shard_size, batch_text, shard_text)
    add_reading(parser)
    add_index(parser, "by size")
    add_key_dtype(parser, "float32")
    parser.add_argument("--restart", action="store_true", help="forget an unfinished build")
    add_overwrite(parser)


def add_index(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--index`."""
    parser.add_argument(
        "--index", metavar="FACTORY", help=f"FAISS factory string, such as Flat or HNSW32 (default: {default})"
    )


def add_key_dtype(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Adds `--key-dtype`; `--dtype` is its older spelling."""
    parser.add_argument(
        "--key-dtype", dest="dtype", choices=["float32", "float16"], default=default, help="precision of the kept keys"
    )
    alias(parser, "--key-dtype", "--dtype")


def check_target(arguments: argparse.Namespace) -> None:
    """Refuses at once a folder that holds something, unless an interrupted build of it lies beside it."""
    if not os.path.isdir(f"{os.path.realpath(arguments.output)}.building"):
        check_output(arguments.output, arguments.overwrite)


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
    recipe = read_yaml(arguments.source, "recipe")
    if not isinstance(recipe, dict) or "source" not in recipe:
        raise ValueError(f"The recipe {arguments.source} must be a mapping with `source`.")
    # A recipe comes with the data it speaks of; what is risked for them is for its user to say.
    hidden = ("help", "allow_urls", "overwrite", argparse.SUPPRESS)
    named = {name: action_of(parser, str(name)) for name in recipe}
    unknown = sorted(str(name) for name, action in named.items() if action is None or action.dest in hidden)
    if unknown:
        known = sorted({action.dest for action in parser._actions if action.dest not in hidden})
        raise ValueError(f"The recipe {arguments.source} has unknown entries {unknown}; it may have {known}.")
    for name, value in recipe.items():
        action: Any = named[name]
        if action.choices and value not in action.choices:
            raise ValueError(f"`{name}` in {arguments.source} must be one of {list(action.choices)}; got {value!r}.")
        kind: Any = _kind_of(action)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"`{name}` in {arguments.source} must be {kind.__name__}; got {value!r}.")
        if kind is int:
            checked(action, value, arguments.source)
        if getattr(arguments, action.dest) == action.default:
            setattr(arguments, action.dest, value)
    arguments.source = recipe["source"]
    return arguments


def _kind_of(action: argparse.Action) -> type:
    """What a recipe gives for an option."""
    if action.nargs == 0:
        return bool
    return int if action.type in (count, positive_int) else str


def load_encoder(source: str | None, device: Any, revision: str | None = None) -> tuple[Any, Any]:
    """
    Loads the model whose encoder makes the keys of photos, without a store of its own, and its processor.

    Args:
        source (`str`, *optional*): Folder or Hub id; the embedded model when absent.
        device: Where it runs.
        revision (`str`, *optional*): Of the model.

    Raises:
        ValueError: The model makes no keys of photos.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import hf_evcap

    from ..pipeline_loading import check_device

    check_device(device)
    source = source or hf_evcap.default_model()
    model = AutoModelForImageTextToText.from_pretrained(source, revision=revision, memory=False).to(device).eval()
    if getattr(model, "memory_key_size", None) is None:
        raise ValueError(
            f"{source} is a {type(model).__name__} that makes no keys of photos; give --model a captioner that "
            "retrieves with its own vision encoder."
        )
    return model, AutoProcessor.from_pretrained(source, revision=revision)


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
    "add_index",
    "add_key_dtype",
    "build_options",
    "check_target",
    "follow_recipe",
    "load_encoder",
    "print_report",
]
