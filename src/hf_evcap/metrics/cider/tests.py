"""Example cases of this metric: the arguments of `compute` and what it gives."""

from __future__ import annotations


test_cases = [
    {
        "predictions": ["A cat sits on the mat.", "Two dogs run on grass"],
        "references": [
            ["A cat is sitting on the mat.", "The cat sat on a mat"],
            ["two dogs are running", "Two dogs run on the grass."],
        ],
        "result": {"cider": 3.468, "cider_per_caption": [2.59142, 4.34458]},
    },
    {
        "predictions": ["A man's dog.", "a red bus"],
        "references": [["a man 's dog"], ["A red bus!"]],
        "result": {"cider": 8.75, "cider_per_caption": [10.0, 7.5]},
    },
    {
        "predictions": ["x y z", "u v w"],
        "references": [["a man 's dog"], ["A red bus!"]],
        "result": {"cider": 0.0, "cider_per_caption": [0.0, 0.0]},
    },
]
