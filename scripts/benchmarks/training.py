"""Training: seconds a step with photos that the vision encoder sees, and with its cached features; the same losses.

Both runs train the same model on the same examples in the same order, one after the other in this process. Photos are
JPEG files: crops of the package's samples, so that reading and decoding them costs what it usually does.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, Seq2SeqTrainingArguments, TrainerCallback
from transformers.utils import logging

import hf_evcap
from hf_evcap.caption_data import load_caption_data
from hf_evcap.photo_rows import photo_keys
from hf_evcap.training.caption_trainer import CaptionTrainer
from hf_evcap.training.feature_cache import VisionFeatureCache, build_feature_cache
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples
from hf_evcap.training.fine_tuning.retrieval_in_training import TrainingRetrieval


SAMPLES = sorted((Path(hf_evcap.__file__).parent / "assets" / "photos").glob("*.jpg"))
WORDS = "a man woman dog cat red small on in the street beach with two and sitting standing near large table".split()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=hf_evcap.default_model(), help="model folder or Hub id (default: embedded)")
    parser.add_argument("--policy", default="paper", help="what is trained (default: %(default)s)")
    parser.add_argument("--photos", type=int, default=48, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=8, help="steps that count (default: %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default: %(default)s)")
    parser.add_argument("--cache-dtype", choices=["float32", "float16"], default="float32")
    return parser


def write_photos(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> Path:
    """Writes JPEG files and a listing of them with captions of 5 to 15 words; returns the listing."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        with Image.open(SAMPLES[number % len(SAMPLES)]) as sample:
            left, upper = draw.randrange(sample.width // 3), draw.randrange(sample.height // 3)
            view = sample.convert("RGB").crop((left, upper, sample.width, sample.height)).resize(size)
        view.save(folder / f"{number}.jpg", quality=90)
        caption = " ".join(draw.choices(WORDS, k=draw.randint(5, 15)))
        lines.append(json.dumps({"image": f"{number}.jpg", "image_id": str(number), "captions": [caption]}))
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "captions.jsonl"


class StepClock(TrainerCallback):
    """Notes when each step ended, the reading of its batch included."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), time.process_time()))

    def median(self, warmup: int) -> tuple[float, float]:
        """Seconds a step after the first ones: of the clock and of this process's processor time."""
        pairs = list(zip(self.ends[warmup - 1 :], self.ends[warmup:], strict=False))
        clock, processor = ([end[kind] - start[kind] for start, end in pairs] for kind in (0, 1))
        return statistics.median(clock), statistics.median(processor)


def train(
    model: Any, processor: Any, dataset: Any, folder: Path, steps: int, batch_size: int, **arguments: Any
) -> tuple[StepClock, list[float]]:
    """Trains for some steps; returns the clock and each step's loss."""
    clock = StepClock()
    trainer = CaptionTrainer(
        model,
        Seq2SeqTrainingArguments(
            str(folder),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=True,
            **{"learning_rate": 1e-4, **arguments},
        ),
        processing_class=processor,
        data_collator=PhotoCaptionCollator(processor, photo_keys=photo_keys),
        train_dataset=CaptionExamples(dataset, processor),
        retrieval=TrainingRetrieval(model),
        callbacks=[clock],
    )
    trainer.log = lambda logs, *args, **kwargs: trainer.state.log_history.append(logs)
    trainer.train()
    return clock, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    steps = arguments.warmup + arguments.steps
    processor = AutoProcessor.from_pretrained(arguments.model)
    medians, losses = [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        photos = load_caption_data(write_photos(folder / "photos", arguments.photos))
        for cached in (False, True):
            model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32)
            dataset = photos
            if cached:
                start = time.perf_counter()
                report = build_feature_cache(
                    model, processor, photos, folder / "features", dtype=arguments.cache_dtype, batch_size=8
                )
                spent = (time.perf_counter() - start) / report.photos
                print(f"cache: {report.photos} photos, {report.bytes / 1e6:.1f} MB, {spent:.3f} s a photo")
                dataset = VisionFeatureCache.open(folder / "features", model, processor).attach(photos)
            model.freeze_for_training(arguments.policy)
            clock, found = train(model, processor, dataset, folder / "run", steps, arguments.batch_size)
            medians.append(clock.median(arguments.warmup))
            losses.append(found)
            kind = f"cached features ({arguments.cache_dtype})" if cached else "photos"
            print(
                f"{kind:<26} {medians[-1][0]:7.3f} s a step of {arguments.batch_size} ({medians[-1][1]:.3f} s of "
                f"processor time), losses {found[0]:.4f} ... {found[-1]:.4f}"
            )
    by_clock, by_processor = (medians[0][kind] / medians[1][kind] for kind in (0, 1))
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    print(f"a step from cached features is {by_clock:.2f} x as fast ({by_processor:.2f} x in processor time)")
    print(f"largest difference of a step's losses: {apart:.1e}")
    return 0
