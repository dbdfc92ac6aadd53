"""`hf-evcap train`: trains a captioner on captioned photos."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from ..caption_data import KNOWN_DATASETS
from ..training.fine_tuning.captioning_arguments import (
    CaptioningOptions,
    DataArguments,
    ModelArguments,
    RetrievalArguments,
)
from . import logs
from .field_options import add_fields, check_as_fields, fill
from .sources import check_dataset, check_model, check_store
from .trainer_options import TrainerOptions, names_of_trainer
from .verb_parser import VerbParser
from .yaml_config import action_of, read_config, set_defaults


DESCRIPTION = """Train a captioner on photos with captions. Options come from a recipe of the package (--recipe), a
YAML file (--config) and flags; flags win over the file, the file over the recipe. On several GPUs:
accelerate launch -m hf_evcap.cli.main train ..."""
# Fields whose options have the name that they have in other verbs; the field's own name is taken, too.
_RENAMED = {
    "model_revision": "revision",
    "dataset_split": "split",
    "dataset_format": "format",
    "output_dir": "output",
    "per_device_train_batch_size": "batch_size",
}


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **_: Any) -> None:
        text = "show this, and all options of transformers' Seq2SeqTrainingArguments"
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=text)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        make_parser(everything=True).print_help()
        parser.exit()


def make_parser(everything: bool = False) -> VerbParser:
    """
    Makes the verb's parser.

    Args:
        everything (`bool`, *optional*, defaults to `False`): Also with the options of transformers that few runs need;
            PyTorch is imported for them.
    """
    parser = VerbParser(
        prog="hf-evcap train",
        description=DESCRIPTION,
        usage="hf-evcap train --dataset DATA --output FOLDER [--recipe NAME] [--config FILE] [options]",
        examples=[
            "train --dataset photos/ --output out --num-train-epochs 3",
            "train --model MODEL --dataset dataset_coco.json --split train+restval --images coco --output out",
            "train --config run.yaml --learning-rate 1e-4",
        ],
    )
    parser.add_argument("--help-all", action=_HelpAll)
    _add_sources(parser)
    for fields_of in (ModelArguments, DataArguments, TrainerOptions, CaptioningOptions, RetrievalArguments):
        add_fields(parser, fields_of, _RENAMED)
    if everything:
        _add_rest(parser)
    parser.add_common()
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="YAML file of options, by name")
    parser.add_argument("--recipe", metavar="NAME", help="options that come with the package; `list` lists them")


def _add_rest(parser: VerbParser) -> None:
    from transformers import HfArgumentParser

    from ..training.fine_tuning.training_arguments import CaptionTrainingArguments

    known = {action.dest for action in parser._actions}
    group = parser.add_argument_group("all other options of transformers.Seq2SeqTrainingArguments")
    for action in HfArgumentParser(CaptionTrainingArguments, add_help=False)._actions:
        if action.dest in known:
            continue
        taken = [option for option in action.option_strings if option in parser._option_string_actions]
        action.option_strings = [option.replace("_", "-") for option in action.option_strings if option not in taken]
        action.option_strings = list(dict.fromkeys(action.option_strings))
        group._add_action(action)
    check_as_fields(parser)


def parse_arguments(argv: list[str] | None) -> tuple[Any, ...]:
    """
    Arguments of a run, from a recipe, a file and flags.

    Returns:
        `tuple`: [`ModelArguments`], [`DataArguments`], [`CaptionTrainingArguments`] and [`RetrievalArguments`].
    """
    _parse_quickly(argv)
    parser = make_parser(everything=True)
    _read_defaults(parser, argv)
    values = vars(parser.parse_args(argv))

    from ..training.fine_tuning.training_arguments import CaptionTrainingArguments

    return tuple(
        fill(fields_of, values)
        for fields_of in (ModelArguments, DataArguments, CaptionTrainingArguments, RetrievalArguments)
    )


def _parse_quickly(argv: list[str] | None) -> dict[str, Any]:
    """Refuses what is wrong with the options that are known without PyTorch; gives their values."""
    parser = make_parser()
    others = names_of_trainer()
    _read_defaults(parser, argv, others)
    found, rest = parser.parse_leniently(argv)
    unknown = [word for word in rest if word.startswith("--") and not _is_of_trainer(word, others)]
    if unknown and others:
        parser.refuse(unknown, others)
    return vars(found)


def _is_of_trainer(word: str, names: Iterable[str]) -> bool:
    name = word.partition("=")[0].lstrip("-").replace("-", "_")
    return name in names or name.removeprefix("no_") in names


def _read_defaults(parser: VerbParser, argv: list[str] | None, others: Iterable[str] = ()) -> None:
    """Sets what a recipe and a file say; options of `others` are left for a parser that knows them."""
    path, recipe, options = _read_sources(argv)
    sources: list[tuple[dict[str, Any], str]] = [(options, str(path))]
    if recipe is not None:
        from ..training.recipe_presets import load_recipe

        sources.insert(0, (load_recipe(recipe), f"the recipe {recipe}"))
    for content, source in sources:
        known = {name: value for name, value in content.items() if name not in others or action_of(parser, name)}
        set_defaults(parser, known, source)


def _read_sources(argv: list[str] | None) -> tuple[str | None, str | None, dict[str, Any]]:
    """Path of the configuration file, name of the recipe, and the file's options."""
    parser = VerbParser(prog="hf-evcap train", add_help=False)
    _add_sources(parser)
    given = parser.parse_leniently(argv)[0]
    options = read_config(given.config) if given.config is not None else {}
    return given.config, given.recipe or options.get("recipe"), options


def main(argv: list[str] | None = None) -> int:
    """Trains a model."""
    if _read_sources(argv)[1] == "list":
        from ..training.recipe_presets import list_recipes

        for name, what in list_recipes().items():
            print(f"{name:<16} {what}")
        return 0
    given = _parse_quickly(argv)
    if given["dataset"] is None:
        make_parser().error("name the captioned photos to train on: --dataset FILE, FOLDER or Hub id")
    for name in ("dataset", "eval_dataset"):
        check_dataset(given[name], KNOWN_DATASETS, given["dataset_revision"])
    check_model(given["model"], given["model_revision"])
    check_store(given["memory"])
    model, data, training, retrieval = parse_arguments(argv)
    from ..training.fine_tuning.run_training import check_output_dir, run_training

    logs.settle()
    check_output_dir(training)
    run_training(model, data, training, retrieval, report=print)
    return 0
