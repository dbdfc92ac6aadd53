"""`hf-evcap datastore`: build, edit, inspect and publish caption datastores."""

from __future__ import annotations

import argparse
from typing import Any

from . import datastore_build
from .store_verbs import StoreVerbs, load_captioner


STORE = StoreVerbs(
    "datastore",
    "caption",
    "datastore_smallcap.CaptionDatastore",
    {"source": "that came from there", "image_id": "that describe this photo"},
)


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser, with a sub-parser for each thing that can be done to a datastore."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap datastore", description="Build, edit, inspect and publish caption datastores (SmallCap)."
    )
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    datastore_build.add_parser(verbs)
    add = STORE.add_verb(verbs, "add", run_add, "add captions", out=True)
    add.add_argument("captions", nargs="*", metavar="CAPTION")
    add.add_argument("--file", help="captions in anything that `build` reads")
    add.add_argument("--clip", help="the CLIP model that built the datastore (default: the one that it names)")
    add.add_argument("--photo", help="the photo that CAPTIONs describe, where keys are photos' (needs --model)")
    add.add_argument("--model", help="captioner whose encoder built the datastore")
    add.add_argument("--image-id", help="id of the photo that CAPTIONs describe")
    add.add_argument("--source-name", default="added", help="value of the column `source` (default: %(default)s)")
    STORE.add_common_verbs(verbs)
    STORE.add_info(verbs)
    search = STORE.add_verb(verbs, "search", run_search, "find the captions nearest to a photo or a text")
    search.add_argument("--photo", help="file or URL (needs --clip or --model)")
    search.add_argument("--text", help="words, compared as a caption (needs --clip)")
    search.add_argument("--clip", help="the CLIP model that built the datastore (default: the one that it names)")
    search.add_argument("--model", help="captioner whose encoder built the datastore")
    search.add_argument("-k", type=int, default=10, help="rows (default: %(default)s)")
    convert = STORE.add_verb(
        verbs,
        "convert",
        run_convert,
        "change precision or index, or read the reference's coco_index (with --captions)",
        out=True,
    )
    convert.add_argument("--captions", help="coco_index_captions.json, where DATASTORE is the reference's index")
    STORE.add_conversions(convert)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs what is asked for."""
    arguments = make_parser().parse_args(argv)
    return arguments.run(arguments)


def _encoder(datastore: Any, clip: str | None) -> Any:
    """Loads the CLIP that was named, or the one that the datastore names."""
    from ..datastore_building import load_retrieval_encoder

    named = clip or datastore.retrieval.get("encoder")
    if named is None:
        raise ValueError("Give --clip, the CLIP model that built the datastore, which does not name it.")
    return load_retrieval_encoder(named)


def run_add(arguments: argparse.Namespace) -> int:
    """`add`."""
    from ..datastore_building import open_captions

    datastore = STORE.load(arguments.store)
    captions, ids = list(arguments.captions), [arguments.image_id] * len(arguments.captions)
    if arguments.file is not None:
        more = open_captions(arguments.file)
        captions, ids = captions + more.captions, ids + more.image_ids
    if not captions:
        raise ValueError("Give captions, or --file.")
    columns = {"image_id": ids, "source": arguments.source_name}
    if arguments.photo is None:
        datastore.add_captions(_encoder(datastore, arguments.clip), captions, **columns)
    else:
        model, processor = load_captioner(arguments.model, datastore)
        datastore.add_images(model, processor, [arguments.photo] * len(captions), captions, **columns)
    return STORE.save(datastore, arguments)


def run_search(arguments: argparse.Namespace) -> int:
    """`search`."""
    datastore = STORE.load(arguments.store)
    if (arguments.photo is None) == (arguments.text is None):
        raise ValueError("Give either --photo or --text.")
    if arguments.text is not None:
        queries = _encoder(datastore, arguments.clip).encode_captions([arguments.text])
    elif arguments.model is not None:
        model, processor = load_captioner(arguments.model, datastore)
        queries = model.encode_memory_keys(processor, [arguments.photo]).numpy()
    else:
        queries = _encoder(datastore, arguments.clip).encode_photos([arguments.photo])
    return STORE.print_found(datastore, queries, arguments.k)


def run_convert(arguments: argparse.Namespace) -> int:
    """`convert`."""
    if arguments.captions is None:
        return STORE.convert(STORE.load(arguments.store), arguments)
    from ..conversion import load_smallcap_datastore

    if arguments.out is None:
        raise ValueError("Say with --out where the datastore shall go.")
    return STORE.convert(load_smallcap_datastore(arguments.store, arguments.captions), arguments)
