"""What a run knows of itself, for the model's card: parts trained, steps, data, scores."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import hf_evcap

from ...hub.card_facts import (
    RESULTS_NAME,
    CardFacts,
    Data,
    ResultRow,
    ResultTable,
    Stage,
    Training,
)
from ...hub.inherited_terms import inherit_terms
from ...whole_files import write_json
from .training_arguments import DataArguments, ModelArguments


def trained_parts(model: Any, arguments: ModelArguments) -> list[str]:
    """Parts of a model, or segments of their parameters' names, that its policy trained."""
    if arguments.policy in model.trainable_parts:
        return list(model.trainable_parts[arguments.policy])
    if arguments.policy == "full":
        return list(dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters()))
    modules = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    beside = [part for part in model.trainable_parts[arguments.lora_beside] if part in modules]
    return list(dict.fromkeys([*(arguments.lora_parts or model.lora_parts), *beside]))


def trained_now(model: Any) -> list[str]:
    """Parts of a model, or segments of their parameters' names, that have `requires_grad`."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for parts in model.trainable_parts.values():
        if trained == {
            name for name, _ in model.named_parameters() if any(f".{part}." in f".{name}." for part in parts)
        }:
            return list(parts)
    return list(dict.fromkeys(name.split(".")[0] for name in trained))


def write_first_facts(trainer: Any, folder: Path) -> None:
    """
    Writes `results.json` beside a model that a trainer saved, if there is none: what it was tuned from, with its
    licence, and what of it was trained.

    Args:
        trainer ([`CaptionTrainer`]): Its model is a [`RetrievalPreTrainedModel`].
        folder (`Path`): Of the model.
    """
    if (folder / RESULTS_NAME).exists():
        return
    model = trainer.model
    stage = Stage(name="training", steps=trainer.state.global_step, what=_how(trainer))
    facts = CardFacts(
        title=folder.resolve().name,
        training=Training(trained_parts=trained_now(model), seed=trainer.args.seed, stages=[stage]),
    )
    if model.name_or_path:
        facts = inherit_terms(facts, folder, model.name_or_path, getattr(model.config, "_commit_hash", None))
    write_json(folder / RESULTS_NAME, dataclasses.asdict(facts))


def write_training_facts(
    trainer: Any,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    evaluation: dict[str, float] | None = None,
) -> Path:
    """
    Writes `results.json` beside the finished model, from which its card is made.

    Args:
        trainer ([`CaptionTrainer`]): After training.
        model_arguments, data_arguments: Of the run. Folders of this machine are named by their last part.
        evaluation (`dict`, *optional*): Metrics of the evaluation after training.
    """
    folder = Path(trainer.args.output_dir)
    source, data = model_arguments.model or hf_evcap.default_model(), str(data_arguments.dataset)
    minutes = next((entry["train_runtime"] / 60 for entry in trainer.state.log_history if "train_runtime" in entry), 0)
    examples = trainer.train_dataset
    amount = f"{len(examples.references):,} photos" if hasattr(examples, "references") else "a stream"
    facts = CardFacts(
        title=folder.resolve().name,
        data=[
            Data(
                name=_shown(data),
                use="training",
                amount=amount,
                id=data if not os.path.exists(data) and data.count("/") == 1 else None,
            )
        ],
        training=Training(
            trained_parts=trained_parts(trainer.model, model_arguments),
            seed=trainer.args.seed,
            stages=[
                Stage(
                    name=f"policy {model_arguments.policy}",
                    steps=trainer.state.global_step,
                    minutes=round(minutes, 1),
                    what=_how(trainer),
                )
            ],
        ),
    )
    facts = inherit_terms(facts, folder, source, model_arguments.model_revision)
    if evaluation is not None:
        row = ResultRow(
            dataset=_shown(str(data_arguments.eval_dataset or data)),
            split=data_arguments.eval_split,
            metrics={
                label: round(evaluation[f"eval_{name}"], 3)
                for name, label in (("cider", "CIDEr"), ("bleu_4", "BLEU-4"), ("loss", "loss"))
                if f"eval_{name}" in evaluation
            },
            photos=len(trainer.eval_dataset),
        )
        facts.tables = [ResultTable("After training", [row], note="With the decoding settings of training.")]
    path = folder / RESULTS_NAME
    write_json(path, dataclasses.asdict(facts))
    return path


def _how(trainer: Any) -> str:
    arguments = trainer.args
    batch = arguments.train_batch_size * arguments.gradient_accumulation_steps
    return f"batches of {batch} on {arguments.world_size} process(es), learning rate {arguments.learning_rate:g}"


def _shown(source: str) -> str:
    return Path(source).name if os.path.exists(source) else source
