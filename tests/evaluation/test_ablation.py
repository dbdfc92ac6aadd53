"""Variants of a captioner, and the table and plot of an ablation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_evcap import EVCapForConditionalGeneration
from hf_evcap.evaluation import EvaluationArguments, evaluate_captioner
from hf_evcap.evaluation.variants import Variant, applied, other_variants


@pytest.fixture(scope="module")
def ablated(tiny_dir: Path, captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An ablation over everything, on three photos."""
    output = tmp_path_factory.mktemp("ablated")
    other = EVCapForConditionalGeneration.from_pretrained(tiny_dir).memory.subset(["owl", "dog"])
    other.save_pretrained(output / "pets")
    results = evaluate_captioner(
        EvaluationArguments(
            str(captioned), str(output), model=str(tiny_dir), limit=3, report_photos=1, ablate=["all"],
            ablate_names=[1, 2, 4, 20], ablate_beams=[1, 2], min_similarity=1.1, other_memory=[str(output / "pets")],
        )
    )  # fmt: skip
    assert results is not None
    return output, results


def retrieved(output: Path, variant: str) -> list[list[str]]:
    lines = (output / "predictions" / variant / "part-000000.jsonl").read_text().splitlines()
    return [[entry["name"] for entry in json.loads(line)["retrieved"]] for line in lines]


def test_every_variant_is_what_it_says(ablated: tuple[Path, dict[str, Any]]) -> None:
    output, results = ablated
    names = [variant["name"] for variant in results["variants"]]
    assert names == [
        "as it is", "without the memory", "memory pets", "1 name", "2 names", "20 names", "rule paper",
        "rejection below 1.1", "2 beams",
    ]  # fmt: skip
    own = retrieved(output, "as-it-is")
    assert {len(photo) for photo in own} == {4}
    assert retrieved(output, "1-name") == [photo[:1] for photo in own]
    assert retrieved(output, "2-names") == [photo[:2] for photo in own]
    for photo, first in zip(retrieved(output, "20-names"), own, strict=True):
        assert photo[:4] == first and len(photo) > 4
    assert {name for photo in retrieved(output, Variant(names[2]).folder) for name in photo} <= {"owl", "dog"}
    assert retrieved(output, "without-the-memory") == [[], [], []]
    # nothing is similar enough: the same captions as without a memory
    assert retrieved(output, "rejection-below-1.1") == [[], [], []]
    assert results["variants"][7]["metrics"] == results["variants"][1]["metrics"]
    settings = {variant["name"]: variant["settings"] for variant in results["variants"]}
    assert settings["rule paper"]["retrieval"]["retrieval_rule"] == "paper"
    assert settings["2 beams"]["generation"]["num_beams"] == 2


def test_table_and_plot(ablated: tuple[Path, dict[str, Any]]) -> None:
    output, results = ablated
    text = (output / "results.md").read_text()
    for variant in results["variants"]:
        assert f"| {variant['name']} | {variant['metrics']['all']['CIDEr']:.1f} |" in text
    plot = Image.open(output / "ablation.png").convert("RGB")
    assert plot.width == 1800 and plot.height > 800
    assert len(plot.getcolors(1 << 20)) > 50  # something is drawn
    report = (output / "report.html").read_text()
    assert "<h2>Variants</h2>" in report and 'src="data:image/png;base64,' in report


def test_a_variant_leaves_the_model_as_it_was(tiny_dir: Path) -> None:
    model = EVCapForConditionalGeneration.from_pretrained(tiny_dir)
    memory, config = model.memory, model.config.to_dict()
    with applied(model, Variant("x", config={"num_retrieved_names": 1}, num_beams=2)) as options:
        assert model.config.num_retrieved_names == 1 and options == {"num_beams": 2}
    with pytest.raises(RuntimeError), applied(model, Variant("x", min_similarity=0.5)):
        assert model.memory.min_similarity == 0.5
        raise RuntimeError
    assert model.memory is memory and memory.min_similarity is None and model.config.to_dict() == config


def test_what_an_ablation_leaves_out(tiny_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = EVCapForConditionalGeneration.from_pretrained(tiny_dir)
    arguments = EvaluationArguments("x", "y", ablate=["rejection"], memory_effect=False)
    assert other_variants(model, arguments) == []
    model.memory.retrieval["min_similarity"] = 0.3
    assert [variant.name for variant in other_variants(model, arguments)] == ["rejection off"]
    with pytest.raises(ValueError, match='`other_memory` needs "memory" among `ablate`'):
        other_variants(model, EvaluationArguments("x", "y", ablate=["names"], other_memory=["z"]))
    model.set_memory(None)
    assert other_variants(model, EvaluationArguments("x", "y", ablate=["memory", "names", "rule"])) == []
