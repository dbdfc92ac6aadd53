"""Retrieval while a model is trained: a photo never finds itself, and what is retrieved is drawn and dropped."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from ...photo_rows import HASH_COLUMN, ID_COLUMNS, OwnRows


logger = logging.get_logger(__name__)


class TrainingRetrieval:
    """
    What retrieval does in training mode and not otherwise.

    Leave-one-out: a photo whose exemplar is in the memory would find itself, so its own rows are left out, by id and
    by pixels. Sampling: models learn to copy what most of the retrieved texts say; trained on texts drawn from a wider
    list they do so less (Li et al., "Understanding Retrieval Robustness for Retrieval-Augmented Image Captioning",
    ACL 2024, for captions; here for names, too). Dropout: some or all of what was retrieved is withheld.

    Draws depend on seed, step and photo alone: the same on one process or many, with gradient accumulation and after
    resuming.

    Args:
        model ([`RetrievalPreTrainedModel`]): Heeds this in training mode, from now on; see [`detach`].
        leave_one_out (`bool`, *optional*, defaults to `True`): Whether photos do not find themselves.
        sample_from (`int`, *optional*): Draw from this many of the best; without it the best are taken.
        keep_best (`int`, *optional*, defaults to 1): How many of the best are always among those drawn.
        name_dropout (`float`, *optional*, defaults to 0): Share of the retrieved names (captions) withheld.
        photo_dropout (`float`, *optional*, defaults to 0): Share of photos from which all of them are withheld.
        seed (`int`, *optional*, defaults to 0): Of the draws.
    """

    def __init__(
        self,
        model: Any,
        *,
        leave_one_out: bool = True,
        sample_from: int | None = None,
        keep_best: int = 1,
        name_dropout: float = 0.0,
        photo_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        for value, argument in ((name_dropout, "name_dropout"), (photo_dropout, "photo_dropout")):
            if not 0 <= value <= 1:
                raise ValueError(f"`{argument}` is a share, from 0 to 1; got {value}.")
        if sample_from is not None and sample_from < 1:
            raise ValueError(f"`sample_from` must be at least 1, got {sample_from}.")
        if keep_best < 0:
            raise ValueError(f"`keep_best` must not be negative, got {keep_best}.")
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model  # inside of peft's
        self.leave_one_out = leave_one_out
        self.sample_from = sample_from
        self.keep_best = keep_best
        self.name_dropout = name_dropout
        self.photo_dropout = photo_dropout
        self.seed = seed
        self.step = 0
        self._keys: np.ndarray | None = None
        self._own_rows: dict[int, OwnRows] = {}
        if sample_from is not None or name_dropout or photo_dropout:
            self.model.training_retrieval = self

    def detach(self) -> None:
        """Gives the model back its plain retrieval."""
        self.model.training_retrieval = None

    def prepare(self, inputs: dict[str, Any], step: int) -> dict[str, Any]:
        """
        Makes a training batch's inputs those of the model.

        Args:
            inputs (`dict`): With `photo_keys` from the function of that name; taken out here.
            step (`int`): Optimizer steps done.

        Returns:
            `dict`: The inputs with `exclude_rows` of shape `(batch_size, n)`, -1 for no row.
        """
        inputs = dict(inputs)
        keys = inputs.pop("photo_keys", None)
        self.step = step
        self._keys = None if keys is None else keys.cpu().numpy()
        if self._keys is not None and self.leave_one_out:
            rows = self.own_rows(self._keys)
            if rows.shape[1]:
                rows = rows.to(keys.device)
                given = inputs.get("exclude_rows")
                inputs["exclude_rows"] = rows if given is None else torch.cat([given, rows], dim=1)
        return inputs

    def own_rows(self, keys: np.ndarray) -> torch.Tensor:
        """Rows of the model's memory that come from the photos: `torch.LongTensor` `(batch_size, n)`, -1 for none."""
        stores = self._stores()
        finders = {id(store): self._own_rows.get(id(store)) or OwnRows(store) for store, _ in stores}
        self._own_rows = finders  # those of memories that were replaced go; an id stays its memory's while it is held
        if stores and not any(finder.known for finder in finders.values()):
            logger.warning_once(
                f"The memory has no column {', '.join(ID_COLUMNS)} or {HASH_COLUMN}, so a photo that is in it "
                "retrieves itself in training. Build the memory anew, or use `memory.set_column('image_id', ids)`."
            )
        found: list[list[np.ndarray]] = [[] for _ in keys]
        for store, start in stores:
            for rows, own in zip(found, finders[id(store)](keys), strict=True):
                rows.append(own + start)
        joined = [np.concatenate([np.zeros(0, np.int64), *rows]) for rows in found]
        padded = np.full((len(joined), max(map(len, joined), default=0)), -1, dtype=np.int64)
        for place, of_photo in enumerate(joined):
            padded[place, : len(of_photo)] = of_photo
        return torch.from_numpy(padded)

    def _stores(self) -> list[tuple[Any, int]]:
        """Memories that are retrieved from, and the number of each one's first row."""
        layers = getattr(getattr(self.model, "retriever", None), "layers", None)
        if layers is not None:
            starts = np.cumsum([0, *(retriever.rows for _, retriever, _ in layers)]).tolist()
            return [(retriever.memory, start) for (_, retriever, _), start in zip(layers, starts, strict=False)]
        return [] if self.model.memory is None else [(self.model.memory, 0)]

    def candidates(self, k: int) -> int:
        """How many to retrieve where `k` are wanted."""
        return max(k, self.sample_from or k)

    def widened(self, config: Any) -> Any:
        """A model's configuration with its retrieval rule's numbers raised so that there are enough candidates."""
        wanted = self.candidates(config.num_retrieved_names)
        if wanted == config.num_retrieved_names:
            return config
        factor = -(-wanted // config.num_retrieved_names)
        wide = copy.copy(config)
        wide.num_retrieved_names = wanted
        if hasattr(config, "max_candidates"):
            wide.max_candidates = config.max_candidates * factor
        slots = ("object_slots", "scene_slots")
        options = dict(getattr(config, "retrieval_options", None) or {})
        wide.retrieval_options = {**options, **{name: options[name] * factor for name in slots if name in options}}
        return wide

    def kept(self, present: torch.Tensor, k: int) -> torch.Tensor:
        """
        Draws which of the retrieved names (captions) a training step sees.

        Args:
            present (`torch.BoolTensor` of shape `(batch_size, n)`): Where there is one, best first.
            k (`int`): At most so many are kept.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, n)`.
        """
        mask = present.cpu().numpy()
        kept = np.zeros_like(mask)
        for place, row in enumerate(mask):
            random = np.random.default_rng([self.seed, self.step, *self._identity(place)])
            kept[place, self.draw(random, row.nonzero()[0], k)] = True
        return torch.from_numpy(kept).to(present.device)

    def draw(self, random: np.random.Generator, ranks: np.ndarray, k: int) -> np.ndarray:
        """Draws at most `k` of a photo's `ranks`, best first, and withholds some or all of them."""
        best = ranks[: min(self.keep_best, k)]
        others = random.permutation(ranks[len(best) :]) if self.sample_from else ranks[len(best) :]
        chosen = np.concatenate([best, others[: k - len(best)]])
        withheld = random.random(len(chosen)) < self.name_dropout
        return chosen[~withheld] if random.random() >= self.photo_dropout else chosen[:0]

    def _identity(self, place: int) -> tuple[int, ...]:
        """What a photo's draws depend on: what it is, or else its place in the batch."""
        if self._keys is None or place >= len(self._keys) or not self._keys[place].any():
            return (place,)
        image_id, pixels = self._keys[place].tolist()
        return (image_id or pixels,)


__all__ = ["TrainingRetrieval"]
