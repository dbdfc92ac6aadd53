"""What `hf-evcap memory` and `hf-evcap datastore` have in common: edit, inspect and publish a retrieval store."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ..output_folders import check_output
from . import logs
from .build_options import add_key_dtype
from .common_options import add_device, add_output, add_overwrite
from .options import regex, repo_id, row_ids
from .sources import check_model, check_store


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

    def add_verb(
        self, verbs: Any, name: str, run: Callable, help: str, *, out: bool = False, examples: Sequence[str] = ()
    ) -> Any:
        """Adds the parser of one action; `finish` completes all of them."""
        examples = [f"{self.kind} {name} {example}" for example in examples]
        made = verbs.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", examples=examples)
        made.add_argument("store", metavar=self.kind.upper(), help=self.help)
        if out:
            add_output(made, "the result", required=False, default=f"{self.kind.upper()} itself, if it is a folder")
            add_overwrite(made)
        made.set_defaults(run=_held(run) if out else run)
        return made

    @staticmethod
    def finish(verbs: Any) -> None:
        """Adds to all actions the options that every verb has."""
        for parser in verbs.choices.values():
            parser.add_common()

    def add_encoder(self, parser: Any, needed_for: str = "") -> None:
        """Adds the model whose encoder built a store, and where it runs."""
        said = f", for {needed_for}" if needed_for else ""
        default = " (default: the embedded evcap-tiny)" if self.kind == "memory" else ""
        parser.add_argument(
            "--model",
            metavar="MODEL",
            help=f"model whose encoder built the {self.kind}: folder or Hub id org/name{said}{default}",
        )
        add_device(parser)

    def add_common_verbs(self, verbs: Any) -> None:
        """Adds the parsers of the actions that both kinds have."""
        kind, text = self.kind, self.text
        one = "whisk" if text == "name" else "'a whisk in a bowl'"
        remove = self.add_verb(
            verbs,
            "remove",
            self.remove,
            f"remove {text}s, or those of their rows that the options name",
            out=True,
            examples=[f"kitchen {one}", f"kitchen {one} --source mine", "kitchen --rows 3,8-10 --output smaller"],
        )
        remove.add_argument("texts", nargs="*", metavar=text.upper(), help=f"{text}s to remove")
        for column, meaning in self.selecting.items():
            option = f"--{column.replace('_', '-')}"
            remove.add_argument(option, action="append", metavar=column.upper(), help=f"only rows {meaning}")
        remove.add_argument("--rows", type=row_ids, metavar="IDS", help="only rows with these ids, such as 3,8-10")
        merge = self.add_verb(
            verbs, "merge", self.merge, "add the rows of others", out=True, examples=["lvis kitchen --output both"]
        )
        merge.add_argument("others", nargs="+", metavar="OTHER", help=self.help)
        subset = self.add_verb(
            verbs,
            "subset",
            self.subset,
            f"keep some {text}s",
            out=True,
            examples=[f"kitchen {one} --output smaller", "kitchen --match '^w' --output smaller"],
        )
        subset.add_argument("texts", nargs="*", metavar=text.upper(), help=f"{text}s to keep")
        subset.add_argument(
            "--match", type=regex, metavar="REGEX", help=f"also keep {text}s in which the expression is found"
        )
        upper = kind.upper()
        diff = self.add_verb(
            verbs,
            "diff",
            self.diff,
            f"list {text}s and rows added, removed and changed from {upper} to OTHER",
            examples=["kitchen me/kitchen@v1"],
        )
        diff.add_argument("other", metavar="OTHER", help=self.help)
        diff.add_argument("--json", action="store_true", help="print JSON")
        self.add_verb(verbs, "verify", self.verify, "check rows, hashes and index", examples=["kitchen"])
        push = self.add_verb(
            verbs,
            "push",
            self.push,
            f"upload to the Hub as a dataset, as `hf-evcap push {kind}` does",
            examples=["kitchen me/kitchen --private"],
        )
        push.add_argument("repo", type=repo_id, metavar="REPO", help="where to, such as user/name")
        push.add_argument(
            "options",
            nargs=argparse.REMAINDER,
            metavar="...",
            help=f"options of `hf-evcap push {kind}`: --private, --dry-run, ...",
        )
        pull = self.add_verb(
            verbs, "pull", self.pull, f"download and check a {kind}", examples=["me/kitchen --output kitchen"]
        )
        add_output(pull, "it")
        add_overwrite(pull)

    def add_info(self, verbs: Any) -> Any:
        """Adds the parser of `info`."""
        info = self.add_verb(
            verbs, "info", self.info, f"say what a {self.kind} holds", examples=["kitchen", "kitchen --json"]
        )
        info.add_argument("--json", action="store_true", help="print JSON")
        return info

    @staticmethod
    def add_conversions(parser: Any) -> None:
        """Adds the options of `convert`."""
        add_key_dtype(parser)
        parser.add_argument("--index", metavar="FACTORY", help="FAISS factory string, or `auto` to choose by size")

    # Loading and saving

    def load(self, source: str) -> Any:
        """Loads and checks a store."""
        check_store(source, self.kind)
        logs.settle()
        store = self.store_class.from_pretrained(source)
        if not isinstance(store, self.store_class):
            raise ValueError(f"{source} holds layers; name one of them: {source}/layers/{next(iter(store))}.")
        return store

    @staticmethod
    def save(store: Any, arguments: argparse.Namespace) -> int:
        """Writes a store to `--output`, or in place."""
        out = arguments.output or arguments.store
        if arguments.output is None and not os.path.isdir(out):
            raise ValueError(f"{arguments.store} is not a folder; say with --output where the result shall go.")
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
        if not arguments.texts and not columns and arguments.rows is None:
            options = ", ".join(f"--{column.replace('_', '-')}" for column in self.selecting)
            raise ValueError(f"Say what to remove: {self.text}s, {options} or --rows.")
        store = self.load(arguments.store)
        return self.save(store.remove(arguments.texts or None, rows=arguments.rows, **columns), arguments)

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
            print(f"{what:<22} {_words(value)}")
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

        target = arguments.output or arguments.store
        if not os.path.isdir(target):
            return run(arguments)
        with locked_folder(target):
            return run(arguments)

    return held


def _words(value: Any) -> str:
    """A fact as a person reads it."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)


def load_captioner(source: str | None, store: Any, device: Any = None) -> tuple[Any, Any]:
    """
    Loads the model whose encoder built a store, and its processor, and attaches the store.

    Args:
        source (`str`, *optional*): Folder or Hub id; the embedded model when absent, which takes memories.
        store ([`RetrievalStore`]): Attached.
        device (*optional*): Where the model runs; the first accelerator when absent.

    Raises:
        ValueError: The model is of another encoder, or none was named for a datastore.
    """
    if source is None and store.store_word != "memory":
        raise ValueError(f"Give --model, the model whose encoder built the {store.store_word}.")
    check_model(source)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import hf_evcap

    from ..pipeline_loading import check_device
    from ..processes import process_state

    check_device(device)
    device = device or process_state().device
    named = source or hf_evcap.default_model()
    model = AutoModelForImageTextToText.from_pretrained(named, memory=False).to(device).eval()
    processor = AutoProcessor.from_pretrained(named)
    own = getattr(processor, "name_tokenizer", None)
    try:
        model.set_memory(store, **({} if own is None else {"name_tokenizer": own}))
    except ValueError as error:
        if source is not None:
            raise
        raise ValueError(f"Give --model: the embedded model did not build this memory. {error}") from error
    return model, processor


__all__ = ["StoreVerbs", "load_captioner"]
