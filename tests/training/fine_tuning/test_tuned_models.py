"""What a tuned model is saved as: its precision, its licence, and the model that it was tuned from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from tiny_models import make_model
from training_runs import train, training_arguments, write_photos

import hf_evcap
from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor
from hf_evcap.hub.card_facts import CardFacts
from hf_evcap.hub.inherited_terms import inherit_terms
from hf_evcap.hub.model_card import make_model_card
from hf_evcap.stored_precision import halve_exact
from hf_evcap.training.caption_trainer import CaptionTrainer


EMBEDDED = Path(hf_evcap.default_model())
TERMS = "flickr8k-imagenet-noncommercial"
TRAINED = {"query_tokens", "name_query_tokens", "language_projection.weight", "language_projection.bias"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> datasets.Dataset:
    folder = write_photos(tmp_path_factory.mktemp("photos"))
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")


@pytest.fixture(scope="module")
def tuned(rows: datasets.Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The embedded model after two steps in Python, and the folder that `save_model` wrote."""
    folder = tmp_path_factory.mktemp("tuned")
    model = EVCapForConditionalGeneration.from_pretrained(EMBEDDED)
    model.freeze_for_training("paper")
    processor = EVCapProcessor.from_pretrained(EMBEDDED)
    arguments = training_arguments(folder, predict_with_generate=False)
    trainer = CaptionTrainer(model, arguments, processing_class=processor, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    return model, folder


# Precision


def test_frozen_weights_are_stored_as_they_came_and_trained_ones_whole(tuned: tuple[Any, Path]) -> None:
    model, folder = tuned
    before, after = (load_file(place / "model.safetensors") for place in (EMBEDDED, folder))
    state = model.state_dict()
    assert set(before) == set(after) and TRAINED < set(after)
    for name, value in after.items():
        assert torch.equal(value.to(state[name].dtype), state[name]), f"{name} was rounded"
        if name in TRAINED:
            assert value.dtype == torch.float32 and not torch.equal(value, before[name].float()), name
        else:
            assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    trained = sum(after[name].numel() for name in TRAINED)
    sizes = [(place / "model.safetensors").stat().st_size for place in (EMBEDDED, folder)]
    assert sizes[1] - sizes[0] < 2 * trained + 4096  # two bytes more for each value that was trained, and no more
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32" == str(model.dtype).split(".")[1]
    again = EVCapForConditionalGeneration.from_pretrained(folder)
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_the_embedded_model_is_saved_as_it_lies_in_the_package(tmp_path: Path) -> None:
    EVCapForConditionalGeneration.from_pretrained(EMBEDDED, memory=False).save_pretrained(tmp_path)
    before, after = (load_file(place / "model.safetensors") for place in (EMBEDDED, tmp_path))
    assert {name: value.dtype for name, value in before.items()} == {name: v.dtype for name, v in after.items()}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_needs_float32_stays_and_what_is_tied_stays_tied() -> None:
    whole = torch.randn(40, 50)
    tied = torch.randn(30, 20).half().float()
    state = {
        "whole": whole,
        "a": tied,
        "b": tied,
        "bfloat": (1e-20 * torch.randn(4, 4)).bfloat16().float(),
        "nan": torch.full((2, 2), torch.nan),
        "zeros": torch.zeros(7),
        "count": torch.tensor(3),
        "one_needs_more": torch.cat([tied.flatten(), torch.tensor([0.1])]),
    }
    stored = halve_exact(state)
    assert stored["whole"] is whole and stored["count"] is state["count"] and stored["nan"] is state["nan"]
    assert stored["one_needs_more"].dtype == torch.float32
    assert (
        stored["a"] is stored["b"] and stored["a"].dtype == torch.float16 and stored["bfloat"].dtype == torch.bfloat16
    )
    assert stored["zeros"].dtype == torch.float16  # as the most
    drawn = halve_exact({"whole": whole, "zeros": torch.zeros(7)})
    assert drawn["zeros"].dtype == torch.float32  # there is no checkpoint in half precision


def test_a_model_whose_words_are_tied_is_saved_once(tmp_path: Path) -> None:
    model = make_model(
        memory=False,
        text_config={**make_model(memory=False).config.text_config.to_dict(), "tie_word_embeddings": True},
    )
    model.half().float().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "language_model.lm_head.weight" not in stored
    assert stored["language_model.model.embed_tokens.weight"].dtype == torch.float16
    again = EVCapForConditionalGeneration.from_pretrained(tmp_path)
    assert again.language_model.lm_head.weight is again.language_model.model.embed_tokens.weight


# Terms


def test_the_card_has_the_licence_of_the_model_that_it_was_tuned_from(tuned: tuple[Any, Path]) -> None:
    _, folder = tuned
    assert (folder / "LICENSE").read_bytes() == (EMBEDDED / "LICENSE").read_bytes()
    text = make_model_card(folder, repo_id="alice/tuned")
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == ("other", TERMS, "LICENSE")
    assert "tuned from evcap-tiny, which comes inside of hf_evcap" in text and "non-commercial research only" in text
    assert f"| `the whole model` | evcap-tiny, which comes inside of hf_evcap | {TERMS} |" in text
    assert data.base_model is None  # it has no repo on the Hub
    facts = json.loads((folder / "results.json").read_text())
    assert set(facts["training"]["trained_parts"]) == {"query_tokens", "name_query_tokens", "language_projection"}


def test_a_run_of_the_command_line_says_the_same(tuned: tuple[Any, Path], tmp_path: Path) -> None:
    """Tuned from the tuned one: the licence goes on."""
    data = write_photos(tmp_path / "photos")
    train(tuned[1], data, tmp_path / "again", max_steps=1, predict_with_generate=False)
    card = ModelCard.load(tmp_path / "again" / "README.md")
    assert (card.data.license_name, card.data.license_link) == (TERMS, "LICENSE")
    assert (tmp_path / "again" / "LICENSE").is_file() and str(tmp_path) not in card.text


def test_what_a_person_stated_counts(tmp_path: Path) -> None:
    facts = inherit_terms(CardFacts(title="mine", license="mit"), tmp_path, EMBEDDED)
    assert facts.license == "mit" and facts.license_name is None and len(facts.started_from) == 1
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: cc-by-4.0\nbase_model: org/model\n---\nBy hand.\n")
    facts = inherit_terms(CardFacts(title="mine"), tmp_path, base)
    assert (facts.license, facts.license_link) == ("cc-by-4.0", None)
    assert [one.repo_id for one in facts.started_from] == ["org/model"]
    assert inherit_terms(CardFacts(title="mine"), tmp_path, tmp_path / "gone").license is None
