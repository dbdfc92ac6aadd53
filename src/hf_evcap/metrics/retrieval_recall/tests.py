"""Example cases of this metric: the arguments of `compute` and what it gives."""

from __future__ import annotations


test_cases = [
    {
        "predictions": [["dogs", "cat"], ["fire_hydrant", "car"]],
        "references": [["cat"], ["car", "bus"]],
        "k": [1, 2],
        "result": {
            "recall_at_1": 0.0,
            "hit_at_1": 0.0,
            "recall_at_2": 0.75,
            "hit_at_2": 1.0,
            "mean_reciprocal_rank": 0.5,
            "ranks_per_image": [[2], [2, 0]],
        },
    },
    {
        "predictions": [[], ["Hot Dogs"]],
        "references": ["cat", "hot_dog"],
        "k": 1,
        "result": {"recall_at_1": 0.5, "hit_at_1": 0.5, "mean_reciprocal_rank": 0.5, "ranks_per_image": [[0], [1]]},
    },
]
