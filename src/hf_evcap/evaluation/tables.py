"""Markdown tables of results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..hub_card import table_cell
from .scoring import PRINTED


# Papers do not print these; they are in results.json.
_LEFT_OUT = ("BLEU-1", "BLEU-2", "BLEU-3")


def metric_columns(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """The metrics that any row has, in the order in which papers print them."""
    there = {name for row in rows for name in row}
    return [name for name in PRINTED.values() if name in there and name not in _LEFT_OUT]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers to one decimal and on the right, `None` as nothing."""
    rows = [list(row) for row in rows]
    numbers = [any(isinstance(row[place], (int, float)) for row in rows) and place > 0 for place in range(len(header))]
    lines = [list(header), ["---:" if right else "---" for right in numbers]]
    lines += [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.1f}" if isinstance(value, float) else table_cell(value)


def group_table(variant: Mapping[str, Any]) -> str:
    """A variant's figures by group."""
    groups, photos = variant["metrics"], variant["photos"]
    names = metric_columns(groups.values())
    rows = [[group, photos[group], *(figures.get(name) for name in names)] for group, figures in groups.items()]
    return markdown_table(["", "photos", *names], rows)


def comparison_table(results: Mapping[str, Any]) -> str:
    """All variants, and what papers report on the same dataset."""
    rows: list[tuple[str, Mapping[str, float]]] = [
        (variant["name"], variant["metrics"]["all"]) for variant in results["variants"] if variant["metrics"]
    ]
    rows += [(f"{row['model']}, published", row["metrics"]) for row in results["published"]]
    names = metric_columns(figures for _, figures in rows)
    return markdown_table(["", *names], [[label, *(figures.get(name) for name in names)] for label, figures in rows])


def markdown_report(results: Mapping[str, Any]) -> str:
    """The tables of an evaluation as a page."""
    model, data = results["model"], results["dataset"]
    what = f"{data['photos']} photos, {data['captions']} reference captions"
    if data["left_out"]:
        what += f", {len(data['left_out'])} photos left out"
    parts = [f"# {model['name']} on {data['title']}", f"{what}. Figures are times 100, as papers print them."]
    if not results["variants"][0]["metrics"]:
        return "\n\n".join([*parts, "The dataset has no references: nothing was scored."]) + "\n"
    if data.get("in_memory"):
        parts.append(
            f"**{len(data['in_memory'])} of these photos are in the model's memory**, with words of their captions, "
            "so the figures are too high. `--leave-out-memory-photos` leaves them out."
        )
    several = len(results["variants"][0]["metrics"]) > 2  # "all" and more than one group
    if several:
        parts += [f"By {results['group_by']}:", group_table(results["variants"][0])]
    parts.append(comparison_table(results))
    if results["published"]:
        sources = {row["source"]: row.get("url") for row in results["published"]}
        listed = [f"[{source}]({url})" if url else source for source, url in sources.items()]
        parts.append(f"Published: {'; '.join(listed)}.")
    if several and "CIDEr" in results["variants"][0]["metrics"]["all"]:
        parts.append("A group's CIDEr takes document frequencies from its own references.")
    return "\n\n".join(parts) + "\n"
