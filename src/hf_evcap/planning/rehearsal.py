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
        activations (`int`): All else at the peak: activations kept for the backward pass, and temporaries.
        flops (`int`): Floating-point operations of the step.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    flops: int

    @property
    def peak(self) -> int:
        """`int`: Bytes at the peak."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class CaptionMemory:
    """
    Bytes that captioning a batch takes on one device, at its peak.

    Args:
        weights (`int`): Of the whole model.
        cache (`int`): Keys and values of the language model at the end of the caption, of all photos and beams.
        activations (`int`): All else at the peak.
        flops (`int`): Floating-point operations for the batch.
    """

    weights: int
    cache: int
    activations: int
    flops: int

    @property
    def peak(self) -> int:
        """`int`: Bytes at the peak."""
        return self.weights + self.cache + self.activations


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
    cached_features: bool = False,
    device: str = "cuda",
) -> TrainingMemory:
    """
    Goes through a training step; its peak is that of a later step, when the optimizer has its states.

    Args:
        model: Frozen as it is to be trained, of fake tensors; in their mode.
        workload ([`Workload`]): Sizes of the batch.
        optim (`str`, *optional*, defaults to `"adamw_torch"`): As in `transformers.TrainingArguments`.
        autocast (`torch.dtype`, *optional*): Of mixed precision.
        gradient_checkpointing, cached_features (`bool`, *optional*): As in `hf-evcap train`.
        device (`str`, *optional*, defaults to `"cuda"`): For which the optimizer chooses its way of working.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of transformers have a second name for it
        base = base_of(model)
        (base.gradient_checkpointing_enable if gradient_checkpointing else base.gradient_checkpointing_disable)()
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = make_optimizer(optim, trained, device)

    with PeakMemory(weights_of(model)) as memory:
        weights = memory.now
        with _autocast(autocast):
            loss = training_loss(model, workload, cached_features)
        loss.backward()
        del loss
        flops, peak = memory.flops, memory.peak
        reached = [weight for weight in trained if weight.grad is not None]
        gradients = storage_bytes(weight.grad for weight in reached)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        states = memory.now - weights - gradients
        memory.reset_peak()
        optimizer.step()  # from the second step on it has its states
        peak = max(peak + states, memory.peak)
        optimizer.zero_grad(set_to_none=True)
    return TrainingMemory(weights, gradients, states, peak - weights - gradients - states, flops)


def rehearse_captioning(model: Any, workload: Workload) -> CaptionMemory:
    """
    Goes through captioning a batch of photos: encoding, prompt, and the last token of captions of full length.

    Args:
        model: Of fake tensors; in their mode.
        workload ([`Workload`]): Sizes of the batch, `num_beams` and `new_tokens`.
    """
    base = base_of(model)
    model.eval()

    with torch.no_grad(), PeakMemory(weights_of(model)) as memory:
        weights = memory.now
        cache = _write_last_token(base, workload, *prompt_inputs(base, workload))
    return CaptionMemory(weights, cache, max(0, memory.peak - weights - cache), memory.flops)


def rehearse_encoding(model: Any, workload: Workload) -> tuple[int, torch.Size]:
    """Operations of the vision encoder for a batch of photos, and the shape of a photo's features."""
    base = base_of(model)
    with torch.no_grad(), PeakMemory(weights_of(model)) as memory:
        features = base.get_vision_hidden_states(workload.photos())
    return memory.flops, features.shape[1:]


@contextlib.contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    with contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype):
        yield


def training_loss(model: Any, workload: Workload, cached_features: bool = False) -> torch.Tensor:
    """The loss of a batch, computed as [`CaptionTrainer`] does: the head runs on the captions' columns alone."""
    base = base_of(model)
    with torch.no_grad():
        features = base.get_vision_hidden_states(workload.photos()).float() if cached_features else None
    photos = {"vision_hidden_states": features} if cached_features else {"pixel_values": workload.photos()}
    labelled = workload.caption_tokens + 1
    length = workload.sequence_tokens + workload.caption_tokens
    labels = torch.ones(workload.batch_size, labelled, dtype=torch.long)
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(base.language_model.forward).parameters:
        options["logits_to_keep"] = labelled
    else:
        labels = torch.nn.functional.pad(labels, (length - labelled, 0), value=-100)
    mask = torch.ones(workload.batch_size, length, dtype=torch.long)
    ids = torch.ones(workload.batch_size, length - workload.prefix_tokens, dtype=torch.long)
    if base.config.model_type == "evcap":
        prefix = base.encode_images(**photos, names=_names(workload)).prefix
        inputs = {"inputs_embeds": _with_prefix(base, prefix, ids)}
    else:
        inputs = {"input_ids": ids, **photos}
    return model(**inputs, attention_mask=mask, labels=labels, **options).loss.float()


def prompt_inputs(model: Any, workload: Workload) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Embedded prompts of a batch of photos, and what else the language model is given."""
    ids = torch.ones(workload.batch_size, workload.sequence_tokens - workload.prefix_tokens, dtype=torch.long)
    if model.config.model_type == "evcap":
        prefix = model.encode_images(workload.photos(), names=_names(workload)).prefix
        return _with_prefix(model, prefix, ids), {}
    features = model.get_image_features(workload.photos()).vision_hidden_states
    return model.get_input_embeddings()(ids), {"encoder_hidden_states": model._decoder_features(features)}


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
    given = model._shared_prefill(prompt, mask, inputs, {"num_beams": beams})
    rows = [tensor.repeat_interleave(beams, dim=0) for tensor in (prompt, mask)]
    inputs = {name: tensor.repeat_interleave(beams, dim=0) for name, tensor in inputs.items()}
    cache = given.get("past_key_values") or model._empty_cache()
    first = rows[0][:, -1:] if given else rows[0]
    words = model.get_input_embeddings()(torch.ones(len(first), workload.new_tokens - 1, dtype=torch.long))
    for chunk in (first, words[:, :-1], words[:, -1:]):  # all but the last token at once; they stay in the cache
        if not chunk.shape[1]:
            continue
        seen = cache.get_seq_length() + chunk.shape[1]
        logits = model.language_model(
            inputs_embeds=chunk,
            attention_mask=torch.ones(len(chunk), seen, dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
            **_last_logits(model),
            **inputs,
        ).logits
        _choose_beams(logits[:, -1], workload)
    return storage_bytes(_cached_tensors(cache))


def _last_logits(model: Any) -> dict[str, int]:
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.language_model.forward).parameters else {}


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
    "TrainingMemory",
    "rehearse_captioning",
    "rehearse_encoding",
    "rehearse_training",
]
