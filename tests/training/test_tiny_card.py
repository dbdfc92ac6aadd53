"""The card of a small captioner and its counting."""

from __future__ import annotations

import numpy as np
from PIL import Image

from hf_evcap.training.tiny_card import contact_sheet, fill_card
from hf_evcap.training.tiny_measurements import TinyMeasurements, says


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


def test_card_holds_what_was_measured():
    recall = {"recall": 0.75, "retrieved_first": 0.8, "retrieved_in_10": 0.9, "by_name": {"crab": 0.25, "lamp": 1.0}}
    metrics = {"cider": 0.4321, "bleu": 0.2, "rouge_l": 0.4}
    results = {
        "num_beams": 5,
        "scenes": {"photos": 113, "with_memory": metrics, "without_memory": {**metrics, "cider": 0.3}},
        "novel_names": {
            "names": 25,
            "photos": 250,
            "with_names": recall,
            "without_names": {**recall, "recall": 0.01},
            "after_removal": {**recall, "recall": 0.0},
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
    card = fill_card(results, "By a recipe.", ["It calls a cup a bowl."])
    assert card.startswith("---\n")
    assert "| CIDEr | 43.2 | 30.0 |" in card
    assert "| cat.jpg | a cat | tabby |" in card
    assert "crab (25%), lamp (100%)" in card
    assert "- It calls a cup a bowl." in card


def test_contact_sheet_holds_every_photo(tmp_path):
    paths = []
    for number, colour in enumerate(["red", "green", "blue"]):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (100, 50), colour).save(paths[-1])
    sheet = np.asarray(contact_sheet(paths, ["a red thing", "a green thing", "a blue thing"], columns=2, side=100))
    assert all((sheet == colour).all(-1).sum() == 5000 for colour in [(255, 0, 0), (0, 128, 0), (0, 0, 255)])
