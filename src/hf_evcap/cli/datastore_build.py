"""`hf-evcap datastore build`: a datastore from captions, or from captioned photos."""

from __future__ import annotations

import argparse
from typing import Any

from .build_options import RECIPES, add_build_options, add_build_verb, build_options, load_encoder, print_report


DESCRIPTION = f"""Build a datastore. SOURCE is one of

  a .txt (or .txt.gz) file    a caption a line
  a .json file    Karpathy's or COCO's captions, a list of captions, or of objects
  a .jsonl, .csv or .parquet file    with a column of captions and maybe one of image ids
  a datastore     its captions are encoded anew
{RECIPES.format(example="datastores/coco")}
  anything else   a dataset on the Hub

With --clip the keys are the captions' own: photos are not needed. With --model they are those of the photos that the
captions describe, for captioners that retrieve with their own vision encoder; SOURCE then lists photos, too."""


def add_parser(verbs: Any) -> argparse.ArgumentParser:
    """Adds the verb to the parser of `datastore`, and returns its own parser."""
    parser = add_build_verb(
        verbs,
        "datastore",
        run,
        "captions",
        "from captions (with a CLIP model), or from captioned photos",
        DESCRIPTION,
    )
    parser.add_argument(
        "--clip", help="CLIP model: folder, Hub id, or open_clip:MODEL/WEIGHTS such as open_clip:RN50x64/openai"
    )
    parser.add_argument("--model", help="captioner whose encoder makes the keys of photos: folder or Hub id")
    parser.add_argument("--images", help="folder of the photos (with --model)")
    parser.add_argument("--max-tokens", type=int, default=25, help="longest caption; 0 for any (default: %(default)s)")
    parser.add_argument(
        "--tokenizer",
        default="openai-community/gpt2",
        help="the captioner's tokenizer, which measures captions (default: %(default)s; with --model, its own)",
    )
    parser.add_argument("--split", help="split of the source, such as train+restval")
    parser.add_argument("--caption-column", help="default: the usual names")
    parser.add_argument("--id-column", help="column of image ids; default: the usual names")
    parser.add_argument("--config", help="configuration of a dataset on the Hub")
    parser.add_argument("--revision", help="revision of a dataset on the Hub")
    add_build_options(
        parser,
        None,
        None,
        "captions or photos encoded at once (default: 256 captions, 32 photos)",
        "captions or photos after which progress is kept (default: 16384 captions, 512 photos)",
    )
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Builds."""
    if (arguments.clip is None) == (arguments.model is None):
        raise ValueError("Give either --clip, for keys of the captions, or --model, for keys of their photos.")
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

    processes = process_state()
    captions = open_captions(arguments.source, **_reading(arguments))
    found = len(captions)
    if arguments.max_tokens:
        from transformers import AutoTokenizer

        captions = captions_within(captions, AutoTokenizer.from_pretrained(arguments.tokenizer), arguments.max_tokens)
    encoder = load_retrieval_encoder(arguments.clip, device=processes.device)
    report = build_datastore(
        encoder,
        captions,
        arguments.out,
        **build_options(arguments, captions.source, 256, 16384),
    )
    if processes.is_main_process and len(captions) < found:
        print(f"left out {found - len(captions)} of {found} captions, of more than {arguments.max_tokens} tokens")
    return print_report(report, arguments.out, "captions")


def _from_photos(arguments: argparse.Namespace) -> int:
    from ..datastore_building import captioned_photos, photos_with_captions_within
    from ..datastore_smallcap import CaptionDatastore
    from ..memory_building import build_memory
    from ..processes import process_state

    processes = process_state()
    photos = captioned_photos(
        arguments.source,
        images=arguments.images,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        **_reading(arguments),
    )
    model, processor = load_encoder(arguments.model, processes.device)
    if arguments.max_tokens:
        photos = photos_with_captions_within(photos, processor.tokenizer, arguments.max_tokens)
    report = build_memory(
        model,
        processor,
        photos,
        arguments.out,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        store_class=CaptionDatastore,
        **build_options(arguments, photos[0]["source"], 32, 512),
    )
    return print_report(report, arguments.out)
