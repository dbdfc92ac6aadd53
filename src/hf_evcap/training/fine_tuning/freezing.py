"""Freezing policies: what is trained and what stays as it is, with LoRA adapters as one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging


logger = logging.get_logger(__name__)


def apply_policy(
    model: Any,
    policy: str,
    lora_parts: Sequence[str] | None = None,
    lora_rank: int = 16,
    lora_alpha: int = 32,
    lora_dropout: float = 0.05,
    lora_beside: str = "paper",
) -> Any:
    """
    Freezes what a policy does not train.

    Args:
        model ([`RetrievalPreTrainedModel`]): Its `trainable_parts` are the policies of its family.
        policy (`str`): One of them, `"lora"` or `"full"`.
        lora_parts, lora_rank, lora_alpha, lora_dropout, lora_beside: As for [`add_lora`], for `"lora"`.

    Returns:
        The model, or the [`~peft.PeftModel`] around it for `"lora"`.
    """
    if policy == "lora":
        return add_lora(model, lora_parts, lora_rank, lora_alpha, lora_dropout, lora_beside)
    if policy not in (*model.trainable_parts, "full"):
        policies = ", ".join([*model.trainable_parts, "lora", "full"])
        raise ValueError(f"Unknown freezing policy {policy!r}; this model has {policies}.")
    model.freeze_for_training(policy)
    return model


def add_lora(
    model: Any,
    parts: Sequence[str] | None = None,
    rank: int = 16,
    alpha: int = 32,
    dropout: float = 0.05,
    beside: str = "paper",
) -> Any:
    """
    Puts LoRA adapters (Hu et al. 2021, arXiv 2106.09685) on all linear layers of parts of a model, and trains the
    modules of another policy beside them (EVCap's `paper`: the projection; queries are no module and stay).

    Args:
        model ([`RetrievalPreTrainedModel`]): Not changed but for its adapters.
        parts (`Sequence[str]`, *optional*): Such as `["language_model", "fusion_qformer"]`; the class's `lora_parts`.
        rank (`int`, *optional*, defaults to 16): Rank of the adapters.
        alpha (`int`, *optional*, defaults to 32): Their scale is `alpha / rank`.
        dropout (`float`, *optional*, defaults to 0.05): In front of them.
        beside (`str`, *optional*, defaults to `"paper"`): Policy whose modules are trained whole.

    Returns:
        [`~peft.PeftModel`]: `save_pretrained` writes the adapters, `PeftModel.from_pretrained(base, folder)` puts them
        on the base again, `merge_and_unload` gives a model without adapters.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise ImportError('LoRA needs peft: pip install "hf_evcap[train]"') from None
    parts = list(parts or model.lora_parts)
    if beside not in model.trainable_parts:
        raise ValueError(f"Unknown policy {beside!r} beside LoRA; this model has {', '.join(model.trainable_parts)}.")
    model.begin_policy(beside)
    saved = [part for part in model.trainable_parts[beside] if part not in parts]
    modules_to_save = sorted({part for part in saved for name, _ in model.named_modules() if _ends_with(name, part)})
    heads = {id(model.get_output_embeddings())}
    layers = set()
    for part in parts:
        found = {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if name.split(".")[0] == part and isinstance(module, (nn.Linear, Conv1D)) and id(module) not in heads
        }
        if not found:
            children = ", ".join(name for name, _ in model.named_children())
            raise ValueError(f"LoRA has no linear layers to adapt in {part!r}; the model's parts are {children}.")
        layers |= found
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"({'|'.join(parts)})\..*\.({'|'.join(sorted(layers))})",
        exclude_modules=rf"(.*\.)?({'|'.join(modules_to_save)})(\..*)?" if modules_to_save else None,
        modules_to_save=modules_to_save or None,
    )
    adapted = get_peft_model(model, config)
    if model.trains_encoder:
        model.config.encoder_fingerprint = None
        logger.warning(
            f"LoRA changes the encoder ({', '.join(set(parts) & set(model.encoder_parts))}), whose outputs the memory "
            "keeps as keys: rebuild the memory with the merged model."
        )
    adapted.train(adapted.training)
    return adapted


def _ends_with(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def count_trainable(model: Any) -> dict[str, tuple[int, int]]:
    """
    Counts parameters of each part of a model.

    Args:
        model ([`RetrievalPreTrainedModel`] or [`~peft.PeftModel`]): After [`apply_policy`].

    Returns:
        `dict[str, tuple[int, int]]`: Part to its trained and all parameters.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in base.named_parameters():
        if ".original_module." in name:  # peft keeps what a trained module was before
            continue
        part = name.split(".")[0]
        trained, total = counts.get(part, (0, 0))
        count = getattr(parameter, "ds_numel", parameter.numel())  # sharded by DeepSpeed
        counts[part] = trained + count * parameter.requires_grad, total + count
    return counts


def describe_trainable(model: Any) -> str:
    """What [`count_trainable`] counts, as lines to print."""
    counts = count_trainable(model)
    lines = [f"  {part:<22} {trained:>14,} of {total:>15,}" for part, (trained, total) in counts.items() if trained]
    trained, total = (sum(column) for column in zip(*counts.values(), strict=True))
    share = f"{100 * trained / max(1, total):.3g} %"
    return "\n".join([f"Trained parameters: {trained:,} of {total:,} ({share})", *lines])
