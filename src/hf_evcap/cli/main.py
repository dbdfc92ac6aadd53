"""Entry point of `hf-evcap`: finds the verb's module and runs it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from typing import TextIO, cast

from ..shown_text import ShownStream, shown
from . import logs
from .errors import one_line
from .verb_parser import VerbParser


# Verb -> (module in this package, what it does). A module has `make_parser()` and `main(argv)`.
VERBS = {
    "new": ("new", "put a captioner together from an encoder and a language model"),
    "caption": ("caption", "caption photos"),
    "memory": ("memory", "build, edit, inspect and publish visual-name memories"),
    "datastore": ("datastore", "build, edit, inspect and publish caption datastores"),
    "cache-features": ("cache_features", "run the frozen vision encoder once, so that training need not"),
    "train": ("train", "train a captioner on captioned photos"),
    "plan": ("plan", "say what a model takes: parameters, memory, disk, hours"),
    "evaluate": ("evaluate", "caption a dataset and score the captions"),
    "convert": ("convert", "convert the reference implementation's checkpoints and memories"),
    "merge": ("merge", "write a model as one whole folder: frozen parts by reference, LoRA adapters"),
    "push": ("push", "publish a model, memory, datastore, metric or Space on the Hub"),
    "configs": ("configs", "list, find or copy the configurations that come with the package"),
    "env": ("environment", "print versions for a bug report"),
}
SHELLS = ("bash", "zsh", "tcsh")
_LEVELS = {"-q": logs.QUIET, "--quiet": logs.QUIET, "-v": logs.VERBOSE, "--verbose": logs.VERBOSE}
_DEBUG_OF_TRAINER = ("underflow_overflow", "tpu_metrics_debug")  # values of transformers' own `--debug`


def make_parser() -> VerbParser:
    """Makes the parser of the verbs; their own options are their modules'."""
    verbs = "\n".join(f"  {verb:<15} {what}" for verb, (_, what) in VERBS.items())
    parser = VerbParser(
        prog="hf-evcap",
        description=f"Image captioning with a memory that anyone can edit.\n\nverbs:\n\n{verbs}",
        epilog="`hf-evcap VERB --help` tells a verb's options.",
        examples=["caption photo.jpg --names", "memory build PHOTOS --output kitchen"],
        usage="hf-evcap VERB [options]",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--print-completion", choices=SHELLS, metavar="SHELL", help="completion for bash, zsh or tcsh")
    parser.add_common()
    parser.add_argument("verb", nargs="?", choices=list(VERBS), metavar="VERB", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _take_common(words: list[str]) -> tuple[list[str], str, bool]:
    """Takes `-q`, `-v` and `--debug` out of a line, wherever they stand: the rest, how much to say, and whether."""
    rest: list[str] = []
    level, debug = logs.USUAL, bool(os.environ.get("HF_EVCAP_TRACEBACK"))
    for place, word in enumerate(words):
        if word == "--":
            rest += words[place:]
            break
        if word in _LEVELS:
            level = _LEVELS[word]
        elif word == "--debug" and (words[place + 1 : place + 2] or [""])[0] not in _DEBUG_OF_TRAINER:
            debug = True
        else:
            rest.append(word)
    return rest, level, debug


def main(argv: list[str] | None = None) -> int:
    """
    Runs a verb.

    Args:
        argv (`list[str]`, *optional*): The words after `hf-evcap`; the process's own when absent.

    Returns:
        `int`: 0, 1 when something failed, 2 when the line was wrong. With `--debug`, or `HF_EVCAP_TRACEBACK=1` set,
            what failed is raised.
    """
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot write is written out: \xe9
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words, level, debug = _take_common(list(sys.argv[1:] if argv is None else argv))
    logs.choose(level)
    try:
        return _run(words, debug)
    except SystemExit as ended:
        if not ended.code:  # --help
            raise
        return int(ended.code)


def _run(words: list[str], debug: bool) -> int:
    arguments = make_parser().parse_args(words)
    if arguments.version:
        from hf_evcap import __version__

        print(__version__)
        return 0
    if arguments.verb is None and arguments.print_completion is None:
        make_parser().print_help()
        return 2
    verb = arguments.verb or "completion"
    module = importlib.import_module(f".{VERBS[verb][0] if arguments.verb else verb}", __package__)
    try:
        with contextlib.redirect_stdout(cast(TextIO, ShownStream(sys.stdout))), logs.written_out():
            return module.main(arguments.arguments if arguments.verb else [arguments.print_completion])
    except BrokenPipeError:  # `hf-evcap ... | head`; nothing more can be printed, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - whatever it is, a user is told in one line
        if debug:
            raise
        print(shown(f"hf-evcap {verb}: {one_line(error)}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
