"""Cards of Hub repos: a block that is generated anew at every push, and around it whatever people write."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import yaml
from huggingface_hub import RepoCard
from huggingface_hub.repocard_data import CardData
from transformers.utils import logging

from .shown_text import shown


logger = logging.get_logger(__name__)

_BEGIN = "<!-- hf_evcap: generated from here; edits up to the end mark are lost at the next push."
_END = "<!-- hf_evcap: generated up to here; what stands outside of the marks is kept. -->"
_BLOCK = re.compile(re.escape(_BEGIN) + r"(?P<hashes>[^>]*)-->\n(?P<body>.*?)\n?" + re.escape(_END), re.DOTALL)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _read(content: str, where: str) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card."""
    try:
        card = RepoCard(content)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"The metadata of the card {where} cannot be read ({error}). Correct it first.") from error
    return card.data.to_dict(), card.text.strip("\r\n")


def _write(metadata: dict[str, Any], text: str) -> str:
    head = f"---\n{CardData(**metadata).to_yaml()}\n---\n" if metadata else ""
    return f"{head}{text.strip()}\n"


def table_cell(text: Any) -> str:
    """Text that cannot break out of a table's cell or of the generated block, and that links to nothing."""
    return " ".join(shown(text).replace("|", "\\|").replace("<", "&lt;").replace("](", "]\\(").split())


def make_card(metadata: dict[str, Any], body: str) -> str:
    """
    Puts a generated card between marks.

    Args:
        metadata (`dict`): What the Hub reads; entries that are `None` are left out.
        body (`str`): The text, Markdown.

    Returns:
        `str`: The card. The opening mark holds a short hash of each entry of the metadata, by which [`merge_cards`]
        tells entries that a person changed from those that are as they were generated.
    """
    metadata = {name: value for name, value in metadata.items() if value is not None}
    hashes = "".join(f" {name}={_hash(value)}" for name, value in metadata.items())
    return _write(metadata, f"{_BEGIN}{hashes} -->\n{body.strip()}\n{_END}")


def merge_cards(new: str, present: str | None) -> str:
    """
    Brings the card of a repo up to date without losing what people wrote.

    Text outside of the marks stays. An entry of the metadata is replaced if it is as it was generated last time, kept
    if a person changed or added it; lists such as tags are united.

    Args:
        new (`str`): The card to publish; one without marks is taken as generated throughout.
        present (`str`, *optional*): The card that the repo has.

    Raises:
        ValueError: A card's metadata is not valid YAML.
    """
    metadata, text = _read(new, "to publish")
    block = _BLOCK.search(text)
    if block is None:
        new = make_card(metadata, text)
        metadata, text = _read(new, "to publish")
        block = _BLOCK.search(text)
    if block is None or present is None:
        return new
    present_metadata, present_text = _read(present, "on the Hub")
    found = _BLOCK.search(present_text)
    hashes = dict(pair.split("=", 1) for pair in found["hashes"].split() if "=" in pair) if found else {}
    merged = dict(metadata)
    for name, value in present_metadata.items():
        if hashes.get(name) == _hash(value):  # generated; what is no longer generated goes
            continue
        if isinstance(value, list) and isinstance(metadata.get(name), list) and name != "model-index":
            merged[name] = metadata[name] + [entry for entry in value if entry not in metadata[name]]
        else:
            merged[name] = value
    own = text[: block.start()].strip(), text[block.end() :].strip()
    if found:
        before, after = present_text[: found.start()].strip(), present_text[found.end() :].strip()
    else:
        before, after = present_text.strip(), ""
    if any(own) and (before or after) and own != (before, after):
        logger.warning(
            "The repo's card has text outside of the generated block; that text is kept, yours is not used."
        )
    if not before and not after:
        before, after = own
    return _write(merged, "\n\n".join(part for part in (before, block[0], after) if part))


__all__ = ["make_card", "merge_cards", "table_cell"]
