"""What a small captioner's card is made of, from what was measured, and a contact sheet of sample photos."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont


def card_facts(measured: Mapping[str, Any], stated: Mapping[str, Any]) -> dict[str, Any]:
    """
    Puts measurements into the form of a model folder's `results.json` (see [`~hub.card_facts`]).

    Args:
        measured (`Mapping`): What [`~tiny_measurements.TinyMeasurements.run`] gave.
        stated (`Mapping`): What no measurement tells: title, licence, data, training, limits.

    Returns:
        `dict`: `stated` with tables, speed and examples.
    """
    scenes, novel, known, speed = (measured[part] for part in ("scenes", "novel_names", "known_names", "speed"))
    split = {"dataset": "Flickr8k (Karpathy)", "split": "validation", "photos": scenes["photos"]}
    caption_rows = [
        {
            **split,
            "setting": setting,
            "metrics": {
                "CIDEr": round(100 * scenes[key]["cider"], 1),
                "BLEU-4": round(100 * scenes[key]["bleu"], 1),
                "ROUGE-L": round(100 * scenes[key]["rouge_l"], 1),
            },
            "model_index": key == "with_memory",
        }
        for key, setting in (("with_memory", "with the memory"), ("without_memory", "empty memory"))
    ]
    name_rows = []
    added = {
        "with_names": "10 exemplars a name added at run time",
        "without_names": "names not in the memory",
        "after_removal": "names added and removed again",
    }
    counted_apart = [(novel["novel"], f"{novel['novel']['names']} novel names", added)]
    if "held" in novel:
        held = {"with_names": added["with_names"], "without_names": "with the memory"}
        counted_apart.append(
            (novel["held"], f"{novel['held']['names']} names of the memory, kept apart from the novel", held)
        )
    for part, dataset, settings in (
        *counted_apart,
        (
            known,
            f"{known['names']} names of the memory, other photos",
            {"with_memory": "with the memory", "without_memory": "empty memory"},
        ),
    ):
        for key, setting in settings.items():
            counted, metrics = part[key], {"recall in captions": round(part[key]["recall"], 3)}
            if not key.startswith(("without", "after")):
                metrics["retrieval recall@1"] = round(counted["retrieved_first"], 3)
                metrics["retrieval recall@10"] = round(counted["retrieved_in_10"], 3)
            name_rows.append({"dataset": dataset, "setting": setting, "photos": part["photos"], "metrics": metrics})
    worst = sorted(novel["novel"]["with_names"]["by_name"].items(), key=lambda pair: pair[1])[:4]
    machine = f"{speed['cpus']} CPU cores, {speed['threads']} threads"
    failures = [
        {"photo": None, "caption": row["caption"], "names": row["retrieved"], "comment": f"a photo of: {row['name']}"}
        for row in missed(novel["novel"]["with_names"]["examples"])[:6]
    ]
    return {
        **stated,
        "tables": [
            {
                "title": "Captions of scenes",
                "note": f"{measured['num_beams']} beams; PTB tokeniser; the standard error of CIDEr is about 4.",
                "rows": caption_rows,
            },
            {
                "title": "Names in captions of object photos",
                "note": "Recall: the caption holds the name as a word. Novel names that did worst: "
                + ", ".join(f"{name} ({recall:.0%})" for name, recall in worst)
                + ".",
                "rows": name_rows,
            },
        ],
        "speed": [
            {
                "what": f"seconds a photo, warm, one at a time, {measured['num_beams']} beams (median)",
                "value": f"{speed['seconds_a_photo_median']:.2f}",
                "machine": machine,
            },
            {
                "what": "seconds to add a name by ten photos (median)",
                "value": f"{novel['seconds_to_add_a_name']:.2f}",
                "machine": machine,
            },
            {"what": "size with the memory, MB", "value": f"{speed['repo_megabytes']:.0f}", "machine": ""},
        ],
        "contact_sheet": "contact_sheet.png",
        "examples": [
            {"photo": f"../photos/{row['photo']}", "caption": row["caption"], "names": row["names"][:6], "comment": ""}
            for row in measured["samples"]
        ],
        "failures": failures,
    }


def missed(examples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Examples in which the caption misses its name, one a name."""
    from .tiny_measurements import says

    first: dict[str, Mapping[str, Any]] = {}
    for row in examples:
        if not says(row["caption"], row["name"]):
            first.setdefault(row["name"], row)
    return list(first.values())


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
