"""The plot of an ablation: a panel for each thing that was varied."""

from __future__ import annotations

from collections.abc import Mapping
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
    widths = [2.2 if group in ("names", "beams") else 1.4 for group in panels]
    figure = Figure(figsize=(2.2 * sum(widths) + 0.6, 3.6), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    top = max(variant["metrics"]["all"][metric] for variant in results["variants"])
    for axis, (group, variants) in zip(axes, panels.items(), strict=True):
        value = results["base_values"].get(group)
        points = [(variant["value"], variant["name"], variant["metrics"]["all"][metric]) for variant in variants]
        own = base["metrics"]["all"][metric]
        if group in ("names", "beams"):
            line = sorted([(at, height) for at, _, height in points] + [(value, own)])
            axis.plot(*zip(*line, strict=True), color=_COLOR, marker="o", markersize=4)
            axis.plot([value], [own], color=_BASE_COLOR, marker="o", markersize=7, linestyle="")
            axis.set_xticks([at for at, _ in line])
            if group == "names" and without is not None:
                height = without["metrics"]["all"][metric]
                axis.axhline(height, color=_GREY, linestyle="--", linewidth=1)
                axis.annotate("without memory", (line[-1][0], height), ha="right", va="bottom", color=_GREY, size=8)
        else:
            labels = ["own" if value is None or group != "rule" else str(value), *(_label(one) for one in variants)]
            heights = [own, *(height for _, _, height in points)]
            bars = axis.bar(range(len(labels)), heights, width=0.6, color=[_BASE_COLOR] + [_COLOR] * len(points))
            axis.bar_label(bars, fmt="%.1f", size=8, padding=2)
            axis.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 2 else 0, size=8)
        axis.set_title(_TITLES[group], size=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6")
        axis.set_axisbelow(True)
    axes[0].set_ylim(0, 1.12 * top if top else 1)
    axes[0].set_ylabel(metric)
    figure.suptitle(f"{results['model']['name']} on {results['dataset']['title']} (orange: as configured)", size=11)
    unfinished = file.with_suffix(".tmp.png")
    figure.savefig(unfinished)
    unfinished.replace(file)


def _label(variant: Mapping[str, Any]) -> str:
    name = str(variant["name"]).removeprefix(f"{variant['group']} ")
    return Path(name).name if variant["group"] == "memory" else name
