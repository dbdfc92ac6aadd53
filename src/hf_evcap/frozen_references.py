"""Parts that a repo names instead of holding: read from their own repos, and left out at saving if unchanged."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from .part_sources import PartSource, hash_values


logger = logging.get_logger(__name__)

FROZEN = ("reference", "copy")
# Part -> folder or repo id to read it from in the load that is going on; see `ModelRepoMixin.from_pretrained`.
_copies: ContextVar[Mapping[str, str | os.PathLike] | None] = ContextVar("copies_of_parts", default=None)


@contextmanager
def parts_read_from(copies: Mapping[str, str | os.PathLike] | None) -> Iterator[None]:
    """Reads parts from these folders or repos, not from those that a config names."""
    token = _copies.set(copies)
    try:
        yield
    finally:
        _copies.reset(token)


def referenced_parts(config: Any) -> dict[str, dict[str, Any]]:
    """The entries of `config.part_sources` whose weights are not in the model's own repo."""
    return {part: record for part, record in (config.part_sources or {}).items() if record["referenced"]}


def read_referenced_parts(
    model: Any, download: Mapping[str, Any], dtype: torch.dtype | None = None, config: Any = None
) -> dict[str, torch.Tensor]:
    """
    Reads the parts that a model's repo only names, mapped from their files.

    Args:
        model ([`RetrievalPreTrainedModel`]): May be on the meta device.
        download (`Mapping[str, Any]`): Options of downloads.
        dtype (`torch.dtype`, *optional*): Into which a GGUF file's weights are unpacked.
        config (*optional*): Config that names the parts, where it is not the model's.

    Returns:
        `dict[str, torch.Tensor]`: Weights by the model's names.

    Raises:
        OSError: A part cannot be read from its repo.
        ValueError: Its weights are not those that the model was made with.
    """
    weights: dict[str, torch.Tensor] = {}
    records, copies = referenced_parts(config or model.config), _copies.get() or {}
    unknown = sorted(set(copies) - set(records))
    if unknown:
        raise ValueError(
            f"`parts` names {', '.join(unknown)}, but this model reads "
            + (f"{', '.join(records)} from elsewhere." if records else "no part from elsewhere.")
        )
    for part, record in records.items():
        place = copies.get(part, f"{record['repo_id']}@{record['revision'][:12]}")
        remedy = (
            f"name a folder or repo that holds the same weights: `from_pretrained(..., parts={{{part!r}: FOLDER}})`."
        )
        try:
            source = PartSource.from_record(record, download, copies.get(part))
            sha256 = source.sha256()
        except (OSError, HfHubHTTPError, ValueError) as error:
            raise OSError(
                f"The part {part!r} of this model lies in {os.fspath(place)!r}, and cannot be read: {error}\n"
                f"Where it is gone, renamed or out of reach, {remedy}"
            ) from error
        if sha256 != record["sha256"]:
            raise ValueError(
                f"The weights of the part {part!r} in {os.fspath(place)!r} are not those that this model was made "
                f"with: their SHA-256 begins {sha256[:12]}, in the config {record['sha256'][:12]}. The repo was "
                f"changed or a file is damaged. Download it again (`force_download=True`), or {remedy}"
            )
        weights.update(source.read(model, part, dtype))
    return weights


def restore_referenced_parts(model: Any, folder: str | os.PathLike) -> set[str]:
    """
    Brings a model that is in memory to what a checkpoint of it names: its frozen parts are the same already, those
    that are being trained are read again.

    Args:
        model ([`RetrievalPreTrainedModel`]): The model.
        folder (`str` or `os.PathLike`): A checkpoint.

    Returns:
        `set[str]`: Names of the parts that the checkpoint does not hold.

    Raises:
        ValueError: The checkpoint's frozen parts are not this model's.
    """
    config = type(model.config).from_pretrained(folder)
    named, own = referenced_parts(config), model.config.part_sources or {}
    for part, record in named.items():
        if own.get(part, {}).get("sha256") != record["sha256"]:
            raise ValueError(
                f"The checkpoint {os.fspath(folder)} has the part {part!r} of {record['repo_id']!r}, this model does "
                "not: go on with the model that the checkpoint was trained from."
            )
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    config.part_sources = {part: record for part, record in named.items() if part in trained}
    if config.part_sources:
        model.load_state_dict(read_referenced_parts(model, {}, model.dtype, config), strict=False)
    return set(named)


def remember_quantized_parts(model: Any) -> None:
    """Notes what a named language model was quantized to, by which a save tells whether it is still the same."""
    record = referenced_parts(model.config).get("language_model")
    if getattr(model, "hf_quantizer", None) is not None and record is not None:
        model._quantized_names = set(PartSource.from_record(record, {}).read(model, "language_model", model.dtype))
        model._quantized_values = hash_values(_quantized(model.state_dict(), model._quantized_names))


def _quantized(state: Mapping[str, torch.Tensor], names: set[str]) -> dict[str, torch.Tensor]:
    """Values of these weights, and what a quantizer keeps beside them (`weight.absmax`, `SCB`, ...)."""

    def belongs(name: str) -> bool:
        module, _, _ = name.rpartition(".")
        return name in names or f"{module}.weight" in names or any(name.startswith(f"{one}.") for one in own)

    own = {name for name in names if name.endswith(".weight")}
    return {name: value for name, value in state.items() if name.startswith("language_model.") and belongs(name)}


def split_state(
    model: Any, state: Mapping[str, torch.Tensor], frozen: str | None
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """
    Leaves out of a state what the repos of its parts hold: parts all of whose values are theirs. A part that was
    trained stays whole.

    Args:
        model ([`RetrievalPreTrainedModel`]): Whose `config.part_sources` say where parts came from.
        state (`Mapping[str, torch.Tensor]`): All of its values.
        frozen (`str`, *optional*): `"reference"`, `"copy"`, or `None` for what `config.part_sources` says of each.

    Returns:
        The values to save, and `part_sources` for the config that goes with them.
    """
    if frozen not in (None, *FROZEN):
        raise ValueError(f"`frozen` must be one of {', '.join(FROZEN)}; got {frozen!r}.")
    kept, records = dict(state), copy.deepcopy(model.config.part_sources or {})
    for part, record in records.items():
        wanted = frozen == "reference" or (frozen is None and record["referenced"])
        same = _unchanged(model, part, record, state, must=frozen == "reference") if wanted else set()
        record["referenced"] = bool(same)
        kept = {name: value for name, value in kept.items() if name not in same}
    return kept, records


def _unchanged(
    model: Any, part: str, record: Mapping[str, Any], state: Mapping[str, torch.Tensor], must: bool
) -> set[str]:
    """Names of a part's weights if every one is what its repo holds, in the model's precision; else none."""
    if part == "language_model" and getattr(model, "_quantized_names", None) is not None:
        own = _quantized(state, model._quantized_names)
        return set(own) if hash_values(own) == model._quantized_values else set()
    try:
        theirs = PartSource.from_record(record, {}).read(model, part, model.dtype)
    except (OSError, HfHubHTTPError, ValueError) as error:
        if must:
            raise
        logger.warning(
            f"The part {part!r} is saved whole: it could not be compared with {record['repo_id']!r} ({error})."
        )
        return set()
    for name, value in theirs.items():
        if name in state and _equal(state[name], value):
            continue
        rounded = _rounded_to(state[name], value) if name in state else None
        if rounded is None:
            logger.info(f"The part {part!r} is saved whole: {name} is no longer what {record['repo_id']!r} holds.")
        else:
            logger.warning(
                f"The part {part!r} is saved whole: its weights are those of {record['repo_id']!r} rounded to "
                f"{rounded}, as an earlier save kept them, but the model is in {state[name].dtype}. To name the repo "
                f"instead, load the model with dtype={rounded} and save that."
            )
        return set()
    return set(theirs)


def _rounded_to(own: torch.Tensor, theirs: torch.Tensor) -> torch.dtype | None:
    """The half precision through which a part's weights went before they became what the model has, if any."""
    for dtype in (torch.bfloat16, torch.float16):
        if _equal(own, theirs.to(dtype)):
            return dtype
    return None


def _equal(own: torch.Tensor, theirs: torch.Tensor) -> bool:
    if own.is_meta:
        raise ValueError(
            "The model is offloaded, so its parts cannot be compared with their repos. Save it with frozen='copy', or "
            "load it without offloading."
        )
    return own.shape == theirs.shape and torch.equal(own, theirs.to(own.device, own.dtype))


__all__ = [
    "FROZEN",
    "parts_read_from",
    "read_referenced_parts",
    "referenced_parts",
    "remember_quantized_parts",
    "restore_referenced_parts",
    "split_state",
]
