"""Writes a trained small captioner as a repo: weights in float16, processor, and the memory that ships with it."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer
from transformers.utils import logging

from ...caption_data.caption_words import shared_words
from ...memory_evcap import VisualNameMemory
from ...modeling_evcap import EVCapForConditionalGeneration
from ...processing_evcap import EVCapProcessor
from .tiny_data import open_photo
from .tiny_recipe import TinyRecipe


logger = logging.get_logger(__name__)


def make_processor(trained: TinyRecipe) -> EVCapProcessor:
    """Processor of the captioner: the photo's vectors, then the start of a caption."""
    model = trained.recipe["model"]
    return EVCapProcessor(
        trained.image_processor(),
        AutoTokenizer.from_pretrained(trained.work / "tokenizer"),
        AutoTokenizer.from_pretrained(trained.work / "tokenizer"),  # another object: each is saved with its folder
        num_prefix_tokens=model["num_query_tokens"] + model["num_name_query_tokens"],
        prompt_template="{image}" + trained.tokenizer.bos_token,
        prompt="",
        caption_end=trained.tokenizer.eos_token,
        add_bos_token=False,
    )


def memory_rows(trained: TinyRecipe) -> list[dict[str, Any]]:
    """Photos of the memory that ships, each with its names: exemplars of every object, and all scenes."""
    limit, rows = trained.recipe["data"]["exemplars_per_name"], []
    for i, row in enumerate(trained.objects.to_dict("records")):
        if trained.object_ranks[i] < limit:
            rows.append({**row, "names": [row["name"]], "kind": "object"})
    for captions, row in zip(trained.captions, trained.photos.to_dict("records"), strict=True):
        rows.append({**row, "names": shared_words(captions), "kind": "scene"})
    return rows


def make_memory(
    trained: TinyRecipe, model: EVCapForConditionalGeneration, processor: EVCapProcessor
) -> VisualNameMemory:
    """The memory that ships. Its keys depend on the frozen encoder only and are made once."""
    rows, path = memory_rows(trained), trained.work / "memory_keys.npy"
    if not path.exists():
        batches = [rows[i : i + 32] for i in range(0, len(rows), 32)]
        keys = [model.encode_memory_keys(processor, [open_photo(row["image"]) for row in b]) for b in batches]
        np.save(path, torch.cat(keys).half().numpy())  # half: a smaller file, the same ranking
    keys = np.load(path).astype(np.float32)
    owners = [(photo, name) for photo, row in enumerate(rows) for name in row["names"]]
    return VisualNameMemory.from_rows(
        [name for _, name in owners],
        keys[[photo for photo, _ in owners]],
        encoder_fingerprint=model.encoder_fingerprint,
        query_tokens_hash=model.query_tokens_hash,
        licenses=trained.recipe["data"].get("licenses"),
        kind=[rows[photo]["kind"] for photo, _ in owners],
        source=[rows[photo].get("source") for photo, _ in owners],
        photo=[hashlib.sha256(rows[photo]["image"]["bytes"]).hexdigest()[:16] for photo, _ in owners],
    )


def export_captioner(trained: TinyRecipe, output: str | Path, embedded: bool = False) -> Path:
    """
    Runs what is missing and writes the finished repo: weights in float16, processor, memory.

    Args:
        trained ([`~tiny_recipe.TinyRecipe`]): The recipe with its work folder.
        output (`str` or `Path`): Folder of the repo.
        embedded (`bool`, *optional*, defaults to `False`):
            Leave out the code, for a folder inside the installed package, and the index, which is rebuilt.
    """
    started = time.time()
    output = Path(output)
    model = trained.joint().eval()
    processor = make_processor(trained)
    generation = model.generation_config
    generation.update(
        **trained.recipe["generation"],
        eos_token_id=trained.tokenizer.eos_token_id,
        pad_token_id=trained.tokenizer.pad_token_id,
        bos_token_id=trained.tokenizer.bos_token_id,
    )
    # The keys must be those of the weights that ship, so they go through float16 first.
    model.to(torch.float16).to(torch.float32)
    model.set_memory(make_memory(trained, model, processor), trained.tokenizer)
    model.to(torch.float16).save_pretrained(output)
    config = output / "config.json"  # half the size on disk, and computed in float32 unless asked otherwise
    config.write_text(config.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")
    processor.save_pretrained(output)
    if embedded:
        for path in [*output.glob("*.py"), output / "memory" / "index.faiss"]:
            path.unlink(missing_ok=True)
    logger.info("wrote %s in %.0f s", output, time.time() - started)
    return output
