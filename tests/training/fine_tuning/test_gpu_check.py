"""The scripts that measure training run on small models, and their figures add up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def scripts_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "scripts"))


def test_gpu_check(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import gpu_check

    options = ["--tiny", "--steps", "3", "--photos", "4", "--batch-size", "2", "--new-tokens", "4", "--peak", "0.5"]
    assert gpu_check.main([*options, "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("ok\n") and "bfloat16 peak 0.5 TFLOP/s (given)" in printed
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    ways = {f"{policy}, {kind}" for policy in ("paper", "lora") for kind in ("photos", "cached features")}
    assert set(figures["training"]) == ways
    for row in figures["training"].values():
        assert row["mfu"] == pytest.approx(row["tflop_per_step"] / row["seconds"] / 0.5)
        assert row["tokens_per_second"] > row["caption_tokens_per_second"] > 0
        assert row["last_loss"] < row["first_loss"] and row["memory_gb"] > 0
    # The encoder's operations are saved, those of the rest are not.
    plain, cached = (figures["training"][f"paper, {kind}"]["tflop_per_step"] for kind in ("photos", "cached features"))
    assert 0.1 < cached / plain < 0.95
    assert figures["captioning"]["captions_per_second"] > 0
    with pytest.raises(SystemExit, match="leaves none of 2 steps"):
        gpu_check.main(["--tiny", "--steps", "2", "--warmup", "2"])


def test_the_full_size_has_about_a_billion_parameters() -> None:
    import gpu_check
    import torch

    size = gpu_check.SIZES["1b"]
    with torch.device("meta"):
        config = gpu_check.EVCapConfig(
            vision_config={"model_type": "blip_2_vision_model", "image_size": 224, **size["vision"]},
            qformer_config={"model_type": "blip_2_qformer", **size["qformer"]},
            fusion_qformer_config={"model_type": "blip_2_qformer", "vocab_size": 200, **size["qformer"]},
            text_config={"model_type": "llama", "vocab_size": size["vocab_size"], **size["text"]},
        )
        model = gpu_check.EVCapForConditionalGeneration(config)
    assert 1.0e9 < sum(weight.numel() for weight in model.parameters()) < 1.2e9
    assert 0.6e9 < sum(weight.numel() for weight in model.language_model.parameters()) < 0.8e9


def test_benchmark_of_training(tiny_dir: Path, capsys: pytest.CaptureFixture) -> None:
    from benchmarks import training

    options = ["--photos", "4", "--batch-size", "2", "--steps", "2", "--warmup", "1"]
    assert training.main(["--model", str(tiny_dir), *options]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"a step from cached features is \d+\.\d\d x as fast", printed)
    assert float(printed.split("losses: ")[-1]) < 1e-4
