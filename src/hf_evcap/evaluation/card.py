"""Puts an evaluation's figures into a model folder's `results.json` and card, and so into the card's metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..hub.card_facts import RESULTS_NAME, CardFacts, ResultRow, ResultTable, read_card_facts
from ..hub.model_card import write_model_card
from ..whole_files import write_json
from .tables import metric_columns


TABLE_TITLE = "Evaluation"
_NOTE = "Measured with `hf-evcap evaluate`; figures are times 100, tokenised as coco-caption does."


def result_rows(results: Mapping[str, Any]) -> list[ResultRow]:
    """The evaluation's figures as rows of a card: the captioner as it is, by group, and without its memory."""
    data = results["dataset"]
    rows = []
    for variant in results["variants"]:
        if variant["group"] not in ("base", "memory effect"):
            continue
        for group, figures in variant["metrics"].items():
            if group != "all" and variant["group"] != "base":
                continue
            setting = variant["name"] if group == "all" else f"{variant['name']}, {group}"
            kept = metric_columns([figures])
            rows.append(
                ResultRow(
                    dataset=data["title"],
                    dataset_id=data["hub_id"],
                    split=data["split"],
                    photos=variant["photos"][group],
                    setting=setting,
                    metrics={name: round(figures[name], 1) for name in kept},
                    model_index=variant["group"] == "base",
                )
            )
    return rows


def check_model_folder(folder: str | Path) -> Path:
    """Gives the folder, or raises `ValueError` if it is none of a model and so has no card."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{folder} is no model's folder, so its card cannot be written. Download the repo, evaluate the folder "
            "and push it with `hf-evcap push`."
        )
    return Path(folder)


def update_card(folder: str | Path, results: Mapping[str, Any]) -> Path:
    """
    Writes an evaluation into a model's folder: into `results.json`, and from there into the card's table and
    `model-index`. Rows of the same dataset and setting are replaced, everything else stays.

    Args:
        folder (`str` or `Path`): The model's.
        results (`Mapping`): What [`evaluate_captioner`] returned.

    Returns:
        `Path`: The card.

    Raises:
        ValueError: It is no folder, or the dataset has no references.
    """
    folder = check_model_folder(folder)
    rows = result_rows(results)
    if not rows:
        raise ValueError("Nothing was scored, so there is nothing for the card: the dataset has no references.")
    file = folder / RESULTS_NAME
    facts = read_card_facts(file) if file.is_file() else CardFacts(title=folder.resolve().name)
    table = next((table for table in facts.tables if table.title == TABLE_TITLE), None)
    if table is None:
        table = ResultTable(title=TABLE_TITLE, rows=[], note=_NOTE)
        facts.tables.append(table)
    replaced = {(row.dataset, row.split, row.setting) for row in rows}
    table.rows = [row for row in table.rows if (row.dataset, row.split, row.setting) not in replaced] + rows
    write_json(file, dataclasses.asdict(facts))
    return write_model_card(folder, repo_id=folder.resolve().name)
