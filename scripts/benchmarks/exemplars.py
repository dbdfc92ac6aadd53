"""How many photos a new name needs: recall of names in captions of other photos, by exemplars in the memory."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import hf_evcap
from hf_evcap.training.from_scratch.tiny_measurements import TinyMeasurements


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmark.py exemplars", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with objects/novel.parquet (image, name)")
    parser.add_argument("--model", default=hf_evcap.default_model(), help="EVCap folder (default: embedded)")
    parser.add_argument("--exemplars", type=int, nargs="+", default=[1, 3, 5, 10])
    parser.add_argument("--num-beams", type=int, default=5)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    measure = TinyMeasurements(arguments.model, arguments.data, arguments.num_beams)
    most = max(arguments.exemplars)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; photos after the {most}th of each name")
    for count in arguments.exemplars:
        found = measure.novel_names(count, most, without=False)
        for kind, what in (("novel", "new to the memory"), ("held", "in the memory already")):
            if kind in found:
                told = found[kind]
                print(
                    f"{count:>2} exemplars: {100 * told['with_names']['recall']:.0f} % of {told['photos']} photos of "
                    f"{told['names']} names {what}; seconds a name {found['seconds_to_add_a_name']:.2f}"
                )
    return 0
