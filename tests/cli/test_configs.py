"""`hf-evcap configs`: what comes with the package can be listed, found, copied and used by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import hf_evcap
from hf_evcap.cli.main import main
from hf_evcap.hub.ready_configs import configs_folder, find_config, list_configs


def test_every_folder_of_hub_configs_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    folder = configs_folder()
    models = {path.parent.name for path in folder.glob("*/config.json")}
    recipes = {path.parent.relative_to(folder).as_posix() for path in folder.glob("*/*/recipe.yaml")}
    assert {"evcap-vicuna-13b", "smallcap-7m"} <= models and "memories/lvis" in recipes
    assert models | recipes | {"space", "accelerate/fsdp"} <= set(list_configs())
    assert main(["configs"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in [*list_configs(), "evcap-paper"])


def test_a_name_is_found_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "evcap-vicuna-13b"]) == 0
    assert (Path(capsys.readouterr().out.strip()) / "config.json").is_file()
    assert main(["configs", "accelerate/fsdp", "--output", str(tmp_path / "mine.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["distributed_type"] == "FSDP"
    assert main(["configs", "memories/template", "--output", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / "recipe.yaml").is_file()
    assert main(["configs", "memories/template", "--output", str(tmp_path / "mine")]) == 1
    assert "is there already" in capsys.readouterr().err


def test_unknown_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "evcap-vicuna-99b"]) == 1
    assert "hf-evcap configs" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="evcap-vicuna-13b"):
        find_config("evcap-vicuna-99b")
    assert find_config(tmp_path) == str(tmp_path)
    assert find_config("org/name") == "org/name"


def test_names_stand_for_paths_in_other_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "model", "evcap-vicuna-13b", "alice/evcap", "--dry-run"]) == 0
    assert "config.json" in capsys.readouterr().out
    build = ["memory", "build", "memories/lvis", "--model", hf_evcap.default_model()]
    assert main([*build, "--out", str(tmp_path / "memory")]) == 1
    assert "lvis_v1_train.json" in capsys.readouterr().err  # the recipe was read; its data is not here
