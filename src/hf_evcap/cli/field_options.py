"""Options of a verb from the fields of a dataclass, checked as they are parsed. Imports no transformers."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from .common_options import alias
from .options import (
    above_zero,
    count,
    dtype_or_auto,
    not_negative,
    number,
    output_folder,
    positive_int,
    share,
    whole_number,
)


# Field -> how its values are checked, where its type alone does not say.
_CHECKS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(
        (
            "batch_size", "early_stopping_patience", "generation_max_length", "generation_num_beams", "gpus",
            "gradient_accumulation_steps", "lora_alpha", "lora_rank", "max_caption_length", "max_eval_samples",
            "max_new_tokens", "max_train_samples", "num_beams", "per_device_eval_batch_size",
            "per_device_train_batch_size", "photos", "captions", "prompt_tokens", "retrieved_tokens", "sample_from",
            "save_total_limit",
        ),
        positive_int,
    ),
    **dict.fromkeys(
        ("align_names", "dataloader_num_workers", "keep_best", "memory_rows", "seed", "shuffle_buffer_size"), count
    ),
    **dict.fromkeys(
        ("eval_steps", "logging_steps", "memory_gb", "num_train_epochs", "save_steps", "tflops"), above_zero
    ),
    **dict.fromkeys(("learning_rate", "max_grad_norm", "warmup_steps", "weight_decay"), not_negative),
    **dict.fromkeys(("lora_dropout", "name_dropout", "photo_dropout", "replaced_names"), share),
    "dtype": dtype_or_auto,
    "output_dir": output_folder,
}  # fmt: skip
_PLACEHOLDERS: dict[Any, str] = {
    positive_int: "N", count: "N", whole_number: "N", output_folder: "FOLDER", dtype_or_auto: "DTYPE",
    above_zero: "X", not_negative: "X", number: "X", share: "X",
}  # fmt: skip
_NONE = type(None)


def true_or_false(text: str) -> bool:
    """A switch that is given with a word."""
    if text.lower() in ("true", "yes", "t", "y", "1"):
        return True
    if text.lower() in ("false", "no", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def add_fields(parser: argparse.ArgumentParser, fields_of: type, renamed: Mapping[str, str] | None = None) -> None:
    """
    Adds an option for each field of a dataclass, in a group of its own.

    Args:
        parser (`argparse.ArgumentParser`): Gets the options; an option's `dest` is the field's name.
        fields_of (`type`): The dataclass; its fields' metadata have `help`, itself maybe `_argument_group_name`.
        renamed (`Mapping[str, str]`, *optional*): Field -> the option's name where it is another, without `--`. The
            field's own name is then taken, too, and not shown.
    """
    group = parser.add_argument_group(getattr(fields_of, "_argument_group_name", fields_of.__name__))
    hints = typing.get_type_hints(fields_of)
    for field in dataclasses.fields(fields_of):
        name = (renamed or {}).get(field.name, field.name).replace("_", "-")
        default = field.default_factory() if callable(field.default_factory) else field.default
        text = str(field.metadata.get("help", "")).rstrip(".")
        text = text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text
        options = {"dest": field.name, "default": default, "help": text, **_taken(field.name, hints[field.name])}
        group.add_argument(f"--{name}", **options)
        if options["type"] is true_or_false and default is True:
            group.add_argument(
                f"--no-{name}", dest=field.name, action="store_false", default=True, help=argparse.SUPPRESS
            )
        if f"--{name}" != f"--{field.name}".replace("_", "-"):
            alias(parser, f"--{name}", f"--{field.name}")


def _taken(name: str, hint: Any) -> dict[str, Any]:
    """What an option takes, from its field's type."""
    united = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = [kind for kind in typing.get_args(hint) if kind is not _NONE] if united else [hint]
    choices = [one for kind in kinds if typing.get_origin(kind) is typing.Literal for one in typing.get_args(kind)]
    if choices:
        return {"type": str, "choices": choices, "metavar": f"{{{','.join(choices)}}}"}
    if bool in kinds:
        return {"type": true_or_false, "nargs": "?", "const": True, "metavar": "{true,false}"}
    several = any(typing.get_origin(kind) is list for kind in kinds)
    check = _CHECKS.get(name) or (whole_number if int in kinds else number if float in kinds else str)
    placeholder = _PLACEHOLDERS.get(check) or name.rpartition("_")[2].upper()
    return {"type": check, "metavar": placeholder, **({"nargs": "+"} if several else {})}


def fill(fields_of: type, values: Mapping[str, Any]) -> Any:
    """A dataclass from parsed values."""
    return fields_of(
        **{one.name: values[one.name] for one in dataclasses.fields(fields_of) if one.init and one.name in values}
    )


def check_as_fields(parser: argparse.ArgumentParser) -> None:
    """Checks an option that another library has added as the field of its name is checked."""
    for action in parser._actions:
        if action.dest in _CHECKS and action.type in (int, float, str):
            action.type = _CHECKS[action.dest]


__all__ = ["add_fields", "check_as_fields", "fill", "true_or_false"]
