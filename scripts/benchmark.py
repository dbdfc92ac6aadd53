#!/usr/bin/env python
"""Measures the package on this machine: `scripts/benchmark.py caption|load|memory|metrics|... [options]`.

Each subject is a module in `scripts/benchmarks/` with `make_parser()` and `main(argv)`. Figures are ratios within one
run where they can be: machines differ, and this one's neighbours are noisy.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


SUBJECTS = sorted(path.stem for path in (Path(__file__).parent / "benchmarks").glob("[a-z]*.py"))


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in SUBJECTS:
        print(f"usage: {sys.argv[0]} {'|'.join(SUBJECTS)} [options]")
        return 2
    path = Path(__file__).parent / "benchmarks" / f"{sys.argv[1]}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
