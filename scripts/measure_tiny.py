#!/usr/bin/env python
"""Measures a captioner made by train_tiny.py and writes its results.json, card and contact sheet into its folder.

    scripts/measure_tiny.py --model MODEL --data DATA [--raw FILE.json] [--stated CARD.yaml]

DATA holds `captions/validation.parquet` and `objects/{train,novel}.parquet`. CARD.yaml says what no measurement tells:
licence, data, limits. Every caption is kept in FILE.json.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
from pathlib import Path

import yaml

from hf_evcap.hub.model_card import write_model_card
from hf_evcap.training.from_scratch.tiny_card import card_facts, contact_sheet
from hf_evcap.training.from_scratch.tiny_measurements import TinyMeasurements


def main() -> None:
    package = importlib.resources.files("hf_evcap")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photos", type=Path, default=Path(str(package / "assets" / "photos")))
    parser.add_argument("--stated", default=str(package / "training" / "recipes" / "evcap-tiny-card.yaml"))
    parser.add_argument("--raw", type=Path, default=Path("measured.json"), help="every caption and number")
    parser.add_argument("--recipe", default=str(package / "training" / "recipes" / "evcap-tiny.yaml"))
    parser.add_argument("--num-beams", type=int, default=5)
    arguments = parser.parse_args()
    recipe = yaml.safe_load(Path(arguments.recipe).read_text(encoding="utf-8"))
    photos = sorted(arguments.photos.glob("*.jpg"))
    measurements = TinyMeasurements(arguments.model, arguments.data, arguments.num_beams)
    measured = measurements.run(photos, recipe, arguments.raw)
    facts = card_facts(measured, yaml.safe_load(Path(arguments.stated).read_text(encoding="utf-8")))
    results = arguments.model / "results.json"
    results.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    contact_sheet(photos, [row["caption"] for row in measured["samples"]]).save(arguments.model / "contact_sheet.png")
    print(write_model_card(arguments.model).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
