"""Example cases of this metric: the arguments of `compute` and what it gives."""

from __future__ import annotations


test_cases = [
    {
        "predictions": ["A cat sits on the mat.", "Two dogs run on grass"],
        "references": [
            ["A cat is sitting on the mat.", "The cat sat on a mat"],
            ["two dogs are running", "Two dogs run on the grass."],
        ],
        "result": {"rouge_l": 0.826567, "rouge_l_per_caption": [0.758706, 0.894428]},
    },
    {
        "predictions": ["A man's dog.", "a red bus"],
        "references": [["a man 's dog"], ["A red bus!"]],
        "result": {"rouge_l": 1.0, "rouge_l_per_caption": [1.0, 1.0]},
    },
    {
        "predictions": ["x y z", "u v w"],
        "references": [["a man 's dog"], ["A red bus!"]],
        "result": {"rouge_l": 0.0, "rouge_l_per_caption": [0.0, 0.0]},
    },
]
