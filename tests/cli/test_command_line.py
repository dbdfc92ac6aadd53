"""The command line, as a user types it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from transformers.utils import logging as transformers_logging

import hf_evcap
from hf_evcap import VisualNameMemory
from hf_evcap.cli.caption import find_photos
from hf_evcap.cli.main import VERBS, main


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"hf-evcap {verb}" in capsys.readouterr().out


def test_help_and_version_are_quick_and_load_no_torch() -> None:
    code = (
        "import sys; from hf_evcap.cli.main import main\n"
        "try: main(['caption', '--help'])\nexcept SystemExit: pass\n"
        "main(['--version']); assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(f"{hf_evcap.__version__}\n")
    assert time.perf_counter() - start < 5


def test_no_verb_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(verb in printed for verb in VERBS)


def test_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sing"]) == 2
    assert "caption" in capsys.readouterr().err


def test_caption_prints_the_caption_of_one_photo_alone(
    tiny_dir: Path, photo_paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", photo_paths[0], "--model", str(tiny_dir), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and photo_paths[0] not in lines[0]


def test_caption_json_names_and_errors(
    tiny_dir: Path, photo_paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(photo_paths[0]).read_bytes()[:900])
    photos = [photo_paths[0], str(broken), str(tmp_path / "missing.jpg"), photo_paths[1]]
    code = main(["caption", *photos, "--model", str(tiny_dir), "--json", "--batch-size", "3", "--num-beams", "2"])
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert code == 1
    assert [row["photo"] for row in rows] == photos
    assert [row["generated_text"] is None for row in rows] == [False, True, True, False]
    assert all(row["retrieved_names"] for row in (rows[0], rows[3]))
    assert "broken.jpg" in printed.err and "missing.jpg" in printed.err
    assert "Traceback" not in printed.err


def test_caption_with_another_memory(
    tiny_dir: Path, tiny_model, photo_paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = VisualNameMemory.from_rows(
        ["zebra"], tiny_model.memory.keys[:1], encoder_fingerprint=tiny_model.encoder_fingerprint
    )
    memory.save_pretrained(tmp_path / "zebras")
    arguments = ["caption", photo_paths[0], "--model", str(tiny_dir), "--memory", str(tmp_path / "zebras"), "--names"]
    assert main(arguments) == 0
    assert "names: zebra (" in capsys.readouterr().out


def test_find_photos_opens_folders_and_globs(photo_paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for number, path in enumerate(photo_paths):
        shutil.copy(path, tmp_path / ("more" if number % 2 else ".") / f"{number}.JPG")
    (tmp_path / "notes.txt").write_text("not a photo")
    assert len(find_photos([str(tmp_path)])) == len(photo_paths)
    assert find_photos([str(tmp_path / "*.JPG")]) == [str(tmp_path / "0.JPG"), str(tmp_path / "2.JPG")]
    assert find_photos(["https://example.org/a?b=*"]) == ["https://example.org/a?b=*"]
    with pytest.raises(FileNotFoundError, match="No photos"):
        find_photos([str(tmp_path / "*.bmp")])


def test_missing_model_is_one_line(photo_paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", photo_paths[0], "--model", str(tmp_path / "nothing")]) == 1
    error = capsys.readouterr().err
    assert "nothing" in error and "Traceback" not in error


def test_convert_then_caption(
    reference: SimpleNamespace, photo_paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(reference.config))
    options = ["--config", config, "--memory", reference.memory, "--llm-tokenizer", reference.llm_tokenizer]
    options += ["--name-tokenizer", reference.name_tokenizer, "--out", tmp_path / "model"]
    assert main(["convert", "evcap", str(reference.full), *map(str, options)]) == 0
    assert "0 missing" in capsys.readouterr().out
    assert main(["caption", photo_paths[0], "--model", str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["retrieved_names"]


def test_convert_refuses_trainable_only_checkpoints(
    reference: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "evcap", str(reference.trainable), "--out", str(tmp_path / "model")]) == 1
    assert "fusion_init" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_convert_memory(reference: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "memory", str(reference.memory), "--out", str(tmp_path / "memory")]) == 0
    assert "200 rows" in capsys.readouterr().out
    assert VisualNameMemory.from_pretrained(tmp_path / "memory").names == reference.expected["memory_names"]


def test_a_model_of_another_kind_is_no_captioner(
    photo_paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    other = SimpleNamespace(model=SimpleNamespace(), captions_photos=False)
    monkeypatch.setattr("transformers.pipeline", lambda *args, **kwargs: other)
    assert main(["caption", photo_paths[0], "--model", str(tmp_path)]) == 1
    assert f"{tmp_path} is no captioner of this package but a SimpleNamespace" in capsys.readouterr().err


UNWRITABLE = """
import sys
from hf_evcap.cli import environment, main
def say(argv):
    print("a caf\\u00e9 with \\U0001f40c, \\u732b, a lone \\udcff and \\x1b[31mred")
    raise ValueError("no such caf\\u00e9 \\udcff \\x1b[0m")
environment.main = say
sys.exit(main.main(["env"]))
"""


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {}],
)
def test_what_a_terminal_cannot_write_never_ends_a_run(environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", UNWRITABLE], capture_output=True, env={**os.environ, **environment})
    out, error = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    assert done.returncode == 1 and len(error.splitlines()) == 1
    assert "red" in out and "\\udcff" in out and "\\u001b[31m" in out and "\x1b" not in out + error
    assert ("caf\\xe9" in out) if environment else ("café" in out and "猫" in out)


def test_quiet_and_verbose(tiny_dir: Path, photo_paths: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """`-q` and `-v` stand anywhere on the line; results are the same, the libraries say less or more."""
    levels = []
    for words in (
        ["-q", "caption", photo_paths[0]],
        ["caption", photo_paths[0]],
        ["caption", photo_paths[0], "--verbose"],
    ):
        assert main([*words, "--model", str(tiny_dir), "--device", "cpu"]) == 0
        levels.append(logging.getLogger("transformers").level)
        said = capfd.readouterr()
        assert len(said.out.splitlines()) == 1
        if len(levels) < 3:
            assert said.err == ""
    assert levels == [logging.ERROR, logging.ERROR, logging.INFO]
    transformers_logging.set_verbosity_warning()
    transformers_logging.disable_progress_bar()
    datasets.logging.set_verbosity_warning()


def test_caption_with_several_memories_and_with_none(
    photo_paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = VisualNameMemory.from_pretrained(Path(hf_evcap.default_model()) / "memory")
    own.subset(["tabby"]).save_pretrained(tmp_path / "cats")
    own.subset(["wild cat", "Egyptian cat"]).save_pretrained(tmp_path / "more cats")
    words = ["caption", photo_paths[1], "--json", "--memory", str(tmp_path / "cats")]
    assert main([*words, "--memory", str(tmp_path / "more cats")]) == 0
    [row] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(one["name"], one["memory"]) for one in row["retrieved_names"]} >= {("tabby", "cats")}
    assert {one["memory"] for one in row["retrieved_names"]} == {"cats", "more-cats"}
    assert main(["caption", photo_paths[1], "--json", "--memory", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["retrieved_names"] == []
    assert main([*words, "--memory", "none"]) == 1
    assert "goes without others" in capsys.readouterr().err


def test_options_of_caption_from_a_file(
    photo_paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "caption.yaml"
    config.write_text("memory: none\nmax-new-tokens: 3\nnames: true\n")
    assert main(["caption", photo_paths[1], "--config", str(config)]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[1] == "  names: none"
    assert main(["caption", photo_paths[1], "--config", str(config), "--max_new_tokens", "12"]) == 0
    assert len(capsys.readouterr().out) > len("\n".join(first)) + 1


def test_memory_verbs_take_the_embedded_model(
    photo_paths: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As all others do: `build`, `add` and `search` without --model."""
    for name, path in (("cup", photo_paths[2]), ("raccoon", photo_paths[3])):
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(path, tmp_path / "photos" / name)
    memory = str(tmp_path / "memory")
    assert main(["memory", "build", str(tmp_path / "photos"), "--output", memory]) == 0
    assert main(["memory", "add", memory, "tabby", photo_paths[1]]) == 0
    capsys.readouterr()
    assert main(["memory", "search", memory, "--photo", photo_paths[1], "-k", "1"]) == 0
    assert capsys.readouterr().out.split() == ["1.0000", "row", "2", "tabby"]
    assert main(["memory", "info", memory, "--plot", str(tmp_path / "plot.png")]) == 0
    printed = capsys.readouterr().out
    assert f"plot written to {tmp_path / 'plot.png'}" in printed and (tmp_path / "plot.png").is_file()
    assert "licenses               none" in printed and "None" not in printed


def test_info_of_rows_without_a_source(tiny_model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tiny_model.memory.keys[:2]
    VisualNameMemory.from_rows(["owl", "cat"], keys, source=["mine", None]).save_pretrained(tmp_path / "memory")
    assert main(["memory", "info", str(tmp_path / "memory")]) == 0
    printed = capsys.readouterr().out
    assert "sources                mine 1, unknown 1" in printed and "None" not in printed
