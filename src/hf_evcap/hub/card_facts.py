"""What people measured and know of a model, read from `results.json`: the part of its card that no file else tells."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


RESULTS_NAME = "results.json"
FORMAT_VERSION = 1


@dataclass
class StartedFrom:
    """Weights that training started from."""

    part: str
    what: str
    url: str | None = None
    license: str | None = None
    repo_id: str | None = None  # goes into the metadata as base_model


@dataclass
class Data:
    """A source of training data."""

    name: str
    use: str
    amount: str = ""
    license: str = ""
    id: str | None = None  # of a dataset on the Hub; goes into the metadata
    url: str | None = None


@dataclass
class Stage:
    """A stage of the training."""

    name: str
    steps: int | None = None
    minutes: float | None = None
    what: str = ""


@dataclass
class Training:
    """How the model was trained."""

    trained_parts: list[str] | None = None  # `None`: those of the paper
    command: str = ""
    recipe: str = ""
    seed: int | None = None
    hardware: str = ""
    hours: float | None = None
    stages: list[Stage] = field(default_factory=list)
    rerun: str = ""


@dataclass
class ResultRow:
    """Figures of one setting on one dataset, as they are to be printed."""

    dataset: str
    metrics: dict[str, float]
    setting: str = ""
    split: str | None = None
    photos: int | None = None
    dataset_id: str | None = None
    model_index: bool = False  # into the metadata that the Hub's leaderboards read


@dataclass
class ResultTable:
    """Rows of results that belong together."""

    title: str
    rows: list[ResultRow]
    note: str = ""


@dataclass
class Speed:
    """A measured time or size."""

    what: str
    value: str
    machine: str = ""


@dataclass
class Use:
    """A call and what it printed."""

    code: str
    output: Any
    photo: str | None = None


@dataclass
class Example:
    """A caption that the model wrote."""

    caption: str
    photo: str | None = None
    names: list[str] = field(default_factory=list)
    comment: str = ""


@dataclass
class CardFacts:
    """Everything in `results.json`. Strings are Markdown; sections without facts are left out of the card."""

    title: str
    license: str | None = None
    format_version: int = FORMAT_VERSION
    summary: str = ""
    language: list[str] = field(default_factory=list)
    license_name: str | None = None
    license_link: str | None = None
    license_reason: str = ""
    tags: list[str] = field(default_factory=list)
    started_from: list[StartedFrom] = field(default_factory=list)
    data: list[Data] = field(default_factory=list)
    training: Training | None = None
    tables: list[ResultTable] = field(default_factory=list)
    speed: list[Speed] = field(default_factory=list)
    use: Use | None = None
    contact_sheet: str | None = None
    examples: list[Example] = field(default_factory=list)
    failures: list[Example] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)


def read_card_facts(file: Path) -> CardFacts:
    """
    Reads `results.json`.

    Raises:
        ValueError: Not valid JSON, a key that is unknown or missing, a value of another type.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    facts = _read(CardFacts, value, file.name)
    if facts.format_version != FORMAT_VERSION:
        raise ValueError(f"{file} is of format {facts.format_version}; this hf_evcap reads {FORMAT_VERSION}.")
    return facts


def _read(kind: Any, value: Any, place: str) -> Any:
    """Checks a value of the JSON against a type and makes dataclasses of its objects."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(choice for choice in typing.get_args(kind) if choice is not type(None))
        return _read(kind, value, place)
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, value, place)
    if origin is list and isinstance(value, list):
        return [_read(typing.get_args(kind)[0], entry, f"{place}[{number}]") for number, entry in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: _read(typing.get_args(kind)[1], entry, f"{place}.{name}") for name, entry in value.items()}
    expected = origin or kind
    fits = isinstance(value, (int, float)) if expected is float else isinstance(value, expected)
    if not fits or (isinstance(value, bool) and expected is not bool):
        raise ValueError(f"{place} must be {getattr(expected, '__name__', expected)}; got {value!r}.")
    return value


def _read_object(kind: Any, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be an object; got {value!r}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ValueError(f"{place} has unknown keys {unknown}; it may have {sorted(hints)}.")
    required = {
        entry.name
        for entry in dataclasses.fields(kind)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    }
    if required - set(value):
        raise ValueError(f"{place} lacks {sorted(required - set(value))}.")
    return kind(**{name: _read(hints[name], entry, f"{place}.{name}") for name, entry in value.items()})


__all__ = ["RESULTS_NAME", "CardFacts", "read_card_facts"]
