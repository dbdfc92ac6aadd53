"""A language model in 8 or 4 bits: what is frozen and large is quantized, what is small or trained is not."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedConfig

from ...language_models import full_precision_modules


QUANTIZATIONS = ("8bit", "4bit")


def modules_in_full_precision(config: PreTrainedConfig) -> list[str]:
    """
    Names of a model's modules that stay as they are: everything but the language model (vision encoder, Q-Formers,
    projection, ...), and in it the head and what the paper trains (SmallCap's cross-attention).

    Args:
        config ([`EVCapConfig`] or [`SmallCapConfig`]): The model's; no weights are needed.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    if not isinstance(getattr(model, "language_model", None), torch.nn.Module):
        raise ValueError(f"{type(model).__name__} has no part `language_model` to quantize.")
    return full_precision_modules(model)


def language_model_quantization(
    quantization: str, config: PreTrainedConfig, compute_dtype: torch.dtype | None = None
) -> BitsAndBytesConfig:
    """
    The `quantization_config` with which `from_pretrained` loads the language model in few bits.

    Args:
        quantization (`str`): `"8bit"` (LLM.int8()) or `"4bit"` (NF4 with double quantization, as QLoRA).
        config ([`EVCapConfig`] or [`SmallCapConfig`]): The model's.
        compute_dtype (`torch.dtype`, *optional*):
            In which 4-bit weights are multiplied; bfloat16 where the device has it, else float16, float32 on a CPU.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: Unknown quantization.

    Example:
    ```python
    >>> config = EVCapConfig.from_pretrained(repo)
    >>> model = EVCapForConditionalGeneration.from_pretrained(
    ...     repo, quantization_config=language_model_quantization("4bit", config)
    ... )
    ```
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"`quantization` must be one of {', '.join(QUANTIZATIONS)}; got {quantization!r}.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            "A quantized language model needs bitsandbytes: `pip install 'hf_evcap[quantization]'`. Without it, train "
            "with `dtype=bfloat16`, or a smaller language model."
        )
    kept = modules_in_full_precision(config)
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype or _compute_dtype(),
        llm_int8_skip_modules=kept,
    )


def _compute_dtype() -> torch.dtype:
    if not torch.accelerator.is_available():
        return torch.float32
    capable = not torch.cuda.is_available() or torch.cuda.is_bf16_supported()
    return torch.bfloat16 if capable else torch.float16


def prepare_for_training(model: Any, policy: str) -> Any:
    """
    Makes a model, quantized or not, fit to be trained by a policy.

    Args:
        model ([`RetrievalPreTrainedModel`]): Just loaded.
        policy (`str`): Freezing policy.

    Raises:
        ValueError: The policy would train quantized weights.
    """
    quantized = getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)
    if quantized and policy == "full":
        raise ValueError(
            "The policy `full` trains the language model, whose quantized weights cannot be trained. Choose `lora`, "
            "`paper` or `fusion`, or train without `quantization`."
        )
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights at the first evaluation into a form that passes
        # no gradients; a frozen language model, which stays in eval mode, would then pass none in training either.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


__all__ = ["QUANTIZATIONS", "language_model_quantization", "modules_in_full_precision", "prepare_for_training"]
