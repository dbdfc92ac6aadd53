"""Makes a folder into a repo that works by itself on the Hub: code, entries in its configs and card are added."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import RepoCard, snapshot_download
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.dynamic_module_utils import custom_object_save
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from ..datastore_smallcap import CaptionDatastore
from ..hub_card import merge_cards
from ..hub_upload import CARD_NAME, explained_hub_errors, files_of
from ..memory_evcap import MANIFEST_NAME, VisualNameMemory
from ..metrics import METRICS, metric_path
from ..model_publishing import WEIGHT_FILES
from ..model_repo import class_address, pipeline_entries
from ..whole_files import write_json
from .card_facts import RESULTS_NAME, read_card_facts
from .model_card import write_model_card
from .ready_configs import find_config
from .repo_files import SPACE_FILES, ChosenFiles, choose_files, link_files, model_files, store_files


STORES = {"memory": VisualNameMemory, "datastore": CaptionDatastore}
RECIPE_NAME = "recipe.yaml"  # of a store that is yet to be built
KINDS = ("model", *STORES, "metric", "space")


@dataclass
class ReadyRepo:
    """
    A folder to upload.

    Args:
        folder (`Path`): Its files; large ones are links to the source's.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        stale (`list[str]`): Patterns of files that the repo must not keep from an earlier upload.
        left_out (`dict[str, str]`): Files of the source that are not uploaded, and why.
        space_sdk (`str`, *optional*): What a new Space runs.
    """

    folder: Path
    repo_type: str
    stale: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    space_sdk: str | None = None

    @property
    def files(self) -> dict[str, int]:
        """`dict[str, int]`: Sizes in bytes by path in the repo."""
        return {name: path.stat().st_size for name, path in files_of(self.folder).items()}


def prepare_repo(
    kind: str,
    source: str,
    target: Path,
    repo_id: str,
    card: Path | None = None,
    frozen: str | None = None,
    include: Sequence[str] = (),
) -> ReadyRepo:
    """
    Makes a source ready for the Hub. Weights are neither read nor copied, unless `frozen` is given.

    Args:
        kind (`str`): `"model"`, `"memory"`, `"datastore"`, `"metric"` or `"space"`.
        source (`str`): A folder or a Hub id; for a metric also one of the package's names.
        target (`Path`): An empty folder for what is uploaded.
        repo_id (`str`): Where it will be published; it stands in the card.
        card (`Path`, *optional*): Text and metadata of a person, put around the generated card.
        frozen (`str`, *optional*): For a model `"reference"` or `"copy"`, as in its `save_pretrained`.
        include (`Sequence[str]`): Patterns of further files of the source; see [`choose_files`].

    Raises:
        FileNotFoundError: The source is not there, or lacks the file that makes it one of its kind.
        ValueError: The source is damaged, or its card lacks what the Hub needs; a file
            of the repo is a link that leaves the source.
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}; got {kind!r}.")
    if kind == "metric" and source in METRICS:
        source = metric_path(source)
    if card is not None and not card.is_file():
        raise FileNotFoundError(f"There is no card {card}.")
    if frozen is not None and kind != "model":
        raise ValueError(f"`frozen` is for models; {source} is to be a {kind}.")
    folder = _local_folder(source, {"model": "model", **dict.fromkeys(STORES, "dataset")}.get(kind, "space"))
    if kind == "metric" and not (folder / f"{folder.name}.py").is_file():
        raise FileNotFoundError(f"{folder} is no metric: {folder.name}.py is missing.")
    if kind == "model":
        ready = _prepare_model(folder, target, repo_id, frozen, include)
    elif kind in STORES:
        ready = _prepare_store(STORES[kind], folder, target, repo_id, include)
    elif kind == "metric":
        ready = _prepare_space(folder, target, include, own=[f"{folder.name}.py", "tests.py"])
    else:
        ready = _prepare_space(folder, target, include)
    if card is not None:
        written = target / CARD_NAME
        merged = merge_cards(written.read_text(encoding="utf-8"), card.read_text(encoding="utf-8"))
        written.unlink()  # it may be a link to the source's
        written.write_text(merged, encoding="utf-8")
    return ready


def _local_folder(source: str, repo_type: str) -> Path:
    source = find_config(source)
    if os.path.isdir(source):
        return Path(source)
    repo_id, _, revision = source.partition("@")
    if repo_id.count("/") != 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{source!r} is neither a folder nor a Hub repo id such as 'org/name'.")
    with explained_hub_errors(repo_id, repo_type, revision or None):
        return Path(snapshot_download(repo_id, repo_type=repo_type, revision=revision or None))


def _prepare_model(folder: Path, target: Path, repo_id: str, frozen: str | None, include: Sequence[str]) -> ReadyRepo:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model: config.json is missing.")
    config = AutoConfig.from_pretrained(folder)
    model_class = AutoModelForImageTextToText._model_mapping[type(config)]
    chosen = choose_model_files(folder, model_class, include)
    entries = json.loads(chosen.files["config.json"].read_text(encoding="utf-8"))
    processor_class = PROCESSOR_MAPPING[type(config)]
    pipeline_class = model_class.pipeline_class()
    for code in (type(config), model_class, processor_class, pipeline_class):
        custom_object_save(code, target)
    if frozen is not None:
        model_class.from_pretrained(folder, memory=False).save_pretrained(target, frozen=frozen)
        saved = json.loads((target / "config.json").read_text(encoding="utf-8"))
        entries["part_sources"] = saved["part_sources"]
    entries["auto_map"] = {code._auto_class: class_address(code) for code in (type(config), model_class)}
    entries["custom_pipelines"] = pipeline_entries(pipeline_class)
    write_json(target / "config.json", entries)
    if "processor_config.json" in chosen.files:
        entries = json.loads(chosen.files["processor_config.json"].read_text(encoding="utf-8"))
        entries["auto_map"] = {processor_class._auto_class: class_address(processor_class)}
        write_json(target / "processor_config.json", entries)
    card = chosen.files.get(CARD_NAME)
    if card is not None:
        (target / CARD_NAME).write_text(card.read_text(encoding="utf-8"), encoding="utf-8")
    link_files(chosen, target, [] if frozen is None else WEIGHT_FILES)
    if card is None or RESULTS_NAME in chosen.files:
        write_model_card(target, repo_id=repo_id)
    left_out = {name: reason for name, reason in chosen.left_out.items() if not (target / name).exists()}
    return ReadyRepo(target, "model", [*WEIGHT_FILES, f"{model_class.memory_folder}/*"], left_out)


def choose_model_files(folder: Path, model_class: Any, include: Sequence[str] = ()) -> ChosenFiles:
    """Files of a model's folder that go to the Hub; the contact sheet is one if the card shows it."""
    patterns = model_files(folder, model_class.tokenizer_folder, model_class.memory_folder)
    results = folder / RESULTS_NAME
    sheet = read_card_facts(results).contact_sheet if results.is_file() else None
    return choose_files(folder, [*patterns, sheet] if sheet else patterns, include)


def _prepare_store(store_class: Any, folder: Path, target: Path, repo_id: str, include: Sequence[str]) -> ReadyRepo:
    recipe = folder / RECIPE_NAME
    is_store = (folder / MANIFEST_NAME).is_file()
    if not is_store and not (recipe.is_file() and (folder / CARD_NAME).is_file()):
        raise FileNotFoundError(f"{folder} is no {store_class.store_word}: {MANIFEST_NAME} is missing.")
    patterns = store_files(folder) if is_store else (RECIPE_NAME, *_recipe_source(recipe))
    chosen = choose_files(folder, patterns, include)
    if is_store:
        store = store_class.from_pretrained(folder)  # checks it
        if isinstance(store, store_class):
            card = store.card(store.manifest(), repo_id)
            if CARD_NAME in chosen.files:
                card = merge_cards(card, chosen.files[CARD_NAME].read_text(encoding="utf-8"))
            (target / CARD_NAME).write_text(card, encoding="utf-8")
    link_files(chosen, target)
    return ReadyRepo(target, "dataset", ["data/*", "index.faiss"], chosen.left_out)


def _recipe_source(recipe: Path) -> list[str]:
    """The table that a recipe names, if it lies beside it."""
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    source = content.get("source") if isinstance(content, dict) else None
    return [source] if isinstance(source, str) and (recipe.parent / source).is_file() else []


def _prepare_space(folder: Path, target: Path, include: Sequence[str], own: Sequence[str] = ()) -> ReadyRepo:
    card = choose_files(folder, ()).files.get(CARD_NAME)
    if card is None:
        raise FileNotFoundError(f"{folder} has no {CARD_NAME}; a Space says there which `sdk` it runs.")
    facts = RepoCard(card.read_text(encoding="utf-8")).data.to_dict()
    if facts.get("sdk") is None:
        raise ValueError(f"The metadata of {card} has no `sdk`, such as gradio; a Space needs it.")
    chosen = choose_files(folder, [*SPACE_FILES, *own, str(facts.get("app_file", "app.py"))], include)
    link_files(chosen, target)
    return ReadyRepo(target, "space", left_out=chosen.left_out, space_sdk=facts["sdk"])


__all__ = ["KINDS", "ReadyRepo", "choose_model_files", "prepare_repo"]
