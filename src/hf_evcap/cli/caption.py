"""`hf-evcap caption`: captions photos, folders, globs and URLs."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..photo_files import list_photos
from ..shown_text import shown
from . import logs
from .common_options import (
    add_batch_size,
    add_device,
    add_dtype,
    add_generation,
    add_memory,
    add_model,
    add_trust,
)
from .sources import check_model, check_stores
from .verb_parser import VerbParser
from .yaml_config import add_config, parse_with_config


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap caption",
        description="Caption photos. A photo that cannot be read is named, the others are captioned.",
        examples=[
            "caption photo.jpg holiday/ '*.png' --names",
            "caption photo.jpg --model MODEL --memory lvis --memory my-kitchen --json",
        ],
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photo, folder of photos, glob or URL")
    add_model(parser)
    add_memory(
        parser,
        "memory or datastore instead of the model's own: folder, Hub id org/name or org/name@revision; several times: "
        "layers that compete",
    )
    add_generation(parser)
    add_batch_size(parser, 8)
    parser.add_argument(
        "--names", action="store_true", help="also print the names or captions that were retrieved, with scores"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object a photo")
    add_device(parser)
    add_dtype(parser)
    add_trust(parser)
    add_config(parser)
    parser.add_common()
    return parser


def find_photos(patterns: Iterable[str]) -> list[str]:
    """
    Lists photos: files and URLs as they are, folders and globs opened.

    Args:
        patterns (`Iterable[str]`): What the user named.

    Raises:
        FileNotFoundError: A folder or glob holds no photo, or nothing that was named is there. A file that is missing
            among others is left to be reported with them.
    """
    photos: list[str] = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            found = list_photos(pattern)
        elif os.path.exists(pattern) or not glob.has_magic(pattern) or _is_address(pattern):
            found = [pattern]
        else:
            found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise FileNotFoundError(f"No photos match {pattern!r}.")
        photos += found
    if not any(_is_address(photo) or os.path.exists(photo) for photo in photos):
        others = f" (nor any of {len(photos) - 1} others)" if len(photos) > 1 else ""
        raise FileNotFoundError(f"There is no photo {photos[0]!r}{others}; give files, folders, globs or URLs.")
    return photos


def _is_address(photo: str) -> bool:
    return photo.startswith(("http://", "https://", "data:"))


def caption(arguments: argparse.Namespace, photos: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each photo with the pipeline's answer for it, in order."""
    from tqdm import tqdm

    from ..pipeline_loading import load_pipeline

    logs.settle(hushed=True)  # what is skipped is reported in the answers
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
    batch_size = min(arguments.batch_size, len(photos))
    answers = pipe((photo for photo in photos), batch_size=batch_size, on_error="skip", **given)
    hidden = len(photos) <= batch_size or not sys.stderr.isatty() or not logs.bars_shown()
    for photo, answer in zip(photos, tqdm(answers, total=len(photos), unit="photo", disable=hidden), strict=True):
        yield photo, answer[0]


def main(argv: list[str] | None = None) -> int:
    """Captions photos; 1 if one of them could not be read."""
    arguments = parse_with_config(make_parser(), argv)
    photos = find_photos(arguments.photos)
    check_model(arguments.model, arguments.revision)
    check_stores(arguments.memory)
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
