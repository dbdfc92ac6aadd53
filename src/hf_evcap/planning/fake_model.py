"""A model of any size without its weights: fake tensors have shapes, precisions and sizes in bytes, but no values."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from ..training.fine_tuning.freezing import apply_policy
from ..training.fine_tuning.quantization import modules_in_full_precision


# Bytes of a quantized weight's value. 4 bits: half a byte, for each 64 values a scale of one byte, and for each 256
# scales one float32 (NF4 with double quantization, QLoRA, arXiv 2305.14314, section 3). 8 bits: one byte; the scale of
# a row is counted with it as one float32 (LLM.int8(), arXiv 2208.07339).
BITS = {"8bit": 8, "4bit": 4}


def fake_mode() -> FakeTensorMode:
    """A mode in which operations work out shapes alone; weights of the meta device become fake at their first use."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def build_on_meta(config: PreTrainedConfig, dtype: torch.dtype, attn_implementation: str | None = None) -> Any:
    """
    Makes a frozen model on the meta device, its weights in the precision in which `from_pretrained` would load them.

    Args:
        config ([`EVCapConfig`] or [`SmallCapConfig`]): The model's.
        dtype (`torch.dtype`): Asked for; parts that the model keeps in float32 are in float32.
        attn_implementation (`str`, *optional*): Such as `"sdpa"` or `"eager"`.
    """
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32, **options).requires_grad_(False)
    kept = set(model._keep_in_fp32_modules_strict or ()) if dtype != torch.float32 else set()
    if dtype == torch.float16:
        kept |= set(model._keep_in_fp32_modules or ())
    in_float32 = re.compile("|".join(rf"(^|\.){part}($|\.)" for part in sorted(kept)) or "(?!)")
    for name, weight in model.named_parameters():
        if not in_float32.search(name):
            weight.data = weight.data.to(dtype)
    return model


def freeze(
    model: Any,
    policy: str,
    lora_parts: list[str] | None = None,
    lora_rank: int = 16,
    lora_beside: str = "paper",
) -> Any:
    """Leaves trainable what a policy trains, in float32, as `hf-evcap train` does."""
    model = apply_policy(model, policy, lora_parts, lora_rank, lora_beside=lora_beside)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return model


def quantize(model: Any, config: PreTrainedConfig, quantization: str) -> None:
    """
    Puts layers of the size and the work space of bitsandbytes' in the place of the language model's linear layers.

    Args:
        model: Frozen, or with LoRA adapters; on the meta device.
        config ([`EVCapConfig`] or [`SmallCapConfig`]): The model's.
        quantization (`str`): `"8bit"` or `"4bit"`.

    Raises:
        ValueError: What is to be quantized is to be trained.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept = modules_in_full_precision(config)
    for name, module in list(base.named_modules()):
        plain = name.replace(".base_layer", "")  # of a layer with adapters
        inside = any(f"{plain}.".startswith(f"{part}.") for part in kept) or ".lora_" in plain
        if not inside and isinstance(module, (nn.Linear, Conv1D)):
            if module.weight.requires_grad:
                raise ValueError(
                    f"The policy trains {name}, which is to be quantized: quantized weights cannot be trained. Choose "
                    "lora, paper or another policy that leaves the language model frozen, or no quantization."
                )
            owner, _, attribute = name.rpartition(".")
            setattr(base.get_submodule(owner), attribute, QuantizedLinear(module, BITS[quantization]))


def make_fake(model: Any) -> Any:
    """Gives a model of the meta device fake weights on the CPU, in place; tied ones stay tied. Call it in the mode."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    trained = isinstance(tensor, nn.Parameter)
                    # The old tensor is kept beside the new one, so that no other gets its id meanwhile.
                    made[id(tensor)] = (nn.Parameter(fake, tensor.requires_grad) if trained else fake, tensor)
                tensors[name] = made[id(tensor)][0]
    return model


class _DequantizedProduct(torch.autograd.Function):
    """A product with a weight that is unpacked for it and again for the gradient, and kept packed in between."""

    @staticmethod
    def forward(ctx: Any, hidden_states: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        return hidden_states @ layer.unpacked(hidden_states.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ ctx.layer.unpacked(gradients[0].dtype), None


class QuantizedLinear(nn.Module):
    """
    A linear layer as large as bitsandbytes keeps it; for planning only, it computes nothing.

    Args:
        layer (`nn.Linear` or `Conv1D`): What is quantized.
        bits (`int`): 4 or 8.
    """

    def __init__(self, layer: nn.Linear | Conv1D, bits: int) -> None:
        super().__init__()
        shape = layer.weight.shape[::-1] if isinstance(layer, Conv1D) else layer.weight.shape
        self.out_features, self.in_features = shape
        device, values = layer.weight.device, layer.weight.numel()
        if bits == 4:
            size = values // 2 + values // 64 + 4 * (values // (64 * 256))
        else:
            size = values + 4 * self.out_features
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8, device=device), requires_grad=False)
        self.bias = layer.bias

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        return self.weight.new_empty((self.out_features, self.in_features), dtype=dtype)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        product = _DequantizedProduct.apply(hidden_states, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


__all__ = ["build_on_meta", "fake_mode", "freeze", "make_fake", "quantize"]
