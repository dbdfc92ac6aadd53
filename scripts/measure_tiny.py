#!/usr/bin/env python
"""Measures a captioner made by train_tiny.py and writes its results.json, card and contact sheet into its folder.

    scripts/measure_tiny.py --model MODEL --data DATA [--photos DIR] [--notes NOTES.md]

DATA holds `captions/validation.parquet` and `objects/{train,novel}.parquet`. NOTES.md tells in its first paragraphs
how the model was made, and after a line `---`, one to a line, failure cases that were seen.
"""

from __future__ import annotations

import argparse
import importlib.resources
from pathlib import Path

import yaml

from hf_evcap.training.tiny_card import LICENSE, contact_sheet, fill_card
from hf_evcap.training.tiny_measurements import TinyMeasurements


def main() -> None:
    package = importlib.resources.files("hf_evcap")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photos", type=Path, default=Path(str(package / "assets" / "photos")))
    parser.add_argument("--notes", type=Path, default=Path(str(package / "training" / "recipes" / "evcap-tiny.md")))
    parser.add_argument("--recipe", default=str(package / "training" / "recipes" / "evcap-tiny.yaml"))
    parser.add_argument("--num-beams", type=int, default=5)
    arguments = parser.parse_args()
    recipe = yaml.safe_load(Path(arguments.recipe).read_text(encoding="utf-8"))
    photos = sorted(arguments.photos.glob("*.jpg"))
    measurements = TinyMeasurements(arguments.model, arguments.data, arguments.num_beams)
    results = measurements.run(photos, recipe, arguments.model / "results.json")
    how, _, failures = arguments.notes.read_text(encoding="utf-8").partition("\n---\n")
    card = fill_card(results, how.strip(), [line for line in failures.splitlines() if line.strip()])
    (arguments.model / "README.md").write_text(card, encoding="utf-8")
    (arguments.model / "LICENSE.md").write_text(LICENSE, encoding="utf-8")
    contact_sheet(photos, [row["caption"] for row in results["samples"]]).save(arguments.model / "contact_sheet.png")
    print(card)


if __name__ == "__main__":
    main()
