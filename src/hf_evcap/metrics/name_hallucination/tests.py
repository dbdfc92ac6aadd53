"""Example cases of this metric: the arguments of `compute` and what it gives."""

from __future__ import annotations


test_cases = [
    {
        "predictions": ["a dog and two cats on a sofa"],
        "references": [["A dog lies on a couch."]],
        "memory_names": ["dog", "cat", "sofa"],
        "synonyms": {"sofa": ["couch"]},
        "result": {
            "hallucination_per_mention": 0.333333,
            "hallucination_per_caption": 1.0,
            "mentions": 3,
            "hallucinated_mentions": 1,
            "hallucinated_captions": 1,
            "per_name": [
                {"name": "cat", "mentions": 1, "hallucinated": 1},
                {"name": "dog", "mentions": 1, "hallucinated": 0},
                {"name": "sofa", "mentions": 1, "hallucinated": 0},
            ],
            "hallucinated_per_caption": [["cat"]],
        },
    },
    {
        "predictions": ["a zebra", "a horse"],
        "annotations": [["zebra"], ["zebra"]],
        "retrieved_names": [["zebra"], ["horse", "zebra"]],
        "result": {
            "hallucination_per_mention": 0.5,
            "hallucination_per_caption": 0.5,
            "mentions": 2,
            "hallucinated_mentions": 1,
            "hallucinated_captions": 1,
            "per_name": [
                {"name": "horse", "mentions": 1, "hallucinated": 1},
                {"name": "zebra", "mentions": 1, "hallucinated": 0},
            ],
            "hallucinated_per_caption": [[], ["horse"]],
        },
    },
]
