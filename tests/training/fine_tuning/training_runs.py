"""Captioned photos and short training runs that the training tests share."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from hf_evcap.training.fine_tuning.caption_trainer import CaptionTrainer
from hf_evcap.training.fine_tuning.run_training import run_training
from hf_evcap.training.fine_tuning.training_arguments import (
    CaptionTrainingArguments,
    DataArguments,
    ModelArguments,
    RetrievalArguments,
)


CAPTIONS = [
    "a red dog on the table",
    "a cat",
    "two zebra on the street",
    "a pizza and a bus",
    "the traffic light",
    "a person and a dog",
    "a white bird",
    "a street with a car",
]


def write_photos(folder: Path, captions: list[Any] = CAPTIONS) -> Path:
    """A folder of coloured rectangles with `metadata.jsonl`; a caption or a list of them for each photo."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_from = random.Random(0)
    rows = []
    for number, caption in enumerate(captions):
        color, other = (tuple(draw_from.randrange(256) for _ in range(3)) for _ in range(2))
        photo = Image.new("RGB", (56, 56), color)
        left, top = draw_from.randrange(40), draw_from.randrange(40)
        ImageDraw.Draw(photo).rectangle([left, top, left + 16, top + 16], fill=other)
        photo.save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [caption] if isinstance(caption, str) else caption})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def training_arguments(folder: Path, **options: Any) -> CaptionTrainingArguments:
    """Arguments of a run of a few steps on the CPU, without files but the finished model."""
    defaults = {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return CaptionTrainingArguments(**{**defaults, **options})


def train(model: Any, data: Path, folder: Path, *, policy: str = "paper", **options: Any) -> CaptionTrainer:
    """Trains a model folder; options are fields of any kind of arguments."""
    kinds = (ModelArguments, DataArguments, RetrievalArguments)
    given = {
        kind: {name: options.pop(name) for name in list(options) if name in kind.__dataclass_fields__}
        for kind in kinds
    }
    return run_training(
        ModelArguments(model=str(model), policy=policy, **given[ModelArguments]),
        DataArguments(dataset=str(data), **given[DataArguments]),
        training_arguments(folder, **options),
        RetrievalArguments(**given[RetrievalArguments]),
    )
