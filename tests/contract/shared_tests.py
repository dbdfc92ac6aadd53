"""transformers' own shared tests of the installed version, from its source distribution on PyPI."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers
from filelock import FileLock
from tiny_models import PHOTOS


# Wheels and tests stay here from run to run.
CACHE = Path(os.environ.get("HF_EVCAP_TEST_CACHE") or Path.home() / ".cache" / "hf_evcap-tests")
PACKAGE = "transformers_shared_tests"
# A checkout of transformers at the installed version, in whose `tests` also those of generation and export lie, which
# the source distribution leaves out.
CHECKOUT = os.environ.get("TRANSFORMERS_CHECKOUT")
# Modules that are left out and that others import a class from; the class is then empty.
LEFT_OUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def load_shared_tests(module: str) -> ModuleType:
    """
    Imports a module of transformers' `tests` folder; skips the importing module where PyPI cannot be reached.

    Args:
        module (`str`): Such as `"test_processing_common"`.
    """
    folder = Path(CHECKOUT or CACHE / f"transformers-{transformers.__version__}") / "tests"
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".lock"):  # xdist's workers come at once
        if not (folder / "test_modeling_common.py").is_file():
            _fetch_tests()
        _import_parameterized()
    _stand_in_for_hub_objects()
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
        for name, base in LEFT_OUT.items():
            if not (folder / f"{name.replace('.', '/')}.py").is_file():
                stand_in = ModuleType(f"{PACKAGE}.{name}")
                setattr(stand_in, base, type(base, (), {}))
                sys.modules[stand_in.__name__] = stand_in
    return importlib.import_module(f"{PACKAGE}.{module}")


def _fetch_tests() -> None:
    _fetch(f"transformers=={transformers.__version__}", "--no-binary=transformers")
    archive = CACHE / f"transformers-{transformers.__version__}.tar.gz"
    with tarfile.open(archive) as opened:
        members = [one for one in opened.getmembers() if one.name.split("/")[1:2] == ["tests"]]
        opened.extractall(CACHE, members, filter="data")
    archive.unlink()


def _fetch(requirement: str, *options: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1", "--timeout=20"]
    done = subprocess.run([*command, *options, "--dest", str(CACHE), requirement], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "pip failed").splitlines()[-1]
        pytest.skip(f"{requirement} cannot be had from PyPI: {reason}", allow_module_level=True)


def _import_parameterized() -> None:
    """transformers' tests need it and nothing of ours does; a wheel can be imported as it is."""
    try:
        importlib.import_module("parameterized")
    except ModuleNotFoundError:
        if not list(CACHE.glob("parameterized-*.whl")):
            _fetch("parameterized", "--only-binary=:all:")
        sys.path.append(str(next(CACHE.glob("parameterized-*.whl"))))
        importlib.import_module("parameterized")


def _stand_in_for_hub_objects() -> None:
    """The script that fetches photos for those tests is no part of the distribution; ours are given instead."""
    stand_in = ModuleType("fetch_hub_objects_for_ci")
    stand_in.url_to_local_path = lambda url, return_url_if_not_found=True: (  # type: ignore[attr-defined]
        str(PHOTOS / "cat.jpg") if url.endswith((".png", ".jpg", ".jpeg")) else url
    )
    sys.modules.setdefault("fetch_hub_objects_for_ci", stand_in)


def expect_failures(deviations: dict[str, str]) -> Any:
    """Marks tests of a class that must fail, with the reason; one that passes after all is an error."""

    def mark(tests: type) -> type:
        for name, reason in deviations.items():
            inherited = getattr(tests, name, None)
            if inherited is not None:  # of some versions of transformers
                setattr(tests, name, pytest.mark.xfail(strict=True, reason=reason)(_copy(inherited)))
        return tests

    return mark


def _copy(test: Any) -> Any:
    @functools.wraps(test)
    def run(self: Any) -> None:
        test(self)

    return run
