"""Folders made ready for the Hub: those of hub_configs/, and what code a repo carries."""

from __future__ import annotations

import ast
import csv
import json
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoConfig

import hf_evcap
from hf_evcap import VisualNameMemory
from hf_evcap.cli import build_options, datastore_build, memory_build
from hf_evcap.cli.main import main
from hf_evcap.cli.verb_parser import VerbParser
from hf_evcap.datastore_building import open_captions
from hf_evcap.hub.ready_repo import prepare_repo


HUB_CONFIGS = Path(__file__).parents[2] / "hub_configs"
MODELS = sorted(path.parent.name for path in HUB_CONFIGS.glob("*/config.json"))
MEMORIES = sorted(path.parent.name for path in HUB_CONFIGS.glob("memories/*/README.md"))
DATASTORES = sorted(path.parent.name for path in HUB_CONFIGS.glob("datastores/*/README.md"))
# What a repo's code may import where it is trusted: the stack that the model needs anyway, and the standard library.
ALLOWED = {"datasets", "faiss", "huggingface_hub", "numpy", "PIL", "pyarrow", "safetensors", "tokenizers", "torch"}
ALLOWED |= {"transformers", "typing_extensions", "yaml"} | set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", MODELS)
def test_model_folders_are_pushed_as_they_are(name: str, tmp_path: Path) -> None:
    ready = prepare_repo("model", str(HUB_CONFIGS / name), tmp_path, f"alice/{name}")
    assert {path.name for path in (HUB_CONFIGS / name).iterdir()} <= set(ready.files)
    config = json.loads((tmp_path / "config.json").read_text())
    family, words = config["model_type"], {"evcap": "EVCap", "smallcap": "SmallCap"}[config["model_type"]]
    assert {f"modeling_{family}.py", f"processing_{family}.py", "pipeline_captioning.py"} <= set(ready.files)
    assert config["auto_map"]["AutoConfig"] == f"configuration_{family}.{words}Config"
    processor = json.loads((tmp_path / "processor_config.json").read_text())
    assert processor["auto_map"] == {"AutoProcessor": f"processing_{family}.{words}Processor"}
    assert AutoConfig.from_pretrained(tmp_path).to_dict().keys() >= {"text_config", "vision_config"}
    assert (tmp_path / "README.md").read_text() == (HUB_CONFIGS / name / "README.md").read_text()
    ModelCard((tmp_path / "README.md").read_text()).data.to_dict()


@pytest.mark.parametrize("name", MEMORIES)
def test_memory_folders_build_and_are_pushed_as_they_are(name: str, tmp_path: Path) -> None:
    folder = HUB_CONFIGS / "memories" / name
    assert DatasetCard.load(folder / "README.md").data.tags[0] == "evcap"
    ready = prepare_repo("memory", str(folder), tmp_path, f"alice/{name}")
    assert set(ready.files) == {path.name for path in folder.iterdir()} and ready.repo_type == "dataset"
    parser = VerbParser()
    build = memory_build.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["build", str(folder / "recipe.yaml"), "--model", "M", "--out", "O", "--seed", "5"])
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    followed = build_options.follow_recipe(arguments, build)
    assert {**recipe, "seed": 5} == {entry: getattr(followed, entry) for entry in recipe}
    tables = list(folder.glob("*.csv"))
    for table in tables:
        rows = list(csv.DictReader(table.open(encoding="utf-8")))
        wanted = {recipe["image_column"], recipe["name_column"], *recipe["columns"].split(",")}
        assert rows and wanted <= set(rows[0]) and None not in rows[0]


@pytest.mark.parametrize("name", DATASTORES)
def test_datastore_folders_build_and_are_pushed_as_they_are(name: str, tmp_path: Path) -> None:
    folder = HUB_CONFIGS / "datastores" / name
    assert DatasetCard.load(folder / "README.md").data.tags[1] == "caption-datastore"
    ready = prepare_repo("datastore", str(folder), tmp_path, f"alice/{name}")
    assert set(ready.files) == {path.name for path in folder.iterdir()} and ready.repo_type == "dataset"
    parser = VerbParser()
    build = datastore_build.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["build", str(folder / "recipe.yaml"), "--out", "O", "--max-tokens", "9"])
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    followed = build_options.follow_recipe(arguments, build)
    assert {**recipe, "max_tokens": 9} == {entry: getattr(followed, entry) for entry in {**recipe, "max_tokens": 9}}
    for captions in folder.glob("*.jsonl"):
        found = open_captions(captions)
        assert len(found) and all(found.image_ids)


def test_every_file_is_of_a_kind_that_is_loaded_here() -> None:
    known = {
        "README.md",
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "recipe.yaml",
        "objects.csv",
        "captions.jsonl",
    }
    elsewhere = ("accelerate", "space")  # these have tests of their own
    files = [path for path in HUB_CONFIGS.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = [path for path in files if path.relative_to(HUB_CONFIGS).parts[0] not in elsewhere]
    folders = {path.parent.relative_to(HUB_CONFIGS).as_posix() for path in files}
    assert {path.name for path in files} <= known
    stores = {f"memories/{name}" for name in MEMORIES} | {f"datastores/{name}" for name in DATASTORES}
    assert folders == {*MODELS, *stores}


def test_tiny_folder_is_that_of_the_embedded_default() -> None:
    shipped = AutoConfig.from_pretrained(HUB_CONFIGS / "evcap-tiny")
    default = Path(hf_evcap.default_model())
    if (default / "config.json").is_file():
        expected = AutoConfig.from_pretrained(default)
    else:  # not trained yet: the recipe says what it will be
        recipe = Path(hf_evcap.__file__).parent / "training" / "recipes" / "evcap-tiny.yaml"
        model = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]
        model["text_config"] = {**shipped.text_config.to_dict(), **model["text_config"]}
        expected = hf_evcap.EVCapConfig(**{**shipped.to_dict(), **model})
    ignored = {"_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "encoder_fingerprint"}
    ignored.add("transformers_version")

    def settings(config: object) -> dict:
        return {
            name: {key: part for key, part in value.items() if key not in ignored}
            if isinstance(value, dict)
            else value
            for name, value in config.to_dict().items()
            if name not in ignored
        }

    assert settings(shipped) == settings(expected)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("photos", "must be a mapping with `source`"),
        ("source: a.csv\nphoto_per_name: 3", r"unknown entries \['photo_per_name'\]"),
        ("source: a.csv\nseed: many", "`seed` in .* must be int; got 'many'"),
        ("source: a.csv\ndtype: int8", "`dtype` in .* must be one of"),
    ],
)
def test_mistakes_in_recipes_are_named(recipe: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    parser = VerbParser()
    build = memory_build.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["build", str(tmp_path / "recipe.yaml"), "--model", "M", "--out", "O"])
    with pytest.raises(ValueError, match=message):
        build_options.follow_recipe(arguments, build)


@pytest.mark.parametrize("family", ["evcap", "smallcap"])
def test_code_of_a_repo_imports_little_and_from_siblings_only(family: str, tiny_dir: Path, smallcap_dir: Path) -> None:
    folder = {"evcap": tiny_dir, "smallcap": smallcap_dir}[family]
    modules = {path.stem for path in folder.glob("*.py")}
    other = {"evcap": "smallcap", "smallcap": "evcap"}[family]
    assert f"modeling_{family}" in modules and f"modeling_{other}" not in modules
    for file in folder.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                roots = [name.name.split(".")[0] for name in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                roots = [node.module.split(".")[0]]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1 and node.module in modules, f"{file.name} imports {ast.unparse(node)}"
                continue
            else:
                continue
            assert id(node) in guarded or set(roots) <= ALLOWED, f"{file.name} imports {roots}"


def test_own_card_goes_in_front_of_the_generated_one(tiny_dir: Path, tmp_path: Path) -> None:
    card = HUB_CONFIGS / "memories" / "lvis" / "README.md"
    (tmp_path / "ready").mkdir()
    ready = prepare_repo("memory", str(tiny_dir / "memory"), tmp_path / "ready", "alice/lvis", card)
    written = DatasetCard((ready.folder / "README.md").read_text())
    assert written.data.pretty_name == "Visual names of LVIS" and written.data.configs
    assert written.text.strip().startswith("# Visual names of LVIS") and "## Coverage" in written.text
    assert "# Visual names of LVIS" not in (tiny_dir / "memory" / "README.md").read_text()  # the source is as it was
    assert len(VisualNameMemory.from_pretrained(ready.folder)) == 14


def test_damaged_memory_is_not_published(tiny_dir: Path, tmp_path: Path) -> None:
    VisualNameMemory.from_pretrained(tiny_dir / "memory").save_pretrained(tmp_path / "memory")
    manifest = tmp_path / "memory" / "memory_config.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "0'))
    (tmp_path / "ready").mkdir()
    with pytest.raises(ValueError, match="not those that memory_config.json was written for"):
        prepare_repo("memory", str(tmp_path / "memory"), tmp_path / "ready", "alice/x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model", "FOLDER", "alice/x"], "is no model: config.json is missing"),
        (["memory", "FOLDER", "alice/x"], "is no memory: memory_config.json is missing"),
        (["metric", "FOLDER", "alice/x"], "is no metric"),
        (["space", "FOLDER", "alice/x"], "has no README.md"),
        (["model", "FOLDER/none", "alice/x"], "neither a folder nor a Hub repo id"),
        (["model", "FOLDER", "alice/x", "--card", "none.md"], "there is no file 'none.md'"),
    ],
)
def test_what_cannot_be_pushed_says_why(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", *(word.replace("FOLDER", str(tmp_path)) for word in words), "--dry-run"]) in (1, 2)
    assert message in capsys.readouterr().err
