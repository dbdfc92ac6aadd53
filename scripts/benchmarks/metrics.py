"""CIDEr with tokenisation: the `evaluate` module against pycocoevalcap with its Java tokeniser, in one run."""

from __future__ import annotations

import argparse
import gzip
import random
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluate

import hf_evcap
from hf_evcap.metrics import ptb_tokenizer


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmark.py metrics", description=__doc__)
    parser.add_argument(
        "--captions", type=Path, help="text file (may be .gz) with a caption a line (default: made up)"
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--references", type=int, default=5, help="references an image (default: 5)")
    parser.add_argument("--repeats", type=int, default=3)
    return parser


def read_captions(path: Path | None, number: int) -> list[str]:
    if path is None:
        return made_up_captions(number)
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        captions = [line.rstrip("\n") for line in file]
    if len(captions) < number:
        raise ValueError(f"{path} holds {len(captions)} captions, {number} are needed.")
    return random.Random(0).sample(captions, number)


def made_up_captions(number: int) -> list[str]:
    """Sentences of 11 words, frequent ones more often, with the punctuation and the numbers that captions have."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnoprstuvw", k=generator.randint(2, 9))) for _ in range(9000)]
    weights = [1 / (rank + 3) for rank in range(len(words))]
    captions = []
    for _ in range(number):
        chosen = generator.choices(words, weights, k=generator.randint(8, 14))
        for mark, share in ((",", 0.12), ("'s", 0.05), ("-" + chosen[0], 0.04), (" 2", 0.02)):
            if generator.random() < share:
                chosen[generator.randrange(len(chosen) - 1)] += mark
        captions.append(" ".join(chosen).capitalize() + generator.choice([".", ".", ""]))
    return captions


def our_scores(predictions: list[str], references: list[list[str]]) -> float:
    ptb_tokenizer._chunk_tokens.clear()  # as in a fresh process
    metric = evaluate.load(hf_evcap.metric_path("cider"))
    return metric.compute(predictions=predictions, references=references)["cider"]


def coco_scores(predictions: list[str], references: list[list[str]]) -> float:
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(references)})
    guess = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(predictions)})
    return float(Cider().compute_score(truth, guess)[0])


def timed(function: Callable[..., Any], repeats: int, *arguments: Any) -> tuple[float, Any]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    captions = read_captions(arguments.captions, arguments.images * (arguments.references + 1))
    predictions = captions[: arguments.images]
    references = [captions[arguments.images + i :: arguments.images] for i in range(arguments.images)]
    print(f"{len(predictions):,} images, {arguments.references} references each")
    seconds, score = timed(our_scores, arguments.repeats, predictions, references)
    print(f"hf_evcap, load and compute:    {seconds:6.2f} s   CIDEr {score:.10f}")
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        print('pycocoevalcap is not installed (pip install "hf_evcap[coco]"): nothing to compare with')
        return 1
    if shutil.which("java") is None:
        print("there is no Java runtime: nothing to compare with")
        return 1
    coco_seconds, coco_score = timed(coco_scores, arguments.repeats, predictions, references)
    print(f"pycocoevalcap, Java tokeniser: {coco_seconds:6.2f} s   CIDEr {coco_score:.10f}")
    print(f"ratio {coco_seconds / seconds:.1f}, difference {abs(score - coco_score):.1e}")
    return 0
