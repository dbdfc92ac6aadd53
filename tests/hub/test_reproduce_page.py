"""docs/reproduce.md: every command of the page runs, in its order, on tiny parts that a Hub has under the real names.

Nothing of a command is changed but what `REPLACED` and `ADDED` declare; a command that the page's reader could not run
is a failure, and so is one that this test does not know how to run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_smallcap
import yaml
from caption_files import karpathy_image, write_coco, write_karpathy, write_whoops
from documentation_pages import ROOT, RUN, arguments_of, commands, read_page
from hub_client import Client
from hub_server import HubServer
from tiny_models import PHOTOS


PAGE = read_page("reproduce.md")
REPLACED = {"USER": "alice"}  # whose repos are written
ADDED = {"train": ["--max_steps", "2", "--dataloader_num_workers", "0"]}  # instead of hundreds of thousands of steps
NAMES = ["kettle", "owl"]
CAPTIONS = [caption for caption, _ in tiny_smallcap.CAPTIONS]

PREPARE = """
import os
os.chdir(folder)
import hf_evcap.cli.memory_build, hf_evcap.memory_building.synthetic_photos as synthetic
import torch
from PIL import Image

class Pipeline:  # draws noise instead of what Stable Diffusion would
    def __call__(self, prompt, generator, **options):
        pixels = torch.randint(0, 255, (24, 24, 3), generator=generator, dtype=torch.uint8).numpy()
        return type("Output", (), {"images": [Image.fromarray(pixels)]})

synthetic.load_diffusion_pipeline = lambda *args, **kwargs: Pipeline()
"""


def write_data(folder: Path) -> None:
    """A handful of photos under the names of the benchmarks' files."""
    photos = sorted(PHOTOS.glob("*.jpg"))

    def place(name: str, number: int) -> str:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos[number], folder / name)
        return name

    images = []
    for number, split in enumerate(["train", "restval", "train", "train", "val", "test", "test"]):
        part = "train2014" if split == "train" else "val2014"
        name = f"COCO_{part}_{42 if number == 6 else number:012}.jpg"
        place(f"coco/{part}/{name}", number)
        images.append(karpathy_image(name, split, CAPTIONS[number : number + 2], filepath=part, cocoid=number))
    write_karpathy(folder, images)
    (folder / "flickr30k").mkdir()
    place("flickr30k/1.jpg", 1)
    write_karpathy(folder, [karpathy_image("1.jpg", "test", CAPTIONS[:2])], "flickr30k")
    for number in (1, 2):
        place(f"nocaps/{number}.jpg", number)
    pairs = [(1, CAPTIONS[0]), (2, CAPTIONS[1])]
    file = "nocaps_val_4500_captions.json"
    write_coco(folder / "nocaps", {1: "1.jpg", 2: "2.jpg"}, pairs, name=file, domain=["in-domain", "out-domain"])
    place("whoops/one.jpg", 3)
    write_whoops(folder / "whoops", [("one", CAPTIONS[:2])])
    lvis: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    for number, name in enumerate(NAMES):
        place(f"train2017/{number}.jpg", number)
        lvis["images"].append({"id": number, "coco_url": f"http://images/train2017/{number}.jpg"})
        lvis["annotations"].append({"image_id": number, "category_id": number, "bbox": [5, 5, 60, 60]})
        lvis["categories"].append({"id": number, "name": name})
    (folder / "lvis_v1_train.json").write_text(json.dumps(lvis), encoding="utf-8")
    place("photos/sphinx.jpg", 4)
    (folder / "objects.csv").write_text("image,name,license\nsphinx.jpg,sphinx,CC0\n", encoding="utf-8")


@pytest.fixture(scope="module")
def place(
    public_parts: dict[str, Path],
    environment_of: Callable[..., dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, Client]]:
    """The folder in which the page's reader works, and a process there whose Hub has the page's parts."""
    folder = tmp_path_factory.mktemp("reader")
    write_data(folder)
    client = Client(environment_of())
    client(PREPARE, folder=str(folder))
    yield folder, client
    client.close()


def test_every_command_of_the_page_runs(place: tuple[Path, Client], hub: HubServer) -> None:
    folder, client = place
    printed: dict[str, str] = {}
    for command in commands(PAGE):
        code, out, told = client(RUN, argv=arguments_of(command, REPLACED, ADDED))
        assert code == 0, f"{command}\n{told}"
        printed[command] = out
    check_results(folder, printed, hub)


def check_results(folder: Path, printed: dict[str, str], hub: HubServer) -> None:
    """What the commands promise is there."""
    plans = [out for command, out in printed.items() if command.startswith("hf-evcap plan")]
    told = PAGE.split("## What it takes")[1].split("\n## ")[0]
    for figure in ("3,968,000", "29.2", "34.5", "82.0", "4.85", "4.33", "3.18"):
        assert figure in told.split("```")[2] and figure in plans[0]
    memory = json.loads((folder / "lvis-memory" / "memory_config.json").read_text(encoding="utf-8"))
    assert (memory["names"], memory["rows"]) == (len(NAMES), len(NAMES) * (1 + 5))
    merged = json.loads((folder / "lvis-and-whoops" / "memory_config.json").read_text(encoding="utf-8"))
    assert merged["names"] == len(NAMES) + 1
    facts = yaml.safe_load((folder / "evcap-13b" / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert "evcap" in facts["tags"]
    results = json.loads((folder / "results" / "nocaps" / "results.json").read_text(encoding="utf-8"))
    assert "out-domain" in json.dumps(results)
    assert (folder / "results" / "ablation" / "ablation.png").is_file()
    assert "140.1" in next(out for command, out in printed.items() if "--output results/coco" in command)
    own = hub.files("model", "alice/evcap-13b")
    assert "model.safetensors" in own and (folder / "evcap-13b-whole" / "model.safetensors").is_file()
    assert len(own["model.safetensors"]) < (folder / "evcap-13b-whole" / "model.safetensors").stat().st_size / 2
    pushed = {repo_id for _, repo_id in hub.repos if repo_id.startswith("alice/")}
    assert {"alice/lvis-memory", "alice/evcap-13b", "alice/coco-captions", "alice/smallcap-coco"} <= pushed


def test_the_page_has_the_papers_figures_from_where_they_are_kept() -> None:
    file = ROOT / "src" / "hf_evcap" / "evaluation" / "published_results.yaml"
    known = {
        str(value) for row in yaml.safe_load(file.read_text(encoding="utf-8")) for value in row["metrics"].values()
    }
    figures: list[Any] = re.findall(r"(?:CIDEr|BLEU-4)[^.\d]*?(\d+\.\d+)", PAGE)
    assert figures and set(figures) <= known
