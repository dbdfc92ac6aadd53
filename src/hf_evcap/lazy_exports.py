"""What a package offers, imported when it is first used, so that the command line's parsers need no PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """
    Makes the `__getattr__` of a package.

    Args:
        package (`str`): Its `__name__`.
        modules (`Mapping[str, str]`): Name -> module of the package that has it.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f".{modules[name]}", package), name)

    return get


__all__ = ["lazy_exports"]
