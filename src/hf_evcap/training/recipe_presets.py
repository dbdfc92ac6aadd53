"""Recipes that come with the package: options of `hf-evcap train` under a name."""

from __future__ import annotations

import importlib.resources
from typing import Any

import yaml


# Trained in stages of their own, not by `hf-evcap train`: what comes out, and the command.
STAGED = {
    "evcap-tiny": ("the embedded default", "scripts/train_tiny.py --data DATA --work WORK --output MODEL"),
    "smallcap-tiny": (
        "a small SmallCap, with retrieval and without",
        "scripts/train_smallcap_tiny.py --data DATA --work WORK --output MODEL",
    ),
}


def list_recipes() -> dict[str, str]:
    """Names of the recipes with a line on each; for one that trains in stages, the command that runs it."""
    folder = importlib.resources.files("hf_evcap.training") / "recipes"
    staged = {
        name: f"{what}, from data to model in stages; run: {command}" for name, (what, command) in STAGED.items()
    }
    recipes = {}
    for file in folder.iterdir():
        if file.name.endswith(".yaml"):
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
            if "description" in content:
                recipes[file.name.removesuffix(".yaml")] = content["description"]
    return dict(sorted({**recipes, **staged}.items()))


def load_recipe(name: str) -> dict[str, Any]:
    """
    Options of a recipe.

    Args:
        name (`str`): One of [`list_recipes`] that does not train in stages.
    """
    if name in STAGED:
        raise ValueError(f"The recipe {name} trains in stages, with a script of its own: {STAGED[name][1]}")
    recipes = list_recipes()
    if name not in recipes:
        raise ValueError(f"There is no recipe {name!r}; the recipes are {', '.join(recipes)}.")
    file = importlib.resources.files("hf_evcap.training") / "recipes" / f"{name}.yaml"
    options = yaml.safe_load(file.read_text(encoding="utf-8"))
    del options["description"]
    return options
