"""What models that retrieve share, each part in a module of its own: encoder, freezing, repo, publishing."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from .freezing_policies import FreezingMixin
from .frozen_encoder import FrozenEncoderMixin
from .model_publishing import ModelPublishingMixin
from .weight_fingerprint import hash_tensors


class RetrievalPreTrainedModel(ModelPublishingMixin, FreezingMixin, FrozenEncoderMixin, PreTrainedModel):
    """A model that carries a memory along and retrieves from it. Subclasses implement `set_memory` and `memory`."""

    retrieved_field = ""  # of the pipeline's answer: what was retrieved for a photo
    rebuild_hint = ""  # how to make a memory that fits, for messages
    retrieval_arguments: tuple[str, ...] = ("memory",)  # of `encode_images`, which a pipeline's call may give
    # In training mode, draws what is kept of what was retrieved; see `training.fine_tuning.retrieval_in_training`.
    training_retrieval: Any = None

    @property
    def dtype(self) -> torch.dtype:
        """
        `torch.dtype`: Precision of the model, as its config records it: the language model's. Small parts that stay in
        float32 (Q-Formers, queries) do not count.
        """
        language_model = getattr(self, "language_model", None)
        return super().dtype if language_model is None else language_model.dtype

    @torch.no_grad()
    def _init_weights(self, module: torch.nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "reset_buffers"):
            module.reset_buffers()

    def set_memory(self, memory: Any) -> None:
        """Attaches a memory."""
        raise NotImplementedError(f"{type(self).__name__} does not take a memory.")

    @property
    def memory(self) -> Any:
        """The attached memory, or `None`."""
        return None

    @property
    def memory_key_size(self) -> int | None:
        """`int` or `None`: Dimension of the keys of a memory for this model; `None` where any will do."""
        return None

    def check_memory(self, memory: Any) -> None:
        """Raises `ValueError` if the memory's keys cannot be compared with this model's queries."""
        word = self.memory_class.store_word
        if self.memory_key_size not in (None, memory.dim):
            raise ValueError(
                f"The {word}'s keys have dimension {memory.dim}, this model's queries {self.memory_key_size}. "
                f"{self.rebuild_hint}"
            )
        theirs, ours = memory.encoder_fingerprint, self.encoder_fingerprint
        if None not in (theirs, ours) and theirs != ours:
            raise ValueError(
                f"The {word} was built by the encoder {theirs[:12]}, this model's encoder is {ours[:12]}: their "
                f"vectors cannot be compared. Use the model that built the {word}. {self.rebuild_hint}"
            )


__all__ = ["RetrievalPreTrainedModel", "hash_tensors"]
