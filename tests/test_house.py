"""The house: no two modules import each other, files are read in one sitting, inference is flat, rooms have doors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_evcap
from hf_evcap import modeling_retrieval, weight_fingerprint
from hf_evcap.training import caption_trainer, feature_cache
from hf_evcap.training.fine_tuning import caption_trainer as fine_tuning_trainer


PACKAGE = Path(hf_evcap.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 500
LONGER = {"modeling_evcap.py", "modeling_smallcap.py"}  # a model is read in one file, as in transformers


def module_name(file: Path) -> str:
    """Args: file (`Path`): Of the package. Returns its name below the package; `""` is the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in FILES}


def imported(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports of a module, those in functions too, but for what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (found for other in node.orelse for found in imported(other))
        else:
            yield from imported(node)


def imports_of(name: str, source: str, is_package: bool) -> set[str]:
    """Modules of the package that a module's source imports; a package counts where something of its own is meant."""
    found = set()
    here = name.split(".") if name else []
    for node in imported(ast.parse(source)):
        if isinstance(node, ast.Import):
            wanted = [(alias.name.split("."), []) for alias in node.names]
        elif node.level:
            above = here if is_package else here[:-1]
            base = above[: len(above) - node.level + 1]
            wanted = [(["hf_evcap", *base, *(node.module or "").split(".")], [alias.name for alias in node.names])]
        else:
            wanted = [(node.module.split("."), [alias.name for alias in node.names])]
        for path, names in wanted:
            if path[0] != "hf_evcap":
                continue
            module = ".".join(part for part in path[1:] if part)
            for target in [f"{module}.{one}".strip(".") for one in names] or [module]:
                found.add(target if target in MODULES else module)
    packages = {module.rpartition(".")[0] for module in found if "." in module}  # are loaded before their modules
    own = {name.rpartition(".")[0], name if is_package else ""}
    return {target for target in (found | packages) - own if target in MODULES} - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, straight or through others (Tarjan's strong components)."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(name: str) -> None:
        numbers[name] = lowest[name] = len(numbers)
        stack.append(name)
        for target in graph.get(name, ()):
            if target not in numbers:
                visit(target)
            if target in stack:
                lowest[name] = min(lowest[name], lowest[target])
        if lowest[name] == numbers[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1 or name in graph.get(name, ()):
                groups.append(sorted(group))

    for name in graph:
        if name not in numbers:
            visit(name)
    return groups


GRAPH = {
    name: imports_of(name, file.read_text(encoding="utf-8"), file.name == "__init__.py")
    for name, file in MODULES.items()
}


def test_no_modules_import_each_other() -> None:
    assert GRAPH["retrieval_layers"] >= {"memory_choice", "memory_evcap", "retrieval_evcap"}
    assert "modeling_evcap" in GRAPH["registration"]  # imports in functions count
    assert circles(GRAPH) == []


@pytest.mark.parametrize(
    ("source", "is_package", "found"),
    [
        ("from .store_files import hash_rows", False, {"store_files"}),
        ("def read():\n    from .memory_choice import choose_memories", False, {"memory_choice"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .store_hub import HubStore", False, set()),
        ("from hf_evcap.hub.model_card import write_model_card", False, {"hub", "hub.model_card"}),
        ("from . import registration", True, {"registration"}),
        ("import hf_evcap.processes\nimport torch", False, {"processes"}),
    ],
)
def test_imports_that_count(source: str, is_package: bool, found: set[str]) -> None:
    assert imports_of("" if is_package else "memory_evcap", source, is_package) - {""} == found


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    assert circles(graph) == [["b", "c"]]


def test_files_are_read_in_one_sitting() -> None:
    lengths = {
        str(file.relative_to(PACKAGE)): len(file.read_text(encoding="utf-8").splitlines())
        for file in FILES
        if file.name not in LONGER
    }
    assert len(lengths) > 150
    assert {file: lines for file, lines in lengths.items() if lines > LONGEST} == {}


def test_inference_does_not_enter_rooms() -> None:
    """What a Hub repo carries are the flat modules; of the rooms, only cards are written, where hf_evcap is there."""
    rooms = {name for name in MODULES if "." in name or (PACKAGE / name).is_dir()}
    entered = {name: GRAPH[name] & rooms for name in MODULES if name and name not in rooms}
    assert {name: found for name, found in entered.items() if found} == {"model_publishing": {"hub", "hub.model_card"}}


def test_rooms_of_training_have_thin_doors() -> None:
    def guests(room: str) -> set[str]:
        """Modules from elsewhere that import one of a room's modules; its `__init__` is its door."""
        room = f"training.{room}"
        inside = {name for name in MODULES if name.startswith(f"{room}.")}
        return {name for name, targets in GRAPH.items() if targets & inside and name not in {room, *inside}}

    assert guests("from_scratch") == set()  # scripts/ come there
    assert guests("feature_cache") == set()
    assert {"cli.train", "training.caption_trainer"} <= guests("fine_tuning")
    assert not any(name.startswith("training.feature_cache") for name in guests("fine_tuning"))


def test_names_that_others_import_stay() -> None:
    assert caption_trainer.CaptionTrainer is fine_tuning_trainer.CaptionTrainer
    assert modeling_retrieval.hash_tensors is weight_fingerprint.hash_tensors
    assert issubclass(hf_evcap.EVCapForConditionalGeneration, modeling_retrieval.RetrievalPreTrainedModel)
    assert callable(feature_cache.cache_vision_features) and callable(feature_cache.build_feature_cache)
    assert feature_cache.VisionFeatureCache.__module__ == "hf_evcap.training.feature_cache.vision_cache"
