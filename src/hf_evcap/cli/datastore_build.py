"""`hf-evcap datastore build`: a datastore from captions, or from captioned photos."""

from __future__ import annotations

import argparse
from typing import Any

from . import logs
from .build_options import (
    RECIPES,
    add_build_options,
    add_build_verb,
    build_options,
    check_target,
    load_encoder,
    print_report,
)
from .common_options import alias
from .options import count, existing_folder
from .sources import check_dataset, check_model


DESCRIPTION = f"""Build a datastore. SOURCE is one of

  a .txt or .txt.gz            a caption a line
  a .json                      Karpathy's or COCO's captions, a list of captions, or of objects
  a .jsonl, .csv or .parquet   with a column of captions and maybe one of image ids
  a datastore                  its captions are encoded anew
{RECIPES.format(example="datastores/coco")}
  anything else                a dataset on the Hub

With --clip the keys are the captions' own: photos are not needed. With --model they are those of the photos that the
captions describe, for captioners that retrieve with their own vision encoder; SOURCE then lists photos, too."""


def add_parser(verbs: Any) -> argparse.ArgumentParser:
    """Adds the verb to the parser of `datastore`, and returns its own parser."""
    parser = add_build_verb(
        verbs,
        "datastore",
        run,
        "captions",
        "build a datastore from captions (with a CLIP model), or from captioned photos",
        DESCRIPTION,
        [
            "datastore build captions.txt --clip openai/clip-vit-base-patch32 --output captions",
            "datastore build dataset_coco.json --split train+restval --clip CLIP --output coco",
        ],
    )
    parser.add_argument(
        "--clip",
        metavar="CLIP",
        help="CLIP model: folder, Hub id, or open_clip:MODEL/WEIGHTS such as open_clip:RN50x64/openai",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="captioner whose encoder makes the keys of photos: folder or Hub id org/name"
    )
    parser.add_argument("--images", type=existing_folder, metavar="FOLDER", help="folder of the photos (with --model)")
    parser.add_argument("--max-tokens", type=count, default=25, metavar="N", help="longest caption; 0 for any")
    parser.add_argument(
        "--tokenizer",
        metavar="MODEL",
        default="openai-community/gpt2",
        help="the captioner's tokenizer, which measures captions (default: %(default)s; with --model, its own)",
    )
    parser.add_argument("--split", metavar="SPLIT", help="split, or several as train+restval (default: everything)")
    parser.add_argument("--caption-column", metavar="NAME", help="column of captions (default: found by its name)")
    parser.add_argument("--id-column", metavar="NAME", help="column of image ids (default: found by its name)")
    parser.add_argument(
        "--dataset-config", dest="config", metavar="NAME", help="configuration of a dataset on the Hub"
    )
    alias(parser, "--dataset-config", "--config")
    parser.add_argument(
        "--dataset-revision", dest="revision", metavar="REV", help="branch, tag or commit of a dataset on the Hub"
    )
    alias(parser, "--dataset-revision", "--revision")
    add_build_options(
        parser,
        None,
        None,
        "captions or photos encoded at once (default: 256 captions, 32 photos)",
        "captions or photos after which progress is kept (default: 16384 captions, 512 photos)",
    )
    parser.add_common()
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Builds."""
    if (arguments.clip is None) == (arguments.model is None):
        raise ValueError("Give either --clip, for keys of the captions, or --model, for keys of their photos.")
    check_dataset(arguments.source)
    if arguments.model is not None:
        check_model(arguments.model)
    check_target(arguments)
    return _from_captions(arguments) if arguments.clip is not None else _from_photos(arguments)


def _reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """How SOURCE is read, with its photos or without."""
    return {
        "source_name": arguments.source_name,
        "split": arguments.split,
        "caption_column": arguments.caption_column,
        "id_column": arguments.id_column,
        "config_name": arguments.config,
        "revision": arguments.revision,
    }


def _from_captions(arguments: argparse.Namespace) -> int:
    from ..datastore_building import build_datastore, captions_within, load_retrieval_encoder, open_captions
    from ..processes import process_state

    logs.settle()
    processes = process_state()
    captions = open_captions(arguments.source, **_reading(arguments))
    found = len(captions)
    if arguments.max_tokens:
        from transformers import AutoTokenizer

        captions = captions_within(captions, AutoTokenizer.from_pretrained(arguments.tokenizer), arguments.max_tokens)
    encoder = load_retrieval_encoder(arguments.clip, device=arguments.device or processes.device)
    report = build_datastore(
        encoder,
        captions,
        arguments.output,
        **build_options(arguments, captions.source, 256, 16384),
    )
    if processes.is_main_process and len(captions) < found:
        print(f"left out {found - len(captions)} of {found} captions, of more than {arguments.max_tokens} tokens")
    return print_report(report, arguments.output, "captions")


def _from_photos(arguments: argparse.Namespace) -> int:
    from ..datastore_building import captioned_photos, photos_with_captions_within
    from ..datastore_smallcap import CaptionDatastore
    from ..memory_building import build_memory
    from ..processes import process_state

    logs.settle()
    processes = process_state()
    photos = captioned_photos(
        arguments.source,
        images=arguments.images,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        **_reading(arguments),
    )
    model, processor = load_encoder(arguments.model, arguments.device or processes.device)
    if arguments.max_tokens:
        photos = photos_with_captions_within(photos, processor.tokenizer, arguments.max_tokens)
    report = build_memory(
        model,
        processor,
        photos,
        arguments.output,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        store_class=CaptionDatastore,
        **build_options(arguments, photos[0]["source"], 32, 512),
    )
    return print_report(report, arguments.output)
