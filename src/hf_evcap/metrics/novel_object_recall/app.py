"""The Space of this metric."""

from __future__ import annotations

from pathlib import Path

from hf_evcap.metrics.space_app import build


page = build(Path(__file__).parent, "novel_object_recall")

if __name__ == "__main__":
    page.launch()
