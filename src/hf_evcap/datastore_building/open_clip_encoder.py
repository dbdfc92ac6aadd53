"""CLIP models that transformers does not have, such as the RN50x64 of SmallCap's release, through open_clip."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from ..clip_encoder import ClipEncoder
from ..photo_loading import load_photo
from ..weight_fingerprint import hash_tensors


PREFIX = "open_clip:"


class OpenClipEncoder(ClipEncoder):
    """
    A CLIP model of open_clip, used like [`ClipEncoder`].

    Args:
        model: With `encode_text` and `encode_image`.
        tokenize (`Callable`): open_clip's tokenizer of the model.
        transform (`Callable`): open_clip's image transform of the model.
        name (`str`): What cards and manifests call it, such as `"open_clip:RN50x64/openai"`.
    """

    def __init__(self, model: Any, tokenize: Any, transform: Any, name: str) -> None:
        self.model = model.eval()
        self.tokenizer = tokenize
        self.image_processor = transform
        self.name = name
        self.device = next(model.parameters()).device

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, *, device: Any = None, **kwargs: Any) -> OpenClipEncoder:
        """
        Loads an encoder.

        Args:
            source (`str`): `"open_clip:RN50x64/openai"`: a model and its weights, or `"open_clip:hf-hub:org/name"`.
            device (`torch.device`, *optional*): Where it computes.
            kwargs: Options of encoders from the Hub, which open_clip has no use for.

        Raises:
            ImportError: open_clip is not installed.
            ValueError: open_clip does not know the model or the weights.
        """
        spec = os.fspath(source).removeprefix(PREFIX)
        model_name, _, weights = (spec, "", "") if ":" in spec else spec.partition("/")
        try:
            import open_clip
        except ImportError as error:
            raise ImportError(
                f"The encoder {source} needs open_clip: `pip install 'hf_evcap[open_clip]'` ({error}). Or encode the "
                "captions anew with a CLIP of transformers: `hf-evcap datastore build DATASTORE --clip "
                "openai/clip-vit-base-patch32 --output NEW`."
            ) from error
        try:
            model, transform = open_clip.create_model_from_pretrained(
                model_name, pretrained=weights or None, device=device or "cpu"
            )
            tokenize = open_clip.get_tokenizer(model_name)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(
                f"open_clip cannot load {spec!r} ({error}). Write model/weights as `open_clip.list_pretrained()` "
                "lists them, such as open_clip:RN50x64/openai."
            ) from error
        return cls(model, tokenize, transform, f"{PREFIX}{spec}")

    @property
    def key_size(self) -> int:
        """`int`: Dimension of the vectors."""
        return self.encode_captions(["a"]).shape[1]

    @property
    def fingerprint(self) -> str:
        """`str`: Identity of the pair by its vision side."""
        return hash_tensors({
            name: value for name, value in self.model.state_dict().items() if name.startswith("visual.")
        })  # fmt: skip

    @torch.no_grad()
    def encode_captions(self, captions: Any) -> np.ndarray:
        """Gives the text embeddings of captions, float32 of shape `(captions, key_size)`; long ones are cut off."""
        return self.model.encode_text(self.tokenizer(list(captions)).to(self.device)).float().cpu().numpy()

    @torch.no_grad()
    def encode_photos(self, photos: Any) -> np.ndarray:
        """Gives the image embeddings of photos (paths, URLs, PIL images): queries for the captions' keys."""
        pixels = torch.stack([self.image_processor(load_photo(photo)) for photo in photos])
        return self.model.encode_image(pixels.to(self.device)).float().cpu().numpy()


def load_retrieval_encoder(source: str | os.PathLike, **options: Any) -> ClipEncoder:
    """
    Loads a CLIP of transformers (folder or Hub id), or one of open_clip (`"open_clip:MODEL/WEIGHTS"`).

    Args:
        source (`str` or `os.PathLike`): Which one.
        options: `revision`, `device`, `dtype` of [`ClipEncoder.from_pretrained`].
    """
    kind = OpenClipEncoder if os.fspath(source).startswith(PREFIX) else ClipEncoder
    return kind.from_pretrained(source, **options)


__all__ = ["OpenClipEncoder", "load_retrieval_encoder"]
