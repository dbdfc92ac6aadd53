"""`hf-evcap memory`: build, edit, inspect and publish visual-name memories."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import memory_build


if TYPE_CHECKING:
    from ..memory_evcap import VisualNameMemory


MEMORY = "memory folder, or Hub id: org/name or org/name@revision"


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser, with a sub-parser for each thing that can be done to a memory."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap memory", description="Build, edit, inspect and publish visual-name memories."
    )
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    memory_build.add_parser(verbs)

    def verb(name: str, run: Any, help: str, *, out: bool = False) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        made.add_argument("memory", metavar="MEMORY", help=MEMORY)
        if out:
            made.add_argument("--out", help="folder for the result (default: MEMORY itself, if it is a folder)")
        made.set_defaults(run=run)
        return made

    add = verb("add", run_add, "add photos of something", out=True)
    add.add_argument("name", metavar="NAME", help="what the photos show")
    add.add_argument("photos", nargs="+", metavar="PHOTO", help="files or URLs")
    add.add_argument("--model", required=True, help="model whose encoder built the memory")
    add.add_argument("--set", action="append", default=[], metavar="COLUMN=VALUE", help="further columns")
    add.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="photos that cannot be read")
    remove = verb("remove", run_remove, "remove names with all their rows", out=True)
    remove.add_argument("names", nargs="+", metavar="NAME")
    rename = verb("rename", run_rename, "give names another wording", out=True)
    rename.add_argument("names", nargs="+", metavar="OLD=NEW")
    merge = verb("merge", run_merge, "add the rows of other memories", out=True)
    merge.add_argument("others", nargs="+", metavar="OTHER", help=MEMORY)
    subset = verb("subset", run_subset, "keep some names", out=True)
    subset.add_argument("names", nargs="*", metavar="NAME")
    subset.add_argument("--match", metavar="REGEX", help="names in which the expression is found")
    diff = verb("diff", run_diff, "list names and rows added, removed and changed from MEMORY to OTHER")
    diff.add_argument("other", metavar="OTHER", help=MEMORY)
    diff.add_argument("--json", action="store_true", help="print JSON")
    info = verb("info", run_info, "say what a memory holds")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.add_argument("--report", action="store_true", help="look for duplicates, disagreeing exemplars, hub rows")
    info.add_argument("--plot", metavar="PNG", help="with --report: draw it, too")
    info.add_argument("--probe", metavar="FOLDER", help="with --report: photos to ask with (needs --model)")
    info.add_argument("--model", help="model whose encoder built the memory, for --probe")
    search = verb("search", run_search, "find the rows nearest to a photo, or to the rows of a name")
    search.add_argument("--photo", help="file or URL (needs --model)")
    search.add_argument("--name", help="a name of the memory")
    search.add_argument("--model", help="model whose encoder built the memory")
    search.add_argument("-k", type=int, default=10, help="rows (default: %(default)s)")
    verb("verify", run_verify, "check rows, hashes and index")
    push = verb("push", run_push, "upload to the Hub as a dataset, as `hf-evcap push memory` does")
    push.add_argument("repo", metavar="ORG/NAME")
    push.add_argument("options", nargs=argparse.REMAINDER, help="of `hf-evcap push`: --private, --dry-run, ...")
    pull = verb("pull", run_pull, "download and check a memory")
    pull.add_argument("--out", required=True, help="folder for it")
    convert = verb(
        "convert", run_convert, "change precision or index, or read the reference's ext_memory.pkl", out=True
    )
    convert.add_argument("--dtype", choices=["float32", "float16"], help="of the kept keys")
    convert.add_argument("--index", help="FAISS factory string, or `auto` to choose by size")
    calibrate = verb("calibrate", run_calibrate, "find the similarity below which nothing is retrieved", out=True)
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


def _load(source: str) -> VisualNameMemory:
    from ..memory_evcap import VisualNameMemory

    memory = VisualNameMemory.from_pretrained(source)
    if not isinstance(memory, VisualNameMemory):
        raise ValueError(f"{source} holds layers; name one of them: {source}/layers/{next(iter(memory))}.")
    return memory


def _save(memory: VisualNameMemory, arguments: argparse.Namespace) -> int:
    out = arguments.out or arguments.memory
    if arguments.out is None and not os.path.isdir(out):
        raise ValueError(f"{arguments.memory} is not a folder; say with --out where the result shall go.")
    memory.save_pretrained(out)
    print(f"{memory!r} written to {out}")
    return 0


def _load_model(source: str | None, memory: VisualNameMemory) -> tuple[Any, Any]:
    from ..modeling_evcap import EVCapForConditionalGeneration
    from ..processing_evcap import EVCapProcessor

    if source is None:
        raise ValueError("Give --model, the model whose encoder built the memory.")
    model = EVCapForConditionalGeneration.from_pretrained(source, memory=False).eval()
    processor = EVCapProcessor.from_pretrained(source)
    model.set_memory(memory, name_tokenizer=processor.name_tokenizer)
    return model, processor


def _photos(folder: str) -> list[str]:
    from ..memory_building.photo_sources import PHOTO_SUFFIXES

    files = [os.path.join(place, file) for place, _, files in os.walk(folder) for file in files]
    photos = sorted(file for file in files if os.path.splitext(file)[1].lower() in PHOTO_SUFFIXES)
    if not photos:
        raise FileNotFoundError(f"{folder} holds no photos.")
    return photos


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
    memory = _load(arguments.memory)
    model, processor = _load_model(arguments.model, memory)
    columns: dict[str, Any] = dict(_pairs(arguments.set))
    memory.add_images(model, processor, arguments.photos, arguments.name, on_error=arguments.on_error, **columns)
    return _save(memory, arguments)


def run_remove(arguments: argparse.Namespace) -> int:
    """`remove`."""
    return _save(_load(arguments.memory).remove(arguments.names), arguments)


def run_rename(arguments: argparse.Namespace) -> int:
    """`rename`."""
    return _save(_load(arguments.memory).rename(_pairs(arguments.names)), arguments)


def run_merge(arguments: argparse.Namespace) -> int:
    """`merge`."""
    memory = _load(arguments.memory)
    for other in arguments.others:
        memory = memory.merge(_load(other))
    return _save(memory, arguments)


def run_subset(arguments: argparse.Namespace) -> int:
    """`subset`."""
    import re

    if not arguments.names and arguments.match is None:
        raise ValueError("Give names to keep, or --match.")
    memory = _load(arguments.memory)
    names = list(arguments.names)
    if arguments.match is not None:
        pattern = re.compile(arguments.match)
        names += [name for name in dict.fromkeys(memory.names) if pattern.search(name)]
    return _save(memory.subset(names), arguments)


def run_diff(arguments: argparse.Namespace) -> int:
    """`diff`."""
    found = _load(arguments.memory).diff(_load(arguments.other))
    if arguments.json:
        print(json.dumps(asdict(found), ensure_ascii=False, indent=2))
        return 0
    print(f"{found.added_rows} rows added, {found.removed_rows} removed")
    renamed = set(found.renamed) | set(found.renamed.values())
    for name, new in found.renamed.items():
        print(f"renamed  {name} -> {new}")
    for sign, names in (("added", found.added), ("removed", found.removed)):
        for name, rows in names.items():
            if name not in renamed:
                print(f"{sign:<8} {name} ({rows} rows)")
    for name, (added, removed) in found.changed.items():
        print(f"changed  {name} (+{added} -{removed} rows)")
    for name, rows in found.relabelled.items():
        print(f"columns  {name} ({rows} rows)")
    return 0


def run_info(arguments: argparse.Namespace) -> int:
    """`info`."""
    memory = _load(arguments.memory)
    facts = {**memory.describe(), "fingerprint": memory.fingerprint}
    report = None
    if arguments.report or arguments.plot:
        from ..memory_building.quality_report import quality_report

        probes = None
        if arguments.probe:
            import torch

            model, processor = _load_model(arguments.model, memory)
            files = _photos(arguments.probe)
            probes = torch.cat([model.encode_memory_keys(processor, [file]) for file in files]).numpy()
        report = quality_report(memory, probes)
        if arguments.plot:
            report.plot(arguments.plot)
    if arguments.json:
        print(json.dumps({**facts, **({"report": report.to_dict()} if report else {})}, ensure_ascii=False, indent=2))
        return 0
    for what, value in facts.items():
        print(f"{what:<22} {json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value}")
    if report is not None:
        print(report.to_text())
    return 0


def run_search(arguments: argparse.Namespace) -> int:
    """`search`."""
    memory = _load(arguments.memory)
    if (arguments.photo is None) == (arguments.name is None):
        raise ValueError("Give either --photo or --name.")
    if arguments.name is not None:
        queries = memory.subset([arguments.name]).keys
    else:
        model, processor = _load_model(arguments.model, memory)
        queries = model.encode_memory_keys(processor, [arguments.photo]).numpy()
    scores, rows = memory.search(queries, arguments.k)
    best: dict[int, float] = {}
    for score, row in sorted(zip(scores.reshape(-1).tolist(), rows.reshape(-1).tolist(), strict=True), reverse=True):
        best.setdefault(row, score)
    names = memory.names
    for row, score in list(best.items())[: arguments.k]:
        print(f"{score:.4f}  row {row:<8} {names[row]}")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """`verify`."""
    from ..memory_building.verification import verify_memory

    problems = verify_memory(arguments.memory)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{arguments.memory}: rows, hashes and index are right")
    return 1 if problems else 0


def run_push(arguments: argparse.Namespace) -> int:
    """`push`."""
    from . import push

    return push.main(["memory", arguments.memory, arguments.repo, *arguments.options])


def run_pull(arguments: argparse.Namespace) -> int:
    """`pull`."""
    return _save(_load(arguments.memory), arguments)


def run_convert(arguments: argparse.Namespace) -> int:
    """`convert`."""
    if arguments.memory.endswith(".pkl"):
        from ..conversion import load_evcap_memory

        if arguments.out is None:
            raise ValueError("Say with --out where the memory shall go.")
        memory = load_evcap_memory(arguments.memory)
    else:
        memory = _load(arguments.memory)
    if arguments.dtype:
        memory = memory.astype(arguments.dtype)
    if arguments.index:
        memory.index_factory = None if arguments.index == "auto" else arguments.index
    return _save(memory, arguments)


def run_calibrate(arguments: argparse.Namespace) -> int:
    """`calibrate`."""
    from ..memory_building.rejection import best_similarities, calibrate

    memory = _load(arguments.memory)
    memory.retrieval.pop("min_similarity", None)
    if arguments.off:
        return _save(memory, arguments)
    if arguments.known is None:
        raise ValueError("Give --known, a folder of held-out photos of things that the memory holds, or --off.")
    model, processor = _load_model(arguments.model, memory)
    known = best_similarities(model, processor, _photos(arguments.known))
    unknown = best_similarities(model, processor, _photos(arguments.unknown)) if arguments.unknown else None
    found = calibrate(known, unknown, arguments.keep)
    memory.retrieval["min_similarity"] = round(found.min_similarity, 6)
    print(f"min_similarity {found.min_similarity:.4f}: {found.known_kept:.1%} of {found.known} known photos kept")
    if found.unknown_rejected is not None:
        print(f"{found.unknown_rejected:.1%} of {found.unknown} others rejected, separation {found.separation:.3f}")
    return _save(memory, arguments)
