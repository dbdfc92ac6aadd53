"""`hf-evcap configs`: the configurations and training recipes that come with the package."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


EXAMPLES = """examples:
  hf-evcap configs                                        what there is
  hf-evcap configs evcap-vicuna-13b                       where it lies
  hf-evcap configs memories/template --output my-memory   a copy to edit
  accelerate launch --config_file "$(hf-evcap configs accelerate/fsdp)" -m hf_evcap.cli.main train ..."""


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap configs",
        description="List the configurations and training recipes of the package, find one, or copy it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="print the path of this one")
    parser.add_argument("--output", metavar="PATH", type=Path, help="copy it there instead; must not exist")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Lists, finds or copies."""
    from ..hub.ready_configs import find_config, list_configs
    from ..training.recipe_presets import list_recipes

    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.name is None:
        if arguments.output is not None:
            parser.error("--output needs the NAME of what to copy; `hf-evcap configs` lists them")
        for title, entries in (
            ("configurations (--config NAME, `hf-evcap push`, `memory build`, `accelerate launch`)", list_configs()),
            ("training recipes (`hf-evcap train --recipe NAME`)", list_recipes()),
        ):
            print(f"{title}:")
            width = max(len(name) for name in entries)
            for name, what in entries.items():
                print(f"  {name:<{width}}  {what}")
        return 0
    if arguments.name not in list_configs():
        raise ValueError(f"There is no configuration {arguments.name!r}; `hf-evcap configs` lists them.")
    source = Path(find_config(arguments.name))
    if arguments.output is None:
        print(source)
        return 0
    if arguments.output.exists():
        raise FileExistsError(f"{arguments.output} is there already; give --output a name that is free.")
    (shutil.copytree if source.is_dir() else shutil.copy)(source, arguments.output)
    print(f"{arguments.name} copied to {arguments.output}")
    return 0
