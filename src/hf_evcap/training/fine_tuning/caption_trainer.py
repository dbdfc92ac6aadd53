"""`CaptionTrainer`: transformers' Trainer, which also writes captions in evaluation and saves nothing by halves."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import EvalPrediction, PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ...frozen_references import restore_referenced_parts
from ...hub.model_card import write_model_card
from ...hub.ready_repo import choose_model_files, prepare_repo
from ...hub.repo_files import link_files
from ...hub_upload import push_saved
from ...metrics.caption_scores import bleu_scores, cider_scores
from ...metrics.ptb_tokenizer import tokenize_captions
from ...photo_rows import photo_keys
from .caption_collator import PhotoCaptionCollator, prompts_alone
from .caption_examples import caption_examples
from .retrieval_in_training import TrainingRetrieval
from .training_facts import write_first_facts


logger = logging.get_logger(__name__)

TRAINER_STATE = "trainer_state.json"
TRAINED_WEIGHTS = "trained.safetensors"


class CaptionScores:
    """
    `compute_metrics` of [`CaptionTrainer`]: CIDEr (times 100, as papers print it) and BLEU-4 of generated captions.

    Args:
        processor: Decodes the generated ids.
        references (`dict[int, list[str]]`): Captions of each row of the evaluation dataset.
    """

    def __init__(self, processor: Any, references: dict[int, list[str]]) -> None:
        self.processor = processor
        self.references = references
        self.captions: dict[int, str] = {}

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Args: prediction (`EvalPrediction`): Generated ids, padded with -100, and the rows they belong to."""
        ids = prediction.predictions
        ids[ids < 0] = self.processor.tokenizer.pad_token_id
        texts = self.processor.post_process_image_text_to_text(ids)
        rows = prediction.label_ids.reshape(-1).tolist()
        self.captions = dict(zip(rows, texts, strict=True))  # a photo comes twice where processes share unevenly
        predictions = tokenize_captions([self.captions[row] for row in self.captions])
        references = [tokenize_captions(self.references[row]) for row in self.captions]
        return {
            "cider": 100 * sum(cider_scores(predictions, references)) / len(predictions),
            "bleu_4": 100 * bleu_scores(predictions, references).corpus[3],
        }


class _TellEpoch(TrainerCallback):
    """Tells the examples which epoch it is; accelerate does so for some samplers only."""

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.examples.set_epoch(int(state.epoch or 0))


def _generation_arguments(args: Any) -> Seq2SeqTrainingArguments:
    """Arguments that also tell how to write captions in evaluation."""
    if args is None:
        return Seq2SeqTrainingArguments()
    if isinstance(args, Seq2SeqTrainingArguments):
        return args
    return Seq2SeqTrainingArguments(**{field.name: getattr(args, field.name) for field in fields(args) if field.init})


def _evaluated(dataset: Any, processor: Any) -> Any:
    """Each photo once; every reference counts for CIDEr, only the loss sees the cut."""
    if isinstance(dataset, datasets.IterableDataset):
        raise ValueError(
            "Evaluate on a dataset with an end, such as `datasets.Dataset.from_list(list(stream.take(N)))`."
        )
    return caption_examples(dataset, processor, captions="first", truncate=True)


class CaptionTrainer(Seq2SeqTrainer):
    """
    [`~transformers.Trainer`] for captioning models.

    What it adds: weight decay on matrices only, captions written in evaluation (`predict_with_generate`), checkpoints
    that are whole or not there, and the retrieval's rules of training.

    Args:
        model: Its [`~RetrievalPreTrainedModel.freeze_for_training`] says what is trained.
        args ([`~transformers.TrainingArguments`]): `remove_unused_columns` is set to `False`, since photos become the
            model's inputs in the collator.
        processing_class: The model's processor.
        train_dataset, eval_dataset (*optional*):
            A `datasets.Dataset` or `IterableDataset` with a column of photos and one of captions, strings or lists,
            called as usual (see [`with_captions`]), or [`CaptionExamples`], [`StreamedCaptionExamples`] or rows of
            another kind, as the collator reads them.
        retrieval (*optional*, defaults to `True`):
            `retrieval.prepare(inputs, step)` gives the inputs of a training step, with the memory rows that a photo
            must not retrieve; see `retrieval_in_training`. `True`: a photo of the memory never retrieves itself.
            `None`: nothing is done.
        kwargs: Everything else that [`~transformers.Trainer`] takes; the collator and the metrics have defaults.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        processing_class: Any,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        compute_metrics: Any = None,
        retrieval: Any = True,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        args = _generation_arguments(args)
        args.remove_unused_columns = False
        train_dataset = caption_examples(train_dataset, processing_class, seed=args.seed)
        if isinstance(eval_dataset, dict) and not isinstance(eval_dataset, datasets.DatasetDict):
            eval_dataset = {name: _evaluated(one, processing_class) for name, one in eval_dataset.items()}
        else:
            eval_dataset = _evaluated(eval_dataset, processing_class)
        data_collator = data_collator or PhotoCaptionCollator(processing_class)
        if retrieval is True:
            base = model.get_base_model() if hasattr(model, "get_base_model") else model
            retrieval = TrainingRetrieval(model, seed=args.seed) if hasattr(base, "memory") else None
        if isinstance(data_collator, PhotoCaptionCollator):
            keys = data_collator.photo_keys or (photo_keys if retrieval is not None else None)
            data_collator = replace(data_collator, with_rows=True, photo_keys=keys)
        self.retrieval = retrieval
        self._gathers_to_generate = False
        self._referenced_parts: set[str] = set()  # of the checkpoint that is being loaded
        callbacks = [*callbacks]
        if hasattr(train_dataset, "set_epoch"):
            callbacks.append(_TellEpoch(train_dataset))
        if compute_metrics is None and args.predict_with_generate and hasattr(eval_dataset, "references"):
            compute_metrics = CaptionScores(processing_class, eval_dataset.references)
        super().__init__(
            model=model,
            args=args,
            processing_class=processing_class,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            **kwargs,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Everything but parameters with one dimension, which are biases and norms (the reference's rule)."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim > 1]

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The model's own loss; the language model's head runs on the captions' columns alone."""
        inputs = {name: value for name, value in inputs.items() if name != "row"}
        if self.retrieval is not None and model.training:
            inputs = self.retrieval.prepare(inputs, self.state.global_step)
        inputs.pop("photo_keys", None)
        inputs["use_cache"] = False
        if "input_ids" in inputs:
            missing = inputs["input_ids"].shape[1] - inputs["labels"].shape[1]
            if missing and self._keeps_logits:
                # Places instead of a number: the head then runs on a copy, not on a slice, which a CPU is slow with.
                length = inputs["input_ids"].shape[1]
                inputs["logits_to_keep"] = torch.arange(missing, length, device=inputs["input_ids"].device)
            elif missing:
                inputs["labels"] = nn.functional.pad(inputs["labels"], (missing, 0), value=-100)
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    @property
    def _keeps_logits(self) -> bool:
        language_model = getattr(self.model, "language_model", None)
        if language_model is None:
            return False
        return "logits_to_keep" in inspect.signature(language_model.forward).parameters

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **generate_options: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Loss of a batch and, with `predict_with_generate`, the captions that the model writes for its photos.

        Returns:
            `tuple`: Loss, generated ids of shape `(batch_size, new_tokens)` and rows of shape `(batch_size,)`; the
            labels where a collator of the user's gives no rows.
        """
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach().mean()
        if prediction_loss_only or not self.args.predict_with_generate:
            return loss, None, None
        prompt = {name: value for name, value in inputs.items() if name not in ("labels", "row", "photo_keys")}
        if "input_ids" in prompt:
            prompt["input_ids"], prompt["attention_mask"] = prompts_alone(
                prompt["input_ids"],
                prompt["attention_mask"],
                inputs["labels"],
                self.processing_class.tokenizer.pad_token_id,
            )
        options = {**getattr(self, "_gen_kwargs", {}), **generate_options}
        if options.get("max_length") is not None:  # of the caption: the prompt is no part of what is generated
            options["max_new_tokens"] = options.pop("max_length")
        options = {name: value for name, value in options.items() if value is not None}
        sharded = is_fsdp_managed_module(self.model)
        options["synced_gpus"] = is_deepspeed_zero3_enabled() or sharded
        if sharded and not self._gathers_to_generate:  # what lies outside of the layers, as for a forward pass
            register_fsdp_forward_method(self.model, "generate")
            self._gathers_to_generate = True
        with self.compute_loss_context_manager():
            ids = self.model.generate(**prompt, **options)
        return loss, ids, inputs.get("row", inputs["labels"])

    # Checkpoints

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warns of missing weights, but not of those that are tied to others or that other repos hold."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        load_result.missing_keys[:] = [
            name
            for name in load_result.missing_keys
            if name not in tied and name.split(".")[0] not in self._referenced_parts
        ]
        super()._issue_warnings_after_load(load_result)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)  # the room is needed, and nobody shall take it for whole
            last = last_whole_checkpoint(self.args.output_dir)
            raise OSError(
                f"Could not save {folder}: {error}. "
                + (f"{last} is whole: make room and go on with resume_from_checkpoint=True." if last else "")
            ) from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the finished model: it comes into its folder when all of it is written."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if _internal_call and self._saves_trained_only and not sharded:
            self._save_trained(str(output_dir))
            return
        if _internal_call or not self.args.should_save or sharded:
            super().save_model(output_dir, _internal_call)
            return
        target = output_dir or self.args.output_dir
        unfinished = os.path.join(target, "unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            super().save_model(unfinished, _internal_call=True)
            os.remove(os.path.join(unfinished, TRAINING_ARGS_NAME))  # a pickle, and of this machine
            for name in os.listdir(unfinished):
                existing = os.path.join(target, name)
                if os.path.isdir(existing):
                    shutil.rmtree(existing)
                os.replace(os.path.join(unfinished, name), existing)
            self._write_facts(target)
        except (RuntimeError, SafetensorError) as error:
            raise OSError(f"Could not save the model to {target}: {error}") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _write_facts(self, folder: str) -> None:
        """Where the model comes from, with its licence, for the card of whoever publishes it."""
        if isinstance(self.model, PreTrainedModel) and hasattr(self.model, "trainable_parts"):
            write_first_facts(self, Path(folder))

    @property
    def _saves_trained_only(self) -> bool:
        return getattr(self.args, "save_only_trained", False) and isinstance(self.model, PreTrainedModel)

    def _save_trained(self, folder: str) -> None:
        """A checkpoint of what is trained, under a name that no model is loaded from."""
        if not self.args.should_save:
            return
        os.makedirs(folder, exist_ok=True)
        parameters = dict(self.model.named_parameters())
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        buffers = {name: value for name, value in self.model.named_buffers() if name in self.model.state_dict()}
        tensors = {name: value.detach().contiguous() for name, value in {**trained, **buffers}.items()}
        save_file(tensors, os.path.join(folder, TRAINED_WEIGHTS))
        torch.save(self.args, os.path.join(folder, TRAINING_ARGS_NAME))

    def _load_trained(self, folder: str) -> bool:
        """Loads a checkpoint of [`_save_trained`], if it is one."""
        file = os.path.join(folder, TRAINED_WEIGHTS)
        if not os.path.isfile(file):
            return False
        tensors = load_file(file)
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        unexpected = self.model.load_state_dict(tensors, strict=False).unexpected_keys
        if unexpected or not trained <= set(tensors):
            raise ValueError(
                f"{folder} is a checkpoint of other trained parts than this run's; go on with its model and policy."
            )
        return True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_trained(resume_from_checkpoint):
            self._restore_referenced(resume_from_checkpoint)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_trained(str(self.state.best_model_checkpoint)):
            self._restore_referenced(str(self.state.best_model_checkpoint))
            super()._load_best_model()

    def _restore_referenced(self, folder: str) -> None:
        """Parts that a checkpoint only names: they lie in repos of their own."""
        if isinstance(self.model, PreTrainedModel) and os.path.isfile(os.path.join(folder, "config.json")):
            self._referenced_parts = restore_referenced_parts(self.model, folder)

    # Publishing

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Uploads the finished model: what `hf-evcap push model OUTPUT_DIR` uploads, in one commit. Checkpoints, training
        arguments and logs stay here.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): Title of the commit.
            blocking (`bool`, *optional*): Has no effect; the upload is done when this returns.
            token, revision, kwargs: Of [`~huggingface_hub.HfApi.create_commit`] and of `create_model_card`.
        """
        private = kwargs.pop("private", self.args.hub_private_repo)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        return self._push_folder(self.args.output_dir, commit_message, token, revision, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads a checkpoint's model, where there is a whole one; its optimizer is nobody else's."""
        whole = os.path.isfile(os.path.join(checkpoint_folder, "config.json"))
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END and whole:
            self._write_facts(checkpoint_folder)
            self._push_folder(checkpoint_folder, f"Training in progress, step {self.state.global_step}")

    def _push_folder(
        self,
        folder: str,
        commit_message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Any:
        source = Path(folder).absolute()
        repo_id = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name

        def stage(staged: Path) -> None:
            if (source / "config.json").is_file():
                prepare_repo("model", str(source), staged, repo_id)
            else:  # adapters alone
                link_files(choose_model_files(source, type(self.model.get_base_model())), staged)

        return push_saved(
            stage,
            repo_id,
            commit_message=commit_message or "Upload model",
            token=token or self.args.hub_token,
            revision=revision or getattr(self.args, "hub_revision", None),
            private=private,
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes the card of a captioner into `output_dir`; peft's own for adapters."""
        if not isinstance(self.model, PreTrainedModel):
            super().create_model_card(*args, **kwargs)
        elif self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            write_model_card(folder, repo_id=self.hub_model_id or folder.name, memory=self.model.memory)


def last_whole_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The last checkpoint in a folder that was written to its end, or `None`.

    The Trainer writes its state last, so a checkpoint whose writing was cut off has none that can be read.
    """
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(output_dir):
            if matched := re.fullmatch(r"checkpoint-(\d+)", name):
                found[int(matched[1])] = os.path.join(output_dir, name)
    for _, folder in sorted(found.items(), reverse=True):
        try:
            with open(os.path.join(folder, TRAINER_STATE), encoding="utf-8") as file:
                json.load(file)
            return folder
        except (OSError, ValueError):
            logger.warning(f"{folder} was not written to its end; an earlier checkpoint is used.")
    return None
