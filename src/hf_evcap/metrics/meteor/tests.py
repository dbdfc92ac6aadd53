"""Example cases of this metric: the arguments of `compute` and what it gives."""

from __future__ import annotations


test_cases = [
    {
        "predictions": ["A cat sits on the mat.", "Two dogs run on grass"],
        "references": [
            ["A cat is sitting on the mat.", "The cat sat on a mat"],
            ["two dogs are running", "Two dogs run on the grass."],
        ],
        "result": {"meteor": 0.521375, "meteor_per_caption": [0.880309, 0.46457]},
    },
    {
        "predictions": ["A man's dog.", "a red bus"],
        "references": [["a man 's dog"], ["A red bus!"]],
        "result": {"meteor": 1.0, "meteor_per_caption": [1.0, 1.0]},
    },
    {
        "predictions": ["x y z", "u v w"],
        "references": [["a man 's dog"], ["A red bus!"]],
        "result": {"meteor": 0.0, "meteor_per_caption": [0.0, 0.0]},
    },
]
