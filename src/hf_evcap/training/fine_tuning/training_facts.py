"""What a run knows of itself, for the model's card: parts trained, steps, data, scores."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from ...hub.card_facts import (
    RESULTS_NAME,
    CardFacts,
    Data,
    ResultRow,
    ResultTable,
    Stage,
    StartedFrom,
    Training,
)
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
    source, data = model_arguments.model, str(data_arguments.dataset)
    hub = source is not None and not os.path.exists(source)
    minutes = next((entry["train_runtime"] / 60 for entry in trainer.state.log_history if "train_runtime" in entry), 0)
    examples = trainer.train_dataset
    amount = f"{len(examples.references):,} photos" if hasattr(examples, "references") else "a stream"
    facts = CardFacts(
        title=folder.resolve().name,
        started_from=[
            StartedFrom(
                part="the whole model",
                what=_shown(source) if source else "evcap-tiny",
                repo_id=source if hub else None,
            )
        ],
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
                    what=f"batches of {trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps} "
                    f"on {trainer.args.world_size} process(es), learning rate {trainer.args.learning_rate:g}",
                )
            ],
        ),
    )
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


def _shown(source: str) -> str:
    return Path(source).name if os.path.exists(source) else source
