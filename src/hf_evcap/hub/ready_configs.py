"""Configurations that come with the package: of models, memories, datastores, accelerate and a Space."""

from __future__ import annotations

import os
import re
from pathlib import Path


CARD_NAME = "README.md"
ACCELERATE = "accelerate"  # its files are configurations of their own; elsewhere a folder is one


def configs_folder() -> Path:
    """Folder of the configurations: the package's own, or the repository's beside a source checkout."""
    package = Path(__file__).parents[1]
    inside, beside = package / "hub_configs", package.parents[1] / "hub_configs"
    return inside if inside.is_dir() else beside


def list_configs() -> dict[str, str]:
    """Names of the configurations, such as `evcap-vicuna-13b` or `memories/lvis`, with a line on each."""
    folder = configs_folder()
    found = {}
    for card in folder.rglob(CARD_NAME):
        name = card.parent.relative_to(folder).as_posix()
        if name == ACCELERATE:
            files = sorted(card.parent.glob("*.yaml"))
            found.update({f"{name}/{file.stem}": "for `accelerate launch --config_file`" for file in files})
        elif card.parent.name != "template":
            found[name] = _title(card)
        else:
            found[name] = f"a start for {card.parents[1].name} of your own"
    return dict(sorted(found.items()))


def _title(card: Path) -> str:
    heading = re.search(r"^# (.+)$", card.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return heading[1] if heading else ""


def find_config(name: str | os.PathLike) -> str:
    """
    Path of a configuration by its name; anything that exists, and any Hub id, is given back as it is.

    Args:
        name (`str`): One of [`list_configs`], a path or a Hub id.

    Raises:
        FileNotFoundError: It is one word and no configuration has that name.
    """
    given = str(name)
    if os.path.exists(given):
        return given
    known = list_configs()
    if given in known:
        folder = configs_folder()
        return str(folder / f"{given}.yaml" if given.startswith(f"{ACCELERATE}/") else folder / given)
    if "/" in given or os.sep in given:
        return given
    raise FileNotFoundError(
        f"{given!r} is neither a folder nor a Hub repo id such as 'org/name', nor a configuration of the package "
        f"({', '.join(known)})."
    )


__all__ = ["configs_folder", "find_config", "list_configs"]
