"""Plans against reality: the peak memory of real training steps and captions, beside what `hf-evcap plan` says.

Each case runs in a process of its own: it loads a random model of some hundred million parameters as `hf-evcap train`
does, trains it for three steps with the package's trainer, or captions a batch; the peak is the process's resident
memory above what it was before the model was loaded, or what tensors took on a GPU. The plan is told the tokens of the
batch that was really run; `--captions FILE` instead counts the tokens of a file's captions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


TRANSFORMER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SIZES: dict[str, dict[str, Any]] = {
    "mid": {
        "vision": TRANSFORMER,
        "qformer": {**TRANSFORMER, "num_hidden_layers": 6},
        "text": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 16, "num_attention_heads": 16},
        "vocab_size": 32000,
        "image_size": 224,
        "memory_rows": 10_000,
    },
}
SMALLCAP = Path(__file__).parents[2] / "hub_configs" / "smallcap-7m"

# Name: (family, size of the model, what of training, or captioning). The rest are options of `hf-evcap plan`.
CASES: dict[str, dict[str, Any]] = {
    "evcap paper": {"batch_size": 8},
    "evcap paper, bfloat16": {"batch_size": 8, "dtype": "bfloat16", "bf16": True},
    "evcap paper, checkpointing": {"batch_size": 16, "gradient_checkpointing": True},
    "evcap paper, feature cache": {"batch_size": 8, "feature_cache": True},
    "evcap fusion": {"batch_size": 8, "policy": "fusion"},
    "evcap qformers": {"batch_size": 8, "policy": "qformers"},
    "evcap lora": {"batch_size": 8, "policy": "lora"},
    "evcap full": {"batch_size": 4, "policy": "full"},
    "evcap caption": {"batch_size": 8, "num_beams": 5, "max_new_tokens": 24},
    "smallcap paper": {"batch_size": 16},
    "smallcap paper, checkpointing": {"batch_size": 32, "gradient_checkpointing": True},
    "smallcap decoder, bfloat16": {"batch_size": 8, "policy": "decoder", "dtype": "bfloat16", "bf16": True},
    "smallcap caption": {"batch_size": 16, "num_beams": 3, "max_new_tokens": 25},
}
# Freed memory goes back to the system at once, so that what is resident is what is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
WITHIN = 0.15


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", metavar="CASE", help=f"of: {'; '.join(CASES)} (default: all)")
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--captions", help="count the tokens of this file's captions instead")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one case, in this process: folder and its options
    return parser


def describe(case: str) -> str:
    """A case in words, as the first column of the printed table has it."""
    options = {"policy": "paper", **CASES[case]}
    family = "EVCap" if case.startswith("evcap") else "SmallCap"
    photos = f"{options['batch_size']} photos"
    if "num_beams" in options:
        return f"{family}, captioning {photos}, {options['num_beams']} beams, {options['max_new_tokens']} tokens"
    words = {"bf16": "bfloat16", "gradient_checkpointing": "gradient checkpointing", "feature_cache": "feature cache"}
    return ", ".join([family, f"policy {options['policy']}", photos, *(words[one] for one in words if one in options)])


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """The most memory in use since `start()`: tensors on a GPU, else this process's resident memory."""

    def start(self) -> None:
        import torch

        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def read(self) -> int:
        import torch

        if self.cuda:
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Lengths:
    """Notes the longest sequences that a model was given."""

    def __init__(self, model: Any) -> None:
        self.found = {"sequence": 0, "names": 0}
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        layers = base.language_model.base_model
        getattr(layers, "decoder", layers).register_forward_pre_hook(self._sequence, with_kwargs=True)
        if hasattr(base, "fusion_qformer"):
            base.fusion_qformer.embeddings.register_forward_pre_hook(self._names)

    def _sequence(self, module: Any, args: Any, kwargs: Any) -> None:
        embeds = kwargs.get("inputs_embeds")  # later tokens of a caption come by their ids
        self.found["sequence"] = max(self.found["sequence"], 0 if embeds is None else embeds.shape[1])

    def _names(self, module: Any, args: Any) -> None:
        self.found["names"] = max(self.found["names"], args[0].shape[1])


def save_smallcap(folder: Path) -> None:
    """Saves a random SmallCap of the released size, whose datastore has 10,000 captions."""
    import torch
    from benchmarks.training import WORDS
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from hf_evcap import CaptionDatastore, SmallCapForConditionalGeneration, SmallCapProcessor

    torch.manual_seed(0)
    words = ["!", ".", "<s>", "<unk>", "Similar", "images", "show", "This", "image", "shows", *WORDS]
    whole = Tokenizer(models.WordLevel({word: n for n, word in enumerate(dict.fromkeys(words))}, "<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>", bos_token="<s>", eos_token=".")
    processor = SmallCapProcessor(CLIPImageProcessorPil(), tokenizer)
    model = SmallCapForConditionalGeneration(AutoConfig.from_pretrained(SMALLCAP))
    model.tokenizer = processor.tokenizer
    captions = [" ".join(WORDS[(row + place) % len(WORDS)] for place in range(10)) for row in range(10_000)]
    keys = torch.randn(len(captions), model.memory_key_size)
    ids = [f"other {row}" for row in range(len(captions))]
    fingerprint = model.encoder_fingerprint
    model.set_datastore(CaptionDatastore.from_rows(captions, keys, image_id=ids, encoder_fingerprint=fingerprint))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def run_case(folder: Path, case: str) -> dict[str, Any]:
    """Runs a case in this process; returns its peak in bytes and the lengths that it had."""
    import torch
    from benchmarks.training import train
    from transformers import AutoProcessor
    from transformers.utils import logging

    from hf_evcap.caption_data import load_caption_data
    from hf_evcap.training.feature_cache.vision_cache import VisionFeatureCache
    from hf_evcap.training.fine_tuning.run_training import load_model
    from hf_evcap.training.fine_tuning.training_arguments import CaptionTrainingArguments, ModelArguments

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    options = CASES[case]
    family, size = case.split()[0], options["batch_size"]
    source = folder / family
    training = CaptionTrainingArguments(str(folder / "run"), report_to="none")
    processor = AutoProcessor.from_pretrained(source)
    photos = load_caption_data(folder / "photos" / "captions.jsonl")
    peak = Peak()
    before = 0 if torch.cuda.is_available() else resident()
    policy = options.get("policy", "paper")
    if "num_beams" in options:
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).to(training.device)
        lengths = Lengths(model)
        batch = processor(images=photos[:size]["image"], return_tensors="pt").to(training.device)
        new = options["max_new_tokens"]
        peak.start()
        model.generate(**batch, num_beams=options["num_beams"], max_new_tokens=new, min_new_tokens=new)
        return {"peak": peak.read() - before, **lengths.found, "caption": 0}
    model, _ = load_model(ModelArguments(str(source), policy=policy, dtype=options.get("dtype", "float32")), training)
    if options.get("feature_cache"):
        photos = VisionFeatureCache.open(folder / "features", model, processor).attach(photos)
    for weight in model.parameters():
        weight.data = weight.data.clone()  # from here on the checkpoint's file is not in memory, too
    lengths = Lengths(model)
    more = {name: options[name] for name in ("bf16", "gradient_checkpointing") if name in options}
    peak.start()
    train(model, processor, photos, folder / "run", 3, size, optim="adamw_torch", **more)
    longest = max(len(processor.encode_caption(caption)) for row in photos for caption in row["captions"])
    return {"peak": peak.read() - before, **lengths.found, "caption": longest}


def plan_case(folder: Path, case: str, found: dict[str, Any]) -> int:
    """What the plan says of a case, in bytes."""
    import torch

    from hf_evcap.planning import plan_model

    options = dict(CASES[case])
    caption = "num_beams" in options
    prefix = 40 if case.startswith("evcap") else 0
    plan = plan_model(
        str(folder / case.split()[0]),
        **{"dtype": "float32", **options},
        device="cuda" if torch.cuda.is_available() else "cpu",
        prompt_tokens=found["sequence"] + (1 if caption else 0) - prefix - found["caption"],
        retrieved_tokens=found["names"] or None,
        max_caption_length=found["caption"] or None,
    )
    return plan.captioning.peak if caption else plan.training[plan.asked].peak


def count_tokens(file: str) -> int:
    """Prints how long captions are by the embedded model's tokenizer, alone and the longest of six at a time."""
    import random

    from transformers import AutoTokenizer

    import hf_evcap
    from hf_evcap.caption_data import load_caption_data

    tokenizer = AutoTokenizer.from_pretrained(hf_evcap.default_model())
    captions = [caption for row in load_caption_data(file).select_columns(["captions"]) for caption in row["captions"]]
    lengths = [len(tokenizer(caption, add_special_tokens=False)["input_ids"]) + 1 for caption in captions]
    random.Random(0).shuffle(lengths)
    batches = [max(lengths[start : start + 6]) for start in range(0, len(lengths), 6)]
    print(
        f"{len(captions):,} captions, tokens with their end: mean {sum(lengths) / len(lengths):.1f}, longest "
        f"{max(lengths)}, longest of six {sum(batches) / len(batches):.1f} on average"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.run is not None:
        folder, case = arguments.run.split("::")
        print(json.dumps(run_case(Path(folder), case)))
        return 0
    if arguments.captions is not None:
        return count_tokens(arguments.captions)
    chosen = arguments.cases or list(CASES)
    unknown = [case for case in chosen if case not in CASES]
    if unknown:
        raise SystemExit(f"Unknown cases {unknown}; there are {', '.join(CASES)}.")
    from benchmarks.training import write_photos
    from gpu_check import save_model

    from hf_evcap.planning import plan_model

    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_photos(folder / "photos", 48)
        for family, save in (("evcap", lambda target: save_model(SIZES["mid"], target)), ("smallcap", save_smallcap)):
            if any(case.startswith(family) for case in chosen):
                save(folder / family)
                print(f"{family}: {plan_model(str(folder / family)).total_parameters / 1e6:.0f} M parameters")
        if any(CASES[case].get("feature_cache") for case in chosen):
            command = [sys.executable, "-m", "hf_evcap.cli.main", "cache-features", "--model", str(folder / "evcap")]
            data = ["--dataset", str(folder / "photos" / "captions.jsonl"), "--output", str(folder / "features")]
            subprocess.run([*command, *data], check=True)
        print("| | measured GB | planned GB | ratio |\n| --- | ---: | ---: | ---: |")
        for case in chosen:
            command = [sys.executable, str(Path(__file__).parents[1] / "benchmark.py"), "plan"]
            done = subprocess.run(
                [*command, "--run", f"{folder}::{case}"],
                env={**os.environ, **ALLOCATOR},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise SystemExit(f"{case} failed:\n{done.stderr}")
            found = json.loads(done.stdout.strip().splitlines()[-1])
            planned = plan_case(folder, case, found)
            measured, ratio = found["peak"], planned / found["peak"]
            figures[case] = {"measured": measured, "planned": planned, "ratio": ratio}
            print(f"| {describe(case)} | {measured / 1e9:.2f} | {planned / 1e9:.2f} | {ratio:.2f} |", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=2), encoding="utf-8")
    apart = {case: row["ratio"] for case, row in figures.items() if abs(row["ratio"] - 1) > WITHIN}
    print("ok" if not apart else f"FAILED: more than {WITHIN:.0%} apart: {apart}")
    return int(bool(apart))
