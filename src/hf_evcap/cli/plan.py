"""`hf-evcap plan`: what a model takes to load, to caption and to train, before anything is downloaded or bought."""

from __future__ import annotations

import json

from ..planning.arguments import PlanArguments
from . import logs
from .field_options import add_fields, fill
from .sources import check_model
from .verb_parser import VerbParser


DESCRIPTION = """Say what a model takes, from its configuration alone: parameters, memory to load, to caption and to
train it, disk for cached features, floating-point operations and hours. No weights are downloaded or allocated: a
training step and a caption are gone through on tensors without values. With --memory-gb it says what to change where
a training does not fit."""


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap plan",
        description=DESCRIPTION,
        usage="hf-evcap plan [--model MODEL | --model-config CONFIG] [--policy paper] [--batch-size 6] [options]",
        examples=[
            "plan --model MODEL --memory-gb 24",
            "plan --model-config evcap-vicuna-13b --policy lora --bf16 --gradient-checkpointing",
        ],
    )
    add_fields(parser, PlanArguments, {"config": "model_config"})
    parser.add_argument("--json", action="store_true", help="print all figures as JSON, in bytes and operations")
    parser.add_common()
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints a plan."""
    parser = make_parser()
    given = parser.parse_args(argv)
    try:
        arguments = fill(PlanArguments, vars(given))
    except ValueError as error:
        parser.error(str(error))
    if arguments.config is None:
        check_model(arguments.model, arguments.revision)
    from ..planning.planner import plan_from

    logs.settle()
    plan = plan_from(arguments)
    print(json.dumps(plan.to_dict(), indent=2) if given.json else plan)
    return 0
