"""`hf-evcap memory`: every action end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_evcap import VisualNameMemory
from hf_evcap.cli import memory as memory_verb
from hf_evcap.cli.main import main


ACTIONS = sorted(
    action
    for group in memory_verb.make_parser()._subparsers._group_actions  # type: ignore[union-attr]
    for action in group.choices  # type: ignore[union-attr]
)


@pytest.fixture
def folder(tiny_model: Any, tmp_path: Path) -> Path:
    tiny_model.memory.save_pretrained(tmp_path / "memory")
    return tmp_path / "memory"


def run(*words: object) -> int:
    return main(["memory", *map(str, words)])


def load(folder: Path) -> VisualNameMemory:
    return VisualNameMemory.from_pretrained(folder)


def test_the_actions() -> None:
    assert ACTIONS == [
        "add", "build", "calibrate", "convert", "diff", "info", "merge", "pull", "push", "remove", "rename", "search",
        "subset", "verify",
    ]  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
def test_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(action, "--help")
    assert stop.value.code == 0
    assert f"hf-evcap memory {action}" in capsys.readouterr().out


def test_add_rename_remove(
    folder: Path, tiny_dir: Path, photo_paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = load(folder)
    assert run("add", folder, "axolotl", *photo_paths[:2], "--model", tiny_dir, "--set", "source=pond") == 0
    added = load(folder)
    assert added.names == [*before.names, "axolotl", "axolotl"]
    assert added.columns["source"].to_pylist()[-2:] == ["pond", "pond"]
    assert run("rename", folder, "axolotl=newt", "owl=barn owl") == 0
    assert set(load(folder).names) == {*before.names, "newt", "barn owl"} - {"owl"}
    assert run("remove", folder, "newt", "--out", folder.parent / "less") == 0
    assert len(load(folder.parent / "less")) == len(before)
    assert run("rename", folder.parent / "less", "barn owl=owl") == 0
    assert load(folder.parent / "less").fingerprint == before.fingerprint
    capsys.readouterr()
    assert run("remove", folder, "unicorn") == 1
    assert "The memory has no name 'unicorn'" in capsys.readouterr().err
    assert run("rename", folder, "owl") == 2
    assert "Expected LEFT=RIGHT, got 'owl'" in capsys.readouterr().err


def test_remove_by_source_kind_and_rows(
    folder: Path, tiny_dir: Path, photo_paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = load(folder)
    assert run("add", folder, "owl", *photo_paths[:2], "--model", tiny_dir, "--set", "source=mine") == 0
    rows = f"{len(shipped)}-{len(shipped) + 1}"
    assert f"added rows {rows}; `remove {folder} --rows {rows}` takes them back" in capsys.readouterr().out
    assert run("remove", folder, "owl", "--source", "mine", "--out", folder.parent / "less") == 0
    assert load(folder.parent / "less").fingerprint == shipped.fingerprint
    assert run("remove", folder, "--rows", rows) == 0
    assert load(folder).fingerprint == shipped.fingerprint
    assert run("remove", folder, "owl", "--kind", "object", "--rows", shipped.names.index("owl")) == 0
    assert len(load(folder)) == len(shipped) - 1
    capsys.readouterr()
    for words, message in (
        (["owl", "--source", "mars"], "no such row of 'owl'"),
        (["--rows", "9-"], "Expected row ids such as 3,8-10; got '9-'"),
        ([], "Say what to remove"),
    ):
        assert run("remove", folder, *words) in (1, 2)
        assert message in capsys.readouterr().err


def test_subset_merge_diff(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    birds, rest = folder.parent / "birds", folder.parent / "rest"
    assert run("subset", folder, "owl", "--match", "^wine", "--out", birds) == 0
    assert set(load(birds).names) == {"owl", "wine glass"}
    assert run("remove", folder, "owl", "wine glass", "--out", rest) == 0
    assert run("merge", rest, birds) == 0
    assert len(load(rest)) == len(load(folder))
    capsys.readouterr()
    assert run("diff", folder, rest) == 0
    assert capsys.readouterr().out == "0 rows added, 0 removed\n"
    run("rename", rest, "dog=hound")
    run("remove", rest, "ladder")
    capsys.readouterr()
    assert run("diff", folder, rest) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 rows added, 4 removed", "renamed  dog -> hound", "removed  ladder (2 rows)"
    ]  # fmt: skip
    assert run("diff", folder, rest, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["renamed"], found["removed"]) == ({"dog": "hound"}, {"ladder": 2, "dog": 2})
    assert run("subset", folder) == 1


def test_info_and_report(folder: Path, tiny_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", folder) == 0
    assert load(folder).fingerprint in capsys.readouterr().out
    memory = load(folder)
    memory.add(["Owls", "firehydrant"], np.random.default_rng(0).standard_normal((2, memory.dim)))
    memory.save_pretrained(folder)
    assert run("info", folder, "--json", "--report", "--plot", tmp_path / "report.png") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["names"]) == (16, 9)
    assert facts["report"]["near_duplicate_names"] == [["Owls", "owl"], ["fire_hydrant", "firehydrant"]]
    assert facts["report"]["rows_per_name"] == {"1": 2, "2": 7}
    assert Image.open(tmp_path / "report.png").size[0] > 1000
    photos = tmp_path / "probes"
    photos.mkdir()
    Image.new("RGB", (30, 30), (200, 30, 30)).save(photos / "red.png")
    assert run("info", folder, "--report", "--probe", photos, "--model", tiny_dir) == 0
    assert "names never retrieved by 1 probes" in capsys.readouterr().out


def test_search(folder: Path, tiny_dir: Path, photo_paths: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run("add", folder, "cat", photo_paths[1], "--model", tiny_dir)
    capsys.readouterr()
    assert run("search", folder, "--photo", photo_paths[1], "--model", tiny_dir, "-k", 3) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0] == "1.0000  row 14       cat"
    assert run("search", folder, "--name", "cat", "-k", 1) == 0
    assert capsys.readouterr().out == "1.0000  row 14       cat\n"
    assert run("search", folder) == 1
    assert "either --photo or --name" in capsys.readouterr().err


def test_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", folder) == 0
    other = load(folder)
    other.remove(["owl"]).add(["owl"] * 2, np.random.default_rng(0).standard_normal((2, other.dim)))
    other.save_pretrained(folder.parent / "other")
    (folder / "index.faiss").write_bytes((folder.parent / "other" / "index.faiss").read_bytes())
    manifest = json.loads((folder / "memory_config.json").read_text(encoding="utf-8"))
    (folder / "memory_config.json").write_text(json.dumps({**manifest, "names": 99}), encoding="utf-8")
    capsys.readouterr()
    assert run("verify", folder) == 1
    assert "The manifest says 99 names; the rows have 7." in capsys.readouterr().out
    (folder / "memory_config.json").write_text(json.dumps({**manifest, "sha256": "0"}), encoding="utf-8")
    assert run("verify", folder) == 1
    assert "are not those that memory_config.json was written for" in capsys.readouterr().out


def test_convert(folder: Path, reference: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "small"
    assert run("convert", folder, "--dtype", "float16", "--index", "HNSW8", "--out", out) == 0
    assert (load(out).dtype, load(out).index_factory) == ("float16", "HNSW8")
    assert run("convert", out, "--index", "auto") == 0
    assert load(out).index_factory == "Flat"
    assert run("convert", reference.memory, "--out", folder.parent / "reference") == 0
    assert load(folder.parent / "reference").names == reference.expected["memory_names"]
    assert run("convert", folder, "--index", "Nonsense") == 1
    assert "FAISS cannot make the index 'Nonsense'" in capsys.readouterr().err
    assert load(folder).index_factory == "Flat"


def test_calibrate(folder: Path, tiny_dir: Path, photo_paths: list[str], tmp_path: Path, capsys: Any) -> None:
    for name, path in (("known", photo_paths[0]), ("known", photo_paths[1]), ("unknown", photo_paths[2])):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.open(path).convert("RGB").save(tmp_path / name / Path(path).name)
    words = [
        "calibrate",
        folder,
        "--model",
        tiny_dir,
        "--known",
        tmp_path / "known",
        "--unknown",
        tmp_path / "unknown",
    ]
    assert run(*words) == 0
    threshold = load(folder).min_similarity
    assert threshold is not None and -1 < threshold < 1
    assert f"min_similarity {threshold:.4f}: 100.0% of 2 known photos kept" in capsys.readouterr().out
    assert run("calibrate", folder, "--off") == 0
    assert load(folder).min_similarity is None


def test_push_is_that_of_the_verb_push(folder: Path, capsys: Any) -> None:
    assert run("push", folder, "me/kitchen", "--private", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "memory_config.json" in printed and "the dataset repo me/kitchen" in printed


def test_pull(folder: Path) -> None:
    assert run("pull", folder, "--out", folder.parent / "pulled") == 0
    assert load(folder.parent / "pulled").fingerprint == load(folder).fingerprint
    assert run("pull", "nowhere", "--out", folder.parent / "x") == 1
