"""The options of transformers' Trainer that most runs need, described without importing it."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class TrainerOptions:
    """Fields of transformers' `Seq2SeqTrainingArguments`, with its defaults."""

    _argument_group_name: ClassVar[str] = "training (more options of transformers' Trainer: --help-all)"

    output_dir: str | None = _option(None, "Folder of checkpoints and of the finished model. Default: trainer_output.")
    num_train_epochs: float = _option(3.0, "Epochs.")
    max_steps: int = _option(-1, "Steps, in place of epochs where above 0.")
    per_device_train_batch_size: int = _option(8, "Photos (or captions) a step on each device.")
    gradient_accumulation_steps: int = _option(1, "Batches whose gradients make one step.")
    learning_rate: float = _option(5e-5, "Highest learning rate.")
    lr_scheduler_type: str = _option("linear", "Course of the learning rate, such as cosine or constant.")
    warmup_steps: float = _option(0, "Steps in which it rises; below 1 a share of all.")
    weight_decay: float = _option(0.0, "Weight decay.")
    bf16: bool = _option(False, "Mixed precision with bfloat16.")
    fp16: bool = _option(False, "Mixed precision with float16.")
    gradient_checkpointing: bool | None = _option(None, "Compute activations twice instead of keeping them.")
    use_cpu: bool = _option(False, "Train on the CPU even where there is an accelerator.")
    seed: int = _option(42, "Seed of everything random.")
    dataloader_num_workers: int = _option(0, "Processes that read photos ahead.")
    eval_strategy: str = _option("no", "When to evaluate: no, steps or epoch.")
    eval_steps: float | None = _option(None, "Steps between evaluations.")
    per_device_eval_batch_size: int = _option(8, "Photos captioned at once on each device.")
    generation_num_beams: int | None = _option(None, "Beams of captions in evaluation. Default: the model's.")
    save_strategy: str = _option("steps", "When to write checkpoints: no, steps, epoch or best.")
    save_steps: float = _option(500, "Steps between checkpoints.")
    save_total_limit: int | None = _option(None, "Checkpoints that are kept. Default: all.")
    load_best_model_at_end: bool = _option(False, "End with the best checkpoint.")
    resume_from_checkpoint: str | None = _option(None, "Go on: true for the last checkpoint, or the folder of one.")
    logging_steps: float = _option(500, "Steps between losses that are logged.")
    push_to_hub: bool = _option(False, "Upload the finished model.")
    hub_model_id: str | None = _option(None, "Repo to upload to. Default: the output folder's name.")


def names_of_trainer() -> set[str]:
    """
    Names of all fields of `Seq2SeqTrainingArguments`, read from the source of the installed transformers; importing it
    takes seconds, and a misspelt option need not wait for that. Empty where the source is not found.
    """
    package = importlib.util.find_spec("transformers")
    names: set[str] = set()
    for file in ("training_args.py", "training_args_seq2seq.py"):
        path = Path(package.origin).with_name(file) if package is not None and package.origin else Path(file)
        if not path.is_file():
            return set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("TrainingArguments"):
                names |= {
                    line.target.id
                    for line in node.body
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                }
    return names


__all__ = ["TrainerOptions", "names_of_trainer"]
