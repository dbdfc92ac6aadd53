"""What a tuned model's card takes over from the model that it was tuned from: licence, its text, and `base_model`."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers.utils import cached_file

import hf_evcap

from ..hub_upload import CARD_NAME
from .card_facts import RESULTS_NAME, CardFacts, StartedFrom, read_card_facts


_LICENSE_FILES = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)([-_.][^.]*)?(\.(md|txt|rst))?", re.IGNORECASE)
WHOLE_MODEL = "the whole model"


@dataclass
class Terms:
    """
    Terms of a model.

    Args:
        name (`str`): How a card calls the model.
        license, license_name, license_link, license_reason: As in [`CardFacts`].
        base_models (`list[str]`): What `base_model` of a model tuned from it says: its repo on the Hub, or, of a
            folder, those that it was tuned from itself.
        files (`dict[str, Path]`): Texts of its licence, which go with what is made of it.
    """

    name: str
    license: str | None
    license_name: str | None
    license_link: str | None
    license_reason: str
    base_models: list[str]
    files: dict[str, Path]


def read_terms(source: str | os.PathLike, revision: str | None = None) -> Terms | None:
    """
    Reads a model's terms from its `results.json` and card.

    Args:
        source (`str` or `os.PathLike`): Folder or repo id.
        revision (`str`, *optional*): Of the repo.

    Returns:
        [`Terms`] or `None`: `None` where it has neither file, or they cannot be reached.
    """
    results, card = (_file(source, name, revision) for name in (RESULTS_NAME, CARD_NAME))
    if results is None and card is None:
        return None
    local = os.path.isdir(source)
    data = ModelCard.load(card, ignore_metadata_errors=True).data if card is not None else None
    facts = read_card_facts(results) if results is not None else CardFacts(title="")
    if facts.license is None and data is not None:  # a person may have stated it in the card alone
        stated: dict[str, Any] = {
            name: getattr(data, name, None) for name in ("license", "license_name", "license_link")
        }
        facts = replace(facts, **stated)
    base_models = [] if local else [str(source)]
    if local:
        of_card = getattr(data, "base_model", None) or []
        base_models = [one.repo_id for one in facts.started_from if one.repo_id]
        base_models += [of_card] if isinstance(of_card, str) else of_card
    embedded = local and os.path.samefile(source, hf_evcap.default_model())
    return Terms(
        name=f"{facts.title}, which comes inside of hf_evcap" if embedded else _shown(source),
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        license_reason=facts.license_reason,
        base_models=list(dict.fromkeys(base_models)),
        files=_license_files(source, facts.license_link, revision),
    )


def inherit_terms(
    facts: CardFacts, folder: Path, source: str | os.PathLike, revision: str | None = None, repo_id: str | None = None
) -> CardFacts:
    """
    Adds to what is known of a tuned model what it takes over: its licence, unless one is stated, and which model it
    was tuned from. Texts of the licence are copied beside it, unless it has some of the same name.

    Args:
        facts ([`CardFacts`]): Of the tuned model.
        folder (`Path`): Of the tuned model.
        source (`str` or `os.PathLike`): Folder or repo id of the model that it was tuned from.
        revision (`str`, *optional*): Of that repo.
        repo_id (`str`, *optional*): Where the tuned model will be published; no model is its own base.
    """
    terms = read_terms(source, revision)
    if terms is None:
        return facts
    shown_license = terms.license_name or terms.license
    names = [one for one in terms.base_models if one != repo_id]
    started = [StartedFrom(WHOLE_MODEL, terms.name, license=shown_license, repo_id=names[0] if names else None)]
    started += [StartedFrom(WHOLE_MODEL, one, repo_id=one) for one in names[1:]]
    if terms.base_models == [repo_id]:  # brought up to date, not tuned from another
        started = []
    facts = replace(facts, started_from=[*started, *facts.started_from])
    if facts.license is not None or terms.license is None:
        return facts
    for name, path in terms.files.items():
        if not (folder / name).exists():
            shutil.copyfile(path, folder / name)
    link = terms.license_link or next(iter(terms.files), None)
    if link is not None and "://" not in link and not (folder / link).exists():
        link = None if os.path.isdir(source) else f"https://huggingface.co/{source}/blob/main/{link}"
    reason = f"It was tuned from {terms.name}. {terms.license_reason}".strip()
    return replace(
        facts, license=terms.license, license_name=terms.license_name, license_link=link, license_reason=reason
    )


def _shown(source: str | os.PathLike) -> str:
    return Path(source).resolve().name if os.path.isdir(source) else str(source)


def _file(source: str | os.PathLike, name: str, revision: str | None) -> Path | None:
    """A file of a folder or of a repo of the Hub, or `None` where it is not to be had."""
    if os.path.isdir(source):
        path = Path(source) / name
        return path if path.is_file() else None
    if str(source).count("/") != 1:
        return None  # a folder that is gone
    found = cached_file(
        str(source),
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _license_files(source: str | os.PathLike, link: str | None, revision: str | None) -> dict[str, Path]:
    if os.path.isdir(source):
        files = (path for path in sorted(Path(source).iterdir()) if path.is_file())
        return {path.name: path for path in files if _LICENSE_FILES.fullmatch(path.name)}
    names = [link] if link and _LICENSE_FILES.fullmatch(link) else ["LICENSE", "LICENSE.md", "LICENSE.txt"]
    found = {name: _file(source, name, revision) for name in names}
    return {name: path for name, path in found.items() if path is not None}


__all__ = ["WHOLE_MODEL", "Terms", "inherit_terms", "read_terms"]
