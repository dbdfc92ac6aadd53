"""Example cases of this metric: the arguments of `compute`. No results: Java and the models are not everywhere."""

from __future__ import annotations


test_cases = [
    {
        "predictions": ["A cat sits on the mat.", "Two dogs run on grass"],
        "references": [
            ["A cat is sitting on the mat.", "The cat sat on a mat"],
            ["two dogs are running", "Two dogs run on the grass."],
        ],
    }
]
