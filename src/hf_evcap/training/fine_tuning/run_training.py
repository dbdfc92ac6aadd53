"""One training run from its arguments: load, freeze, train, evaluate, save."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, EarlyStoppingCallback, set_seed
from transformers.utils import logging

import hf_evcap

from ...caption_data import load_caption_data
from ...output_folders import check_output
from ...photo_rows import photo_keys
from ..feature_cache import VisionFeatureCache
from .caption_collator import PhotoCaptionCollator
from .caption_examples import CaptionExamples, StreamedCaptionExamples
from .caption_trainer import TRAINER_STATE, CaptionTrainer, last_whole_checkpoint
from .freezing import apply_policy, describe_trainable
from .name_alignment import align_names
from .name_lists import read_names
from .prepared_names import PreparedNames, retrieve_once
from .quantization import language_model_quantization, prepare_for_training
from .retrieval_in_training import TrainingRetrieval
from .training_arguments import CaptionTrainingArguments, DataArguments, ModelArguments, RetrievalArguments
from .training_facts import write_training_facts


logger = logging.get_logger(__name__)

# What a run leaves that is killed before its first whole checkpoint.
_BEFORE_A_CHECKPOINT = ("runs", "unfinished", "checkpoint-*")


def load_model(arguments: ModelArguments, training: CaptionTrainingArguments) -> tuple[Any, Any]:
    """
    Loads the model that is to be trained, frozen as its policy says, and its processor.

    Returns:
        `tuple`: Model (a [`~peft.PeftModel`] for LoRA) and processor.
    """
    source = arguments.model or hf_evcap.default_model()
    hub = {"revision": arguments.model_revision, "trust_remote_code": arguments.trust_remote_code}
    options: dict[str, Any] = {
        **hub,
        "dtype": arguments.dtype or ("float32" if training.device.type == "cpu" else "auto"),
    }
    for name in ("memory", "attn_implementation"):
        if getattr(arguments, name) is not None:
            options[name] = getattr(arguments, name)
    if arguments.quantization is not None:
        config = AutoConfig.from_pretrained(source, **hub)
        options["quantization_config"] = language_model_quantization(arguments.quantization, config)
        options["device_map"] = {"": training.device}  # of this process
    model = AutoModelForImageTextToText.from_pretrained(source, **options)
    processor = AutoProcessor.from_pretrained(source, **hub)
    prepare_for_training(model, arguments.policy)
    model = apply_policy(
        model,
        arguments.policy,
        arguments.lora_parts,
        arguments.lora_rank,
        arguments.lora_alpha,
        arguments.lora_dropout,
        arguments.lora_beside,
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # small updates are lost in half precision
    return model, processor


def load_training_examples(arguments: DataArguments, processor: Any, seed: int, model: Any = None) -> Any:
    """
    [`CaptionExamples`] to train on, or [`StreamedCaptionExamples`].

    Args:
        arguments ([`DataArguments`]): The data.
        processor: The model's.
        seed (`int`): Of the draw of captions, and of a stream's shuffling.
        model (*optional*): Whose encoder must have made `feature_cache`.
    """
    source = str(arguments.dataset)
    dataset = _load_data(arguments, source, arguments.dataset_split, arguments.images, arguments.streaming)
    options: dict[str, Any] = {
        "captions": arguments.captions_per_photo,
        "max_caption_length": arguments.max_caption_length,
        "truncate": arguments.truncate_captions,
        "on_error": arguments.on_bad_data,
        "seed": seed,
    }
    if arguments.streaming:
        if arguments.max_train_samples is not None:
            dataset = dataset.take(arguments.max_train_samples)
        if arguments.shuffle_buffer_size > 1:
            dataset = dataset.shuffle(seed=seed, buffer_size=arguments.shuffle_buffer_size)
    else:
        dataset = _first(dataset, arguments.max_train_samples)
    dataset = _with_features(dataset, arguments.feature_cache, model, processor)
    examples = StreamedCaptionExamples if arguments.streaming else CaptionExamples
    return examples(dataset, processor, **options)


def load_evaluation_examples(arguments: DataArguments, processor: Any, model: Any = None) -> CaptionExamples | None:
    """[`CaptionExamples`] to evaluate on, each photo once, or `None` where none are named."""
    if arguments.eval_dataset is None and arguments.eval_split is None:
        return None
    source = str(arguments.eval_dataset or arguments.dataset)
    dataset = _load_data(arguments, source, arguments.eval_split, arguments.eval_images or arguments.images, False)
    dataset = _first(dataset, arguments.max_eval_samples)
    return CaptionExamples(
        _with_features(dataset, arguments.eval_feature_cache, model, processor),
        processor,
        captions="first",
        max_caption_length=arguments.max_caption_length,
        truncate=True,  # every reference counts for CIDEr; only the loss sees the cut
        on_error=arguments.on_bad_data,
    )


def _load_data(
    arguments: DataArguments, source: str, split: str | None, images: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    return load_caption_data(
        source,
        split,
        images=images,
        format=arguments.dataset_format,
        config_name=arguments.dataset_config,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        id_column=arguments.id_column,
        require_captions=True,
        on_error=arguments.on_bad_data,
        allow_urls=arguments.allow_urls,
        streaming=streaming,
        revision=arguments.dataset_revision,
    )


def _with_features(dataset: Any, folder: str | None, model: Any, processor: Any) -> Any:
    if folder is None:
        return dataset
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if any(weight.requires_grad for weight in base.vision_model.parameters()):
        raise ValueError(
            f"The vision encoder is to be trained, but the features in {folder} are what it gave before. Train "
            "without a feature cache, or choose a policy that leaves the encoder as it is."
        )
    return VisionFeatureCache.open(folder, base, processor).attach(dataset)


def _first(dataset: datasets.Dataset, count: int | None) -> datasets.Dataset:
    return dataset if count is None else dataset.select(range(min(count, len(dataset))))


def find_checkpoint(training: CaptionTrainingArguments) -> str | None:
    """
    The checkpoint from which a run goes on, or `None` to start anew.

    Raises:
        FileNotFoundError: The one named was not written to its end, or there is none.
        ValueError: The folder holds the checkpoints of another run, or something else.
    """
    given = training.resume_from_checkpoint
    last = last_whole_checkpoint(training.output_dir)
    if given is None or str(given).lower() == "false":
        if last is not None and not training.overwrite:
            raise ValueError(
                f"{training.output_dir} already holds {os.path.basename(last)}. Go on with it by "
                "`--resume_from_checkpoint true`, start anew by `--overwrite`, or choose another `--output_dir`."
            )
        return None
    if str(given).lower() == "true":
        if last is None:
            logger.warning(f"{training.output_dir} has no checkpoint yet; training starts at the beginning.")
        return last
    if not os.path.isfile(os.path.join(given, "trainer_state.json")):
        raise FileNotFoundError(f"{given} is not a checkpoint, or was not written to its end.")
    return str(given)


def check_output_dir(training: CaptionTrainingArguments) -> None:
    """
    Refuses an `output_dir` that holds something else than a run that can be gone on with; see [`find_checkpoint`].

    Raises:
        OutputExistsError: It does, and may not be overwritten.
    """
    given = str(training.resume_from_checkpoint).lower()
    if given in ("none", "false", "true") and last_whole_checkpoint(training.output_dir) is None:
        check_output(training.output_dir, training.overwrite, own=_BEFORE_A_CHECKPOINT)


def run_training(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training: CaptionTrainingArguments,
    retrieval_arguments: RetrievalArguments | None = None,
    report: Callable[[str], None] = logger.info,
) -> CaptionTrainer:
    """
    Trains a model and saves it, with its processor and memory, in `training.output_dir`.

    Args:
        model_arguments ([`ModelArguments`]): Which model, and what of it is trained.
        data_arguments ([`DataArguments`]): Photos with captions.
        training ([`CaptionTrainingArguments`]): Everything that transformers' Trainer takes.
        retrieval_arguments ([`RetrievalArguments`], *optional*): What retrieval does in training.
        report (`Callable`, *optional*): Gets lines for the user, on the main process.

    Returns:
        [`CaptionTrainer`]: After training; `trainer.model` is the model, `trainer.state.log_history` the losses.
    """
    if not training.should_log:
        report = logger.debug
    if data_arguments.dataset is None:
        raise ValueError("Name the captioned photos to train on: `--dataset FILE, FOLDER or Hub id`.")
    checkpoint = find_checkpoint(training)
    if checkpoint is None and training.overwrite and training.should_save:
        for old in Path(training.output_dir).glob("checkpoint-*"):  # the next run would go on with them
            if (old / TRAINER_STATE).is_file():
                shutil.rmtree(old)
    set_seed(training.seed)
    model, processor = load_model(model_arguments, training)
    if training.ddp_find_unused_parameters is None:
        # Only `paper` sends gradients to all that it trains: the last layers of Q-Formers have parts without any.
        training.ddp_find_unused_parameters = model_arguments.policy != "paper"
    report(f"Policy {model_arguments.policy}. {describe_trainable(model)}")
    if model_arguments.align_names and checkpoint is None:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        file = retrieval_arguments.replacement_names if retrieval_arguments else None
        error = align_names(base, model_arguments.align_names, read_names(file) if file else (), training.seed)
        report(f"Names aligned with the language model's words: {100 * error:.1f} % of their variance is missed.")
    if training.compile_layers:
        compile_layers(model)
    train_examples = load_training_examples(data_arguments, processor, training.seed, model)
    eval_examples = load_evaluation_examples(data_arguments, processor, model)
    report(describe_data(train_examples, eval_examples))
    options = asdict(retrieval_arguments or RetrievalArguments())
    share, others = options.pop("replaced_names"), options.pop("replacement_names")
    retrieval = TrainingRetrieval(model, **options, seed=training.seed)
    names = None
    if data_arguments.captions_per_photo == "together":
        check_groups(processor, training)
    if share:
        names = prepare_names(model, train_examples, retrieval, others, share, training.seed)
    callbacks = []
    if training.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(training.early_stopping_patience))
    trainer = CaptionTrainer(
        model,
        training,
        processing_class=processor,
        data_collator=PhotoCaptionCollator(processor, data_arguments.max_caption_length, photo_keys, names),
        train_dataset=train_examples,
        eval_dataset=eval_examples,
        callbacks=callbacks,
        retrieval=retrieval,
    )
    result = trainer.train(resume_from_checkpoint=checkpoint)
    retrieval.detach()
    metrics = dict(result.metrics)
    skipped = {"photos": train_examples.skipped_photos, "captions": train_examples.skipped_captions}
    for what, count in skipped.items():
        if count:
            metrics[f"skipped_{what}"] = count
            report(f"Left out {count} {what if count > 1 else what[:-1]}; the warnings say why.")
    if model_arguments.merge_adapters and hasattr(trainer.model, "merge_and_unload"):
        trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", metrics)
    report(f"Trained {trainer.state.global_step} steps, loss {metrics['train_loss']:.4f}.")
    if trainer.state.best_model_checkpoint is not None:
        best = f"{training.metric_for_best_model} {trainer.state.best_metric:.4g}"
        report(f"Best: {best} at step {trainer.state.best_global_step}.")
    evaluation = None
    if eval_examples is not None:
        evaluation = trainer.evaluate()
        trainer.save_metrics("eval", evaluation)
        report("Evaluation: " + ", ".join(f"{name} {evaluation[f'eval_{name}']:.4g}" for name in _shown(evaluation)))
    if trainer.is_world_process_zero() and not hasattr(trainer.model, "peft_config"):
        write_training_facts(trainer, model_arguments, data_arguments, evaluation)
    trainer.create_model_card()
    if training.push_to_hub:
        trainer.push_to_hub()
    report(f"Saved {training.output_dir}")
    return trainer


def compile_layers(model: Any) -> None:
    """Compiles each layer of the language model by itself, for sequences of any length; layers share the kernels."""
    language_model = (model.get_base_model() if hasattr(model, "get_base_model") else model).language_model
    layers = set(language_model._no_split_modules or ())
    for module in language_model.modules():
        if type(module).__name__ in layers:
            module.compile(dynamic=True)


def check_groups(processor: Any, training: CaptionTrainingArguments) -> None:
    """Refuses captions in groups where a prompt cannot be shared."""
    if not hasattr(processor, "encode_prompt"):
        raise ValueError(
            "`captions_per_photo=together` shares a photo's prompt among its captions; this model's prompt holds what "
            "was retrieved and is made inside of it. Use all or one."
        )
    if processor.encode_prompt(processor.prompt)[-1] == processor.image_token_id:
        raise ValueError(
            f"The prompt {processor.prompt_template!r} ends with the photo, so no token of text stands in front of "
            "each caption. Use `captions_per_photo` all or one."
        )
    if training.label_smoothing_factor:
        raise ValueError("`captions_per_photo=together` goes without `label_smoothing_factor`.")


def prepare_names(
    model: Any, examples: Any, retrieval: TrainingRetrieval, file: str | None, share: float, seed: int
) -> PreparedNames:
    """[`PreparedNames`] of the photos that are trained on, from the file of names that may replace each other."""
    if getattr(examples, "captions", None) != "together" or not isinstance(examples, CaptionExamples):
        raise ValueError("`replaced_names` needs `captions_per_photo=together`, and no streaming.")
    if file is None:
        raise ValueError("`replaced_names` needs `replacement_names`, the JSON file of names that replace each other.")
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = retrieve_once(model, examples, retrieval)
    return PreparedNames(found, retrieval, base.config.num_retrieved_names, read_names(file), share, seed)


def _shown(metrics: dict[str, float]) -> list[str]:
    return [name for name in ("loss", "cider", "bleu_4") if f"eval_{name}" in metrics]


def describe_data(train_examples: Any, eval_examples: CaptionExamples | None) -> str:
    """A line on the examples."""
    if isinstance(train_examples, CaptionExamples):
        text = f"Data: {len(train_examples):,} examples of {len(train_examples.references):,} photos"
    else:
        text = "Data: a stream"
    return text if eval_examples is None else f"{text}; evaluation on {len(eval_examples):,} photos"


__all__ = ["find_checkpoint", "load_model", "run_training"]
