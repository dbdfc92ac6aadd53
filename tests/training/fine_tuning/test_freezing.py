"""Freezing policies: what they train to the parameter, LoRA adapters, and encoders that training changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from training_runs import train, write_photos
from transformers import pipeline

from hf_evcap import EVCapForConditionalGeneration
from hf_evcap.conversion import ConversionReport
from hf_evcap.conversion.evcap import convert_state_dict
from hf_evcap.training.fine_tuning.freezing import add_lora, apply_policy, count_trainable, describe_trainable


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def model(tiny_dir: Path) -> EVCapForConditionalGeneration:
    return EVCapForConditionalGeneration.from_pretrained(tiny_dir)


@pytest.fixture(scope="module")
def batch(processor, photos):
    return processor(images=photos[:2], suffix=["a cat", "a bus"], return_tensors="pt")


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


def test_paper_policy_trains_what_the_reference_trains(converted_dir, reference, data, tmp_path):
    state = torch.load(reference.trainable, weights_only=True)["model"]
    names = set(convert_state_dict(state, ConversionReport()))
    before = load_file(converted_dir / "model.safetensors")
    trainer = train(converted_dir, data, tmp_path / "out", policy="paper", max_steps=1)
    assert {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad} == names
    trained = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(dict(trainer.model.named_parameters())[name]) for name in names}
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in after if not torch.equal(after[name], before[name])} == names


def test_counts_by_part(model):
    counts = count_trainable(apply_policy(model, "fusion"))
    assert set(counts) == {name for name, _ in model.named_children()} | {"query_tokens", "name_query_tokens"}
    trained = {part for part, (count, _) in counts.items() if count}
    assert trained == {"query_tokens", "name_query_tokens", "language_projection", "fusion_qformer"}
    assert counts["language_projection"] == (1056, 1056) and counts["query_tokens"] == (192, 192)
    total = sum(parameter.numel() for parameter in model.parameters())
    lines = describe_trainable(model).splitlines()
    assert lines[0].startswith(f"Trained parameters: {sum(count for count, _ in counts.values()):,} of {total:,}")
    assert len(lines) == 1 + len(trained)


def test_qformers_policy_trains_all_but_encoder_and_language_model(model):
    counts = count_trainable(apply_policy(model, "qformers"))
    assert {part for part, (count, _) in counts.items() if not count} == {"vision_model", "language_model"}
    assert all(count == total for part, (count, total) in counts.items() if count)
    assert model.config.encoder_fingerprint is None  # its memory keys are the image Q-Former's outputs


def test_adapters_beside_trained_qformers(model):
    adapted = add_lora(model, ["language_model"], rank=2, beside="qformers")
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    whole = {name.split(".modules_to_save.")[0].rpartition("base_model.model.")[2] for name in trained}
    assert {"qformer", "fusion_qformer", "language_projection"} <= whole
    assert all("lora_" in name or ".modules_to_save." in name for name in trained)
    with pytest.raises(ValueError, match="'full' beside LoRA; this model has paper, fusion, qformers"):
        add_lora(model, beside="full")


def test_unknown_policies_and_parts_are_refused(model):
    with pytest.raises(ValueError, match="paper, fusion, qformers, lora, full"):
        apply_policy(model, "everything")
    with pytest.raises(ValueError, match="'vision'.* parts are vision_model, qformer"):
        add_lora(model, ["vision"])


def test_frozen_modules_inside_a_trained_part_rest(model):
    model.trainable_parts = {"attention": ("self_attn",)}
    model.freeze_for_training("attention")
    model.train()
    layer = model.language_model.model.layers[0]
    assert layer.self_attn.q_proj.training and layer.training
    assert not layer.mlp.training and not model.language_model.lm_head.training and not model.qformer.training


def test_adapters_save_load_and_merge(model, tiny_dir, processor, batch, photos, tmp_path):
    plain = logits_of(model, batch)
    adapted = apply_policy(model, "lora", ["language_model", "fusion_qformer"], lora_rank=4)
    torch.testing.assert_close(logits_of(adapted, batch), plain, atol=1e-5, rtol=0)  # adapters begin with nothing
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.02
    expected = logits_of(adapted, batch)
    assert (expected - plain).abs().max() > 0.1
    adapted.save_pretrained(tmp_path / "adapters")
    processor.save_pretrained(tmp_path / "adapters")
    assert not (tmp_path / "adapters" / "model.safetensors").exists()

    fresh = PeftModel.from_pretrained(EVCapForConditionalGeneration.from_pretrained(tiny_dir), tmp_path / "adapters")
    torch.testing.assert_close(logits_of(fresh, batch), expected, atol=1e-5, rtol=1e-6)
    merged = fresh.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, batch), expected, atol=1e-5, rtol=1e-6)
    merged.save_pretrained(tmp_path / "merged")
    for folder in ("adapters", "merged"):
        loaded = EVCapForConditionalGeneration.from_pretrained(tmp_path / folder)
        assert loaded.memory.names == model.memory.names
        torch.testing.assert_close(logits_of(loaded, batch), expected, atol=1e-5, rtol=1e-6)
    pipe = pipeline("image-to-text", model=str(tmp_path / "adapters"))
    answer = pipe(photos[0], num_beams=1)[0]
    processor.save_pretrained(tmp_path / "merged")
    assert answer == pipeline("image-to-text", model=str(tmp_path / "merged"))(photos[0], num_beams=1)[0]
    assert answer["retrieved_names"]


def test_training_adapters_leaves_the_base_as_it_was(tiny_dir, data, tmp_path):
    options = {"policy": "lora", "lora_rank": 2, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = train(tiny_dir, data, tmp_path / "adapters", **options)
    config = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["modules_to_save"] == ["language_projection"]
    assert config["base_model_name_or_path"] == str(tiny_dir)
    before = load_file(tiny_dir / "model.safetensors")
    after = trainer.model.unload().state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if "language_projection" not in name)
    # A step, a break and a step give what two steps in one go give.
    shutil.copytree(tmp_path / "adapters" / "checkpoint-1", tmp_path / "again" / "checkpoint-1")
    train(tiny_dir, data, tmp_path / "again", **options, resume_from_checkpoint="true")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("again", "adapters"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and set(ours) == set(theirs)


def test_merged_adapters_give_a_model_without_them(tiny_dir, data, tmp_path):
    train(tiny_dir, data, tmp_path / "out", policy="lora", lora_rank=2, merge_adapters=True)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    merged, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", tiny_dir))
    assert set(merged) == set(base)
    name = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[name], base[name])
    assert EVCapForConditionalGeneration.from_pretrained(tmp_path / "out").memory is not None


@pytest.mark.parametrize("policy", ["paper", "full"])
def test_a_trained_encoder_is_another_one(tiny_dir, data, tmp_path, policy):
    base = EVCapForConditionalGeneration.from_pretrained(tiny_dir)
    options = {"policy": policy, "save_strategy": "steps", "save_steps": 1}
    trainer = train(tiny_dir, data, tmp_path / "out", **options)
    fingerprints = []
    for folder in ("checkpoint-1", "checkpoint-2", "."):
        loaded = EVCapForConditionalGeneration.from_pretrained(tmp_path / "out" / folder)
        fingerprints.append(loaded.config.encoder_fingerprint)
        loaded.config.encoder_fingerprint = None
        assert loaded.encoder_fingerprint == fingerprints[-1]  # what is recorded is what the weights say
        assert (loaded.memory is None) == (policy == "full")  # keys of another encoder do not come along
    assert trainer.model.encoder_fingerprint == fingerprints[-1] == fingerprints[1]
    assert len({base.encoder_fingerprint, *fingerprints}) == (1 if policy == "paper" else 3)


def test_adapters_on_the_encoder_merge_into_another_encoder(model, tmp_path):
    fingerprint = model.encoder_fingerprint
    adapted = add_lora(model, ["qformer"], rank=2)
    assert model.config.encoder_fingerprint is None
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    adapted.merge_and_unload().save_pretrained(tmp_path)
    loaded = EVCapForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.encoder_fingerprint != fingerprint and loaded.memory is None
