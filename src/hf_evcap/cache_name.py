"""What transformers calls a language model's cache: `cache` since 5.24, `past_key_values` before. Told apart here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

from transformers import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast


Forward = TypeVar("Forward", bound=Callable[..., Any])

CACHE_NAMES = ("cache", "past_key_values")
# Keyword of every `forward` and field of every output of the installed transformers.
CACHE = next(name for name in CACHE_NAMES if name in {field.name for field in fields(CausalLMOutputWithPast)})


def pop_cache(arguments: dict[str, Any]) -> Cache | None:
    """Takes the cache out of keyword arguments, whichever name the caller gave it; `None` where there is none."""
    given = [cache for name in CACHE_NAMES if (cache := arguments.pop(name, None)) is not None]
    if len(given) > 1:
        raise ValueError("`cache` and `past_key_values` are two names of one argument; give one.")
    return given[0] if given else None


def takes_cache(forward: Forward) -> Forward:
    """Lets a `forward` that has an argument `cache` be called with `past_key_values`, too."""

    @wraps(forward)
    def forward_with_either_name(*args: Any, **kwargs: Any) -> Any:
        if "past_key_values" in kwargs:
            if CACHE == "cache":
                message = "`past_key_values` is deprecated, as in transformers since 5.24; the name is `cache` now."
                warnings.warn(message, FutureWarning, stacklevel=2)
            kwargs["cache"] = pop_cache(kwargs)
        return forward(*args, **kwargs)

    return forward_with_either_name  # type: ignore[return-value]


__all__ = ["CACHE", "CACHE_NAMES", "pop_cache", "takes_cache"]
