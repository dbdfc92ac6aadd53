"""The built package, installed by itself: it brings the embedded captioner and captions a photo."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

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


needs_build = pytest.mark.skipif(
    importlib.util.find_spec("build") is None or importlib.util.find_spec("hatchling") is None,
    reason="building needs the packages build and hatchling",
)
EXPRESSION = "Apache-2.0 AND LicenseRef-flickr8k-imagenet-noncommercial"
TERMS = "src/hf_evcap/assets/evcap-tiny/LICENSE"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source distribution, and the wheel built from it, so that the former is complete, too."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def clean(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of an environment with nothing but the wheel and its dependencies, on another path."""
    folder = tmp_path_factory.mktemp("elsewhere")
    [wheel] = dist.glob("*.whl")
    venv.create(folder / "clean")
    scripts = folder / "clean" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / Path(sys.executable).name
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, folder=folder)
    # Dependencies come from this environment, as plain folders: an editable install in it is not followed.
    [packages] = (folder / "clean").glob("**/site-packages")
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")
    where = run(python, "-c", "import hf_evcap; print(hf_evcap.__file__)", folder=folder)
    assert Path(where.strip()).is_relative_to(folder.resolve())
    return scripts


@needs_build
def test_source_distribution_is_complete(dist: Path) -> None:
    [source] = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    embedded = Path(hf_evcap.default_model())
    assert {path.relative_to(ROOT).as_posix() for path in embedded.rglob("*") if path.is_file()} <= names
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert {"src/hf_evcap/assets/photos/cat.jpg", "scripts/train_tiny.py", "LICENSE", "CITATION.cff", *pages} <= names


@needs_build
def test_metadata(dist: Path) -> None:
    """Both licences and their texts; every field as the standard wants it; a description that PyPI can show."""
    [wheel] = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Metadata.from_email(archive.read(name), validate=True)
        texts = {
            file: archive.read(name.replace("METADATA", f"licenses/{file}")).decode()
            for file in metadata.license_files
        }
    assert metadata.license_expression == EXPRESSION
    assert set(texts) == {"LICENSE", TERMS, "src/hf_evcap/assets/photos/LICENSES.md"}
    assert "Apache License" in texts["LICENSE"] and "LicenseRef-flickr8k-imagenet-noncommercial" in texts[TERMS]
    assert metadata.description_content_type == "text/markdown" and "docs" in metadata.provides_extra
    assert all(url.startswith("https://") for url in metadata.project_urls.values())
    links = re.findall(r"\]\(([^)]*)\)", metadata.description)
    assert links and all(link.startswith("https://") for link in links), "PyPI shows README: no relative links"


@needs_build
@pytest.mark.skipif(importlib.util.find_spec("twine") is None, reason="twine is not installed (extra dev)")
def test_twine_finds_nothing(dist: Path) -> None:
    files = sorted(dist.iterdir())
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("PASSED") == len(files) == 2, done.stdout + done.stderr


@needs_build
def test_first_page_of_readme(clean: Path, tmp_path: Path) -> None:
    """Its first snippet and its first command, as printed, where nothing of the repository is at hand."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(.+?)```", readme, flags=re.DOTALL)[1]
    [(expression, printed)] = re.findall(r"^(answer\[.generated_text.\]) +# (.+)$", snippet, flags=re.MULTILINE)
    code = f"{snippet}\nprint(repr({expression}))"
    assert run(clean / "python", "-c", code, folder=tmp_path).splitlines()[-1] == printed
    shutil.copy(hf_evcap.sample_photo("cat"), tmp_path / "photo.jpg")
    assert "tabby" in run(clean / "hf-evcap", "caption", "photo.jpg", "--names", folder=tmp_path)


@needs_build
def test_configurations_and_recipes_come_along(clean: Path, tmp_path: Path) -> None:
    listed = run(clean / "hf-evcap", "configs", folder=tmp_path)
    assert {"evcap-vicuna-13b", "memories/lvis", "evcap-paper", "accelerate/fsdp"} <= set(listed.split())
    place = Path(run(clean / "hf-evcap", "configs", "evcap-vicuna-13b", folder=tmp_path).strip())
    assert place.is_relative_to(clean.parent.resolve()) and (place / "config.json").is_file()
    assert "evcap-tiny" in run(clean / "hf-evcap", "train", "--recipe", "list", folder=tmp_path)
    plan = run(clean / "hf-evcap", "plan", "--config", "evcap-vicuna-13b", folder=tmp_path)
    assert "3,968,000" in plan
