"""`hf-evcap train` as a user runs it: overfitting, YAML and flags, the best checkpoint by CIDEr, TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import LANGUAGE_MODELS
from training_runs import CAPTIONS, train, training_arguments, write_photos
from transformers import EvalPrediction, pipeline

from hf_evcap import EVCapForConditionalGeneration
from hf_evcap.cli.main import main
from hf_evcap.cli.train import parse_arguments
from hf_evcap.training.caption_trainer import CaptionScores, CaptionTrainer
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


def test_eight_photos_are_learned_by_heart(model_of, processor, data, tmp_path):
    # A frozen head of small random weights could not come near a probability of 1.
    model = model_of(text_config={**LANGUAGE_MODELS["llama"], "vocab_size": 600, "initializer_range": 0.8})
    newline = processor.encode_caption("")[-1]
    model.generation_config.update(eos_token_id=[2, newline], max_new_tokens=24)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    trainer = train(
        tmp_path / "base",
        data,
        tmp_path / "out",
        policy="lora",
        lora_rank=32,
        lora_dropout=0.0,
        lora_parts=["language_model", "fusion_qformer"],
        merge_adapters=True,
        eval_dataset=str(data),
        max_steps=95,
        per_device_train_batch_size=8,
        warmup_steps=5,
        logging_steps=10,
    )
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0]["loss"] > 2
    evaluation = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert evaluation["eval_loss"] < 0.05 and losses[-1]["loss"] < 0.1
    assert evaluation["eval_bleu_4"] == pytest.approx(100) and evaluation["eval_cider"] > 800
    pipe = pipeline("image-to-text", model=str(tmp_path / "out"))
    photos = [str(data / f"{number}.png") for number in range(8)]
    answers = pipe(photos, batch_size=4, num_beams=1)
    assert [answer[0]["generated_text"] for answer in answers] == CAPTIONS
    assert all(answer[0]["retrieved_names"] for answer in answers)


def test_the_command_line_with_a_yaml_file(tiny_dir, data, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {tiny_dir}\ndataset: {data}\neval_dataset: {data}\npolicy: fusion\nlearning-rate: 1e-3\n"
        "max_steps: 9\nper_device_train_batch_size: 4\n"
        "lr_scheduler_kwargs: {min_lr_rate: 0.5}\nlr_scheduler_type: cosine_with_min_lr\n"
        "use_cpu: true\ndisable_tqdm: true\nlogging_steps: 1\neval_strategy: 'no'\nmax_eval_samples: 3\n"
    )
    out = tmp_path / "out"
    assert main(["train", "--config", str(config), "--max_steps", "2", "--output-dir", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "Policy fusion. Trained parameters: " in printed and "  fusion_qformer " in printed
    assert "Data: 8 examples of 8 photos; evaluation on 3 photos" in printed
    assert "Trained 2 steps, loss " in printed and "Evaluation: loss " in printed and f"Saved {out}" in printed
    assert EVCapForConditionalGeneration.from_pretrained(out).memory is not None
    assert not (out / "training_args.bin").exists()  # a pickle has no place in a model's repo
    card = (out / "README.md").read_text()
    assert "| `fusion_qformer` " in card and "| policy fusion | 2 |" in card and str(tmp_path) not in card
    assert [line.split("|")[-2].strip() for line in card.splitlines() if "`qformer`" in line or "`fusion" in line] == [
        "no",
        "yes",
    ]
    assert main(["caption", str(data / "0.png"), "--model", str(out)]) == 0
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates == pytest.approx([1e-3, 0.75e-3])
    (events,) = (out / "runs").iterdir()
    recorded = EventAccumulator(str(events))
    recorded.Reload()
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert [event.value for event in recorded.Scalars("train/loss")] == pytest.approx(losses, rel=1e-4)
    assert len(recorded.Scalars("eval/cider")) == 1


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("recipe: evcap-paper\nweight_decay: 0.1\nwarmup_steps: 10\nlora_parts: [qformer]\n")
    fixed = ["--output_dir", str(tmp_path), "--config", str(config), "--use_cpu"]
    model, data, training, retrieval = parse_arguments([*fixed, "--warmup_steps", "20", "--bf16", "false"])
    assert (training.learning_rate, training.weight_decay, training.warmup_steps) == (1e-4, 0.1, 20)
    assert training.bf16 is False and training.lr_scheduler_kwargs == {"min_lr": 8e-5, "warmup_lr_rate": 0.01}
    assert model.lora_parts == ["qformer"] and data.truncate_captions and training.predict_with_generate
    assert retrieval.leave_one_out
    assert not parse_arguments(["--no_leave_one_out", "--output_dir", str(tmp_path), "--use_cpu"])[3].leave_one_out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", r"Unknown options in .*run\.yaml: learning_rat"),
        ("learning_rate: fast", r"`learning_rate` in .*run\.yaml: expected a number, got 'fast'"),
        ("captions_per_photo: two", r"`captions_per_photo` in .*run\.yaml must be one of .*'all'.*got 'two'"),
        ("- a", r"run\.yaml must hold `option: value` lines"),
        ("a: [", r"run\.yaml is not YAML"),
        ("recipe: evcap", r"no recipe 'evcap'"),
    ],
)
def test_bad_files_are_named(content, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_arguments(["--config", str(tmp_path / "run.yaml")])
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 1
    assert capsys.readouterr().err.startswith("hf-evcap train: ")


def test_what_is_missing_is_said(tiny_dir, tmp_path, capsys):
    words = ["train", "--model", str(tiny_dir), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    assert main(words) == 2 and "--dataset" in capsys.readouterr().err
    assert main([*words, "--dataset", str(tmp_path / "photos.json")]) == 1
    assert "photos.json" in capsys.readouterr().err
    assert main([*words, "--speed", "9"]) == 2 and "--speed" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["model.safetensors", "trained.safetensors"])
def test_best_checkpoint_and_early_stopping_by_cider(tiny_dir, data, tmp_path, monkeypatch, file):
    scores = iter([10.0, 30.0, 20.0, 25.0, 99.0])

    def score(self, prediction):
        assert prediction.label_ids.tolist() == list(range(8))
        return {"cider": next(scores)}

    monkeypatch.setattr(CaptionScores, "__call__", score)
    trainer = train(
        tiny_dir,
        data,
        tmp_path,
        eval_dataset=str(data),
        max_steps=20,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        early_stopping_patience=2,
        save_only_trained=file.startswith("trained"),
    )
    assert trainer.state.global_step == 8  # two evaluations after the best one
    assert trainer.state.best_metric == 30 and trainer.state.best_global_step == 4
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-4"
    best = load_file(tmp_path / "checkpoint-4" / file)
    final = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(final[name], best[name]) for name in best)


def test_scores_of_captions(processor):
    texts = ["a cat", "a dog on the table", "two zebra"]
    rows = processor.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right")
    ids = torch.tensor(rows["input_ids"])
    ids = ids.masked_fill(torch.tensor(rows["attention_mask"]) == 0, -100)
    references = {4: ["a cat"], 0: ["a dog on the table", "the dog"], 7: ["a car"]}
    scores = CaptionScores(processor, references)
    got = scores(EvalPrediction(ids.numpy(), torch.tensor([4, 0, 7]).numpy()))
    assert scores.captions == {4: "a cat", 0: "a dog on the table", 7: "two zebra"}
    assert 0 < got["cider"] < 1000 and 0 < got["bleu_4"] < 100


def test_evaluation_writes_what_generate_writes(tiny_dir, data, tmp_path, processor):
    trainer = train(tiny_dir, data, tmp_path, eval_dataset=str(data), max_steps=1)
    photos = [example["image"] for example in (trainer.eval_dataset[row] for row in range(8))]
    trainer.evaluate(max_new_tokens=5, num_beams=2)
    written = trainer.compute_metrics.captions
    inputs = processor(images=photos, return_tensors="pt")
    expected = trainer.model.generate(**inputs, max_new_tokens=5, num_beams=2)
    assert list(written.values()) == processor.post_process_image_text_to_text(expected)


def test_training_from_python_with_a_dataset_of_ones_own(model_of, processor, photos, tmp_path):
    rows = {"image": photos, "captions": [["a cat"], ["a dog"], ["a bus"], ["a car"]]}
    model = model_of()
    model.freeze_for_training("paper")
    examples = CaptionExamples(Dataset.from_dict(rows), processor, captions="one")
    trainer = CaptionTrainer(model, training_arguments(tmp_path), processing_class=processor, train_dataset=examples)
    assert trainer.train().global_step == 2
