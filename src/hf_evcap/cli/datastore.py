"""`hf-evcap datastore`: build, edit, inspect and publish caption datastores."""

from __future__ import annotations

import argparse
from typing import Any

from . import datastore_build
from .options import existing_file, existing_path, photo, positive_int
from .store_verbs import StoreVerbs, load_captioner
from .verb_parser import VerbParser


STORE = StoreVerbs(
    "datastore",
    "caption",
    "datastore_smallcap.CaptionDatastore",
    {"source": "that came from there", "image_id": "that describe this photo"},
)


def make_parser() -> VerbParser:
    """Makes the verb's parser, with a sub-parser for each thing that can be done to a datastore."""
    parser = VerbParser(
        prog="hf-evcap datastore",
        description="Build, edit, inspect and publish caption datastores (SmallCap).",
        examples=[
            "datastore build captions.txt --clip openai/clip-vit-base-patch32 --output captions",
            "datastore search captions --text 'a red bus'",
        ],
        epilog="`hf-evcap datastore ACTION --help` tells an action's options.",
    )
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    datastore_build.add_parser(verbs)
    add = STORE.add_verb(
        verbs,
        "add",
        run_add,
        "add captions",
        out=True,
        examples=["captions 'a red bus' 'two dogs'", "captions --file more.txt --output larger"],
    )
    add.add_argument("captions", nargs="*", metavar="CAPTION", help="captions to add")
    add.add_argument("--file", type=existing_path, metavar="FILE", help="captions in anything that `build` reads")
    _add_clip(add)
    add.add_argument(
        "--photo",
        type=photo,
        metavar="PHOTO",
        help="the photo that CAPTIONs describe, where keys are photos' (needs --model)",
    )
    STORE.add_encoder(add, "--photo")
    add.add_argument("--image-id", metavar="ID", help="id of the photo that CAPTIONs describe")
    add.add_argument("--source-name", metavar="NAME", default="added", help="value of the column `source`")
    STORE.add_common_verbs(verbs)
    STORE.add_info(verbs)
    search = STORE.add_verb(
        verbs,
        "search",
        run_search,
        "find the captions nearest to a photo or a text",
        examples=["captions --photo photo.jpg", "captions --text 'a red bus' -k 5"],
    )
    search.add_argument("--photo", type=photo, metavar="PHOTO", help="file or URL to search with")
    search.add_argument("--text", help="words to search with, compared as a caption")
    _add_clip(search)
    STORE.add_encoder(search, "--photo in place of --clip")
    search.add_argument("-k", type=positive_int, default=10, metavar="N", help="rows to print")
    convert = STORE.add_verb(
        verbs,
        "convert",
        run_convert,
        "change precision or index, or read the reference's coco_index (with --captions)",
        out=True,
        examples=["captions --key-dtype float16", "coco_index --captions coco_index_captions.json --output coco"],
    )
    convert.add_argument(
        "--captions",
        type=existing_file,
        metavar="FILE",
        help="coco_index_captions.json, where DATASTORE is the reference's index",
    )
    STORE.add_conversions(convert)
    STORE.finish(verbs)
    return parser


def _add_clip(parser: Any) -> None:
    parser.add_argument(
        "--clip", metavar="CLIP", help="the CLIP model that built the datastore (default: the one that it names)"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs what is asked for."""
    arguments = make_parser().parse_args(argv)
    return arguments.run(arguments)


def _encoder(datastore: Any, clip: str | None, device: Any) -> Any:
    """Loads the CLIP that was named, or the one that the datastore names."""
    from ..datastore_building import load_retrieval_encoder

    named = clip or datastore.retrieval.get("encoder")
    if named is None:
        raise ValueError("Give --clip, the CLIP model that built the datastore, which does not name it.")
    from ..pipeline_loading import check_device

    check_device(device)
    return load_retrieval_encoder(named, **({} if device is None else {"device": device}))


def run_add(arguments: argparse.Namespace) -> int:
    """`add`."""
    if not arguments.captions and arguments.file is None:
        raise ValueError("Give captions, or --file.")
    datastore = STORE.load(arguments.store)
    from ..datastore_building import open_captions

    captions, ids = list(arguments.captions), [arguments.image_id] * len(arguments.captions)
    if arguments.file is not None:
        more = open_captions(arguments.file)
        captions, ids = captions + more.captions, ids + more.image_ids
    columns = {"image_id": ids, "source": arguments.source_name}
    if arguments.photo is None:
        datastore.add_captions(_encoder(datastore, arguments.clip, arguments.device), captions, **columns)
    else:
        model, processor = load_captioner(arguments.model, datastore, arguments.device)
        datastore.add_images(model, processor, [arguments.photo] * len(captions), captions, **columns)
    return STORE.save(datastore, arguments)


def run_search(arguments: argparse.Namespace) -> int:
    """`search`."""
    if (arguments.photo is None) == (arguments.text is None):
        raise ValueError("Give either --photo or --text.")
    datastore = STORE.load(arguments.store)
    if arguments.text is not None:
        queries = _encoder(datastore, arguments.clip, arguments.device).encode_captions([arguments.text])
    elif arguments.model is not None:
        model, processor = load_captioner(arguments.model, datastore, arguments.device)
        queries = model.encode_memory_keys(processor, [arguments.photo]).numpy()
    else:
        queries = _encoder(datastore, arguments.clip, arguments.device).encode_photos([arguments.photo])
    return STORE.print_found(datastore, queries, arguments.k)


def run_convert(arguments: argparse.Namespace) -> int:
    """`convert`."""
    if arguments.captions is None:
        return STORE.convert(STORE.load(arguments.store), arguments)
    from ..conversion import load_smallcap_datastore

    if arguments.output is None:
        raise ValueError("Say with --output where the datastore shall go.")
    return STORE.convert(load_smallcap_datastore(arguments.store, arguments.captions), arguments)
