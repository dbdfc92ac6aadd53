"""The recipes of the package: they load, and their optimizers and schedules have the papers' numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from training_runs import CAPTIONS, write_photos

from hf_evcap.caption_data import load_caption_data
from hf_evcap.cli.main import main
from hf_evcap.cli.train import parse_arguments
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples
from hf_evcap.training.fine_tuning.caption_trainer import CaptionTrainer
from hf_evcap.training.fine_tuning.freezing import apply_policy
from hf_evcap.training.recipe_presets import STAGED, list_recipes, load_recipe


def arguments_of(recipe: str, folder: Path):
    options = ["--use_cpu", "--output_dir", str(folder), "--dataset", str(folder), "--report_to", "none"]
    return parse_arguments(["--recipe", recipe, *options])


def learning_rates(trainer: CaptionTrainer, steps: int, at: list[int]) -> list[float]:
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(steps)
    (factor, *_) = scheduler.lr_lambdas
    return [trainer.args.learning_rate * factor(step) for step in at]


@pytest.fixture
def trainer_of(model_of, processor, tmp_path):
    data = load_caption_data(write_photos(tmp_path / "photos", CAPTIONS[:2]), require_captions=True)

    def make(recipe: str) -> CaptionTrainer:
        model_arguments, data_arguments, training, _ = arguments_of(recipe, tmp_path / "out")
        model = apply_policy(model_of(), model_arguments.policy, model_arguments.lora_parts)
        examples = CaptionExamples(data, processor, captions=data_arguments.captions_per_photo)
        return CaptionTrainer(model, training, processing_class=processor, train_dataset=examples)

    return make


def test_evcap_paper(trainer_of):
    trainer = trainer_of("evcap-paper")
    arguments = trainer.args
    assert arguments.per_device_train_batch_size == 6 and arguments.num_train_epochs == 1 and arguments.bf16
    steps = 17_255  # 414,113 pairs of COCO's train2014 in batches of 24
    at = learning_rates(trainer, steps, [0, 2500, 4999, 5000, (steps + 5000) // 2, steps - 1])
    assert at[0] == pytest.approx(1e-6) and at[1] == pytest.approx(5.05e-5, rel=1e-3)
    assert at[2:] == pytest.approx([1e-4, 1e-4, 9e-5, 8e-5], rel=1e-3)
    optimizer = trainer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["betas"] == (0.9, 0.999)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups == {
        0.05: {"query_tokens", "name_query_tokens", "language_projection.weight"},
        0.0: {"language_projection.bias"},
    }


def test_evcap_lora(trainer_of, tmp_path):
    trainer = trainer_of("evcap-lora")
    names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    parts = {name.removeprefix("base_model.model.").split(".")[0] for name in names}
    assert parts == {"language_model", "fusion_qformer", "language_projection"}
    assert trainer.args.gradient_accumulation_steps * trainer.args.per_device_train_batch_size == 32
    assert learning_rates(trainer, 1000, [0, 30, 1000]) == pytest.approx([0, 1e-4, 0], abs=1e-9)
    assert trainer.model.peft_config["default"].r == 16


def test_smallcap_paper(tmp_path):
    model_arguments, data_arguments, training, _ = arguments_of("smallcap-paper", tmp_path)
    assert model_arguments.policy == "paper" and data_arguments.captions_per_photo == "all"
    assert training.per_device_train_batch_size == 64 and training.num_train_epochs == 10
    assert training.learning_rate == 1e-4 and training.weight_decay == 0
    assert training.optim == "adamw_torch" and training.lr_scheduler_type == "linear"


def test_list_says_which_command_runs_what(capsys):
    assert main(["train", "--recipe", "list"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == list(list_recipes())
    trained = {"evcap-paper", "evcap-lora", "evcap-qformers", "evcap-qformers-lora", "smallcap-paper"}
    assert set(list_recipes()) == {*trained, "evcap-tiny", "smallcap-tiny"}
    for name, (_, command) in STAGED.items():
        assert command in printed[list(list_recipes()).index(name)]
        assert (Path(__file__).parents[3] / command.split()[0]).is_file()


def test_unknown_and_staged_recipes_are_refused():
    with pytest.raises(ValueError, match="no recipe 'evcap'; the recipes are evcap-lora, evcap-paper"):
        load_recipe("evcap")
    with pytest.raises(ValueError, match="stages.*scripts/train_tiny.py"):
        load_recipe("evcap-tiny")


def test_decay_is_for_matrices(trainer_of):
    trainer = trainer_of("evcap-paper")
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2))
    assert trainer.get_decay_parameter_names(model) == ["0.weight", "2.weight"]
