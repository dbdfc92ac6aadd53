"""Image processor of EfficientNet-Lite, on Pillow and NumPy only."""

from __future__ import annotations

from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs, Unpack


class EfficientNetLiteImageProcessor(PilBackend):
    """Resizes the short side, crops the middle, and maps pixels to `(x - 127) / 128` as the weights expect.

    `size` and `crop_size` follow the variant: 224 for Lite0, 240 for Lite1, 260 for Lite2.
    """

    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BICUBIC
    image_mean = [127 / 255] * 3
    image_std = [128 / 255] * 3
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, **kwargs: Unpack[ImagesKwargs]) -> None:
        super().__init__(**kwargs)


__all__ = ["EfficientNetLiteImageProcessor"]
