"""Where a model's parts come from: a record of each, by which a repo can name a part instead of copying it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .model_source import ModelSource, load_part, own_config
from .qformer_names import qformer_weights


@dataclass
class PartSource:
    """
    Where the weights of a part lie.

    Args:
        source ([`ModelSource`], *optional*): The model that holds them; `None` for a bare weight file.
        prefixes (`tuple[str, ...]`): What their names begin with there; none for all of them.
        weights (`dict[str, torch.Tensor]`): Those of a bare file, by their names in the part.
    """

    source: ModelSource | None = None
    prefixes: tuple[str, ...] = ()
    weights: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], download: Mapping[str, Any], copy: str | os.PathLike | None = None
    ) -> PartSource:
        """
        Finds a part that a config names.

        Args:
            record (`Mapping[str, Any]`): An entry of `config.part_sources`.
            download (`Mapping[str, Any]`): Options of downloads.
            copy (`str` or `os.PathLike`, *optional*): Folder or repo id of a copy to read instead.
        """
        name = f"{record['repo_id']}@{record['revision']}" if copy is None else copy
        return cls(ModelSource(name, gguf_file=record.get("gguf_file"), **download), tuple(record["prefixes"]))

    @property
    def record(self) -> dict[str, Any] | None:
        """`dict` or `None`: Entry for `config.part_sources`; `None` for what no repo holds."""
        source = self.source
        if source is None or source.is_local or source.revision is None:
            return None
        gguf = {} if source.gguf_file is None else {"gguf_file": source.gguf_file}
        place = {"repo_id": source.name, "revision": source.revision, **gguf, "prefixes": list(self.prefixes)}
        return {**place, "sha256": self.sha256(), "referenced": True}

    def stored(self) -> dict[str, torch.Tensor]:
        """The weights as their checkpoint names them, mapped from its files."""
        return {} if self.source is None else self.source.read(*self.prefixes)

    def sha256(self) -> str:
        """SHA-256 over every stored value, names, precisions and shapes; of a GGUF file over its bytes."""
        if self.source is not None and self.source.gguf_file is not None:
            path = self.source.path_of(self.source.gguf_file)
            if path is not None:
                return _hash_file(path)
        return hash_values(self.stored())

    def read(self, model: nn.Module, part: str, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """
        Reads the weights under the names that they have in a model. Nothing is copied, but for GGUF files.

        Args:
            model (`nn.Module`): The whole model; may be on the meta device.
            part (`str`): Name of the part in it.
            dtype (`torch.dtype`, *optional*): Into which a GGUF file's weights are unpacked; float32 when absent.

        Returns:
            `dict[str, torch.Tensor]`: What the model has a place for and the source holds. Weights of another shape
            are left out of Q-Formers, which start from models with other sizes.

        Raises:
            ValueError: The source does not hold the whole part.
        """
        inside = {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in model.state_dict().items()
            if name.startswith(f"{part}.")
        }
        if part in ("qformer", "fusion_qformer"):
            found = self.read_qformer()
            found = {name: found[name] for name in inside if name in found and found[name].shape == inside[name].shape}
        elif self.source is None:
            found = self.weights
        elif self.source.gguf_file is not None:
            found = self._unpacked(dtype or torch.float32)
        else:
            stored = self.stored()
            if not inside:  # a bare parameter, such as the queries
                return {name: tensor for name, tensor in stored.items() if name == part}
            found = {_without(name, self.prefixes): tensor for name, tensor in stored.items()}
            if not set(inside) <= set(found):  # named as another version or head of the architecture has it
                config: Any = own_config(getattr(model, part).config)
                if getattr(config, "add_cross_attention", False):
                    config.add_cross_attention = False  # SmallCap's own
                model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), type(getattr(model, part)))
                found = load_part(model_class, config, found, f"The {part} of {self.source.given!r}")
        return {f"{part}.{name}": tensor for name, tensor in found.items() if name in inside}

    def read_qformer(self) -> dict[str, torch.Tensor]:
        """The weights under every name that they have in a Q-Former, whatever its sizes."""
        if self.source is None:
            return self.weights
        return qformer_weights(self.source.config.model_type, self.stored())

    def _unpacked(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Weights of a GGUF file. Packed, they would be unpacked anew for every token, and pass no gradients."""
        source: Any = self.source
        config = GgufConfig(gguf_file=source.gguf_file, dequantize=True)
        loaded = AutoModelForCausalLM.from_pretrained(
            source.name, **source.options, dtype=dtype, quantization_config=config
        )
        return dict(loaded.state_dict())


def sources_of_part(source: ModelSource, part: str) -> list[PartSource]:
    """Where a part of an EVCap or SmallCap lies: in a repo that its config names, in its own, or some in each."""
    sources = []
    record = (source.config.part_sources or {}).get(part)
    if record and record["referenced"]:
        sources.append(PartSource.from_record(record, source.download))
    own = (f"{part}.",) if not part.endswith("_tokens") else (part,)
    if not sources or source.read(*own, required=False):
        sources.append(PartSource(source, own))
    return sources


def _without(name: str, prefixes: tuple[str, ...]) -> str:
    return next((name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)), name)


def hash_values(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over every value of weights, their names, precisions and shapes."""
    digest = hashlib.sha256()
    names = sorted(weights)
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        for name, value in zip(names, pool.map(lambda name: _hash_tensor(weights[name]), names), strict=True):
            digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)} {value}\n".encode())
    return digest.hexdigest()


def _hash_tensor(tensor: torch.Tensor) -> str:
    values = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(values.view(torch.uint8).numpy()).hexdigest()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


__all__ = ["PartSource", "hash_values", "sources_of_part"]
