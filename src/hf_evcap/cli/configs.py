"""`hf-evcap configs`: the configurations and training recipes that come with the package."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from ..hub.ready_configs import find_config, list_configs
from .common_options import alias
from .verb_parser import VerbParser


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap configs",
        description="List the configurations and training recipes of the package, find one, or copy it.",
        examples=[
            "configs                                        what there is",
            "configs evcap-vicuna-13b                       where it lies",
            "configs memories/template --output my-memory   a copy to edit",
        ],
        epilog='  accelerate launch --config_file "$(hf-evcap configs accelerate/fsdp)" \\\n'
        "      -m hf_evcap.cli.main train ...",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the path of this one")
    parser.add_argument("--output", metavar="PATH", type=Path, help="copy it there instead; must not exist")
    alias(parser, "--output", "--out")
    parser.add_common()
    return parser


def main(argv: list[str] | None = None) -> int:
    """Lists, finds or copies."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    from ..training.recipe_presets import list_recipes

    if arguments.name is None:
        if arguments.output is not None:
            parser.error("--output needs the NAME of what to copy; `hf-evcap configs` lists them")
        for title, entries in (
            (
                "configurations (--model-config NAME, `hf-evcap push`, `memory build`, `accelerate launch`)",
                list_configs(),
            ),
            ("training recipes (`hf-evcap train --recipe NAME`)", list_recipes()),
        ):
            print(f"{title}:")
            width = max(len(name) for name in entries)
            for name, what in entries.items():
                print(f"  {name:<{width}}  {what}")
        return 0
    if arguments.name not in list_configs():
        near = difflib.get_close_matches(arguments.name, list_configs(), n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"There is no configuration {arguments.name!r}; `hf-evcap configs` lists them.{meant}")
    source = Path(find_config(arguments.name))
    if arguments.output is None:
        print(source)
        return 0
    if arguments.output.exists():
        raise FileExistsError(f"{arguments.output} is there already; give --output a name that is free.")
    (shutil.copytree if source.is_dir() else shutil.copy)(source, arguments.output)
    print(f"{arguments.name} copied to {arguments.output}")
    return 0
