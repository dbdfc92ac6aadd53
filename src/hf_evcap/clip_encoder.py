"""CLIP as SmallCap's retrieval encoder: captions and photos as vectors that can be compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from typing_extensions import Self

from .photo_loading import load_photo
from .weight_fingerprint import hash_tensors


_VISION_SIDE = ("vision_model.", "visual_projection.")


def clip_fingerprint(model: torch.nn.Module | Mapping[str, torch.Tensor]) -> str:
    """
    Identity of a CLIP pair by its vision side, which queries are made with.

    The text side, which makes a datastore's keys, is trained together with it, so one stands for both: a captioner
    needs the vision side only to know whether a datastore fits.

    Args:
        model (`CLIPModel`, `CLIPVisionModelWithProjection` or a state dict of their names): The encoder.
    """
    state = model if isinstance(model, Mapping) else model.state_dict()
    side = {name: value for name, value in state.items() if name.startswith(_VISION_SIDE)}
    if not side:
        raise ValueError("The model has no vision side (`vision_model`, `visual_projection`); give a CLIP model.")
    return hash_tensors(side)


class ClipEncoder:
    """
    A CLIP model of transformers with its tokenizer and image processor.

    Args:
        model: With `get_text_features` and `get_image_features`, such as [`~transformers.CLIPModel`].
        tokenizer: The model's; `None` where only photos are encoded.
        image_processor: The model's; `None` where only captions are encoded.
        name (`str`, *optional*): What cards and manifests call it; a folder of this machine is never written there.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any = None, name: str | None = None) -> None:
        for side in ("get_text_features", "get_image_features"):
            if not hasattr(model, side):
                raise TypeError(f"A CLIP model has `{side}`; {type(model).__name__} does not.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.name = name

    @classmethod
    def from_pretrained(
        cls, source: str | os.PathLike, *, revision: str | None = None, device: Any = None, dtype: Any = None
    ) -> Self:
        """
        Loads an encoder.

        Args:
            source (`str` or `os.PathLike`): Folder or Hub id, such as `"openai/clip-vit-base-patch32"`.
            revision (`str`, *optional*): Branch, tag or commit.
            device (`torch.device`, *optional*): Where it computes.
            dtype (*optional*): Its precision; that of the file when absent.

        Raises:
            ValueError: The model has no text side.
        """
        config = AutoConfig.from_pretrained(source, revision=revision)
        if getattr(config, "text_config", None) is None or getattr(config, "vision_config", None) is None:
            raise ValueError(
                f"{source} is a {config.model_type!r} model without a text and a vision side. Give a CLIP checkpoint "
                "such as openai/clip-vit-base-patch32."
            )
        model = AutoModel.from_pretrained(source, revision=revision, **({} if dtype is None else {"dtype": dtype}))
        name = None if os.path.isdir(source) else str(source)
        return cls(
            model.to(device) if device is not None else model,
            AutoTokenizer.from_pretrained(source, revision=revision),
            AutoImageProcessor.from_pretrained(source, revision=revision),
            name,
        )

    @property
    def key_size(self) -> int:
        """`int`: Dimension of the vectors."""
        config = self.model.config
        return getattr(config, "projection_dim", None) or config.text_config.hidden_size

    @property
    def fingerprint(self) -> str:
        """`str`: See [`clip_fingerprint`]."""
        return clip_fingerprint(self.model)

    def store_settings(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a datastore of this encoder's keys records, joined with other settings of the caller's."""
        given = dict(settings or {})
        named = {} if self.name is None else {"encoder": self.name}
        given["retrieval"] = {**named, **(given.get("retrieval") or {})}
        return {"encoder_fingerprint": self.fingerprint, **given}

    @torch.no_grad()
    def encode_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Gives the text embeddings of captions, float32 of shape `(captions, key_size)`; long ones are cut off."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self.model.device)
        inputs = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        return _pooled(self.model.get_text_features(**inputs))

    @torch.no_grad()
    def encode_photos(self, photos: Sequence[Any]) -> np.ndarray:
        """Gives the image embeddings of photos (paths, URLs, PIL images): queries for the captions' keys."""
        loaded = [load_photo(photo) for photo in photos]
        inputs = self.image_processor(loaded, return_tensors="pt").to(self.model.device)
        return _pooled(self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.model.dtype)))


def _pooled(features: Any) -> np.ndarray:
    return getattr(features, "pooler_output", features).float().cpu().numpy()


__all__ = ["ClipEncoder", "clip_fingerprint"]
