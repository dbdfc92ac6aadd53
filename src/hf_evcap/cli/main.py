"""Entry point of `hf-evcap`: finds the verb's module and runs it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from typing import TextIO, cast

from ..shown_text import ShownStream, shown


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


def make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the verbs; their own options are their modules'."""
    verbs = "\n".join(f"  {verb:<15} {what}" for verb, (_, what) in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="hf-evcap",
        description="Image captioning with a memory that anyone can edit.",
        epilog=f"verbs:\n{verbs}\n\n`hf-evcap VERB --help` tells a verb's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="hf-evcap VERB [options]",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("verb", nargs="?", choices=list(VERBS), metavar="VERB", help="what to do")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Runs a verb.

    Args:
        argv (`list[str]`, *optional*): The words after `hf-evcap`; the process's own when absent.

    Returns:
        `int`: 0, or 1 when something failed. Set `HF_EVCAP_TRACEBACK=1` to see where.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.version:
        from hf_evcap import __version__

        print(__version__)
        return 0
    if arguments.verb is None:
        parser.print_help()
        return 2
    module = importlib.import_module(f".{VERBS[arguments.verb][0]}", __package__)
    try:
        with contextlib.redirect_stdout(cast(TextIO, ShownStream(sys.stdout))):
            return module.main(arguments.arguments)
    except BrokenPipeError:  # `hf-evcap ... | head`; nothing more can be printed, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if os.environ.get("HF_EVCAP_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"hf-evcap {arguments.verb}: {shown(message)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
