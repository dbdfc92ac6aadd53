"""Every `--help` as a terminal of 100 columns shows it: `help/*.txt` are its screenshots.

After a change that is meant, `HF_EVCAP_WRITE_HELP=1 pytest tests/cli/test_help.py` writes them anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_evcap.cli.main import VERBS, main
from hf_evcap.cli.main import make_parser as make_main_parser


HELP = Path(__file__).parent / "help"
SRC = Path(__file__).parents[2] / "src"


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def parsers() -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    yield (), make_main_parser()
    for verb, (module, _) in VERBS.items():
        parser = importlib.import_module(f"hf_evcap.cli.{module}").make_parser()
        yield (verb,), parser
        for name, sub in subparsers(parser).items():
            yield (verb, name), sub


ALL = dict(parsers())
LEAVES = {words: parser for words, parser in ALL.items() if not subparsers(parser)}


def shown(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", list(ALL), ids=lambda words: " ".join(words) or "hf-evcap")
def test_help_is_as_it_was_looked_at(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    printed = shown(words, capsys)
    file = HELP / f"{'_'.join(('hf-evcap', *words))}.txt"
    if os.environ.get("HF_EVCAP_WRITE_HELP"):
        HELP.mkdir(exist_ok=True)
        file.write_text(printed, encoding="utf-8")
    assert printed == file.read_text(encoding="utf-8")
    assert printed.startswith("usage: " + " ".join(("hf-evcap", *words)))
    assert "\nexample" in printed


def test_there_is_a_file_for_each_and_no_other() -> None:
    assert {file.stem for file in HELP.iterdir()} == {"_".join(("hf-evcap", *words)) for words in ALL}


EVERYTHING = """
import contextlib, io, json, sys
sys.path.insert(0, sys.argv[1])
from hf_evcap.cli.main import main
printed = []
for words in json.loads(sys.argv[2]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    printed.append(out.getvalue())
loaded = [name for name in ("torch", "transformers", "datasets", "huggingface_hub", "yaml") if name in sys.modules]
print(json.dumps({"printed": printed, "loaded": loaded}))
"""


def pythons() -> list[str]:
    """Interpreters of the versions that the package is for, this one first."""
    found = [sys.executable]
    for version in ("3.10", "3.11", "3.12", "3.13", "3.14"):
        beside = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
        named = [str(path) for path in beside] or [path for path in [shutil.which(f"python{version}")] if path]
        found += named[:1]
    return found


@pytest.mark.parametrize("python", pythons())
def test_help_is_the_same_on_every_python_and_needs_no_package(python: str) -> None:
    """All of them in less than a second of CPU: nothing but Python's own library is imported."""
    files = [HELP / f"{'_'.join(('hf-evcap', *words))}.txt" for words in ALL]
    code = [python, "-B", *([] if python == sys.executable else ["-S"]), "-c", EVERYTHING, str(SRC)]
    environment = {**os.environ, "COLUMNS": "100", "PYTHON_COLORS": "0"}
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(
        [*code, json.dumps([list(words) for words in ALL])],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    after = os.times()
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    for words, file, printed in zip(ALL, files, found["printed"], strict=True):
        assert printed == file.read_text(encoding="utf-8"), words
    assert after.children_user - before.children_user < 1.5 and time.perf_counter() - start < 20


def test_one_vocabulary() -> None:
    """A shown option has one meaning, and so one kind of value, in all verbs; where it makes sense it is there."""
    where: dict[str, dict[tuple[str, ...], argparse.Action]] = {}
    for words, parser in LEAVES.items():
        for action in parser._actions:
            for option in action.option_strings[:1] if action.help != argparse.SUPPRESS else ():
                where.setdefault(option, {})[words] = action
    assert "--out" not in where and "--datastore" not in where and "--config-name" not in where
    for option in where:
        assert "_" not in option
    writes = {words for words, parser in LEAVES.items() if "--overwrite" in parser._option_string_actions}
    assert writes == set(where["--output"]) - {("configs",)}
    assert set(where["--config"]) == {("caption",), ("cache-features",), ("train",), ("evaluate",)}
    assert all("YAML file of options" in str(action.help) for action in where["--config"].values())
    for option, verbs in {
        "--model": ("caption", "evaluate", "train", "plan", "cache-features", "memory build", "memory add"),
        "--memory": ("caption", "evaluate", "train", "new evcap", "new smallcap", "convert evcap", "convert smallcap"),
        "--split": ("evaluate", "train", "cache-features", "memory build", "datastore build"),
        "--batch-size": ("caption", "evaluate", "train", "plan", "cache-features", "memory build", "datastore build"),
        "--device": ("caption", "evaluate", "cache-features", "memory build", "memory search", "datastore search"),
        "--dtype": ("caption", "evaluate", "train", "plan", "merge", "new evcap", "convert evcap"),
        "--dataset-config": ("evaluate", "train", "cache-features", "memory build", "datastore build"),
        "--dataset-revision": ("evaluate", "train", "cache-features", "memory build", "datastore build"),
        "--model-config": ("plan", "convert evcap", "new evcap", "new smallcap"),
        "--quiet": (),
    }.items():
        assert {tuple(verb.split()) for verb in verbs} <= set(where.get(option, {})), option
    for words, parser in LEAVES.items():
        known = parser._option_string_actions
        assert {"-q", "--quiet", "-v", "--verbose", "--help"} <= set(known), words
        for action in parser._actions:
            assert action.help, (words, action.dest)
    precisions = {"float32", "bfloat16", "float16"}
    assert all(precisions <= set(re.findall(r"\w+", str(one.help))) for one in where["--dtype"].values())


@pytest.mark.parametrize(
    ("words", "older", "dest", "value"),
    [
        (["merge", "m"], ["--out", "a"], "output", "a"),
        (["new", "smallcap", "--encoder", "a", "--decoder", "b", "--out", "c"], ["--datastore", "d"], "memory", "d"),
        (["convert", "smallcap", "c", "--output", "o"], ["--datastore", "d"], "datastore", "d"),
        (["memory", "build", "s", "--out", "a"], ["--config", "c", "--revision", "r", "--dataset"], "config", "c"),
        (["memory", "build", "s", "--out", "a"], ["--revision", "r"], "revision", "r"),
        (["memory", "build", "s", "--out", "a"], ["--dataset"], "dataset", True),
        (["memory", "convert", "s"], ["--dtype", "float16"], "dtype", "float16"),
        (["datastore", "build", "s", "--output", "o"], ["--config", "c"], "config", "c"),
        (["cache-features"], ["--dtype", "float32", "--shard_size", "3"], "dtype", "float32"),
        (["cache-features"], ["--config_name", "c"], "dataset_config", "c"),
        (["evaluate"], ["--config-name", "c", "--num_beams", "3"], "dataset_config", "c"),
        (["caption", "p"], ["--datastore", "d"], "memory", ["d"]),
        (["train"], ["--output_dir", "o"], "output_dir", "o"),
        (["train"], ["--dataset_split", "s", "--no_leave_one_out"], "dataset_split", "s"),
        (["train"], ["--no_leave_one_out"], "leave_one_out", False),
        (["train"], ["--model-revision", "r"], "model_revision", "r"),
        (["train"], ["--per_device_train_batch_size", "3"], "per_device_train_batch_size", 3),
        (["plan"], ["--config", "c"], "config", "c"),
        (["plan"], ["--batch_size", "3", "--memory_gb=4"], "memory_gb", 4.0),
    ],
)
def test_older_spellings_still_work(words: list[str], older: list[str], dest: str, value: object) -> None:
    module = importlib.import_module(f"hf_evcap.cli.{VERBS[words[0]][0]}")
    given = vars(module.make_parser().parse_args([*words[1:], *older]))
    assert value == given[dest]


def test_defaults_of_transformers_are_those_shown() -> None:
    from transformers import Seq2SeqTrainingArguments

    from hf_evcap.cli.trainer_options import TrainerOptions, names_of_trainer

    theirs = {field.name: field.default for field in dataclasses.fields(Seq2SeqTrainingArguments)}
    for field in dataclasses.fields(TrainerOptions):
        default = getattr(theirs[field.name], "value", theirs[field.name])
        # What nobody asked for is None in newer versions and False in older ones.
        assert field.default == default or (field.default is None and default is False), field.name
    assert names_of_trainer() == {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}


def test_all_options_of_transformers_are_behind_help_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    everything = capsys.readouterr().out
    usual = (HELP / "hf-evcap_train.txt").read_text(encoding="utf-8")
    assert "--torch-compile-backend" in everything and "--torch-compile-backend" not in usual
    assert len(usual.splitlines()) < 180 < len(everything.splitlines())


def test_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 1
    assert 'pip install "hf_evcap[completion]"' in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "shtab")
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    for shell in ("bash", "zsh"):
        assert main(["--print-completion", shell]) == 0
        script = capsys.readouterr().out
        assert "--num-beams" in script and "calibrate" in script and "--datastore" not in script
