"""Marks that transformers' own tests carry."""

from __future__ import annotations

import pytest


MARKS = (
    "accelerate_tests", "flash_attn_3_test", "flash_attn_4_test", "flash_attn_test", "generate",
    "is_staging_test", "is_training_test", "order", "slow", "torch_compile_test", "torch_export_test",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' tests")
