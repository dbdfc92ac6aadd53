"""The plot of an ablation: a panel for each thing that was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


_TITLES = {
    "memory": "memory",
    "names": "retrieved names (K)",
    "rule": "retrieval rule",
    "rejection": "rejection",
    "beams": "beams",
}
_COLOR, _BASE_COLOR, _GREY = "#4c72b0", "#dd8452", "#8c8c8c"


def plot_ablation(results: Mapping[str, Any], file: Path) -> None:
    """
    Draws CIDEr (or the first metric there is) against what was varied.

    Args:
        results (`Mapping`): What [`evaluate_captioner`] returned, with variants of an ablation.
        file (`Path`): A PNG file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('The plot of an ablation needs matplotlib: pip install "hf_evcap[eval]".') from error
    base, *others = results["variants"]
    metric = next(iter(base["metrics"]["all"]))
    without = next((variant for variant in others if variant["group"] == "memory effect"), None)
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for variant in others:
        if variant["group"] in _TITLES:
            panels.setdefault(variant["group"], []).append(variant)
    if without is not None:
        panels.setdefault("memory", []).insert(0, without)
    panels = {group: panels[group] for group in _TITLES if group in panels}
    if not panels:
        return
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.0 * columns, 5.0), 2.9 * rows + 0.4), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    own = base["metrics"]["all"][metric]
    for axis, (group, variants) in zip(axes, panels.items(), strict=False):
        value = results["base_values"].get(group)
        heights = [variant["metrics"]["all"][metric] for variant in variants]
        if group in ("names", "beams"):
            _draw_line(axis, [variant["value"] for variant in variants], heights, value, own)
            if group == "names" and without is not None:
                axis.axhline(without["metrics"]["all"][metric], color=_GREY, linestyle="--", linewidth=1)
        else:
            labels = [_own_label(group, value), *map(_label, variants)]
            bars = axis.bar(labels, [own, *heights], width=0.6, color=[_BASE_COLOR] + [_COLOR] * len(heights))
            axis.bar_label(bars, fmt="%.1f", size=8, padding=2)
            axis.tick_params(axis="x", labelsize=8)
            axis.set_xlim(-0.8, max(len(labels), 3) - 0.2)
        axis.set_title(_TITLES[group], size=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6")
        axis.set_axisbelow(True)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    top = max(variant["metrics"]["all"][metric] for variant in results["variants"])
    figure.axes[0].set_ylim(0, 1.15 * top if top else 1)
    figure.supylabel(metric, size=10)
    note = "orange: as it is" + ("; dashed: without the memory" if "names" in panels and without is not None else "")
    figure.suptitle(f"{results['model']['name']} on {results['dataset']['title']} ({note})", size=11)
    unfinished = file.with_suffix(".tmp.png")
    figure.savefig(unfinished)
    unfinished.replace(file)


def _draw_line(axis: Any, places: Sequence[int], heights: Sequence[float], own_place: int, own: float) -> None:
    line = sorted([*zip(places, heights, strict=True), (own_place, own)])
    axis.plot(*zip(*line, strict=True), color=_COLOR, marker="o", markersize=4)
    axis.plot([own_place], [own], color=_BASE_COLOR, marker="o", markersize=7, linestyle="")
    for place, height in line:
        axis.annotate(f"{height:.1f}", (place, height), (0, 6), textcoords="offset points", ha="center", size=8)
    axis.set_xticks([place for place, _ in line])
    axis.margins(x=0.1)


def _own_label(group: str, value: Any) -> str:
    if group == "rejection":
        return "off" if value is None else f"below {value:g}"
    return str(value)


def _label(variant: Mapping[str, Any]) -> str:
    if variant["group"] == "memory effect":
        return "none"
    return str(variant["name"]).removeprefix(f"{variant['group']} ")
