#!/usr/bin/env python3
"""
Resolves the versions of a set again and writes them to constraints/SET.txt; nothing is installed.

Usage: scripts/refresh_constraints.py [newest | oldest]   (default: newest)
PYTHON chooses the interpreter that they are resolved for; for `oldest` take the oldest supported: PYTHON=python3.10.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
DEVELOPER_TOOLS = "dev"  # this extra's own requirements have no oldest version that a user could get


def lower_bounds(pyproject: str) -> list[str]:
    """The requirements of pyproject.toml with the lower bound of each as its version."""
    import tomllib

    project = tomllib.loads(pyproject)["project"]
    requirements = list(project["dependencies"])
    for extra in re.search(r"hf_evcap\[(.+?)\]", " ".join(project["optional-dependencies"][DEVELOPER_TOOLS]))[1].split(
        ","
    ):
        requirements += project["optional-dependencies"][extra]
    return [re.sub(r"^([\w.-]+)>=([\w.]+).*", r"\1==\2", requirement) for requirement in requirements]


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "newest"
    if name not in ("newest", "oldest"):
        sys.exit(
            f"Unknown set {name!r}: newest or oldest. The pinned one changes by hand, to versions that were tested."
        )
    python = os.environ.get("PYTHON", sys.executable)
    wanted = [f"{ROOT}[{DEVELOPER_TOOLS}]"]
    if name == "oldest":
        wanted += lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", *wanted]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    found = {item["metadata"]["name"]: item["metadata"]["version"].partition("+")[0] for item in report["install"]}
    found.pop("hf_evcap")
    version = ".".join(report["environment"]["python_full_version"].split(".")[:2])
    # On an older Python the newest versions are others; pip then looks for them itself.
    marker = f' ; python_version >= "{version}"' if name == "newest" else ""
    lines = [f"# Python {version}; made by scripts/refresh_constraints.py {name}"]
    lines += [f"{package}=={found[package]}{marker}" for package in sorted(found, key=str.lower)]
    path = ROOT / "constraints" / f"{name}.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(found)} versions for Python {version}")


if __name__ == "__main__":
    main()
