"""The command line, as a user types it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

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
