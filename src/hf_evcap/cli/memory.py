"""`hf-evcap memory`: build, edit, inspect and publish visual-name memories."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..photo_files import list_photos
from . import memory_build
from .options import existing_folder, pair, photo, positive_int, share
from .store_verbs import StoreVerbs, load_captioner
from .verb_parser import VerbParser


STORE = StoreVerbs(
    "memory",
    "name",
    "memory_evcap.VisualNameMemory",
    {"source": "that came from there", "kind": "of this kind: object or scene"},
)


def make_parser() -> VerbParser:
    """Makes the verb's parser, with a sub-parser for each thing that can be done to a memory."""
    parser = VerbParser(
        prog="hf-evcap memory",
        description="Build, edit, inspect and publish visual-name memories.",
        examples=["memory build photos/ --output kitchen", "memory add kitchen whisk whisk1.jpg whisk2.jpg"],
        epilog="`hf-evcap memory ACTION --help` tells an action's options.",
    )
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    memory_build.add_parser(verbs)
    add = STORE.add_verb(
        verbs,
        "add",
        run_add,
        "add photos of something",
        out=True,
        examples=["kitchen whisk whisk1.jpg whisk2.jpg", "kitchen whisk whisk*.jpg --set source=mine --model MODEL"],
    )
    add.add_argument("name", metavar="NAME", help="what the photos show")
    add.add_argument("photos", nargs="+", type=photo, metavar="PHOTO", help="files or URLs")
    STORE.add_encoder(add)
    add.add_argument(
        "--set", action="append", type=pair, default=[], metavar="COLUMN=VALUE", help="value of a further column"
    )
    add.add_argument(
        "--on-error", choices=["raise", "skip"], default="raise", help="photos that cannot be read: stop, or leave out"
    )
    rename = STORE.add_verb(
        verbs, "rename", run_rename, "give names another wording", out=True, examples=["kitchen 'egg beater=whisk'"]
    )
    rename.add_argument("names", nargs="+", type=pair, metavar="OLD=NEW", help="a name and its new wording")
    STORE.add_common_verbs(verbs)
    info = STORE.add_info(verbs)
    info.set_defaults(run=run_info)
    info.add_argument("--report", action="store_true", help="look for duplicates, disagreeing exemplars, hub rows")
    info.add_argument("--plot", metavar="PNG", help="draw the report into this file; implies --report")
    info.add_argument("--probe", type=existing_folder, metavar="FOLDER", help="photos to ask with; implies --report")
    STORE.add_encoder(info, "--probe")
    search = STORE.add_verb(
        verbs,
        "search",
        run_search,
        "find the rows nearest to a photo, or to the rows of a name",
        examples=["kitchen --photo photo.jpg", "kitchen --name whisk -k 5"],
    )
    search.add_argument("--photo", type=photo, metavar="PHOTO", help="file or URL to search with")
    search.add_argument("--name", metavar="NAME", help="a name of the memory to search with")
    STORE.add_encoder(search, "--photo")
    search.add_argument("-k", type=positive_int, default=10, metavar="N", help="rows to print")
    convert = STORE.add_verb(
        verbs,
        "convert",
        run_convert,
        "change precision or index, or read the reference's ext_memory.pkl",
        out=True,
        examples=["kitchen --key-dtype float16", "ext_memory.pkl --output lvis"],
    )
    STORE.add_conversions(convert)
    calibrate = STORE.add_verb(
        verbs,
        "calibrate",
        run_calibrate,
        "find the similarity below which nothing is retrieved",
        out=True,
        examples=["kitchen --known held-out/ --unknown other/", "kitchen --off"],
    )
    STORE.add_encoder(calibrate)
    calibrate.add_argument(
        "--known", type=existing_folder, metavar="FOLDER", help="held-out photos of things that the memory holds"
    )
    calibrate.add_argument("--unknown", type=existing_folder, metavar="FOLDER", help="photos of other things")
    calibrate.add_argument("--keep", type=share, default=0.95, metavar="X", help="share of known photos to keep")
    calibrate.add_argument("--off", action="store_true", help="retrieve regardless of similarity again")
    STORE.finish(verbs)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs what is asked for."""
    arguments = make_parser().parse_args(argv)
    return arguments.run(arguments)


def run_add(arguments: argparse.Namespace) -> int:
    """`add`."""
    memory = STORE.load(arguments.store)
    model, processor = load_captioner(arguments.model, memory, arguments.device)
    columns: dict[str, Any] = dict(arguments.set)
    memory.add_images(model, processor, arguments.photos, arguments.name, on_error=arguments.on_error, **columns)
    return STORE.save(memory, arguments)


def run_rename(arguments: argparse.Namespace) -> int:
    """`rename`."""
    return STORE.save(STORE.load(arguments.store).rename(dict(arguments.names)), arguments)


def run_info(arguments: argparse.Namespace) -> int:
    """`info`."""
    memory = STORE.load(arguments.store)
    report = None
    if arguments.report or arguments.plot or arguments.probe:
        from ..memory_building.quality_report import quality_report

        probes = None
        if arguments.probe:
            import torch

            model, processor = load_captioner(arguments.model, memory, arguments.device)
            files = list_photos(arguments.probe)
            probes = torch.cat([model.encode_memory_keys(processor, [file]) for file in files]).numpy()
        report = quality_report(memory, probes)
        if arguments.plot:
            report.plot(arguments.plot)
    STORE.print_facts(memory, arguments.json, report)
    if arguments.plot:
        print(f"plot written to {arguments.plot}", file=sys.stderr if arguments.json else sys.stdout)
    return 0


def run_search(arguments: argparse.Namespace) -> int:
    """`search`."""
    if (arguments.photo is None) == (arguments.name is None):
        raise ValueError("Give either --photo or --name.")
    memory = STORE.load(arguments.store)
    if arguments.name is not None:
        queries = memory.subset([arguments.name]).keys
    else:
        model, processor = load_captioner(arguments.model, memory, arguments.device)
        queries = model.encode_memory_keys(processor, [arguments.photo]).numpy()
    return STORE.print_found(memory, queries, arguments.k)


def run_convert(arguments: argparse.Namespace) -> int:
    """`convert`."""
    if not arguments.store.endswith(".pkl"):
        return STORE.convert(STORE.load(arguments.store), arguments)
    from ..conversion import load_evcap_memory

    if arguments.output is None:
        raise ValueError("Say with --output where the memory shall go.")
    return STORE.convert(load_evcap_memory(arguments.store), arguments)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """`calibrate`."""
    if arguments.known is None and not arguments.off:
        raise ValueError("Give --known, a folder of held-out photos of things that the memory holds, or --off.")
    memory = STORE.load(arguments.store)
    from ..memory_building.rejection import best_similarities, calibrate

    memory.retrieval.pop("min_similarity", None)
    if arguments.off:
        return STORE.save(memory, arguments)
    model, processor = load_captioner(arguments.model, memory, arguments.device)
    known = best_similarities(model, processor, list_photos(arguments.known))
    unknown = best_similarities(model, processor, list_photos(arguments.unknown)) if arguments.unknown else None
    found = calibrate(known, unknown, arguments.keep)
    memory.retrieval["min_similarity"] = round(found.min_similarity, 6)
    print(f"min_similarity {found.min_similarity:.4f}: {found.known_kept:.1%} of {found.known} known photos kept")
    if found.unknown_rejected is not None:
        print(f"{found.unknown_rejected:.1%} of {found.unknown} others rejected, separation {found.separation:.3f}")
    return STORE.save(memory, arguments)
