"""The HTML report of an evaluation: one file with its photos in it, made to be read on a laptop."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import datasets
import jinja2

from ..metrics.name_matching import NameMatcher
from ..photo_loading import load_photo
from ..whole_files import write_text
from .tables import metric_columns


THUMBNAIL = (360, 270)
_BINS = 24


def write_report(
    file: Path,
    data: datasets.Dataset,
    results: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    photos: int,
    plot: Path | None = None,
) -> None:
    """
    Writes the report.

    Args:
        file (`Path`): The HTML file.
        data (`datasets.Dataset`): The photos.
        results (`Mapping`): What `results.json` holds, with each photo's CIDEr.
        rows (`Sequence[Mapping]`): What `photos.jsonl` holds.
        photos (`int`): Photos in each part.
        plot (`Path`, *optional*): A PNG file to show beside the variants.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = lambda value: "" if value is None else f"{value:.1f}"
    environment.filters["signed"] = lambda value: f"{value:+.1f}" if abs(value) >= 0.05 else "±0.0"
    template = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    variants = results["variants"]
    without = next((variant for variant in variants if variant["group"] == "memory effect"), None)
    scored = bool(variants[0]["metrics"])
    undecoded = data.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    text = environment.from_string(template).render(
        results=results,
        base=variants[0],
        without=without,
        scored=scored,
        columns=metric_columns([variant["metrics"].get("all", {}) for variant in variants]),
        group_columns=metric_columns(variants[0]["metrics"].values()),
        published=results["published"],
        changed=sum(row["caption"] != row.get("caption_without_memory", row["caption"]) for row in rows),
        plot=None if plot is None else _data_address("image/png", plot.read_bytes()),
        histogram=histogram(rows) if scored and "cider" in rows[0] else None,
        parts=[
            {**part, "cards": [_card(row, undecoded) for row in part["rows"]]} for part in choose_photos(rows, photos)
        ],
        settings=json.dumps(_settings(results), indent=2, ensure_ascii=False),
    )
    write_text(file, text)


def choose_photos(rows: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """
    The report's parts: where the memory helped and harmed most, the best, the worst and random captions.

    Args:
        rows (`Sequence[Mapping]`): All photos.
        count (`int`): Photos a part.
    """
    parts: list[dict[str, Any]] = []
    if "cider" not in rows[0]:
        sample = random.Random(0).sample(list(rows), min(count, len(rows)))
        return [{"title": "Captions", "note": "Drawn at random.", "rows": sample}]
    fewer = -(-2 * count // 3)
    if "cider_without_memory" in rows[0]:
        gains = sorted(rows, key=lambda row: row["cider"] - row["cider_without_memory"], reverse=True)
        helped = [row for row in gains if row["cider"] > row["cider_without_memory"]][:fewer]
        harmed = [row for row in reversed(gains) if row["cider"] < row["cider_without_memory"]][:fewer]
        parts.append({"title": "Where the memory helped most", "note": "By the gain in CIDEr.", "rows": helped})
        parts.append({"title": "Where the memory harmed most", "note": "By the loss in CIDEr.", "rows": harmed})
    ranked = sorted(rows, key=lambda row: row["cider"], reverse=True)
    parts.append({"title": "Best captions", "note": "By CIDEr.", "rows": ranked[:count]})
    worst = ranked[count:][::-1][:count]  # a small set is not shown twice
    parts.append({"title": "Worst captions", "note": "By CIDEr.", "rows": worst})
    shown = {row["row"] for part in parts for row in part["rows"]}
    others = [row for row in rows if row["row"] not in shown]
    sample = random.Random(0).sample(others, min(count, len(others)))
    parts.append({"title": "A random sample of the others", "note": "", "rows": sample})
    return [part for part in parts if part["rows"]]


def _card(row: Mapping[str, Any], images: datasets.Dataset) -> dict[str, Any]:
    names = [entry["name"] for entry in row["retrieved"] if "name" in entry]
    said = NameMatcher(names).mentioned(row["caption"]) if names else frozenset()
    retrieved = [
        {"text": entry.get("name", entry.get("caption")), "score": entry["score"], "said": entry.get("name") in said}
        for entry in row["retrieved"]
    ]
    return {**row, "retrieved": retrieved, "thumbnail": thumbnail(images[row["row"]]["image"]), "long": not names}


def thumbnail(photo: Any) -> str:
    """A small JPEG of a photo as a `data:` address."""
    image = load_photo(photo)
    image.thumbnail(THUMBNAIL)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80)
    return _data_address("image/jpeg", content.getvalue())


def _data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def histogram(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """
    Counts of photos by CIDEr, with and without the memory, in bins of equal width; the last holds what is beyond.

    Returns:
        `dict`: `width` of a bin, `counts`, `counts_without` (or `None`), `highest` count and `mean`.
    """
    values = [row["cider"] for row in rows]
    width = max(5, 5 * round(sorted(values)[int(0.98 * (len(values) - 1))] / _BINS / 5 + 0.5))

    def count(values: Sequence[float]) -> list[int]:
        counts = [0] * _BINS
        for value in values:
            counts[min(int(value / width), _BINS - 1)] += 1
        return counts

    result: dict[str, Any] = {"width": width, "counts": count(values), "mean": sum(values) / len(values)}
    without = [row["cider_without_memory"] for row in rows if "cider_without_memory" in row]
    result["counts_without"] = count(without) if without else None
    result["highest"] = max(result["counts"] + (result["counts_without"] or []))
    return result


def _settings(results: Mapping[str, Any]) -> dict[str, Any]:
    base = results["variants"][0]
    return {
        "model": results["model"],
        "dataset": results["dataset"],
        **base["settings"],
        "versions": results["versions"],
        "date": results["date"],
    }
