"""Configuration of EfficientNet-Lite, a small convolutional vision encoder."""

from __future__ import annotations

import math
from typing import Any

from transformers import PretrainedConfig


# (repeats, kernel size, stride, expansion, in channels, out channels) of Lite0, the variant that the others scale.
BASE_STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)


class EfficientNetLiteConfig(PretrainedConfig):
    """Configuration of an [`EfficientNetLiteModel`].

    EfficientNet-Lite is EfficientNet (Tan and Le, 2019, arXiv 1905.11946) without squeeze-and-excitation, with ReLU6,
    and with a stem and a head whose widths and depths are never scaled. The defaults are Lite0.

    Args:
        image_size (`int`, *optional*, defaults to 224):
            Side of the input photo in pixels; Lite1 uses 240, Lite2 260.
        num_channels (`int`, *optional*, defaults to 3):
            Channels of the input photo.
        width_coefficient (`float`, *optional*, defaults to 1.0):
            Factor of the channels of the middle stages; Lite2 uses 1.1.
        depth_coefficient (`float`, *optional*, defaults to 1.0):
            Factor of the repeats of the middle stages; Lite1 uses 1.1, Lite2 1.2.
        hidden_size (`int`, *optional*, defaults to 1280):
            Channels of the output grid.
        stem_channels (`int`, *optional*, defaults to 32):
            Channels after the first convolution.
        batch_norm_eps (`float`, *optional*, defaults to 1e-3):
            Epsilon of the batch normalisation.
        batch_norm_momentum (`float`, *optional*, defaults to 0.01):
            Momentum of the batch normalisation's running figures.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Kept for the Hugging Face interface; convolutions are initialised by their fan-out.
    """

    model_type = "efficientnet_lite"

    def __init__(
        self,
        image_size: int = 224,
        num_channels: int = 3,
        width_coefficient: float = 1.0,
        depth_coefficient: float = 1.0,
        hidden_size: int = 1280,
        stem_channels: int = 32,
        batch_norm_eps: float = 1e-3,
        batch_norm_momentum: float = 0.01,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.image_size = image_size
        self.num_channels = num_channels
        self.width_coefficient = width_coefficient
        self.depth_coefficient = depth_coefficient
        self.hidden_size = hidden_size
        self.stem_channels = stem_channels
        self.batch_norm_eps = batch_norm_eps
        self.batch_norm_momentum = batch_norm_momentum
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    @property
    def blocks(self) -> list[tuple[int, int, int, int, int]]:
        """Every block in order: (kernel size, stride, expansion, in channels, out channels), scaled."""
        blocks = []
        previous = self.stem_channels
        for index, (repeats, kernel, stride, expansion, _, channels) in enumerate(BASE_STAGES):
            outermost = index in (0, len(BASE_STAGES) - 1)
            repeats = repeats if outermost else math.ceil(repeats * self.depth_coefficient)
            channels = self._scaled(channels)
            for repeat in range(repeats):
                blocks.append((kernel, stride if repeat == 0 else 1, expansion, previous, channels))
                previous = channels
        return blocks

    @property
    def grid_size(self) -> int:
        """Side of the output grid in cells; the encoder halves the photo's side five times, rounding up."""
        side = self.image_size
        for _ in range(5):
            side = math.ceil(side / 2)
        return side

    def _scaled(self, channels: int) -> int:
        """Channels times the width coefficient, rounded to a multiple of 8 that loses at most a tenth."""
        if self.width_coefficient == 1.0:
            return channels
        scaled = channels * self.width_coefficient
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * scaled else rounded


__all__ = ["EfficientNetLiteConfig"]
