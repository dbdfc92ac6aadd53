"""Example cases of this metric: the arguments of `compute` and what it gives."""

from __future__ import annotations


test_cases = [
    {
        "predictions": ["Two hedgehogs on grass.", "a small animal", "a man eating hot-dogs"],
        "references": ["hedgehog", "hedgehog", "hot_dog"],
        "result": {
            "novel_object_recall": 0.666667,
            "mean_object_recall": 0.75,
            "per_object": [
                {"name": "hedgehog", "images": 2, "named": 1, "recall": 0.5},
                {"name": "hot_dog", "images": 1, "named": 1, "recall": 1.0},
            ],
            "named_per_caption": [["hedgehog"], [], ["hot_dog"]],
        },
    },
    {
        "predictions": ["a man eating a hot dog", "a fireplug"],
        "references": ["dog", ["fire_hydrant"]],
        "synonyms": {"fire hydrant": ["fireplug"]},
        "vocabulary": ["hot dog"],
        "result": {
            "novel_object_recall": 0.5,
            "mean_object_recall": 0.5,
            "per_object": [
                {"name": "dog", "images": 1, "named": 0, "recall": 0.0},
                {"name": "fire_hydrant", "images": 1, "named": 1, "recall": 1.0},
            ],
            "named_per_caption": [[], ["fire_hydrant"]],
        },
    },
]
