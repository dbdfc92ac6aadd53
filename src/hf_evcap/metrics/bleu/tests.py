"""Example cases of this metric: the arguments of `compute` and what it gives."""

from __future__ import annotations


test_cases = [
    {
        "predictions": ["A cat sits on the mat.", "Two dogs run on grass"],
        "references": [
            ["A cat is sitting on the mat.", "The cat sat on a mat"],
            ["two dogs are running", "Two dogs run on the grass."],
        ],
        "result": {
            "bleu_1": 0.909091,
            "bleu_2": 0.778499,
            "bleu_3": 0.638038,
            "bleu_4": 0.477411,
            "bleu_1_per_caption": [0.833333, 1.0],
            "bleu_2_per_caption": [0.707107, 0.866025],
            "bleu_3_per_caption": [0.5, 0.793701],
            "bleu_4_per_caption": [8e-05, 0.707107],
            "prediction_length": 11,
            "reference_length": 10,
        },
    },
    {
        "predictions": ["A man's dog.", "a red bus"],
        "references": [["a man 's dog"], ["A red bus!"]],
        "result": {
            "bleu_1": 1.0,
            "bleu_2": 1.0,
            "bleu_3": 1.0,
            "bleu_4": 1.0,
            "bleu_1_per_caption": [1.0, 1.0],
            "bleu_2_per_caption": [1.0, 1.0],
            "bleu_3_per_caption": [1.0, 1.0],
            "bleu_4_per_caption": [1.0, 0.031623],
            "prediction_length": 7,
            "reference_length": 7,
        },
    },
    {
        "predictions": ["x y z", "u v w"],
        "references": [["a man 's dog"], ["A red bus!"]],
        "result": {
            "bleu_1": 0.0,
            "bleu_2": 0.0,
            "bleu_3": 0.0,
            "bleu_4": 0.0,
            "bleu_1_per_caption": [0.0, 0.0],
            "bleu_2_per_caption": [0.0, 0.0],
            "bleu_3_per_caption": [0.0, 0.0],
            "bleu_4_per_caption": [0.0, 0.0],
            "prediction_length": 6,
            "reference_length": 7,
        },
    },
]
