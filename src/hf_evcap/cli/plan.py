"""`hf-evcap plan`: what a model takes to load, to caption and to train, before anything is downloaded or bought."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import HfArgumentParser


DESCRIPTION = """Say what a model takes, from its configuration alone: parameters, memory to load, to caption and to
train it, disk for cached features, floating-point operations and hours. No weights are downloaded or allocated: a
training step and a caption are gone through on tensors without values. With --memory_gb it says what to change where
a training does not fit."""


def make_parser() -> HfArgumentParser:
    """Makes the verb's parser."""
    from transformers import HfArgumentParser

    from ..planning import PlanArguments

    parser = HfArgumentParser(
        PlanArguments,
        prog="hf-evcap plan",
        description=DESCRIPTION,
        usage="hf-evcap plan [--model DIR or ID | --config FILE] [--policy paper] [--batch_size 6] [options]",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON, in bytes and operations")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Prints a plan."""
    arguments, rest = make_parser().parse_args_into_dataclasses(argv, look_for_args_file=False)
    from ..planning.planner import plan_from

    plan = plan_from(arguments)
    print(json.dumps(plan.to_dict(), indent=2) if rest.json else plan)
    return 0
