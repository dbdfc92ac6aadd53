"""`hf-evcap memory`: build, edit, inspect and publish visual-name memories."""

from __future__ import annotations

import argparse
from typing import Any

from ..photo_files import list_photos
from . import memory_build
from .store_verbs import StoreVerbs, load_captioner


STORE = StoreVerbs(
    "memory",
    "name",
    "memory_evcap.VisualNameMemory",
    {"source": "that came from there", "kind": "of this kind: object or scene"},
)


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser, with a sub-parser for each thing that can be done to a memory."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap memory", description="Build, edit, inspect and publish visual-name memories."
    )
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    memory_build.add_parser(verbs)
    add = STORE.add_verb(verbs, "add", run_add, "add photos of something", out=True)
    add.add_argument("name", metavar="NAME", help="what the photos show")
    add.add_argument("photos", nargs="+", metavar="PHOTO", help="files or URLs")
    add.add_argument("--model", required=True, help="model whose encoder built the memory")
    add.add_argument("--set", action="append", default=[], metavar="COLUMN=VALUE", help="further columns")
    add.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="photos that cannot be read")
    rename = STORE.add_verb(verbs, "rename", run_rename, "give names another wording", out=True)
    rename.add_argument("names", nargs="+", metavar="OLD=NEW")
    STORE.add_common_verbs(verbs)
    info = STORE.add_info(verbs)
    info.set_defaults(run=run_info)
    info.add_argument("--report", action="store_true", help="look for duplicates, disagreeing exemplars, hub rows")
    info.add_argument("--plot", metavar="PNG", help="with --report: draw it, too")
    info.add_argument("--probe", metavar="FOLDER", help="with --report: photos to ask with (needs --model)")
    info.add_argument("--model", help="model whose encoder built the memory, for --probe")
    search = STORE.add_verb(verbs, "search", run_search, "find the rows nearest to a photo, or to the rows of a name")
    search.add_argument("--photo", help="file or URL (needs --model)")
    search.add_argument("--name", help="a name of the memory")
    search.add_argument("--model", help="model whose encoder built the memory")
    search.add_argument("-k", type=int, default=10, help="rows (default: %(default)s)")
    convert = STORE.add_verb(
        verbs, "convert", run_convert, "change precision or index, or read the reference's ext_memory.pkl", out=True
    )
    STORE.add_conversions(convert)
    calibrate = STORE.add_verb(
        verbs, "calibrate", run_calibrate, "find the similarity below which nothing is retrieved", out=True
    )
    calibrate.add_argument("--model", help="model whose encoder built the memory")
    calibrate.add_argument("--known", metavar="FOLDER", help="held-out photos of things that the memory holds")
    calibrate.add_argument("--unknown", metavar="FOLDER", help="photos of other things")
    calibrate.add_argument("--keep", type=float, default=0.95, help="share of known photos to keep (default: 0.95)")
    calibrate.add_argument("--off", action="store_true", help="retrieve regardless of similarity again")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs what is asked for."""
    arguments = make_parser().parse_args(argv)
    return arguments.run(arguments)


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        first, sign, second = item.partition("=")
        if not sign:
            raise ValueError(f"Expected LEFT=RIGHT, got {item!r}.")
        pairs[first] = second
    return pairs


def run_add(arguments: argparse.Namespace) -> int:
    """`add`."""
    memory = STORE.load(arguments.store)
    model, processor = load_captioner(arguments.model, memory)
    columns: dict[str, Any] = dict(_pairs(arguments.set))
    memory.add_images(model, processor, arguments.photos, arguments.name, on_error=arguments.on_error, **columns)
    return STORE.save(memory, arguments)


def run_rename(arguments: argparse.Namespace) -> int:
    """`rename`."""
    return STORE.save(STORE.load(arguments.store).rename(_pairs(arguments.names)), arguments)


def run_info(arguments: argparse.Namespace) -> int:
    """`info`."""
    memory = STORE.load(arguments.store)
    report = None
    if arguments.report or arguments.plot:
        from ..memory_building.quality_report import quality_report

        probes = None
        if arguments.probe:
            import torch

            model, processor = load_captioner(arguments.model, memory)
            files = list_photos(arguments.probe)
            probes = torch.cat([model.encode_memory_keys(processor, [file]) for file in files]).numpy()
        report = quality_report(memory, probes)
        if arguments.plot:
            report.plot(arguments.plot)
    return STORE.print_facts(memory, arguments.json, report)


def run_search(arguments: argparse.Namespace) -> int:
    """`search`."""
    memory = STORE.load(arguments.store)
    if (arguments.photo is None) == (arguments.name is None):
        raise ValueError("Give either --photo or --name.")
    if arguments.name is not None:
        queries = memory.subset([arguments.name]).keys
    else:
        model, processor = load_captioner(arguments.model, memory)
        queries = model.encode_memory_keys(processor, [arguments.photo]).numpy()
    return STORE.print_found(memory, queries, arguments.k)


def run_convert(arguments: argparse.Namespace) -> int:
    """`convert`."""
    if not arguments.store.endswith(".pkl"):
        return STORE.convert(STORE.load(arguments.store), arguments)
    from ..conversion import load_evcap_memory

    if arguments.out is None:
        raise ValueError("Say with --out where the memory shall go.")
    return STORE.convert(load_evcap_memory(arguments.store), arguments)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """`calibrate`."""
    from ..memory_building.rejection import best_similarities, calibrate

    memory = STORE.load(arguments.store)
    memory.retrieval.pop("min_similarity", None)
    if arguments.off:
        return STORE.save(memory, arguments)
    if arguments.known is None:
        raise ValueError("Give --known, a folder of held-out photos of things that the memory holds, or --off.")
    model, processor = load_captioner(arguments.model, memory)
    known = best_similarities(model, processor, list_photos(arguments.known))
    unknown = best_similarities(model, processor, list_photos(arguments.unknown)) if arguments.unknown else None
    found = calibrate(known, unknown, arguments.keep)
    memory.retrieval["min_similarity"] = round(found.min_similarity, 6)
    print(f"min_similarity {found.min_similarity:.4f}: {found.known_kept:.1%} of {found.known} known photos kept")
    if found.unknown_rejected is not None:
        print(f"{found.unknown_rejected:.1%} of {found.unknown} others rejected, separation {found.separation:.3f}")
    return STORE.save(memory, arguments)
