"""`hf-evcap --print-completion SHELL`: completion of verbs and options, by shtab."""

from __future__ import annotations

import argparse
import importlib

from .main import VERBS
from .verb_parser import VerbParser


def make_parser() -> argparse.ArgumentParser:
    """Makes one parser of all verbs, which only completion needs."""
    parser = VerbParser(prog="hf-evcap", description="Image captioning with a memory that anyone can edit.")
    parser.add_argument("--version", action="store_true", help="print the version")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, (module, what) in VERBS.items():
        made = importlib.import_module(f".{module}", __package__).make_parser()
        verbs.add_parser(verb, help=what)
        verbs._name_parser_map[verb] = made
    return parser


def main(argv: list[str]) -> int:
    """Prints the script of a shell."""
    try:
        import shtab
    except ImportError:
        raise ImportError('Completion needs shtab: pip install "hf_evcap[completion]"') from None
    print(shtab.complete(make_parser(), argv[0]))
    return 0
