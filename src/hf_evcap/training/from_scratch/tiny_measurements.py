"""Measures a small captioner as its card reports it: captions of scenes, novel and known names, time and size."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...memory_evcap import VisualNameMemory
from ...modeling_evcap import EVCapForConditionalGeneration
from ...processing_evcap import EVCapProcessor
from ...retrieval_evcap import normalize_name
from .tiny_data import open_photo


def says(caption: str, name: str) -> bool:
    """Whether a caption holds a name as a word or words, in the singular or a regular plural."""
    return re.search(rf"(?<![a-z]){re.escape(normalize_name(name))}(?:s|es)?(?![a-z])", caption.lower()) is not None


class TinyMeasurements:
    """
    Captions the test photos with and without names and counts.

    Args:
        model_dir (`str` or `Path`): The captioner's repo.
        data (`str` or `Path`): Folder with `captions/validation.parquet` and `objects/{train,novel}.parquet`.
        num_beams (`int`, *optional*, defaults to 5): Beams.
        batch_size (`int`, *optional*, defaults to 16): Photos captioned at once.
    """

    def __init__(self, model_dir: str | Path, data: str | Path, num_beams: int = 5, batch_size: int = 16) -> None:
        self.model_dir, self.data, self.num_beams, self.batch_size = Path(model_dir), Path(data), num_beams, batch_size
        self.model = EVCapForConditionalGeneration.from_pretrained(model_dir).eval()
        self.processor = EVCapProcessor.from_pretrained(model_dir)
        self.shipped: VisualNameMemory = self.model.memory

    @torch.no_grad()
    def caption(self, photos: Sequence[Any], memory: VisualNameMemory | None) -> tuple[list[str], list[list[str]]]:
        """Captions and retrieved names of photos (parquet rows) with a memory, or with an empty one."""
        if memory is None:
            memory = VisualNameMemory.empty(self.model.memory_key_size)
        self.model.set_memory(memory)
        captions, names = [], []
        for start in range(0, len(photos), self.batch_size):
            images = [open_photo(photo) for photo in photos[start : start + self.batch_size]]
            inputs = self.processor(images=images, return_tensors="pt")
            encoded = self.model.encode_images(inputs.pop("pixel_values"))
            ids = self.model.generate(**inputs, encoded_images=encoded, num_beams=self.num_beams)
            captions += [text.strip() for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
            names += encoded.names.names
        self.model.set_memory(self.shipped)
        return captions, names

    def scenes(self) -> dict[str, Any]:
        """Caption metrics on the validation photos, with and without the memory, in all and by source."""
        import evaluate
        import pandas as pd

        from ...metrics import metric_path

        table = pd.read_parquet(self.data / "captions" / "validation.parquet")
        references = [list(captions) for captions in table["captions"]]
        results: dict[str, Any] = {"photos": len(table), "sources": table["source"].value_counts().to_dict()}
        for label, memory in (("with_memory", self.shipped), ("without_memory", None)):
            captions, names = self.caption(table["image"].tolist(), memory)
            results[label] = {}
            for metric, key in (("cider", "cider"), ("bleu", "bleu_4"), ("rouge_l", "rouge_l")):
                computed = evaluate.load(metric_path(metric)).compute(predictions=captions, references=references)
                results[label][metric] = computed[key]
            results[label]["captions"] = [
                {"image_id": image_id, "caption": caption, "names": retrieved}
                for image_id, caption, retrieved in zip(table["image_id"], captions, names, strict=True)
            ]
        return results

    def novel_names(self, exemplars: int = 10, first_test_photo: int = 10, without: bool = True) -> dict[str, Any]:
        """
        Recall of names added at run time, on other photos of them; names that the memory holds already count apart.

        Args:
            exemplars (`int`, *optional*, defaults to 10): Photos of each name that are added.
            first_test_photo (`int`, *optional*, defaults to 10): Those from this one on are captioned.
            without (`bool`, *optional*, defaults to `True`): Also caption without the names, and after their removal.

        Returns:
            `dict`: For `"novel"` and `"held"` names counts and what [`recall`] gives of each setting; the median time
            to add a name. Without names of a kind, that entry is left out.
        """
        import pandas as pd

        table = pd.read_parquet(self.data / "objects" / "novel.parquet")
        ranks = table.groupby("name").cumcount()
        memory = self.shipped.subset(lambda name: True)
        seconds = []
        for name, rows in table[ranks < exemplars].groupby("name"):
            images = [open_photo(row) for row in rows["image"]]
            started = time.perf_counter()
            memory.add_images(self.model, self.processor, images, [name] * len(images))
            seconds.append(time.perf_counter() - started)
        test = table[ranks >= first_test_photo]
        labels = test["name"].tolist()
        settings = {"with_names": memory}
        if without:
            removed = memory.subset(lambda name: True)
            removed.remove(sorted(set(labels)))
            settings |= {"without_names": self.shipped, "after_removal": removed}
        written = {label: self.caption(test["image"].tolist(), used) for label, used in settings.items()}
        shipped = {normalize_name(name) for name in self.shipped.names}
        results: dict[str, Any] = {"seconds_to_add_a_name": statistics.median(seconds)}
        for kind in ("novel", "held"):
            places = [i for i, name in enumerate(labels) if (normalize_name(name) in shipped) == (kind == "held")]
            if places:
                own = [labels[i] for i in places]
                results[kind] = {"names": len(set(own)), "photos": len(own)}
                for label, (captions, names) in written.items():
                    results[kind][label] = self.recall(own, [captions[i] for i in places], [names[i] for i in places])
        return results

    def known_names(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Recall of the memory's own names on photos that were neither trained on nor put into the memory."""
        import pandas as pd

        table = pd.read_parquet(self.data / "objects" / "train.parquet")
        limit, extra = recipe["exemplars_per_name"], recipe["held_out_exemplars"]
        ranks, counts = table.groupby("name").cumcount(), table["name"].map(table["name"].value_counts())
        test = table[(counts >= limit + extra) & (ranks >= limit) & (ranks < limit + extra)]
        labels = test["name"].tolist()
        results: dict[str, Any] = {"names": len(set(labels)), "photos": len(labels)}
        for label, used in (("with_memory", self.shipped), ("without_memory", None)):
            captions, names = self.caption(test["image"].tolist(), used)
            results[label] = self.recall(labels, captions, names)
        return results

    @staticmethod
    def recall(labels: Sequence[str], captions: Sequence[str], names: Sequence[Sequence[str]]) -> dict[str, Any]:
        """How often captions say the label, and how often retrieval finds it first or within ten."""
        said = [says(caption, label) for caption, label in zip(captions, labels, strict=True)]
        places = [
            list(retrieved).index(normalize_name(label)) if normalize_name(label) in retrieved else 99
            for retrieved, label in zip(names, labels, strict=True)
        ]
        by_name: dict[str, list[bool]] = {}
        for label, hit in zip(labels, said, strict=True):
            by_name.setdefault(label, []).append(hit)
        return {
            "recall": sum(said) / len(said),
            "retrieved_first": sum(place == 0 for place in places) / len(places),
            "retrieved_in_10": sum(place < 10 for place in places) / len(places),
            "by_name": {name: sum(hits) / len(hits) for name, hits in sorted(by_name.items())},
            "examples": [
                {"name": label, "caption": caption, "retrieved": list(retrieved)[:3]}
                for label, caption, retrieved in zip(labels, captions, names, strict=True)
            ],
        }

    def speed(self, photos: Sequence[Path], repeats: int = 3) -> dict[str, Any]:
        """Seconds a photo, one at a time and warm, reading and beam search included; size of the repo."""
        seconds = []
        for number in range(repeats + 1):
            for photo in photos:
                started = time.perf_counter()
                inputs = self.processor(images=str(photo), return_tensors="pt")
                self.model.generate(**inputs, num_beams=self.num_beams)
                if number:  # the first round warms up
                    seconds.append(time.perf_counter() - started)
        size = sum(file.stat().st_size for file in self.model_dir.rglob("*") if file.is_file())
        return {
            "seconds_a_photo_median": statistics.median(seconds),
            "seconds_a_photo_worst": max(seconds),
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "repo_megabytes": size / 1e6,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
        }

    def run(self, photos: Sequence[Path], recipe: dict[str, Any], output: str | Path) -> dict[str, Any]:
        """Measures everything and writes it as JSON."""
        results = {
            "num_beams": self.num_beams,
            "scenes": self.scenes(),
            "novel_names": self.novel_names(),
            "known_names": self.known_names(recipe["data"]),
            "samples": [
                {"photo": photo.name, "caption": caption, "names": names}
                for photo, caption, names in zip(
                    photos, *self.caption([{"path": str(photo)} for photo in photos], self.shipped), strict=True
                )
            ],
            "speed": self.speed(photos),
        }
        Path(output).write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return results
