"""The card of a small captioner and its counting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

import hf_evcap.training
from hf_evcap.hub.card_facts import read_card_facts
from hf_evcap.training.from_scratch.tiny_card import card_facts, contact_sheet
from hf_evcap.training.from_scratch.tiny_measurements import TinyMeasurements, says


RECIPES = Path(hf_evcap.training.__file__).parent / "recipes"


def test_says_whole_words_and_plurals():
    assert says("two kangaroos in the grass", "kangaroo")
    assert says("a photo of a Red Panda", "red panda")
    assert not says("a cartoon", "car")
    assert not says("a photo of a kangaua", "kangaroo")


def test_recall_counts_captions_and_places():
    counted = TinyMeasurements.recall(
        ["crab", "lamp", "lamp"],
        ["a photo of a crab", "a photo of a lamp", "a dog"],
        [["crab", "dog"], ["dog", "lamp"], ["dog"]],
    )
    assert counted["recall"] == 2 / 3
    assert counted["retrieved_first"] == 1 / 3
    assert counted["retrieved_in_10"] == 2 / 3
    assert counted["by_name"] == {"crab": 1.0, "lamp": 0.5}


def test_card_holds_what_was_measured(tmp_path):
    recall = {"recall": 0.75, "retrieved_first": 0.8, "retrieved_in_10": 0.9, "by_name": {"crab": 0.25, "lamp": 1.0}}
    recall["examples"] = [
        {"name": "crab", "caption": "a photo of a crib", "retrieved": ["crab"]},
        {"name": "lamp", "caption": "a photo of a lamp", "retrieved": ["lamp"]},
    ]
    metrics = {"cider": 0.4321, "bleu": 0.2, "rouge_l": 0.4}
    results = {
        "num_beams": 5,
        "scenes": {"photos": 113, "with_memory": metrics, "without_memory": {**metrics, "cider": 0.3}},
        "novel_names": {
            "novel": {
                "names": 22,
                "photos": 220,
                "with_names": recall,
                "without_names": {**recall, "recall": 0.01},
                "after_removal": {**recall, "recall": 0.0},
            },
            "held": {"names": 3, "photos": 30, "with_names": {**recall, "recall": 0.6}, "without_names": recall},
            "seconds_to_add_a_name": 1.25,
        },
        "known_names": {"names": 90, "photos": 270, "with_memory": recall, "without_memory": recall},
        "samples": [{"photo": "cat.jpg", "caption": "a cat", "names": ["tabby"]}],
        "speed": {
            "seconds_a_photo_median": 0.4,
            "threads": 2,
            "cpus": 2,
            "repo_megabytes": 33.3,
            "parameters": 14_000_000,
        },
    }
    stated = yaml.safe_load((RECIPES / "evcap-tiny-card.yaml").read_text(encoding="utf-8"))
    facts = card_facts(results, stated)
    (tmp_path / "results.json").write_text(json.dumps(facts))
    read_card_facts(tmp_path / "results.json")  # nothing that a card does not know
    captions, names = facts["tables"]
    assert captions["rows"][0]["metrics"] == {"CIDEr": 43.2, "BLEU-4": 20.0, "ROUGE-L": 40.0}
    assert [row["metrics"]["recall in captions"] for row in names["rows"]] == [
        *(0.75, 0.01, 0.0),
        *(0.6, 0.75),  # names that the memory holds already, apart
        *(0.75, 0.75),
    ]
    assert "crab (25%), lamp (100%)" in names["note"]
    assert [row["caption"] for row in facts["failures"]] == ["a photo of a crib"]
    assert facts["examples"][0]["photo"] == "../photos/cat.jpg"
    assert {
        "value": "1.25",
        "what": "seconds to add a name by ten photos (median)",
        "machine": "2 CPU cores, 2 threads",
    } in (facts["speed"])


def test_contact_sheet_holds_every_photo(tmp_path):
    paths = []
    for number, colour in enumerate(["red", "green", "blue"]):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (100, 50), colour).save(paths[-1])
    sheet = np.asarray(contact_sheet(paths, ["a red thing", "a green thing", "a blue thing"], columns=2, side=100))
    assert all((sheet == colour).all(-1).sum() == 5000 for colour in [(255, 0, 0), (0, 128, 0), (0, 0, 255)])
