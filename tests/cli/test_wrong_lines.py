"""Wrong command lines: one line of stderr says what was given and what to do, before PyTorch is imported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hf_evcap.cli.main import main


PHOTO = str(Path(__file__).parents[2] / "src" / "hf_evcap" / "assets" / "photos" / "cat.jpg")
TINY = str(Path(__file__).parents[2] / "src" / "hf_evcap" / "assets" / "evcap-tiny")

# A line, and what the message must hold. Files of `things` are named by {name}.
LINES = {
    # The verb
    "sing": ["'sing'", "caption"],
    "captoin {photo}": ["'captoin'", "did you mean caption?"],
    "--colour": ["--colour"],
    "--print-completion fish": ["'fish'", "bash"],
    # caption
    "caption": ["PHOTO"],
    "caption nothere.jpg": ["'nothere.jpg'", "files, folders, globs or URLs"],
    "caption nothere.jpg neither.jpg": ["'nothere.jpg'", "1 others"],
    "caption {empty}": ["No photos in", "{empty}", ".jpg"],
    "caption {empty}/*.png": ["No photos match", "*.png"],
    "caption {photo} --memory nosuch": ["'nosuch'", "org/name"],
    "caption {photo} --memory {tiny}": ["no memory", "{tiny}/memory"],
    "caption {photo} --memory a/b/c/d": ["'a/b/c/d'", "org/name"],
    "caption {photo} --datastore nosuch": ["'nosuch'"],
    "caption {photo} --model nosuch": ["'nosuch'", "org/name"],
    "caption {photo} --model {tiny}/memory": ["no model", "--memory {tiny}/memory"],
    "caption {photo} --model {empty}": ["{empty}", "config.json"],
    "caption {photo} --model {text}": ["{text}", "is a file"],
    "caption {photo} --model org/name@v1": ["org/name@v1", "--revision v1"],
    "caption {photo} --model no-body/no-thing": ["no-body/no-thing", "HF_HUB_OFFLINE"],
    "caption {photo} --revision v1": ["--revision v1", "--model"],
    "caption {photo} --model {tiny} --revision v1": ["--revision v1", "folder"],
    "caption {photo} --num-beams 0": ["--num-beams", "at least 1, got 0"],
    "caption {photo} --num-beams five": ["--num-beams", "'five'"],
    "caption {photo} --num-beams": ["--num-beams", "expected one argument"],
    "caption {photo} --max-new-tokens -3": ["--max-new-tokens", "at least 1, got -3"],
    "caption {photo} --batch-size -1": ["--batch-size", "at least 1, got -1"],
    "caption {photo} --batch_size 2.5": ["--batch-size", "'2.5'"],
    "caption {photo} --dtype int3": ["'int3'", "bfloat16"],
    "caption {photo} --device gpu": ["'gpu'", "cuda"],
    "caption {photo} --nams": ["--nams", "did you mean --names?"],
    "caption {photo} --json {photo}": ["{photo}", "before the options"],
    "caption {photo} --config nothere.yaml": ["nothere.yaml"],
    "caption {photo} --config {broken}": ["{broken}", "line 3", "not YAML"],
    "caption {photo} --config {list}": ["{list}", "option: value"],
    "caption {photo} --config {beams}": ["num_beams", "{beams}", "at least 1"],
    "caption {photo} --config {unknown}": ["num_beems", "{unknown}"],
    # memory and datastore
    "memory": ["ACTION"],
    "memory biuld {empty} --output x": ["'biuld'", "did you mean build?"],
    "memory info": ["MEMORY"],
    "memory info nosuch": ["'nosuch'", "org/name"],
    "memory info {tiny}": ["{tiny}/memory"],
    "memory info {empty}": ["memory_config.json", "memory build"],
    "memory info {tiny}/memory --probe nowhere": ["--probe", "'nowhere'"],
    "memory info {tiny}/memory --probe {text}": ["--probe", "is a file"],
    "memory search {tiny}/memory": ["--photo", "--name"],
    "memory search {tiny}/memory --name cat -k -2": ["-k", "at least 1, got -2"],
    "memory search {tiny}/memory --photo nothere.jpg": ["--photo", "'nothere.jpg'"],
    "memory subset {tiny}/memory --match [a": ["--match", "'[a'", "regular expression"],
    "memory subset {tiny}/memory": ["--match"],
    "memory remove {tiny}/memory --rows 9-": ["--rows", "3,8-10", "'9-'"],
    "memory remove {tiny}/memory": ["--source", "--rows"],
    "memory rename {tiny}/memory cat": ["LEFT=RIGHT", "'cat'"],
    "memory add {tiny}/memory whisk nothere.jpg": ["'nothere.jpg'"],
    "memory add {tiny}/memory whisk {photo} --set mine": ["--set", "'mine'"],
    "memory add {tiny}/memory whisk {photo} --output {text}": ["--output", "is a file"],
    "memory build nosuch --output x": ["'nosuch'"],
    "memory build nosuch.csv --output x": ["'nosuch.csv'"],
    "memory build {empty}": ["--output"],
    "memory build {boxes} --output x": ["--images"],
    "memory build {empty} --output x --shard-size 0": ["--shard-size", "at least 1, got 0"],
    "memory build {empty} --output x --photos-per-name 0": ["--photos-per-name"],
    "memory build {empty} --output x --key-dtype float8": ["'float8'", "float16"],
    "memory build {empty} --output {full}": ["{full}", "--overwrite"],
    "memory build {broken} --output x": ["{broken}", "not YAML"],
    "memory build {unknown} --output x": ["{unknown}", "source"],
    "memory push {tiny}/memory me/a/b": ["'me/a/b'", "user/name"],
    "memory calibrate {tiny}/memory": ["--known", "--off"],
    "memory calibrate {tiny}/memory --known {empty} --keep 1.5": ["--keep", "from 0 to 1, got 1.5"],
    "datastore search nosuch --text dog": ["'nosuch'", "datastore"],
    "datastore add nosuch": ["captions", "--file"],
    "datastore build {text} --output x": ["--clip", "--model"],
    "datastore build {text} --clip c --output x --max-tokens -5": ["--max-tokens", "at least 0, got -5"],
    "datastore convert {text} --captions nothere.json": ["--captions", "'nothere.json'"],
    # evaluate, cache-features, train, plan
    "evaluate": ["--dataset", "--output"],
    "evaluate --dataset nosuch --output x": ["'nosuch'", "coco-karpathy"],
    "evaluate --dataset nosuch.json --output x": ["'nosuch.json'"],
    "evaluate --dataset {empty} --output {text}": ["--output", "is a file"],
    "evaluate --dataset {empty} --output x --metrics ciderr": ["'ciderr'", "did you mean cider?"],
    "evaluate --dataset {empty} --output x --limit 0": ["--limit", "at least 1, got 0"],
    "evaluate --dataset {empty} --output x --num-workers -1": ["--num-workers", "at least 0, got -1"],
    "evaluate --dataset {empty} --output x --min-similarity 2": ["--min-similarity", "from -1 to 1"],
    "evaluate --dataset {empty} --output x --update-card": ["update_card", "model"],
    "evaluate --dataset {empty} --output x --predictions nothere.json": ["--predictions", "'nothere.json'"],
    "evaluate --dataset {empty} --output x --other-memory nosuch": ["'nosuch'"],
    "evaluate --dataset {empty} --output x --format voc": ["'voc'", "karpathy"],
    "cache-features --dataset {empty}": ["--output"],
    "cache-features --dataset nosuch --output x": ["'nosuch'"],
    "cache-features --dataset {empty} --output x --model nosuch": ["'nosuch'"],
    "train": ["--dataset"],
    "train --dataset nosuch --output x": ["'nosuch'"],
    "train --dataset {empty} --output x --num_train_epochs -1": ["--num-train-epochs", "above 0, got -1"],
    "train --dataset {empty} --output x --learning-rate fast": ["--learning-rate", "'fast'"],
    "train --dataset {empty} --output x --batch-size 0": ["--batch-size", "at least 1, got 0"],
    "train --dataset {empty} --output x --lora_dropout 2": ["--lora-dropout", "from 0 to 1, got 2"],
    "train --dataset {empty} --output x --bf16 perhaps": ["--bf16", "'perhaps'"],
    "train --dataset {empty} --output x --lerning_rate 1": ["--lerning_rate", "--learning-rate"],
    "train --dataset {empty} --output x --captions-per-photo two": ["'two'", "together"],
    "train --dataset {empty} --output x --recipe evcap": ["'evcap'", "evcap-paper"],
    "train --dataset {empty} --output x --memory nosuch": ["'nosuch'"],
    "train --config {broken}": ["{broken}", "line 3"],
    "train --config {unknown}": ["num_beems"],
    "plan --batch_size 0": ["--batch-size", "at least 1"],
    "plan --memory_gb -1": ["--memory-gb", "above 0"],
    "plan --device tpu": ["'tpu'", "cuda"],
    "plan --bf16 --fp16": ["bf16", "fp16"],
    "plan --model nosuch": ["'nosuch'"],
    "plan --polizy lora": ["--polizy", "--policy"],
    # new, convert, merge, push, configs
    "new": ["KIND"],
    "new evcapp": ["'evcapp'", "did you mean evcap?"],
    "new evcap --encoder a/b --output x": ["--language-model"],
    "new evcap --encoder nowhere/at/all --language-model gpt2 --output x": ["'nowhere/at/all'"],
    "new evcap --encoder {empty} --language-model gpt2 --output x": ["{empty}", "config.json"],
    "new evcap --encoder {tiny} --language-model gpt2 --output x --fusion-init random": ["--fusion-init", "random:0"],
    "new evcap --encoder {tiny} --language-model gpt2 --output x --model-config {broken}": ["{broken}", "not YAML"],
    "new smallcap --encoder {tiny} --decoder gpt2 --output x --seed -1": ["--seed", "at least 0, got -1"],
    "convert evcap nothere.pth --output x": ["'nothere.pth'"],
    "convert evcap {empty} --output x": ["{empty}", "is a folder"],
    "convert evcap {text} --output x --fusion-init chance": ["--fusion-init", "random:SEED"],
    "convert memory nothere.pkl --output x": ["'nothere.pkl'"],
    "convert smallcap nosuch --output x": ["'nosuch'"],
    "convert datastore {text} nothere.json --output x": ["'nothere.json'"],
    "merge nosuch --output x": ["'nosuch'"],
    "merge {tiny} --output x --max-shard-size big": ["--max-shard-size", "5GB"],
    "merge {tiny} --output {full}": ["{full}", "--overwrite"],
    "push memory {tiny} me/kitchen": ["no memory", "{tiny}/memory"],
    "push model {tiny}/memory me/model": ["no model"],
    "push modle {tiny} me/model": ["'modle'", "did you mean model?"],
    "push memory {tiny}/memory me/kitchen --frozen copy": ["--frozen", "models"],
    "push model {tiny} me/model --card nothere.md": ["--card", "'nothere.md'"],
    "push metric beauty me/beauty": ["'beauty'", "cider"],
    "push model nosuch me/model": ["'nosuch'"],
    "configs evcap-vicuna-12b": ["'evcap-vicuna-12b'", "evcap-vicuna-13b"],
    "configs --output x": ["NAME"],
    "env now": ["'now'"],
}


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that are not what they should be."""
    folder = tmp_path_factory.mktemp("things")
    contents = {
        "text": "caption.txt", "broken": "broken.yaml", "list": "list.yaml", "beams": "beams.yaml",
        "unknown": "unknown.yaml", "boxes": "boxes.json",
    }  # fmt: skip
    for name, text in {
        "text": "a cat\n", "broken": "a: 1\nb: [\n", "list": "- a\n", "beams": "num_beams: 0\n",
        "unknown": "num_beems: 3\n", "boxes": "{}",
    }.items():  # fmt: skip
        (folder / contents[name]).write_text(text, encoding="utf-8")
    for name in ("empty", "full"):
        (folder / name).mkdir()
    (folder / "full" / "config.json").write_text("{}", encoding="utf-8")
    named = {name: str(folder / file) for name, file in contents.items()}
    return {**named, "empty": str(folder / "empty"), "full": str(folder / "full"), "photo": PHOTO, "tiny": TINY}


def filled(text: str, things: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: things[found[1]], text)


def words_of(line: str, things: dict[str, str]) -> list[str]:
    return [filled(word, things) for word in line.split()]


def check(line: str, error: str, things: dict[str, str]) -> None:
    assert error.endswith("\n") and len(error.splitlines()) == 1, error
    assert error.startswith("hf-evcap")
    verb = line.split()[0]
    if not verb.startswith("-") and "'sing'" not in error and "'captoin'" not in error:
        assert error.startswith(f"hf-evcap {verb}")
    missing = [part for part in LINES[line] if filled(part, things) not in error]
    assert not missing, error


@pytest.mark.parametrize("line", list(LINES))
def test_one_line_says_what_was_given_and_what_to_do(
    line: str,
    things: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    assert main(words_of(line, things)) in (1, 2)
    taken = time.process_time() - start
    printed = capsys.readouterr()
    assert printed.out == ""
    check(line, printed.err, things)
    assert taken < 1
    assert list(tmp_path.iterdir()) == []  # nothing half-made


def test_there_are_eighty() -> None:
    assert len(LINES) >= 80


WITHOUT_TORCH = """
import json, sys, time
start = time.process_time()
from hf_evcap.cli.main import main
counted = []
for words in json.loads(sys.argv[1]):
    counted.append([main(words), [name for name in ("torch", "datasets", "faiss") if name in sys.modules]])
print(json.dumps({"seconds": time.process_time() - start, "lines": counted}))
"""


def test_no_wrong_line_imports_torch(things: dict[str, str], tmp_path: Path) -> None:
    """All of them in one new process, and one by one in the time of a start of Python."""
    lines = [words_of(line, things) for line in LINES]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(lines)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=True, timeout=120,
    )  # fmt: skip
    found = json.loads(done.stdout)
    heavy = {line: imported for line, (_, imported) in zip(LINES, found["lines"], strict=True) if imported}
    assert heavy == {}
    assert len(done.stderr.splitlines()) == len(lines)


@pytest.mark.parametrize(
    "line",
    [
        "caption nothere.jpg",
        "caption {photo} --memory nosuch",
        "train --dataset {empty} --output x --num_train_epochs -1",
        "push memory {tiny} me/kitchen",
        "caption {photo} --model no-body/no-thing",
    ],
)
def test_a_wrong_line_takes_less_than_a_second(line: str, things: dict[str, str], tmp_path: Path) -> None:
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "hf_evcap.cli.main", *words_of(line, things)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=60,
    )  # fmt: skip
    after = os.times()
    assert done.returncode in (1, 2) and done.stdout == ""
    check(line, done.stderr, things)
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1


def test_cuda_on_a_machine_without(
    things: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told from the installed PyTorch's build where it is for CPUs, else from what it finds."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert main(["caption", PHOTO, "--device", "cuda"]) in (1, 2)
    error = capsys.readouterr().err
    assert "'cuda'" in error and "cpu" in error and len(error.splitlines()) == 1
    monkeypatch.setattr("hf_evcap.cli.options._built_for_gpus", lambda: True)
    for device in ("cuda", "cuda:3", "mps", "3"):
        assert main(["caption", PHOTO, "--device", device]) == 1
        error = capsys.readouterr().err
        assert repr(device) in error and "Give cpu" in error and len(error.splitlines()) == 1


def damaged_model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "processor_config.json", "generation_config.json"):
        if (Path(TINY) / name).is_file():
            (folder / name).write_bytes((Path(TINY) / name).read_bytes())
    (folder / "model.safetensors").write_bytes(b"these are no weights")
    return folder


def test_damaged_files_are_named(things: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pth").write_text("no checkpoint")
    model = damaged_model(tmp_path / "damaged")
    for words, parts in (
        (["convert", "evcap", str(tmp_path / "bad.pth"), "--output", str(tmp_path / "a")], ["bad.pth", "PyTorch"]),
        (["convert", "memory", str(tmp_path / "bad.pth"), "--output", str(tmp_path / "b")], ["bad.pth"]),
        (["caption", PHOTO, "--model", str(model)], ["safetensors", str(model)]),
        (["merge", str(model), "--output", str(tmp_path / "c")], ["safetensors", str(model)]),
    ):
        assert main(words) == 1
        printed = capsys.readouterr()
        error = printed.err.splitlines()[-1]
        assert all(part in error for part in parts), error
        assert len(printed.err.splitlines()) == 1 and "Traceback" not in printed.err
    assert not any((tmp_path / name).exists() for name in "abc")


def test_debug_shows_where(things: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (["--debug", "memory", "info", "nosuch"], ["memory", "info", "nosuch", "--debug"]):
        with pytest.raises(FileNotFoundError, match="nosuch"):
            main(words)
    monkeypatch.setenv("HF_EVCAP_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError, match="nosuch"):
        main(["memory", "info", "nosuch"])


def test_any_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    nested = (
        "Could not load model x with any of the following classes: (A,). See the original errors:\n\nwhile loading "
        "with A, an error is thrown:\nTraceback (most recent call last):\n  File x\nValueError: The keys do not fit.\n"
    )
    for error, said in (
        (AttributeError("'NoneType' has no x"), "AttributeError: 'NoneType' has no x (--debug shows all)"),
        (AssertionError(), "AssertionError without a message (--debug shows all)"),
        (KeyError("There is no layer 'a'."), "There is no layer 'a'."),
        (ValueError(nested), "The keys do not fit. (--debug shows all)"),
        (OSError("first\n\nsecond"), "first (--debug shows all)"),
        (FileNotFoundError(2, "No such file", "a.json"), "there is no file or folder 'a.json'"),
        (RuntimeError("a\x1b[31mred"), "a\\u001b[31mred"),
        (ValueError("x " * 2000), "... (--debug shows all)"),
    ):

        def fail(argv: list[str], error: Exception = error) -> int:
            raise error

        monkeypatch.setattr("hf_evcap.cli.environment.main", fail)
        assert main(["env"]) == 1
        printed = capsys.readouterr().err
        assert printed.startswith("hf-evcap env: ") and printed.rstrip("\n").endswith(said)
        assert len(printed.splitlines()) == 1 and len(printed) < 1000
