"""What `hf-evcap memory` and `hf-evcap datastore` have in common: edit, inspect and publish a retrieval store."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ..output_folders import check_output
from .build_options import add_overwrite


class StoreVerbs:
    """
    The actions that memories and datastores share, told apart by their words.

    Args:
        kind (`str`): `"memory"` or `"datastore"`; also the option of `hf-evcap push`.
        text (`str`): What a row holds: `"name"` or `"caption"`.
        store_class (`str`): Module and class, imported when an action runs: `"memory_evcap.VisualNameMemory"`.
        selecting (`dict[str, str]`): Columns by which rows may be removed, and which rows those are.
    """

    def __init__(self, kind: str, text: str, store_class: str, selecting: dict[str, str]) -> None:
        self.kind = kind
        self.text = text
        self.selecting = selecting
        self._store_class = store_class
        self.help = f"{kind} folder, or Hub id: org/name or org/name@revision"

    @property
    def store_class(self) -> Any:
        """The class of the stores."""
        module, _, name = self._store_class.partition(".")
        return getattr(importlib.import_module(f"..{module}", __package__), name)

    # Parsers

    def add_verb(self, verbs: Any, name: str, run: Callable, help: str, *, out: bool = False) -> Any:
        """Adds the parser of one action."""
        made = verbs.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        made.add_argument("store", metavar=self.kind.upper(), help=self.help)
        if out:
            kind = self.kind.upper()
            made.add_argument("--out", help=f"folder for the result (default: {kind} itself, if it is a folder)")
            add_overwrite(made)
        made.set_defaults(run=_held(run) if out else run)
        return made

    def add_common_verbs(self, verbs: Any) -> None:
        """Adds the parsers of the actions that both kinds have."""
        kind, text = self.kind, self.text
        remove = self.add_verb(
            verbs, "remove", self.remove, f"remove {text}s, or those of their rows that the options name", out=True
        )
        remove.add_argument("texts", nargs="*", metavar=text.upper())
        for column, meaning in self.selecting.items():
            option = f"--{column.replace('_', '-')}"
            remove.add_argument(option, action="append", metavar=column.upper(), help=f"only rows {meaning}")
        remove.add_argument("--rows", metavar="IDS", help="only rows with these ids, such as 3,8-10")
        merge = self.add_verb(verbs, "merge", self.merge, "add the rows of others", out=True)
        merge.add_argument("others", nargs="+", metavar="OTHER", help=self.help)
        subset = self.add_verb(verbs, "subset", self.subset, f"keep some {text}s", out=True)
        subset.add_argument("texts", nargs="*", metavar=text.upper())
        subset.add_argument("--match", metavar="REGEX", help=f"{text}s in which the expression is found")
        upper = kind.upper()
        diff = self.add_verb(
            verbs, "diff", self.diff, f"list {text}s and rows added, removed and changed from {upper} to OTHER"
        )
        diff.add_argument("other", metavar="OTHER", help=self.help)
        diff.add_argument("--json", action="store_true", help="print JSON")
        self.add_verb(verbs, "verify", self.verify, "check rows, hashes and index")
        push = self.add_verb(
            verbs, "push", self.push, f"upload to the Hub as a dataset, as `hf-evcap push {kind}` does"
        )
        push.add_argument("repo", metavar="ORG/NAME")
        push.add_argument("options", nargs=argparse.REMAINDER, help="of `hf-evcap push`: --private, --dry-run, ...")
        pull = self.add_verb(verbs, "pull", self.pull, f"download and check a {kind}")
        pull.add_argument("--out", required=True, help="folder for it")
        add_overwrite(pull)

    def add_info(self, verbs: Any) -> Any:
        """Adds the parser of `info`."""
        info = self.add_verb(verbs, "info", self.info, f"say what a {self.kind} holds")
        info.add_argument("--json", action="store_true", help="print JSON")
        return info

    @staticmethod
    def add_conversions(parser: Any) -> None:
        """Adds the options of `convert`."""
        parser.add_argument("--dtype", choices=["float32", "float16"], help="of the kept keys")
        parser.add_argument("--index", help="FAISS factory string, or `auto` to choose by size")

    # Loading and saving

    def load(self, source: str) -> Any:
        """Loads and checks a store."""
        store = self.store_class.from_pretrained(source)
        if not isinstance(store, self.store_class):
            raise ValueError(f"{source} holds layers; name one of them: {source}/layers/{next(iter(store))}.")
        return store

    @staticmethod
    def save(store: Any, arguments: argparse.Namespace) -> int:
        """Writes a store to `--out`, or in place."""
        out = arguments.out or arguments.store
        if arguments.out is None and not os.path.isdir(out):
            raise ValueError(f"{arguments.store} is not a folder; say with --out where the result shall go.")
        if os.path.realpath(out) != os.path.realpath(arguments.store):
            check_output(out, arguments.overwrite)
        store.save_pretrained(out)
        print(f"{store!r} written to {out}")
        if store.last_added is not None and len(store.last_added):
            rows = store.last_added.row_ids
            print(f"added rows {rows[0]}-{rows[-1]}; `remove {out} --rows {rows[0]}-{rows[-1]}` takes them back")
        return 0

    # Actions

    def remove(self, arguments: argparse.Namespace) -> int:
        """`remove`."""
        given = {column: getattr(arguments, column) for column in self.selecting}
        columns = {column: values for column, values in given.items() if values is not None}
        rows = None if arguments.rows is None else _row_ids(arguments.rows)
        return self.save(self.load(arguments.store).remove(arguments.texts or None, rows=rows, **columns), arguments)

    def merge(self, arguments: argparse.Namespace) -> int:
        """`merge`."""
        store = self.load(arguments.store)
        for other in arguments.others:
            store = store.merge(self.load(other))
        return self.save(store, arguments)

    def subset(self, arguments: argparse.Namespace) -> int:
        """`subset`."""
        if not arguments.texts and arguments.match is None:
            raise ValueError(f"Give {self.text}s to keep, or --match.")
        store = self.load(arguments.store)
        texts = list(arguments.texts)
        if arguments.match is not None:
            pattern = re.compile(arguments.match)
            texts += [text for text in dict.fromkeys(store.texts) if pattern.search(text)]
        return self.save(store.subset(texts), arguments)

    def diff(self, arguments: argparse.Namespace) -> int:
        """`diff`."""
        found = self.load(arguments.store).diff(self.load(arguments.other))
        if arguments.json:
            print(json.dumps(asdict(found), ensure_ascii=False, indent=2))
            return 0
        print(f"{found.added_rows} rows added, {found.removed_rows} removed")
        renamed = set(found.renamed) | set(found.renamed.values())
        for text, new in found.renamed.items():
            print(f"renamed  {text} -> {new}")
        for sign, texts in (("added", found.added), ("removed", found.removed)):
            for text, rows in texts.items():
                if text not in renamed:
                    print(f"{sign:<8} {text} ({rows} rows)")
        for text, (added, removed) in found.changed.items():
            print(f"changed  {text} (+{added} -{removed} rows)")
        for text, rows in found.relabelled.items():
            print(f"columns  {text} ({rows} rows)")
        return 0

    def info(self, arguments: argparse.Namespace) -> int:
        """`info`."""
        return self.print_facts(self.load(arguments.store), arguments.json)

    @staticmethod
    def print_facts(store: Any, as_json: bool, report: Any = None) -> int:
        """Prints what a store holds, and a report on it where there is one."""
        facts = {**store.describe(), "fingerprint": store.fingerprint}
        if as_json:
            more = {"report": report.to_dict()} if report else {}
            print(json.dumps({**facts, **more}, ensure_ascii=False, indent=2))
            return 0
        for what, value in facts.items():
            shown = json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
            print(f"{what:<22} {shown}")
        if report is not None:
            print(report.to_text())
        return 0

    @staticmethod
    def print_found(store: Any, queries: Any, k: int) -> int:
        """Prints the rows nearest to any of some queries."""
        scores, rows = store.search(queries, k)
        best: dict[int, float] = {}
        for score, row in sorted(
            zip(scores.reshape(-1).tolist(), rows.reshape(-1).tolist(), strict=True), reverse=True
        ):
            best.setdefault(row, score)
        texts = store.texts
        for row, score in list(best.items())[:k]:
            print(f"{score:.4f}  row {row:<8} {texts[row]}")
        return 0

    def verify(self, arguments: argparse.Namespace) -> int:
        """`verify`."""
        from ..memory_building.verification import verify_store

        problems = verify_store(arguments.store, self.store_class)
        for problem in problems:
            print(problem)
        if not problems:
            print(f"{arguments.store}: rows, hashes and index are right")
        return 1 if problems else 0

    def push(self, arguments: argparse.Namespace) -> int:
        """`push`."""
        from . import push

        return push.main([self.kind, arguments.store, arguments.repo, *arguments.options])

    def pull(self, arguments: argparse.Namespace) -> int:
        """`pull`."""
        return self.save(self.load(arguments.store), arguments)

    def convert(self, store: Any, arguments: argparse.Namespace) -> int:
        """Changes precision or index, and writes the result."""
        if arguments.dtype:
            store = store.astype(arguments.dtype)
        if arguments.index:
            store.index_factory = None if arguments.index == "auto" else arguments.index
        return self.save(store, arguments)


def _held(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """An action that edits a folder, which it holds against other processes from loading to saving."""

    def held(arguments: argparse.Namespace) -> int:
        from ..store_lock import locked_folder

        target = arguments.out or arguments.store
        if not os.path.isdir(target):
            return run(arguments)
        with locked_folder(target):
            return run(arguments)

    return held


def _row_ids(text: str) -> list[int]:
    """Row ids written as `3,8-10`."""
    rows: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if found is None:
            raise ValueError(f"Expected row ids such as 3,8-10; got {text!r}.")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first > 10**7:
            raise ValueError(f"{text!r} names more rows than there can be.")
        rows.extend(range(first, last + 1))
    return rows


def load_captioner(source: str | None, store: Any) -> tuple[Any, Any]:
    """
    Loads the model whose encoder built a store, and its processor, and attaches the store.

    Raises:
        ValueError: No model was named, or it is of another encoder.
    """
    if source is None:
        raise ValueError(f"Give --model, the model whose encoder built the {store.store_word}.")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(source, memory=False).eval()
    processor = AutoProcessor.from_pretrained(source)
    own = getattr(processor, "name_tokenizer", None)
    model.set_memory(store, **({} if own is None else {"name_tokenizer": own}))
    return model, processor


__all__ = ["StoreVerbs", "load_captioner"]
