"""A training step and a caption, gone through on fake tensors: the model's own code says what memory it takes."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..retrieval_evcap import EVCapRetrievedNames
from .optimizers import make_optimizer
from .peak_memory import PeakMemory, storage_bytes
from .workload import Workload


@dataclass(frozen=True)
class TrainingMemory:
    """
    Bytes that a training step takes on one device, at its peak.

    Args:
        weights, gradients, optimizer (`int`): Of the whole model, of what is trained, of the optimizer's states.
        memory (`int`): Keys of the memory or datastore.
        activations (`int`): All else at the peak: activations kept for the backward pass, and temporaries.
        flops (`int`): Floating-point operations of the step.
    """

    weights: int
    gradients: int
    optimizer: int
    memory: int
    activations: int
    flops: int

    @property
    def peak(self) -> int:
        """`int`: Bytes at the peak."""
        return self.weights + self.gradients + self.optimizer + self.memory + self.activations


@dataclass(frozen=True)
class CaptionMemory:
    """
    Bytes that captioning a batch takes on one device, at its peak.

    Args:
        weights (`int`): Of the whole model.
        cache (`int`): Keys and values of the language model at the end of the caption, of all photos and beams.
        memory (`int`): Keys of the memory or datastore.
        activations (`int`): All else at the peak.
        flops (`int`): Floating-point operations for the batch.
    """

    weights: int
    cache: int
    memory: int
    activations: int
    flops: int

    @property
    def peak(self) -> int:
        """`int`: Bytes at the peak."""
        return self.weights + self.cache + self.memory + self.activations


@dataclass(frozen=True)
class FeatureShape:
    """
    What the vision encoder makes of a photo.

    Args:
        shape (`tuple[int, ...]`): Patches and width.
        flops (`int`): Floating-point operations for the batch.
    """

    shape: tuple[int, ...]
    flops: int


def base_of(model: Any) -> Any:
    """The model inside its adapters, or itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def weights_of(model: Any) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def rehearse_training(
    model: Any,
    workload: Workload,
    *,
    optim: str = "adamw_torch",
    autocast: torch.dtype | None = None,
    gradient_checkpointing: bool = False,
    device: str = "cuda",
) -> tuple[TrainingMemory, TrainingMemory]:
    """
    Goes through a training step; its peak is that of a later step, when the optimizer has its states.

    Args:
        model: Frozen as it is to be trained, of fake tensors; in their mode.
        workload ([`Workload`]): Sizes of the batch.
        optim (`str`, *optional*, defaults to `"adamw_torch"`): As in `transformers.TrainingArguments`.
        autocast (`torch.dtype`, *optional*): Of mixed precision.
        gradient_checkpointing (`bool`, *optional*, defaults to `False`): As in `hf-evcap train`.
        device (`str`, *optional*, defaults to `"cuda"`): For which the optimizer chooses its way of working.

    Returns:
        `tuple`: A step from photos, and from features that the vision encoder gave before; the latter means something
        where the encoder is frozen.
    """
    base = base_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of transformers have a second name for it
        (base.gradient_checkpointing_enable if gradient_checkpointing else base.gradient_checkpointing_disable)()
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = make_optimizer(optim, trained, device)
    photos = workload.photos()
    with PeakMemory([*weights_of(model), photos]) as memory:
        inputs = storage_bytes([photos])
        weights = memory.now - inputs
        with _autocast(autocast):
            features = [base.get_vision_hidden_states(photos)]
            encoding, encoded = memory.flops, memory.peak
            memory.reset_peak()
            loss = training_loss(model, workload, features)
        loss.backward()
        del loss
        flops, peak = memory.flops, memory.peak
        reached = [weight for weight in trained if weight.grad is not None]
        gradients = storage_bytes(weight.grad for weight in reached)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        states = memory.now - weights - gradients - inputs
        memory.reset_peak()
        optimizer.step()  # from the second step on it has its states
        peak = max(peak + states, memory.peak)
        optimizer.zero_grad(set_to_none=True)
    held = weights + gradients + states

    def figures(peak: int, flops: int) -> TrainingMemory:
        return TrainingMemory(weights, gradients, states, workload.memory_bytes, peak - held, flops)

    return figures(max(encoded + states, peak), flops), figures(peak, flops - encoding)


def rehearse_captioning(model: Any, workload: Workload) -> tuple[CaptionMemory, FeatureShape]:
    """
    Goes through captioning a batch of photos: encoding, prompt, and the last token of captions of full length.

    Args:
        model: Of fake tensors; in their mode.
        workload ([`Workload`]): Sizes of the batch, `num_beams` and `new_tokens`.

    Returns:
        `tuple`: What it takes, and what the vision encoder gave.
    """
    model.eval()
    with torch.no_grad(), PeakMemory(weights_of(model)) as memory:
        weights = memory.now
        features = [model.get_vision_hidden_states(workload.photos())]
        encoded = FeatureShape(tuple(features[0].shape[1:]), memory.flops)
        cache = _write_last_token(model, workload, *prompt_inputs(model, workload, features))
    activations = max(0, memory.peak - weights - cache)
    return CaptionMemory(weights, cache, workload.memory_bytes, activations, memory.flops), encoded


@contextlib.contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    with contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype):
        yield


def training_loss(model: Any, workload: Workload, features: list[torch.Tensor]) -> torch.Tensor:
    """
    The loss of a batch, computed as [`CaptionTrainer`] does: the head runs on the captions' columns alone.

    Args:
        model: Of fake tensors, frozen.
        workload ([`Workload`]): Sizes of the batch.
        features (`list[torch.Tensor]`): What the vision encoder gave, alone in a list from which it is taken, so that
            it is let go as soon as in a real step.
    """
    base = base_of(model)
    labelled = workload.caption_tokens + 1
    length = workload.sequence_tokens + workload.caption_tokens
    labels = torch.ones(workload.batch_size, labelled, dtype=torch.long)
    options: dict[str, Any] = {"use_cache": False}
    if _keeps_logits(base):
        options["logits_to_keep"] = labelled
    else:
        labels = torch.nn.functional.pad(labels, (length - labelled, 0), value=-100)
    mask = torch.ones(workload.batch_size, length, dtype=torch.long)
    ids = torch.ones(workload.batch_size, length - workload.prefix_tokens, dtype=torch.long)
    if base.config.model_type == "evcap":
        prefix = base.encode_images(vision_hidden_states=features.pop(), names=_names(workload)).prefix
        inputs = {"inputs_embeds": _with_prefix(base, prefix, ids)}
        del prefix
    else:
        inputs = {"input_ids": ids, "vision_hidden_states": features.pop()}
    return model(**inputs, attention_mask=mask, labels=labels, **options).loss.float()


def prompt_inputs(
    model: Any, workload: Workload, features: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Embedded prompts of a batch of photos, and what else the language model is given; `features` as above."""
    ids = torch.ones(workload.batch_size, workload.sequence_tokens - workload.prefix_tokens, dtype=torch.long)
    if model.config.model_type == "evcap":
        prefix = model.encode_images(vision_hidden_states=features.pop(), names=_names(workload)).prefix
        return _with_prefix(model, prefix, ids), {}
    seen = model.get_image_features(vision_hidden_states=features.pop()).vision_hidden_states
    return model.get_input_embeddings()(ids), {"encoder_hidden_states": model._decoder_features(seen)}


def _names(workload: Workload) -> EVCapRetrievedNames:
    """Names as the retrieval returns them, of the workload's length."""
    size = workload.batch_size
    ids = torch.ones(size, workload.retrieved_tokens, dtype=torch.long)
    scores, rows = torch.zeros(size, 1), torch.zeros(size, 1, dtype=torch.long)
    return EVCapRetrievedNames([[] for _ in range(size)], scores, rows, ids, torch.ones_like(ids))


def _with_prefix(model: Any, prefix: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """A prompt's embeddings with the photo's vectors among them; where the placeholders are does not matter here."""
    words = model.get_input_embeddings()(ids)
    return torch.cat([prefix.to(words.dtype), words], dim=1)


def _write_last_token(model: Any, workload: Workload, prompt: torch.Tensor, inputs: dict[str, torch.Tensor]) -> int:
    """The prompt once a photo, its cache given to the beams, a caption's tokens; returns the cache's bytes."""
    beams = workload.num_beams
    mask = torch.ones(prompt.shape[:2], dtype=torch.long)
    cache = model._shared_prefill(prompt, mask, inputs, {"num_beams": beams})
    prompt = prompt.repeat_interleave(beams, dim=0)
    inputs = {name: tensor.repeat_interleave(beams, dim=0) for name, tensor in inputs.items()}
    read = prompt if cache is None else prompt[:, -1:]
    cache = model._empty_cache() if cache is None else cache
    words = model.get_input_embeddings()(torch.ones(len(prompt), workload.new_tokens - 1, dtype=torch.long))
    head = {"logits_to_keep": 1} if _keeps_logits(model) else {}
    for chunk in (read, words[:, :-1], words[:, -1:]):  # all but the last token at once; they stay in the cache
        if chunk.shape[1]:
            seen = torch.ones(len(chunk), cache.get_seq_length() + chunk.shape[1], dtype=torch.long)
            _, outputs = model.run_language_model(chunk, seen, cache=cache, use_cache=True, **head, **inputs)
            _choose_beams(outputs.logits[:, -1], workload)
    return storage_bytes(_cached_tensors(cache))


def _keeps_logits(model: Any) -> bool:
    """Whether the language model's head can run on the last tokens alone; SmallCap's decoders can."""
    known = inspect.signature(model.language_model.forward).parameters
    return model.config.model_type == "smallcap" or "logits_to_keep" in known


def _choose_beams(logits: torch.Tensor, workload: Workload) -> None:
    """What beam search does with the scores of a token."""
    scores = torch.log_softmax(logits.float(), dim=-1)
    scores = (scores + torch.zeros(len(scores), 1)).view(workload.batch_size, -1)
    scores.topk(min(2 * workload.num_beams, scores.shape[1]))


def _cached_tensors(cache: Any) -> list[torch.Tensor]:
    caches = [cache] if hasattr(cache, "layers") else [cache.self_attention_cache, cache.cross_attention_cache]
    tensors = [(layer.keys, layer.values) for one in caches for layer in one.layers]
    return [tensor for pair in tensors for tensor in pair if isinstance(tensor, torch.Tensor)]


__all__ = [
    "CaptionMemory",
    "FeatureShape",
    "TrainingMemory",
    "base_of",
    "rehearse_captioning",
    "rehearse_training",
]
