"""Variants of a captioner: what a run changes of its retrieval and its search, and which an ablation tries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..configuration_evcap import RETRIEVAL_RULES
from ..pipeline_loading import number_field, retrieve_nothing
from .arguments import ABLATIONS


logger = logging.get_logger(__name__)

NUMBERS_OF_NAMES = (1, 2, 3, 5, 10, 15, 20)
NUMBERS_OF_BEAMS = (1, 3, 5)
WITHOUT_MEMORY = "without the memory"
_OWN: Any = object()


@dataclass(frozen=True)
class Variant:
    """
    A setting under which all photos are captioned.

    Args:
        name (`str`): As tables print it.
        group (`str`): What it varies: one of `ABLATIONS`, or `"base"`.
        value (*optional*): The value that is varied, for plots.
        memory (`str`, *optional*): Another memory or datastore; the model's own when absent.
        config (`Mapping[str, Any]`): Fields of the model's config.
        min_similarity (`float`, *optional*): The memory's threshold; `None` switches the rejection off.
        num_beams (`int`, *optional*): Beams.
    """

    name: str
    group: str = "base"
    value: Any = None
    memory: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    min_similarity: Any = _OWN
    num_beams: int | None = None

    @property
    def folder(self) -> str:
        """`str`: Name of its folder of predictions."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.")


@contextmanager
def applied(model: Any, variant: Variant) -> Iterator[dict[str, Any]]:
    """
    Sets a variant for as long as the block runs.

    Args:
        model: A model with a memory.
        variant ([`Variant`]): What to change.

    Yields:
        `dict`: Options of the pipeline.
    """
    own_memory, own_config = model.memory, {name: getattr(model.config, name) for name in variant.config}
    memory = own_memory
    if variant.memory is not None:
        memory = type(model).memory_class.from_pretrained(variant.memory)
    own_retrieval = dict(memory.retrieval) if hasattr(memory, "retrieval") else None
    try:
        if memory is not own_memory:
            model.set_memory(memory)
        for name, value in variant.config.items():
            setattr(model.config, name, value)
        if variant.min_similarity is not _OWN and own_retrieval is not None:
            memory.retrieval["min_similarity"] = variant.min_similarity
        yield {} if variant.num_beams is None else {"num_beams": variant.num_beams}
    finally:
        if own_retrieval is not None:
            memory.retrieval.clear()
            memory.retrieval.update(own_retrieval)
        for name, value in own_config.items():
            setattr(model.config, name, value)
        if memory is not own_memory:
            model.set_memory(own_memory)


def other_variants(model: Any, arguments: Any) -> list[Variant]:
    """
    Lists the variants that are tried beside the captioner as it is: without its memory, and those of an ablation.

    Args:
        model: The model.
        arguments ([`EvaluationArguments`]): Its `memory_effect`, `ablate` and what belongs to it.
    """
    wanted = ABLATIONS if "all" in arguments.ablate else [part for part in ABLATIONS if part in arguments.ablate]
    variants = []
    retrieves = model.memory is not None and getattr(model.config, number_field(model.config)) > 0
    if retrieves and (arguments.memory_effect or "memory" in wanted):
        variants.append(Variant(WITHOUT_MEMORY, "memory effect", 0, config=retrieve_nothing(model.config)))
    if "memory" in wanted:
        short = [Path(other).resolve().name if Path(other).is_dir() else other for other in arguments.other_memory]
        labels = short if len(set(short)) == len(short) else arguments.other_memory
        variants += [
            Variant(f"memory {label}", "memory", other, memory=other)
            for label, other in zip(labels, arguments.other_memory, strict=True)
        ]
    elif arguments.other_memory:
        raise ValueError('`other_memory` needs "memory" among `ablate`.')
    if "names" in wanted and retrieves:
        name = number_field(model.config)
        word = name.rpartition("_")[2]
        numbers = arguments.ablate_names or NUMBERS_OF_NAMES
        variants += [
            Variant(f"{number} {word if number != 1 else word[:-1]}", "names", number, config={name: number})
            for number in dict.fromkeys(numbers)
            if number != getattr(model.config, name)
        ]
    if "rule" in wanted and retrieves and hasattr(model.config, "retrieval_rule"):
        variants += [
            Variant(f"rule {rule}", "rule", rule, config={"retrieval_rule": rule})
            for rule in RETRIEVAL_RULES
            if rule not in (model.config.retrieval_rule, "vote")  # vote needs numbers that only its models have
        ]
    if "rejection" in wanted and retrieves and hasattr(model.config, "num_retrieved_names"):
        own, given = getattr(model.memory, "min_similarity", None), arguments.min_similarity
        if own is None and given is None:
            logger.warning(
                "The memory has no `min_similarity` (see `hf-evcap memory calibrate`), and none was given: the "
                "ablation of the rejection is left out."
            )
        if own is not None:
            variants.append(Variant("rejection off", "rejection", None, min_similarity=None))
        if given is not None and given != own:
            variants.append(Variant(f"rejection below {given:g}", "rejection", given, min_similarity=given))
    if "beams" in wanted:
        beams = arguments.num_beams or model.generation_config.num_beams or 1
        numbers = arguments.ablate_beams or NUMBERS_OF_BEAMS
        variants += [
            Variant(f"{number} beam{'s' if number > 1 else ''}", "beams", number, num_beams=number)
            for number in dict.fromkeys(numbers)
            if number != beams
        ]
    return variants


def base_values(model: Any, arguments: Any) -> dict[str, Any]:
    """What the captioner as it is has for each thing that is varied."""
    return {
        "memory": "own",
        "names": getattr(model.config, number_field(model.config)),
        "rule": getattr(model.config, "retrieval_rule", None),
        "rejection": getattr(model.memory, "min_similarity", None),
        "beams": arguments.num_beams or model.generation_config.num_beams or 1,
    }
