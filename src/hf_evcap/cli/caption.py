"""`hf-evcap caption`: captions photos, folders, globs and URLs."""

from __future__ import annotations

import argparse
import glob
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..photo_files import list_photos
from ..shown_text import shown


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap caption",
        description="Caption photos. A photo that cannot be read is named, the others are captioned.",
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photo, folder of photos, glob or URL")
    parser.add_argument("--model", help="model folder or Hub id (default: the embedded evcap-tiny)")
    parser.add_argument("--revision", help="branch, tag or commit of the model")
    parser.add_argument(
        "--memory",
        "--datastore",
        help="memory or datastore, a folder or Hub id, org/name or org/name@revision, instead of the model's",
    )
    parser.add_argument("--text", help="prompt (default: the model's)")
    parser.add_argument("--num-beams", type=int, help="beams of the search (default: the model's)")
    parser.add_argument("--max-new-tokens", type=int, help="longest caption in tokens (default: the model's)")
    parser.add_argument("--batch-size", type=int, default=8, help="photos captioned at once (default: 8)")
    parser.add_argument(
        "--names", action="store_true", help="also print the names or captions that were retrieved, with scores"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object a photo")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first accelerator)")
    parser.add_argument(
        "--dtype", help="float32, bfloat16 or float16 (default: as saved; float32 for the embedded model)"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with a Hub repo of another model family"
    )
    return parser


def find_photos(patterns: Iterable[str]) -> list[str]:
    """
    Lists photos: files and URLs as they are, folders and globs opened.

    Args:
        patterns (`Iterable[str]`): What the user named.

    Raises:
        FileNotFoundError: A folder or glob holds no photo. A missing file is left to be reported with the others.
    """
    photos: list[str] = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            found = list_photos(pattern)
        elif os.path.exists(pattern) or not glob.has_magic(pattern) or pattern.startswith(("http://", "https://")):
            found = [pattern]
        else:
            found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f"No photos match {pattern!r}.")
        photos += found
    return photos


def caption(arguments: argparse.Namespace, photos: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each photo with the pipeline's answer for it, in order."""
    import transformers
    from tqdm import tqdm

    from ..pipeline_loading import load_pipeline

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("hf_evcap").setLevel(logging.ERROR)  # what is skipped is reported in the answers
    pipe = load_pipeline(
        arguments.model,
        revision=arguments.revision,
        memory=arguments.memory,
        device=arguments.device,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )
    options = {"num_beams": arguments.num_beams, "max_new_tokens": arguments.max_new_tokens, "text": arguments.text}
    given = {name: value for name, value in options.items() if value is not None}
    batch_size = max(1, min(arguments.batch_size, len(photos)))
    answers = pipe((photo for photo in photos), batch_size=batch_size, on_error="skip", **given)
    hidden = len(photos) <= batch_size or not sys.stderr.isatty()
    for photo, answer in zip(photos, tqdm(answers, total=len(photos), unit="photo", disable=hidden), strict=True):
        yield photo, answer[0]


def main(argv: list[str] | None = None) -> int:
    """Captions photos; 1 if one of them could not be read."""
    arguments = make_parser().parse_args(argv)
    photos = find_photos(arguments.photos)
    failed = 0
    for photo, answer in caption(arguments, photos):
        if answer.get("error"):
            failed += 1
            print(f"hf-evcap caption: {shown(answer['error'])}", file=sys.stderr)
        if arguments.json:
            print(json.dumps({"photo": photo, **answer}, ensure_ascii=False), flush=True)
        elif not answer.get("error"):
            print(answer["generated_text"] if len(photos) == 1 else f"{photo}: {answer['generated_text']}", flush=True)
            if arguments.names:
                field = next(field for field in answer if field.startswith("retrieved_"))
                word = field.removeprefix("retrieved_")
                found = ", ".join(f"{one[word[:-1]]} ({one['score']:.2f})" for one in answer[field])
                print(f"  {word}: {found or 'none'}", flush=True)
    return 1 if failed else 0
