"""`hf-evcap train`: trains a captioner on captioned photos."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .yaml_config import read_config, set_defaults


if TYPE_CHECKING:
    from transformers import HfArgumentParser


DESCRIPTION = """Train a captioner on photos with captions. Options come from a recipe of the package (--recipe), a
YAML file (--config) and flags; flags win over the file, the file over the recipe. Every field of transformers'
Seq2SeqTrainingArguments is an option. On several GPUs: accelerate launch -m hf_evcap.cli.main train ..."""


def make_parser() -> HfArgumentParser:
    """Makes the verb's parser."""
    from transformers import HfArgumentParser

    from ..training.fine_tuning.training_arguments import (
        CaptionTrainingArguments,
        DataArguments,
        ModelArguments,
        RetrievalArguments,
    )

    parser = HfArgumentParser(
        (ModelArguments, DataArguments, CaptionTrainingArguments, RetrievalArguments),
        prog="hf-evcap train",
        description=DESCRIPTION,
        usage="hf-evcap train --dataset DATA --output_dir DIR [--recipe NAME] [--config FILE] [options]",
        allow_abbrev=False,
    )
    _add_sources(parser)
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, by name")
    parser.add_argument("--recipe", metavar="NAME", help="options that come with the package; `list` lists them")


def parse_arguments(argv: list[str] | None) -> tuple[Any, ...]:
    """
    Arguments of a run, from a recipe, a file and flags.

    Returns:
        `tuple`: [`ModelArguments`], [`DataArguments`], [`CaptionTrainingArguments`] and [`RetrievalArguments`].
    """
    from ..training.recipe_presets import load_recipe

    path, recipe, options = _read_sources(argv)
    parser = make_parser()
    if recipe is not None:
        set_defaults(parser, load_recipe(recipe), f"the recipe {recipe}")
    if options:
        set_defaults(parser, options, str(path))
    *arguments, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return tuple(arguments)


def _read_sources(argv: list[str] | None) -> tuple[str | None, str | None, dict[str, Any]]:
    """Path of the configuration file, name of the recipe, and the file's options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_sources(parser)
    given = parser.parse_known_args(argv)[0]
    options = read_config(given.config) if given.config is not None else {}
    return given.config, given.recipe or options.get("recipe"), options


def main(argv: list[str] | None = None) -> int:
    """Trains a model."""
    if _read_sources(argv)[1] == "list":
        from ..training.recipe_presets import list_recipes

        for name, what in list_recipes().items():
            print(f"{name:<16} {what}")
        return 0
    model, data, training, retrieval = parse_arguments(argv)
    from ..training.fine_tuning.run_training import check_output_dir, run_training

    check_output_dir(training)
    run_training(model, data, training, retrieval, report=print)
    return 0
