#!/usr/bin/env python
"""Trains a small SmallCap with retrieval and the same without it, and compares them on the validation photos.

    pip install "hf_evcap[train]" pandas
    scripts/train_smallcap_tiny.py --data DATA --work WORK --output MODEL

DATA holds captioned photos (parquet: image, captions, image_id, source) and captions without photos. Stop it at any
time and start it again: what is in WORK is not made again.
"""

from __future__ import annotations

import argparse
import importlib.resources
from pathlib import Path

import torch
import yaml
from transformers.utils import logging

from hf_evcap.training.from_scratch.smallcap_tiny import SmallCapTiny


def main() -> None:
    presets = importlib.resources.files("hf_evcap.training") / "recipes"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data")
    parser.add_argument("--work", required=True, help="folder of caches and checkpoints; about 1.5 GB")
    parser.add_argument("--output", required=True, help="folder of the model with retrieval, and results.json")
    parser.add_argument("--recipe", default=str(presets / "smallcap-tiny.yaml"), help="YAML (default: smallcap-tiny)")
    parser.add_argument("--encoder", help="model whose vision encoder is used (default: the embedded one)")
    parser.add_argument("--held-out", action="store_true", help="measure on held-out training photos instead")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    arguments = parser.parse_args()
    logging.set_verbosity_info()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = yaml.safe_load(Path(arguments.recipe).read_text(encoding="utf-8"))
    trained = SmallCapTiny(recipe, arguments.data, arguments.work, arguments.encoder)
    results = trained.measure(Path(arguments.output), arguments.held_out)
    for label, scores in results.items():
        if isinstance(scores, dict):
            print(f"{label}: " + ", ".join(f"{name} {scores[name]:.3f}" for name in ("cider", "bleu", "rouge_l")))


if __name__ == "__main__":
    main()
