"""Arguments of `hf-evcap train`: the model, its data, and those of transformers' Trainer."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import Seq2SeqTrainingArguments

from .captioning_arguments import CaptioningOptions, DataArguments, ModelArguments, RetrievalArguments


@dataclass
class CaptionTrainingArguments(CaptioningOptions, Seq2SeqTrainingArguments):
    """
    [`~transformers.Seq2SeqTrainingArguments`] with the defaults of captioning: captions are written in evaluation, the
    best checkpoint is that of the highest CIDEr, and TensorBoard files are written where tensorboard is installed.
    [`CaptioningOptions`] says what is added.
    """

    _argument_group_name: ClassVar[str] = "training (transformers.Seq2SeqTrainingArguments)"

    def __post_init__(self) -> None:
        if self.report_to is None:
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else accelerate's processes on CPUs do not join each other
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False


__all__ = ["CaptionTrainingArguments", "DataArguments", "ModelArguments", "RetrievalArguments"]
