"""One training stage: a `Trainer` with learning rates by part, frozen parts and an average of the weights."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ...retrieval_evcap import EVCapRetrievedNames


@dataclass
class StageSettings:
    """
    Numbers of one stage, as a recipe's YAML gives them.

    Args:
        steps (`int`): Optimizer steps.
        batch_size (`int`): Examples a step.
        learning_rate (`float`): Peak learning rate.
        part_rates (`dict[str, float]`, *optional*):
            Factor of the learning rate for parameters whose name starts with the key; 0 freezes them. The longest
            matching key counts.
        warmup_steps (`int`, *optional*, defaults to 50): Linear warm-up, then a cosine.
        final_rate (`float`, *optional*, defaults to 0.05): What is left of the learning rate at the end.
        weight_decay (`float`, *optional*, defaults to 0.05): For matrices only.
        average (`float`, *optional*): Decay of the exponential average of the weights that the stage hands on.
        bf16 (`bool`, *optional*, defaults to `True`): Autocast to bfloat16.
        group_by_length (`bool`, *optional*, defaults to `False`): See [`GroupedByLength`].
        save_steps (`int`, *optional*, defaults to 200): Checkpoints for resuming.
        seed (`int`, *optional*, defaults to 0): Seed.
    """

    steps: int
    batch_size: int
    learning_rate: float
    part_rates: dict[str, float] = field(default_factory=dict)
    warmup_steps: int = 50
    final_rate: float = 0.05
    weight_decay: float = 0.05
    average: float | None = None
    bf16: bool = True
    group_by_length: bool = False
    save_steps: int = 200
    seed: int = 0


class InOrder(torch.utils.data.Sampler):
    """Items in their order: a stage's exercises draw by item number from their own seed already."""

    def __init__(self, data: Sequence[Any]) -> None:
        self.data = data

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data)))

    def __len__(self) -> int:
        return len(self.data)


class GroupedByLength:
    """
    A dataset in batches of like lengths: items of a few batches are sorted by the length of their caption.

    Args:
        data (`Sequence`): Examples with `caption` and `names`.
        batch_size (`int`): Examples a batch.
        window (`int`, *optional*, defaults to 8): Batches sorted together; their order is drawn from the window.
    """

    def __init__(self, data: Sequence[Any], batch_size: int, window: int = 8) -> None:
        self.data, self.batch_size, self.window = data, batch_size, window
        self.number = -1
        self.items: list[Any] = []

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: int) -> Any:
        number, place = divmod(item, self.batch_size * self.window)
        if number != self.number:
            start = number * self.batch_size * self.window
            items = [self.data[i] for i in range(start, min(start + self.batch_size * self.window, len(self.data)))]
            items.sort(key=lambda example: (len(example["caption"]), sum(map(len, example["names"]))))
            batches = [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]
            if len(batches[-1]) == self.batch_size:
                random.Random(number).shuffle(batches)
            self.number, self.items = number, [example for batch in batches for example in batch]
        return self.items[place]


class AverageWeights(TrainerCallback):
    """Keeps an exponential average of the trained weights and puts it in their place at the end of training."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}
        self.updates = 0

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Takes the weights into the average; the decay grows with the steps, so that the start is forgotten."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 10))
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                if name in self.average:
                    self.average[name].lerp_(weight, 1 - decay)
                else:
                    self.average[name] = weight.detach().clone()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the average beside the checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        torch.save({"updates": self.updates, "average": self.average}, folder / "average.pt")

    def restore(self, checkpoint: str | Path) -> None:
        """Reads the average back when a stage goes on."""
        saved = torch.load(Path(checkpoint) / "average.pt", weights_only=True)
        self.updates, self.average = saved["updates"], saved["average"]

    @torch.no_grad()
    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Puts the average in place of the weights."""
        weights = dict(model.named_parameters())
        for name, average in self.average.items():
            weights[name].copy_(average)


class StageTrainer(Trainer):
    """A `Trainer` for one stage; see [`StageSettings`]. Data is read in order, exercises being drawn by item."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *args: Any, settings: StageSettings, **kwargs: Any) -> None:
        self.settings = settings
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        return InOrder(self.train_dataset if train_dataset is None else train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a group for each learning rate, matrices decayed and vectors not."""
        if self.optimizer is None:
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, weight in self.model.named_parameters():
                if weight.requires_grad:
                    decay = self.settings.weight_decay if weight.ndim > 1 else 0.0
                    groups.setdefault((part_rate(name, self.settings.part_rates), decay), []).append(weight)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": weights, "lr": self.settings.learning_rate * rate, "weight_decay": decay}
                    for (rate, decay), weights in groups.items()
                ],
                betas=(0.9, 0.98),
                fused=True,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Linear warm-up and a cosine down to the final rate."""
        settings = self.settings

        def factor(step: int) -> float:
            done = min(1.0, step / max(1, num_training_steps))
            cosine = settings.final_rate + (1 - settings.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
            return min(1.0, (step + 1) / max(1, settings.warmup_steps)) * cosine

        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(self.optimizer, factor)
        return self.lr_scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Cross-entropy of the caption's tokens, from names already chosen where the batch brings them."""
        inputs = dict(inputs)
        if "name_input_ids" in inputs:
            ids, mask = inputs.pop("name_input_ids"), inputs.pop("name_attention_mask")
            inputs["names"] = EVCapRetrievedNames(input_ids=ids, attention_mask=mask)
        labels = inputs.pop("labels")
        outputs = model(**inputs, use_cache=False)
        loss = nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return (loss, outputs) if return_outputs else loss


def part_rate(name: str, rates: dict[str, float]) -> float:
    """Factor of the learning rate of a parameter: that of the longest key with which its name starts, else 1."""
    matching = [part for part in rates if name.startswith(part)]
    return rates[max(matching, key=len)] if matching else 1.0


def run_stage(
    model: nn.Module,
    dataset: Any,
    collator: Callable[[Sequence[Any]], dict[str, Any]],
    settings: StageSettings,
    output_dir: str | Path,
    callbacks: Sequence[TrainerCallback] = (),
    logging_steps: int = 20,
) -> None:
    """
    Trains a model through one stage, in place; goes on from the last checkpoint in `output_dir` if there is one.

    Args:
        model (`nn.Module`): The model; parameters with a rate of 0 are frozen during the stage.
        dataset: As many examples as the stage sees, in their order.
        collator (`Callable`): Makes batches.
        settings ([`StageSettings`]): Numbers of the stage.
        output_dir (`str` or `Path`): For checkpoints and logs.
        callbacks (`Sequence[TrainerCallback]`, *optional*): Further callbacks.
        logging_steps (`int`, *optional*, defaults to 20): Steps between logged losses.
    """
    frozen = [
        w for name, w in model.named_parameters() if w.requires_grad and part_rate(name, settings.part_rates) == 0
    ]
    for weight in frozen:
        weight.requires_grad_(False)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        max_grad_norm=1.0,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        save_steps=settings.save_steps,
        save_total_limit=1,
        logging_steps=logging_steps,
        report_to=[],
        seed=settings.seed,
        data_seed=settings.seed,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        disable_tqdm=True,
    )
    average = AverageWeights(settings.average) if settings.average else None
    trainer = StageTrainer(
        model=model,
        args=arguments,
        train_dataset=GroupedByLength(dataset, settings.batch_size) if settings.group_by_length else dataset,
        data_collator=collator,
        callbacks=[*callbacks, *([average] if average else [])],
        settings=settings,
    )
    last = get_last_checkpoint(str(output_dir)) if Path(output_dir).is_dir() else None
    if last and average:
        average.restore(last)
    trainer.train(resume_from_checkpoint=last)
    for weight in frozen:
        weight.requires_grad_(True)
