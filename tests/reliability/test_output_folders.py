"""Every verb that writes a folder keeps what lies there, unless --overwrite; a killed build goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import PHOTOS, REFERENCE

from hf_evcap import CaptionDatastore, VisualNameMemory
from hf_evcap.cli.main import main
from hf_evcap.output_folders import OutputExistsError, check_output


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny_dir: Path) -> Path:
    """What the verbs read: photos in folders, captions, a memory, a datastore, a released SmallCap."""
    folder = tmp_path_factory.mktemp("given")
    for name in ("cat", "coffee"):
        (folder / "photos" / name).mkdir(parents=True)
        shutil.copy(PHOTOS / f"{name}.jpg", folder / "photos" / name)
    rows = [
        {"image": f"photos/{name}/{name}.jpg", "image_id": name, "captions": [f"A {name}."]}
        for name in ("cat", "coffee")
    ]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny_dir / "memory", folder / "memory")
    memory = VisualNameMemory.from_pretrained(folder / "memory")
    CaptionDatastore.from_rows(["a cat", "a dog"], memory.keys[:2]).save_pretrained(folder / "datastore")
    (folder / "predictions.json").write_text(
        json.dumps([{"image_id": row["image_id"], "caption": "a"} for row in rows])
    )
    return folder


def commands(given: Path, model: Path, out: Path) -> dict[str, list[str]]:
    """A command of every verb that writes a folder."""
    data = ["--dataset", str(given / "captions.jsonl"), "--model", str(model)]
    smallcap = REFERENCE.parent / "smallcap_reference"
    memory, datastore = str(given / "memory"), str(given / "datastore")
    name, photo, to = VisualNameMemory.from_pretrained(memory).names[0], str(PHOTOS / "cat.jpg"), ["--out", str(out)]
    return {
        "memory build": ["memory", "build", str(given / "photos"), "--model", str(model), "--out", str(out)],
        "datastore build": ["datastore", "build", str(given / "captions.jsonl"), "--model", str(model), *to,
                            "--max-tokens", "0"],
        "convert memory": ["convert", "memory", str(REFERENCE / "ext_memory.pkl"), "--out", str(out)],
        "convert smallcap": ["convert", "smallcap", str(smallcap), "--out", str(out)],
        "cache-features": ["cache-features", *data, "--output", str(out)],
        "evaluate": ["evaluate", *data, "--output", str(out), "--report-photos", "0", "--no-memory-effect"],
        "evaluate --predictions": ["evaluate", "--dataset", str(given / "captions.jsonl"), "--output", str(out),
                                   "--predictions", str(given / "predictions.json"), "--report-photos", "0"],
        "train": ["train", *data, "--output_dir", str(out), "--max_steps", "1", "--report_to", "none",
                  "--save_strategy", "no", "--leave_one_out", "false", "--disable_tqdm", "true"],
        "merge": ["merge", str(model), "--out", str(out)],
        "memory remove": ["memory", "remove", memory, name, *to],
        "memory rename": ["memory", "rename", memory, f"{name}=x", *to],
        "memory merge": ["memory", "merge", memory, memory, "--out", str(out)],
        "memory subset": ["memory", "subset", memory, "--match", ".", "--out", str(out)],
        "memory convert": ["memory", "convert", memory, "--dtype", "float16", "--out", str(out)],
        "memory calibrate": ["memory", "calibrate", memory, "--off", "--out", str(out)],
        "memory add": ["memory", "add", memory, "cat", photo, "--model", str(model), *to],
        "memory pull": ["memory", "pull", memory, "--out", str(out)],
        "datastore remove": ["datastore", "remove", datastore, "a cat", "--out", str(out)],
        "datastore merge": ["datastore", "merge", datastore, datastore, "--out", str(out)],
        "datastore subset": ["datastore", "subset", datastore, "a cat", "--out", str(out)],
        "datastore convert": ["datastore", "convert", datastore, "--dtype", "float16", "--out", str(out)],
        "datastore pull": ["datastore", "pull", datastore, "--out", str(out)],
    }  # fmt: skip


VERBS = (
    "memory build", "datastore build", "convert memory", "convert smallcap", "cache-features", "evaluate",
    "evaluate --predictions", "train", "merge", "memory remove", "memory rename", "memory merge", "memory subset",
    "memory convert", "memory calibrate", "memory add", "memory pull", "datastore remove", "datastore merge",
    "datastore subset", "datastore convert", "datastore pull",
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_that_holds_something_is_kept(
    verb: str, given: Path, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody's notes, a repository, a model, a memory, a file; an empty folder and a new one are taken."""
    for number, hold in enumerate(("notes.txt", ".git/config", "config.json", "memory")):
        out = tmp_path / str(number)
        if hold == "memory":
            shutil.copytree(given / "memory", out)
        else:
            (out / hold).parent.mkdir(parents=True)
            (out / hold).write_text("mine")
        before = contents(out)
        assert main(commands(given, tiny_dir, out)[verb]) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert contents(out) == before
    (tmp_path / "file").write_text("mine")
    assert main(commands(given, tiny_dir, tmp_path / "file")[verb]) == 2
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        assert main(commands(given, tiny_dir, tmp_path / name)[verb]) == 0
        assert contents(tmp_path / name)
    capsys.readouterr()
    assert main([*commands(given, tiny_dir, tmp_path / "0")[verb], "--overwrite"]) == 0
    assert (tmp_path / "0" / "notes.txt").read_text() == "mine"  # what is not replaced stays
    assert set(contents(tmp_path / "new")) <= set(contents(tmp_path / "0"))
    again = main(commands(given, tiny_dir, tmp_path / "new")[verb])
    if verb not in ("cache-features", "evaluate"):  # these find their own work, and leave it
        assert again == 1


def test_a_memory_of_150_rows_is_not_replaced_by_one(given: Path, tiny_dir: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    memory = VisualNameMemory.from_pretrained(given / "memory")
    big = VisualNameMemory.from_rows([f"name {row}" for row in range(150)], memory.keys[[0] * 150])
    big.save_pretrained(out)
    (given / "photos" / "bad").mkdir(exist_ok=True)
    (given / "photos" / "bad" / "x.jpg").write_text("no photo")
    words = [*commands(given, tiny_dir, out)["memory build"], "--on-error", "skip"]
    assert main(words) == 1
    assert "holds a memory or datastore of 150 rows already" in capsys.readouterr().err
    assert VisualNameMemory.from_pretrained(out).fingerprint == big.fingerprint
    assert not (tmp_path / "out.building").exists()
    assert main([*words, "--overwrite"]) == 0
    assert len(VisualNameMemory.from_pretrained(out)) == 2
    shutil.rmtree(given / "photos" / "bad")


def test_editing_in_place_needs_no_flag(given: Path, tmp_path: Path) -> None:
    shutil.copytree(given / "datastore", tmp_path / "store")
    (tmp_path / "link").symlink_to("store")
    assert main(["datastore", "remove", str(tmp_path / "store"), "a cat"]) == 0
    assert (
        main(["datastore", "convert", str(tmp_path / "store"), "--dtype", "float16", "--out", str(tmp_path / "store")])
        == 0
    )
    assert CaptionDatastore.from_pretrained(tmp_path / "store").captions == ["a dog"]


def test_somebody_elses_folder_beside_a_build_is_kept(
    given: Path, tiny_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    """`OUT.building` is where an unfinished build is kept; a folder of that name may be the user's."""
    mine = tmp_path / "out.building"
    mine.mkdir()
    (mine / "plans.txt").write_text("of a house")
    for verb in ("memory build", "cache-features"):
        words = commands(given, tiny_dir, tmp_path / "out")[verb]
        for more in ([], ["--restart"], ["--overwrite"]):
            assert main([*words, *more]) == 1
            assert "plans.txt" in capsys.readouterr().err
            assert (mine / "plans.txt").read_text() == "of a house"


def test_overwriting_a_cache_keeps_what_others_put_there(given: Path, tiny_dir: Path, tmp_path: Path) -> None:
    words = commands(given, tiny_dir, tmp_path / "out")["cache-features"]
    assert main(words) == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "out" / "more").mkdir()
    assert main([*words, "--dtype", "float32"]) == 1
    for flag in ("--overwrite", "--restart"):
        assert main([*words, "--dtype", "float32", flag]) == 0
        assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and (tmp_path / "out" / "more").is_dir()
        import datasets

        assert len(datasets.load_from_disk(str(tmp_path / "out"))) == 2
    assert not (tmp_path / "out.building").exists()


def test_training_anew_deletes_the_checkpoints_of_before(given: Path, tiny_dir: Path, tmp_path: Path) -> None:
    """A later `--resume_from_checkpoint true` would go on with the longer run of before."""
    words = commands(given, tiny_dir, tmp_path / "out")["train"]
    words[words.index("--save_strategy") + 1] = "steps"
    assert main([*words, "--save_steps", "1", "--max_steps", "3"]) == 0
    (tmp_path / "out" / "checkpoint-notes").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main([*words, "--save_steps", "1"]) == 1
    assert main([*words, "--save_steps", "1", "--overwrite", "true"]) == 0
    left = sorted(path.name for path in (tmp_path / "out").glob("checkpoint-*"))
    assert left == ["checkpoint-1", "checkpoint-notes"] and (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_what_check_output_says(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    check_output(tmp_path)
    (tmp_path / ".DS_Store").write_text("")
    check_output(tmp_path)
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("")
    with pytest.raises(OutputExistsError, match=r"holds 0\.txt, 1\.txt, 2\.txt and 2 more already"):
        check_output(tmp_path)
    check_output(tmp_path, own=["*.txt"])
    check_output(tmp_path, overwrite=True)
    with pytest.raises(NotADirectoryError):
        check_output(tmp_path / "0.txt", overwrite=True)
    for name, what in (("memory_config.json", "a memory or datastore"), ("config.json", "a model")):
        (tmp_path / name).write_text("[")
        with pytest.raises(FileExistsError, match=what):
            check_output(tmp_path)


# Killed at every call to the file system

INJECT = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from hf_evcap.cli.main import main
import hf_evcap.memory_building, hf_evcap.store_building, hf_evcap.modeling_evcap, hf_evcap.processing_evcap
import transformers.models.auto.modeling_auto

target, kind, root, words = int(sys.argv[1]), sys.argv[2], os.path.realpath(sys.argv[3]), sys.argv[4:]
CALLS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
         "os.listdir", "os.scandir", "shutil.rmtree", "shutil.move", "tempfile.mkdtemp", "tempfile.mkstemp")
seen = 0
armed = True

def hook(event, arguments):
    global seen, armed
    if not armed or event not in CALLS:
        return
    path = arguments[0] if arguments else ""
    if not isinstance(path, (str, bytes)) or root not in os.path.abspath(os.fsdecode(path)):
        return
    seen += 1
    if seen == target:
        armed = False
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt

sys.addaudithook(hook)
code = main(words)
print("calls", seen)
sys.exit(code)
"""


def injected(at: int, kind: str, root: Path, words: list[str]) -> tuple[int, str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INJECT, str(at), kind, str(root), *words],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def count_calls(root: Path, words: list[str]) -> int:
    code, output = injected(-1, "kill", root, words)
    assert code == 0, output[-2000:]
    return int(output.rpartition("calls ")[2].split()[0])


def sampled(count: int, wanted: int) -> list[int]:
    """Calls spread over all of them, the last ones, where folders are exchanged, among them."""
    return sorted(
        {1 + round(place * (count - 1) / (wanted - 1)) for place in range(wanted)} | set(range(count - 3, count + 1))
    )


@pytest.mark.parametrize(("kind", "before"), [("kill", "nothing"), ("interrupt", "a memory with notes")])
def test_a_build_killed_anywhere_leaves_old_or_new_and_goes_on(
    kind: str, before: str, given: Path, tiny_dir: Path, tmp_path: Path
) -> None:
    """SIGKILL and Ctrl-C at calls to the file system all over a build; HF_EVCAP_EVERY_CALL=1 tries every one."""
    root = tmp_path / "work"
    out = root / "out"

    def start() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        if before != "nothing":
            shutil.copytree(given / "memory", out)
            (out / "notes.txt").write_text("mine")

    words = [*commands(given, tiny_dir, out)["memory build"], "--shard-size", "1", "--batch-size", "1"]
    words += ["--overwrite"] if before != "nothing" else []
    start()
    count = count_calls(root, words)
    new = VisualNameMemory.from_pretrained(out).fingerprint
    old = VisualNameMemory.from_pretrained(given / "memory").fingerprint
    assert count > 20
    every = range(1, count + 1) if os.environ.get("HF_EVCAP_EVERY_CALL") else sampled(count, 4)
    for at in every:
        start()
        code, output = injected(at, kind, root, words)
        assert code in ((-signal.SIGKILL,) if kind == "kill" else (130, 0)), (at, code, output[-2000:])
        if before != "nothing":
            assert VisualNameMemory.from_pretrained(out).fingerprint in (old, new), at
            assert (out / "notes.txt").read_text() == "mine", at
        elif (out / "memory_config.json").exists():
            assert VisualNameMemory.from_pretrained(out).fingerprint == new, at
        finished = not (root / "out.building" / "plan.json").exists() and (out / "memory_config.json").exists()
        again = main(words)  # the same command
        assert again == 0 or finished, at
        assert VisualNameMemory.from_pretrained(out).fingerprint == new
        if before != "nothing":
            assert (out / "notes.txt").read_text() == "mine"
