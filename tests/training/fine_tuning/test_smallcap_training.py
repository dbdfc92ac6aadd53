"""The same training for SmallCap: its policies, retrieved captions in the prompt, adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_smallcap
import torch
from peft import PeftModel
from safetensors.torch import load_file
from training_runs import CAPTIONS, train, write_photos
from transformers import pipeline

from hf_evcap import SmallCapForConditionalGeneration


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), CAPTIONS[:4])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smallcap")
    tiny_smallcap.make_model().save_pretrained(folder)
    tiny_smallcap.make_processor().save_pretrained(folder)
    return folder


def changed(folder: Path, base: Path) -> set[str]:
    after, before = (load_file(one / "model.safetensors") for one in (folder, base))
    assert set(after) == set(before)
    return {name for name in after if not torch.equal(after[name], before[name])}


def test_paper_policy_trains_the_cross_attention(base, data, tmp_path):
    trainer = train(base, data, tmp_path, eval_dataset=str(data), max_steps=12, logging_steps=4, num_train_epochs=12)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert trained and all(".crossattention." in name for name in trained)
    assert changed(tmp_path, base) == trained
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    modules = trainer.model.train().language_model.transformer
    assert modules.h[0].crossattention.training and not modules.h[0].mlp.training and not modules.wte.training
    answer = pipeline("image-to-text", model=str(tmp_path))(str(data / "0.png"))[0]
    assert answer["retrieved_captions"]
    assert len(trainer.compute_metrics.captions) == 4


def test_full_policy_leaves_the_datastore_of_another_encoder(base, data, tmp_path):
    train(base, data, tmp_path, policy="full", max_steps=1)
    assert "vision_model.embeddings.class_embedding" in changed(tmp_path, base)
    assert SmallCapForConditionalGeneration.from_pretrained(tmp_path).memory is None


def test_adapters_beside_the_cross_attention(base, data, tmp_path):
    trainer = train(base, data, tmp_path / "adapters", policy="lora", lora_rank=2, max_steps=2)
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if "lora_" in name}
    assert adapters and not any("crossattention" in name for name in adapters)
    assert all(".crossattention.modules_to_save." in name for name in trained - adapters) and trained - adapters
    fresh = PeftModel.from_pretrained(SmallCapForConditionalGeneration.from_pretrained(base), tmp_path / "adapters")
    batch = tiny_smallcap.make_processor()(images=[str(data / "0.png")], suffix=["a cat"], return_tensors="pt")
    with torch.no_grad():
        logits = [model.eval()(**batch).logits for model in (trainer.model, fresh, fresh.merge_and_unload())]
    for others in logits[1:]:
        torch.testing.assert_close(others, logits[0], atol=1e-5, rtol=0)


def test_a_run_goes_on_bit_for_bit(base, data, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    train(base, data, tmp_path / "straight", **options)
    (tmp_path / "resumed").mkdir()
    (tmp_path / "straight" / "checkpoint-2").rename(tmp_path / "resumed" / "checkpoint-2")
    train(base, data, tmp_path / "resumed", **options, resume_from_checkpoint="true")
    assert changed(tmp_path / "resumed", tmp_path / "straight") == set()
