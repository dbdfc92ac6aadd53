"""Captioning: the share of each stage, and beams that share the prompt's prefill against stock beam search."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

import hf_evcap
from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor, VisualNameMemory


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmark.py caption", description=__doc__)
    parser.add_argument("--model", default=hf_evcap.default_model(), help="model folder or Hub id (default: embedded)")
    parser.add_argument("--photos", type=int, default=4, help="photos in a batch (default: 4)")
    parser.add_argument("--num-beams", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--prompt-words", type=int, default=0, help="words added to the prompt")
    parser.add_argument("--memory-rows", type=int, default=0, help="swap in a random memory of this many rows")
    parser.add_argument("--repeats", type=int, default=5)
    return parser


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    model = EVCapForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = EVCapProcessor.from_pretrained(arguments.model)
    rng = np.random.default_rng(0)
    if arguments.memory_rows:
        names = [f"name {row % 1203}" for row in range(arguments.memory_rows)]
        keys = rng.normal(size=(len(names), model.memory_key_size))
        memory = VisualNameMemory.from_rows(names, keys, encoder_fingerprint=model.encoder_fingerprint)
        start = time.perf_counter()
        model.set_memory(memory)
        model.retriever  # noqa: B018 - built when first asked for
        print(f"hot swap of {len(memory):,} rows: {(time.perf_counter() - start) * 1000:.1f} ms")
    photos = [Image.fromarray(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)) for _ in range(arguments.photos)]
    text = processor.prompt + " word" * arguments.prompt_words
    inputs = processor(images=photos, text=text, return_tensors="pt")
    pixels = inputs.pop("pixel_values")
    features = model.get_image_features(pixels)
    names = model.retrieve_names(features.retrieval_queries)
    fused = model.fuse_names(features.query_output, names.input_ids, names.attention_mask)
    encoded = model.encode_images(pixels)
    options = {"num_beams": arguments.num_beams, "do_sample": False}
    options.update(max_new_tokens=arguments.new_tokens, min_new_tokens=arguments.new_tokens)

    stages = {
        "encode": lambda: model.get_image_features(pixels),
        "retrieve": lambda: model.retrieve_names(features.retrieval_queries),
        "fuse": lambda: model.fuse_names(features.query_output, names.input_ids, names.attention_mask),
        "project": lambda: model.project(features.query_output, fused),
        "generate": lambda: model.generate(**inputs, encoded_images=encoded, **options),
    }
    seconds = {stage: median_seconds(run, arguments.repeats) for stage, run in stages.items()}
    total = sum(seconds.values())
    for stage, spent in seconds.items():
        print(f"{stage:<9} {spent * 1000 / arguments.photos:8.2f} ms a photo  {spent / total:6.1%}")
    print(f"{'all':<9} {total * 1000 / arguments.photos:8.2f} ms a photo")

    embeddings = model.embed_prompt(inputs["input_ids"], encoded.prefix)
    mask = inputs["attention_mask"]

    def stock() -> torch.Tensor:
        known = {}
        if model.config.known_words_only:  # of which words captions may be made
            known["logits_processor"] = [model._spelling_processor(encoded.names, len(embeddings))]
        return model.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            **known,
            **options,
        )

    same = torch.equal(stock(), stages["generate"]())
    ratio = median_seconds(stock, arguments.repeats) / seconds["generate"]
    print(f"stock beam search takes {ratio:.2f} x the time of beams that share the prefill; same ids: {same}")
    return 0
