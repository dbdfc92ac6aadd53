"""The frozen encoder of a model that retrieves: features and memory keys of photos, and which encoder it is."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .configuration_efficientnet_lite import EfficientNetLiteConfig
from .modeling_efficientnet_lite import EfficientNetLiteModel
from .offloading import complete_state_dict, to_part
from .photo_loading import load_photo
from .weight_fingerprint import hash_tensors


# A Hub repo that carries this file may run where hf_evcap is not installed, so the vision tower registers itself here.
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)

OUTPUT_OPTIONS = ("output_hidden_states", "output_attentions")


def make_vision_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """
    Makes a vision tower with random weights.

    Args:
        config ([`PreTrainedConfig`]): The tower's. An EfficientNet-Lite's is told by its `model_type`: where a folder
            brings this code, transformers may load its configuration and its model as two copies of one module.
    """
    own = config.model_type == EfficientNetLiteConfig.model_type
    return EfficientNetLiteModel._from_config(config) if own else AutoModel.from_config(config)


class FrozenEncoderMixin(torch.nn.Module):
    """For models with a `vision_model` whose outputs a memory keeps as keys."""

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """Names of the frozen parts whose weights decide what memory keys mean."""
        return ()

    @property
    def trains_encoder(self) -> bool:
        """`bool`: Whether a parameter that decides what memory keys mean is being trained."""
        return any(
            parameter.requires_grad
            for name, parameter in self.named_parameters()
            if name.split(".")[0] in self.encoder_parts
        )

    @property
    def encoder_fingerprint(self) -> str | None:
        """
        `str`: Identity of the frozen parts that make memory keys; a memory of another encoder does not fit. `None` for
        a model whose queries are made elsewhere.
        """
        if self.config.encoder_fingerprint is not None or not self.encoder_parts:
            return self.config.encoder_fingerprint
        state = complete_state_dict(self)
        return hash_tensors({name: state[name] for name in state if name.split(".")[0] in self.encoder_parts})

    # Photos

    def get_vision_hidden_states(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """
        Runs the vision encoder alone. Frozen, it gives the same for a photo in every epoch: see `hf-evcap
        cache-features`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`): From the processor.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`.
        """
        return self.run_vision_model(pixel_values)["last_hidden_state"]

    def run_vision_model(
        self,
        pixel_values: torch.Tensor | None,
        vision_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """
        Runs the vision encoder, or takes what it gave before.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, 3, height, width)`, *optional*): From the processor.
            vision_hidden_states (`torch.Tensor` of shape `(batch_size, num_patches, vision_hidden_size)`, *optional*):
                What [`get_vision_hidden_states`] returned for the photos before.
            kwargs: Further arguments of the vision encoder, such as `output_hidden_states`.

        Returns:
            `dict`: `last_hidden_state` of shape `(batch_size, num_patches, vision_hidden_size)`, and `hidden_states`
            and `attentions` where asked for.
        """
        if (pixel_values is None) == (vision_hidden_states is None):
            raise ValueError("Give either `pixel_values` or `vision_hidden_states`.")
        if pixel_values is None:
            return {"last_hidden_state": to_part(vision_hidden_states, self.vision_model)}
        for name in OUTPUT_OPTIONS:
            if getattr(self.config, name, False):  # set for the whole model
                kwargs.setdefault(name, True)
        pixel_values = to_part(pixel_values, self.vision_model).to(self.vision_model.dtype)
        outputs = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
        hidden_states = outputs.last_hidden_state
        if hidden_states.ndim == 4:  # a convolutional tower's (batch, width, rows, columns)
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        kept = {name: outputs.get(name) for name in ("hidden_states", "attentions")}
        return {"last_hidden_state": hidden_states, **kept}

    def get_memory_keys(
        self, pixel_values: torch.Tensor | None = None, vision_hidden_states: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What a memory stores for photos, of shape `(batch_size, memory_key_size)`."""
        raise NotImplementedError(f"{type(self).__name__} makes no keys of photos.")

    @torch.no_grad()
    def encode_memory_keys(self, processor: Any, images: list[Any]) -> torch.Tensor:
        """Prepares photos (paths, URLs, PIL images) with the processor and gives their memory keys, on the CPU."""
        photos = [load_photo(image) for image in images]
        pixel_values = processor.image_processor(photos, return_tensors="pt")["pixel_values"]
        return self.get_memory_keys(pixel_values).float().cpu()


__all__ = ["OUTPUT_OPTIONS", "FrozenEncoderMixin", "make_vision_tower"]
