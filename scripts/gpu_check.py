#!/usr/bin/env python
"""Trains and captions with a random model of about 1 B parameters, and says how fast and in how much memory.

A ViT-L-size encoder, Q-Formers of BLIP-2's width and a Llama of 700 M train for 50 steps in bfloat16, by the paper's
policy and with LoRA, from photos and from cached features; then photos are captioned in batches. Nothing is fetched.
`--tiny` runs the same in seconds on a CPU, to see that everything works.

MFU counts the floating-point operations that a step really does (PyTorch's FlopCounterMode) against the device's
published dense bfloat16 peak; for devices not listed, against a large matrix product measured here.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.training import WORDS, train, write_photos
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import logging

from hf_evcap import EVCapConfig, EVCapForConditionalGeneration, EVCapProcessor, VisualNameMemory
from hf_evcap.caption_data import load_caption_data
from hf_evcap.training.feature_cache import VisionFeatureCache, build_feature_cache
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples
from hf_evcap.training.fine_tuning.freezing import apply_policy


# Dense bfloat16 TFLOP/s from the makers' data sheets, by a part of the device's name.
PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A10G": 70,
    "RTX 4090": 165,
}

SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "qformer": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 6, "num_attention_heads": 12},
        "text": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 22, "num_attention_heads": 12},
        "vocab_size": 32000,
        "image_size": 224,
        "memory_rows": 10_000,
    },
    "tiny": {
        "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        "qformer": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        "vocab_size": 500,
        "image_size": 56,
        "memory_rows": 100,
    },
}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a model of 0.5 M parameters, 4 steps")
    parser.add_argument("--steps", type=int, help="default: 50, tiny 4")
    parser.add_argument("--warmup", type=int, help="steps before those that are timed (default: 10, tiny 1)")
    parser.add_argument("--batch-size", type=int, help="photos a training step (default: 32, tiny 4)")
    parser.add_argument("--caption-batch-size", type=int, help="photos captioned at once (default: 64, tiny 4)")
    parser.add_argument("--photos", type=int, help="default: 256, tiny 8")
    parser.add_argument("--num-beams", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=16, help="tokens of a caption (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes that read photos (default: 8, tiny 0)")
    parser.add_argument("--peak", type=float, help="bfloat16 TFLOP/s of the device, where it is not listed here")
    parser.add_argument("--json", help="file for the figures")
    return parser


def with_defaults(arguments: argparse.Namespace) -> argparse.Namespace:
    usual = {"steps": 50, "warmup": 10, "batch_size": 32, "caption_batch_size": 64, "photos": 256, "workers": 8}
    tiny = {"steps": 4, "warmup": 1, "batch_size": 4, "caption_batch_size": 4, "photos": 8, "workers": 0}
    for name, value in (tiny if arguments.tiny else usual).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.warmup >= arguments.steps:
        raise SystemExit(f"--warmup {arguments.warmup} leaves none of {arguments.steps} steps to be timed.")
    return arguments


def make_tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: those of the captions, and numbers for names."""
    words = [*special.values(), "<unk>", *WORDS, "name", *map(str, range(100))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(dict.fromkeys(words))}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special)


def save_model(size: dict[str, Any], folder: Path) -> dict[str, float]:
    """Saves a random model with a memory, and its processor; returns millions of parameters by part."""
    torch.manual_seed(0)
    names = make_tokenizer({"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"})
    text = make_tokenizer({"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})
    qformer = {"model_type": "blip_2_qformer", **size["qformer"]}
    config = EVCapConfig(
        vision_config={"model_type": "blip_2_vision_model", "image_size": size["image_size"], **size["vision"]},
        qformer_config=qformer,
        fusion_qformer_config={**qformer, "vocab_size": len(names)},
        text_config={
            "model_type": "llama", "vocab_size": size["vocab_size"], "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, **size["text"],
        },
        image_token_id=size["vocab_size"],
    )  # fmt: skip
    model = EVCapForConditionalGeneration(config)
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    image_processor = BlipImageProcessorPil(size={"height": size["image_size"], "width": size["image_size"]})
    # The tokenizer is smaller than the model's vocabulary; the placeholder is never looked up.
    processor = EVCapProcessor(image_processor, text, names, caption_end=" </s>", prompt="a photo of")
    model.config.image_token_id = processor.image_token_id
    keys = torch.randn(size["memory_rows"], model.memory_key_size)
    rows = [f"name {row % 100} {row // 100}" for row in range(len(keys))]
    ids = [str(row) for row in range(len(keys))]  # as if the first rows were of the photos trained on
    memory = VisualNameMemory.from_rows(rows, keys, encoder_fingerprint=model.encoder_fingerprint, image_id=ids)
    model.set_memory(memory, name_tokenizer=names)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return {name: sum(w.numel() for w in part.parameters()) / 1e6 for name, part in model.named_children()}


def load(folder: Path, device: torch.device, policy: str) -> Any:
    """The model as `hf-evcap train --dtype bfloat16` loads it: what is trained is in float32."""
    model = EVCapForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    model = apply_policy(model, policy)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model.to(device)


def peak_tflops(device: torch.device, given: float | None) -> tuple[float, str]:
    """The device's bfloat16 peak, and where the number is from."""
    if given is not None:
        return given, "given"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for part, peak in PEAKS.items():
        if part in name:
            return peak, "published"
    side = 8192 if device.type == "cuda" else 512
    one = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(5):
        start = now()
        for _ in range(5):
            one @ one  # noqa: B018
        best = max(best, 5 * 2 * side**3 / (now() - start) / 1e12)
    return best, "measured matrix product"


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(device: torch.device) -> float:
    """GB: the most that tensors took on a GPU since the last call, or the most that this process ever took."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    most = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return most


def work_of_step(model: Any, batch: dict[str, Any], device: torch.device) -> tuple[float, int, int]:
    """Floating-point operations of a step, and its caption and all its sequence tokens."""
    batch = {name: value.to(device) for name, value in batch.items() if name != "row"}
    model.train()
    tokens, sequence = int((batch["labels"] != -100).sum()), int(batch["attention_mask"].sum())
    with FlopCounterMode(display=False) as counter, torch.autocast(device.type, torch.bfloat16):
        model(**batch, logits_to_keep=batch["labels"].shape[1], use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops(), tokens, sequence


def check_training(
    arguments: argparse.Namespace, folder: Path, photos: Any, device: torch.device, peak: float
) -> dict:
    """Trains by each policy from photos and from features."""
    processor = EVCapProcessor.from_pretrained(folder)
    found: dict[str, dict[str, float]] = {}
    for policy in ("paper", "lora"):
        for cached in (False, True):
            model = load(folder, device, policy)
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            dataset = (
                VisionFeatureCache.open(folder / "features", base, processor).attach(photos) if cached else photos
            )
            examples = CaptionExamples(dataset, processor)
            sample = PhotoCaptionCollator(processor)(
                [examples[n % len(examples)] for n in range(arguments.batch_size)]
            )
            flops, tokens, sequence = work_of_step(model, sample, device)
            gc.collect()  # the model and optimizer of the run before
            peak_memory(device)
            clock, losses = train(
                model,
                processor,
                dataset,
                folder / "run",
                arguments.steps,
                arguments.batch_size,
                bf16=True,
                dataloader_num_workers=arguments.workers,
                learning_rate=1e-3,
            )
            seconds = clock.median(arguments.warmup)[0]
            label = f"{policy}, {'cached features' if cached else 'photos'}"
            found[label] = {
                "seconds": seconds,
                "photos_per_second": arguments.batch_size / seconds,
                "tokens_per_second": sequence / seconds,
                "caption_tokens_per_second": tokens / seconds,
                "tflop_per_step": flops / 1e12,
                "mfu": flops / seconds / (peak * 1e12),
                "memory_gb": peak_memory(device),
                "first_loss": losses[0],
                "last_loss": losses[-1],
            }
            row = found[label]
            print(
                f"train {label:<23} {seconds:8.4f} s a step, {row['photos_per_second']:8.1f} photos/s, "
                f"{row['tokens_per_second']:9.0f} tokens/s, MFU {row['mfu']:6.1%}, {row['memory_gb']:5.1f} GB, "
                f"loss {losses[0]:.3f} -> {losses[-1]:.3f}",
                flush=True,
            )
            del model, base
    return found


def check_captions(arguments: argparse.Namespace, folder: Path, photos: Any, device: torch.device) -> dict[str, float]:
    """Captions all photos in batches."""
    processor = EVCapProcessor.from_pretrained(folder)
    model = EVCapForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    size = arguments.caption_batch_size
    batches = [
        processor(images=photos[start : start + size]["image"], return_tensors="pt").to(device)
        for start in range(0, len(photos), size)
    ]
    lengths = {"max_new_tokens": arguments.new_tokens, "min_new_tokens": arguments.new_tokens}
    options = {"num_beams": arguments.num_beams, "do_sample": False, **lengths}
    model.generate(**batches[0], **options)
    peak_memory(device)
    start = now()
    captions = sum(len(model.generate(**batch, **options)) for batch in batches)
    seconds = now() - start
    row = {
        "captions_per_second": captions / seconds,
        "tokens_per_second": captions * arguments.new_tokens / seconds,
        "memory_gb": peak_memory(device),
    }
    print(
        f"caption, {arguments.num_beams} beams, batches of {size}: {row['captions_per_second']:.1f} captions/s of "
        f"{arguments.new_tokens} tokens, {row['tokens_per_second']:.0f} tokens/s, {row['memory_gb']:.1f} GB"
    )
    return row


def main(argv: list[str] | None = None) -> int:
    arguments = with_defaults(make_parser().parse_args(argv))
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak, source = peak_tflops(device, arguments.peak)
    print(f"{name}, PyTorch {torch.__version__}, bfloat16 peak {peak:.3g} TFLOP/s ({source})")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = save_model(SIZES["tiny" if arguments.tiny else "1b"], folder)
        listed = ", ".join(f"{part} {millions:.4g} M" for part, millions in parts.items())
        print(f"{sum(parts.values()):.4g} M parameters: {listed}")
        photos = load_caption_data(write_photos(folder / "photos", arguments.photos))
        model = load(folder, device, "paper")
        start = now()
        processor = EVCapProcessor.from_pretrained(folder)
        report = build_feature_cache(model, processor, photos, folder / "features", batch_size=arguments.batch_size)
        rate = report.photos / (now() - start)
        del model
        print(f"features of {report.photos} photos {report.shape}, {report.bytes / 1e6:.1f} MB, {rate:.1f} photos/s")
        training = check_training(arguments, folder, photos, device, peak)
        captioning = check_captions(arguments, folder, photos, device)
    for policy in ("paper", "lora"):
        plain, cached = training[f"{policy}, photos"], training[f"{policy}, cached features"]
        apart = abs(plain["first_loss"] - cached["first_loss"])
        ratio = plain["seconds"] / cached["seconds"]
        print(f"{policy}: a step from cached features is {ratio:.2f} x as fast; first losses {apart:.1e} apart")
        if not apart < 0.05:
            print("FAILED: the first step's loss from float16 features is not that from photos", file=sys.stderr)
            return 1
        if not max(plain["last_loss"], cached["last_loss"]) < plain["first_loss"]:
            print("FAILED: the loss did not fall", file=sys.stderr)
            return 1
    figures = {"device": name, "peak_tflops": peak, "peak_source": source, "torch": torch.__version__}
    if arguments.json:
        content = {**figures, "parameters_m": parts, "training": training, "captioning": captioning}
        Path(arguments.json).write_text(json.dumps(content, indent=2), encoding="utf-8")
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
