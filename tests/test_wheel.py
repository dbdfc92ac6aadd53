"""The built package, installed by itself: it brings the embedded captioner and captions a photo."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

import hf_evcap


ROOT = Path(__file__).parent.parent


def run(*command: str | Path, folder: Path) -> str:
    """Runs a command outside the repository, where only what is installed can be imported."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.skipif(
    importlib.util.find_spec("build") is None or importlib.util.find_spec("hatchling") is None,
    reason="building needs the packages build and hatchling",
)
def test_built_package_captions(tmp_path):
    # The wheel is built from the source distribution, so that one is complete, too.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT, folder=tmp_path)
    [source], [wheel] = (tmp_path / "dist").glob("*.tar.gz"), (tmp_path / "dist").glob("*.whl")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    embedded = Path(hf_evcap.default_model())
    assert {path.relative_to(ROOT).as_posix() for path in embedded.rglob("*") if path.is_file()} <= names
    assert {"src/hf_evcap/assets/photos/cat.jpg", "scripts/train_tiny.py", "LICENSE"} <= names

    venv.create(tmp_path / "clean")
    scripts = tmp_path / "clean" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=tmp_path)
    # Dependencies come from this environment, as plain folders: an editable install in it is not followed.
    [packages] = (tmp_path / "clean").glob("**/site-packages")
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    where = run(python, "-c", "import hf_evcap; print(hf_evcap.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path.resolve())
    photo = ROOT / "src" / "hf_evcap" / "assets" / "photos" / "cat.jpg"
    caption = run(scripts / "hf-evcap", "caption", photo, folder=tmp_path)
    assert {"cat", "tabby"} & set(caption.split())
    listed = run(scripts / "hf-evcap", "configs", folder=tmp_path)
    assert "evcap-vicuna-13b" in listed and "memories/lvis" in listed and "evcap-paper" in listed
    place = Path(run(scripts / "hf-evcap", "configs", "evcap-vicuna-13b", folder=tmp_path).strip())
    assert place.is_relative_to(tmp_path.resolve()) and (place / "config.json").is_file()

    metadata = importlib.metadata.PathDistribution(next((packages).glob("hf_evcap-*.dist-info")))
    assert metadata.metadata["License-Expression"] == "Apache-2.0 AND LicenseRef-flickr8k-imagenet-noncommercial"
    assert {"LICENSE", "src/hf_evcap/assets/evcap-tiny/LICENSE"} <= set(metadata.metadata.get_all("License-File"))
    assert not re.findall(r"\]\((?!https?://)", metadata.metadata.get_payload()), (
        "PyPI shows README: no relative links"
    )
