"""Resuming bit for bit, and checkpoints that are whole or not there: killed in mid-save, disk full."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import train, write_photos

from hf_evcap import EVCapForConditionalGeneration
from hf_evcap.training.caption_trainer import last_whole_checkpoint


# Fusion has dropout, so the random state counts; one caption a photo, so the epoch counts.
OPTIONS = {"policy": "fusion", "captions_per_photo": "one", "save_strategy": "steps", "per_device_train_batch_size": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pairs = [["a cat", "a white cat"], ["a dog", "the dog"], ["a bus", "two bus"], ["a car", "the car"], ["a person"]]
    return write_photos(tmp_path_factory.mktemp("photos"), pairs * 2)


@pytest.fixture(scope="module")
def straight(tiny_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps in one go, five epochs of four steps, with a checkpoint after ten."""
    folder = tmp_path_factory.mktemp("straight")
    train(tiny_dir, data, folder, **OPTIONS, max_steps=20, save_steps=10)
    return folder


def assert_same_weights(folder: Path, other: Path) -> None:
    ours, theirs = (load_file(one / "model.safetensors") for one in (folder, other))
    assert set(ours) == set(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_twenty_steps_are_ten_a_break_and_ten(straight, tiny_dir, data, tmp_path):
    shutil.copytree(straight / "checkpoint-10", tmp_path / "checkpoint-10")
    options = {**OPTIONS, "max_steps": 20, "save_steps": 10}
    trainer = train(tiny_dir, data, tmp_path, **options, resume_from_checkpoint="true")
    assert trainer.state.global_step == 20
    assert_same_weights(tmp_path, straight)
    start = load_file(tiny_dir / "model.safetensors")
    name = "fusion_qformer.encoder.layer.0.attention.attention.query.weight"
    halfway, end = (load_file(folder / "model.safetensors")[name] for folder in (straight / "checkpoint-10", straight))
    assert not torch.equal(halfway, start[name]) and not torch.equal(halfway, end)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from training_runs import train
from hf_evcap.training.caption_trainer import CaptionTrainer
save = CaptionTrainer._save_optimizer_and_scheduler
def save_or_die(self, folder):
    if self.state.global_step == 20:
        open(os.path.join(folder, "optimizer.pt"), "wb").write(b"half of ")
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)
CaptionTrainer._save_optimizer_and_scheduler = save_or_die
import torch; torch.set_num_threads(1)
train(*sys.argv[2:5], **eval(sys.argv[5]))
"""


def test_killed_in_mid_save_goes_on_from_the_checkpoint_before(straight, tiny_dir, data, tmp_path):
    shutil.copytree(straight / "checkpoint-10", tmp_path / "checkpoint-10")
    options = {**OPTIONS, "max_steps": 20, "save_steps": 10, "resume_from_checkpoint": "true"}
    words = [Path(__file__).parent, tiny_dir, data, tmp_path, options]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, words)], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "checkpoint-20" / "model.safetensors").is_file()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    train(tiny_dir, data, tmp_path, **options)
    assert_same_weights(tmp_path, straight)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")


def test_full_disk_leaves_the_checkpoint_before(straight, tiny_dir, data, tmp_path):
    shutil.copytree(straight / "checkpoint-10", tmp_path / "checkpoint-10")
    options = {**OPTIONS, "max_steps": 20, "save_steps": 10, "resume_from_checkpoint": "true"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a disk with room for no file of weights
    try:
        with pytest.raises(OSError, match=r"Could not save .*checkpoint-20.*checkpoint-10 is whole"):
            train(tiny_dir, data, tmp_path, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "checkpoint-20").exists()
    train(tiny_dir, data, tmp_path, **options)
    assert_same_weights(tmp_path, straight)


def test_full_disk_leaves_the_finished_model_of_before(tiny_dir, data, tmp_path):
    train(tiny_dir, data, tmp_path, max_steps=1)
    before = load_file(tmp_path / "model.safetensors")
    files = sorted(path.name for path in tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="Could not save the model"):
            train(tiny_dir, data, tmp_path, max_steps=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert EVCapForConditionalGeneration.from_pretrained(tmp_path).memory is not None


def test_the_right_checkpoint_or_an_error(straight, tiny_dir, data, tmp_path):
    with pytest.raises(ValueError, match="already holds checkpoint-20.*resume_from_checkpoint true"):
        train(tiny_dir, data, straight, **OPTIONS)
    with pytest.raises(FileNotFoundError, match="not a checkpoint"):
        train(tiny_dir, data, tmp_path / "out", **OPTIONS, resume_from_checkpoint=str(tmp_path))
    assert last_whole_checkpoint(tmp_path / "nothing") is None
    for number in (9, 30):
        (tmp_path / f"checkpoint-{number}").mkdir()
    (tmp_path / "checkpoint-30" / "trainer_state.json").write_text('{"epoch": 1')
    assert last_whole_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-9" / "trainer_state.json").write_text("{}")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")


def test_streams_resume_where_they_were_also_in_a_later_pass(tiny_dir, data, tmp_path):
    options = {**OPTIONS, "max_steps": 8, "save_steps": 6, "streaming": True, "shuffle_buffer_size": 4}
    train(tiny_dir, data, tmp_path / "straight", **options)  # a pass has three batches and a third
    shutil.copytree(tmp_path / "straight" / "checkpoint-6", tmp_path / "resumed" / "checkpoint-6")
    train(tiny_dir, data, tmp_path / "resumed", **options, resume_from_checkpoint="true")
    assert_same_weights(tmp_path / "resumed", tmp_path / "straight")


def test_checkpoints_of_the_trained_weights_alone(straight, tiny_dir, data, tmp_path):
    options = {**OPTIONS, "max_steps": 20, "save_steps": 10, "save_only_trained": True}
    train(tiny_dir, data, tmp_path / "straight", **options)
    assert_same_weights(tmp_path / "straight", straight)  # the finished model is whole
    checkpoint = tmp_path / "straight" / "checkpoint-10"
    weights = load_file(checkpoint / "trained.safetensors")
    model = EVCapForConditionalGeneration.from_pretrained(tiny_dir)
    model.freeze_for_training("fusion")
    assert set(weights) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not list(checkpoint.glob("model*")) and not (checkpoint / "config.json").exists()
    shutil.copytree(checkpoint, tmp_path / "resumed" / "checkpoint-10")
    shutil.copytree(checkpoint, tmp_path / "other" / "checkpoint-10")
    train(tiny_dir, data, tmp_path / "resumed", **options, resume_from_checkpoint="true")
    assert_same_weights(tmp_path / "resumed", straight)
    with pytest.raises(ValueError, match="other trained parts"):
        train(tiny_dir, data, tmp_path / "other", **{**options, "policy": "full"}, resume_from_checkpoint="true")
