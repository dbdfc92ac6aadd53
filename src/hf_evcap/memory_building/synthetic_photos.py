"""Synthetic photos of names by a diffusion model, as EVCap adds them to its memory (section 3.2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from .photo_sources import NamedPhotos


PROMPT = "a photo of {name}"


def load_diffusion_pipeline(model: str, **settings: Any) -> Any:
    """
    Loads a text-to-image pipeline of `diffusers`, on the GPU where there is one.

    Raises:
        ImportError: diffusers is not installed.
    """
    try:
        from diffusers import AutoPipelineForText2Image
    except ImportError as error:
        raise ImportError("Synthetic photos need diffusers: `pip install hf_evcap[synthetic]`.") from error
    pipeline = AutoPipelineForText2Image.from_pretrained(model, **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def synthetic_photos(
    names: Sequence[str], photos_per_name: int, pipeline: Any, source: str, seed: int = 0, **options: Any
) -> NamedPhotos:
    """
    Photos that a diffusion pipeline makes of names, marked as synthetic.

    Every photo has a random generator of its own, so that an interrupted build makes the same ones again.

    Args:
        names (`Sequence[str]`): What to show.
        photos_per_name (`int`): Photos of each name; the paper takes 5.
        pipeline (`diffusers.DiffusionPipeline`): Called as `pipeline(prompt=..., generator=...)`.
        source (`str`): Value of the column `source`, such as the pipeline's Hub id.
        seed (`int`, *optional*, defaults to 0): Of the photos.
        options: Passed to the pipeline (`num_inference_steps`, `height`, `width`, ...).
    """
    names = list(names)

    def get(number: int) -> dict[str, Any]:
        name, which = names[number // photos_per_name], number % photos_per_name
        digest = hashlib.sha256(json.dumps([seed, name, which]).encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "little"))

        def make() -> Any:
            return pipeline(prompt=PROMPT.format(name=name), generator=generator, **options).images[0]

        return {"image": make, "names": [name], "source": source, "synthetic": True}

    described = json.dumps([names, photos_per_name, source, seed, options], sort_keys=True, default=str)
    return NamedPhotos(len(names) * photos_per_name, get, hashlib.sha256(described.encode()).hexdigest(), licenses={})


__all__ = ["load_diffusion_pipeline", "synthetic_photos"]
