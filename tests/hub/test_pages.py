"""README and the pages of docs/ that have no test of their own: every snippet and command runs, results compared."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import faiss
import numpy as np
import pytest
import tiny_smallcap
from caption_files import karpathy_image, write_karpathy
from documentation_pages import ROOT, commands_of
from hub_client import Client
from hub_server import HubServer
from huggingface_hub import ModelCard
from page_reader import Reader, blocks_of, same_text, same_value, shown_values
from public_parts import serve, write_parts
from tiny_models import PHOTOS, REFERENCE

import hf_evcap
from hf_evcap import VisualNameMemory


CAPTIONS = {
    "astronaut": "an astronaut smiles in front of a flag",
    "cat": "a tabby looks at the camera",
    "coffee": "a cup of coffee on a wooden table",
    "flower": "a close up of a flower",
    "photographer": "a man with a camera on a tripod",
    "raccoon": "the face of a raccoon",
    "rocket": "a rocket starts at night",
    "temple": "a temple on a hill above the water",
}
CAPTIONED = ["cat", "coffee", "flower"]
SHORT = [
    "--max_steps",
    "1",
    "--per_device_train_batch_size",
    "4",
    "--save_strategy",
    "no",
    "--report_to",
    "none",
    "--use_cpu",
    "true",
]
SWAPPED = {  # the checkpoint is a tiny one in the release's format
    "--model-config evcap-vicuna-13b --fusion-init random:0": "--model-config reference.json "
    "--llm-tokenizer tokenizer.model --name-tokenizer bert_vocab.txt",
}


def write_things(folder: Path, reference: dict) -> None:
    """What a reader has: photos, some of them named, some with captions; the release's files."""
    shutil.copy(PHOTOS / "cat.jpg", folder / "photo.jpg")
    shutil.copy(PHOTOS / "flower.jpg", folder / "flower.png")
    for number in (1, 2):
        shutil.copy(PHOTOS / "coffee.jpg", folder / f"whisk{number}.jpg")
    for name, photos in {"holiday": ["temple", "rocket"], "captioned": CAPTIONED}.items():
        (folder / name).mkdir()
        rows = []
        for photo in photos:
            shutil.copy(PHOTOS / f"{photo}.jpg", folder / name)
            rows.append({"file_name": f"{photo}.jpg", "captions": [CAPTIONS[photo]]})
        if name != "holiday":
            (folder / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = [str(PHOTOS / f"{name}.jpg") for name in CAPTIONED]
    rows = {"image": files, "captions": [[CAPTIONS[name]] for name in CAPTIONED]}
    photos = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    photos.to_parquet(folder / "validation.parquet")
    for name, photo in {"teapot": "coffee", "ladle": "flower"}.items():
        (folder / "kitchen-photos" / name).mkdir(parents=True)
        shutil.copy(PHOTOS / f"{photo}.jpg", folder / "kitchen-photos" / name / "1.jpg")
    (folder / "captions.txt").write_text("\n".join(text for text, _ in tiny_smallcap.CAPTIONS), encoding="utf-8")
    write_release(folder, reference)
    images = []
    (folder / "coco" / "val2014").mkdir(parents=True)
    for number, (photo, split) in enumerate(
        [("cat", "train"), ("coffee", "restval"), ("flower", "train"), ("temple", "val")]
    ):
        shutil.copy(PHOTOS / f"{photo}.jpg", folder / "coco" / "val2014")
        images.append(karpathy_image(f"{photo}.jpg", split, [CAPTIONS[photo]], filepath="val2014", cocoid=number))
    write_karpathy(folder, images)
    (folder / "my.yaml").write_text("dataset: captioned\noutput_dir: from-yaml\n", encoding="utf-8")


def write_release(folder: Path, config: dict) -> None:
    """Files as the two releases have them."""
    for name, source in {"CHECKPOINT.pth": "evcap_full.pt", "ext_memory.pkl": "ext_memory.pkl"}.items():
        shutil.copy(REFERENCE / source, folder / name)
    for name in ("tokenizer.model", "bert_vocab.txt"):
        shutil.copy(REFERENCE / name, folder)
    (folder / "reference.json").write_text(json.dumps(config), encoding="utf-8")
    captions = [caption for caption, _ in tiny_smallcap.CAPTIONS]
    keys = np.random.default_rng(0).standard_normal((len(captions), 1024)).astype(np.float32)
    faiss.normalize_L2(keys)
    index = faiss.IndexFlatIP(1024)
    index.add(keys)
    faiss.write_index(index, str(folder / "coco_index"))
    (folder / "coco_index_captions.json").write_text(json.dumps(captions), encoding="utf-8")


@pytest.fixture(scope="module")
def reader(
    hub: HubServer,
    environment_of: Callable[..., dict[str, str]],
    reference,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    write_things(folder, reference.config)
    for name, part in write_parts(tmp_path_factory.mktemp("parts")).items():
        serve(hub, name, part)
    client = Client(environment_of(DISABLE_MLFLOW_INTEGRATION="true"))
    yield Reader(client, folder, added={"train": SHORT, "evaluate": ["--num-beams", "1"]}, swapped=SWAPPED)
    client.close()


def test_readme(reader: Reader, hub: HubServer) -> None:
    """The figures of the evaluation are of photos that cannot come along; its layout is compared."""
    compared = reader.read(ROOT / "README.md", figures=lambda printed: "565 reference captions" not in printed)
    assert compared >= 12
    assert {"alice/kitchen", "alice/captioner"} <= {repo_id for _, repo_id in hub.repos}
    assert "LICENSE" in hub.files("model", "alice/captioner")


def test_pages(reader: Reader, hub: HubServer) -> None:
    """Pages that stand alone; those of models from parts, of both papers and of SmolLM2 have tests of their own."""
    for name, least in {"how-it-works": 4, "evaluation": 2, "publishing": 1}.items():
        assert reader.read(ROOT / "docs" / f"{name}.md") >= least, name
    assert "memory_reference" in json.loads(hub.files("model", "alice/captioner-2")["config.json"])


def test_the_day_of_a_researcher(reader: Reader, hub: HubServer) -> None:
    """Own photos to a memory, fine-tuning, evaluation with a report, and a published variant with its licence."""
    assert reader.read(ROOT / "docs" / "tutorial.md", figures=lambda printed: "| as it is |" not in printed) >= 9
    files = hub.files("model", "alice/evcap-raccoons")
    assert files["LICENSE"] == (Path(hf_evcap.default_model()) / "LICENSE").read_bytes()
    data = ModelCard(files["README.md"].decode()).data
    assert (data.license_name, data.license_link) == ("flickr8k-imagenet-noncommercial", "LICENSE")
    assert data.eval_results and 'model="alice/evcap-raccoons"' in files["README.md"].decode()
    assert (reader.folder / "report" / "report.html").is_file()


def test_readme_has_the_figures_of_the_card() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    facts = json.loads((Path(hf_evcap.default_model()) / "results.json").read_text(encoding="utf-8"))
    scenes, names = (table["rows"] for table in facts["tables"])
    for row in scenes:
        shown = f"| {row['metrics']['CIDEr']} | {row['metrics']['BLEU-4']} | {row['metrics']['ROUGE-L']} |"
        assert shown in readme and f"CIDEr {scenes[0]['metrics']['CIDEr']}" in readme.replace("\n", " ")
    recall = {
        row["dataset"].split()[0]: row["metrics"]["recall in captions"] for row in names if "10 ex" in row["setting"]
    }
    table = re.findall(r"^\| (?:new names|names that were there), (\d+) photos \|.*\| (\d+) % \|$", readme, flags=re.M)
    assert [int(percent) for _, percent in table] == [round(100 * recall[kind]) for kind in ("22", "3")]


def test_names_that_pages_call_new_are_not_in_the_shipped_memory() -> None:
    shipped = set(VisualNameMemory.from_pretrained(Path(hf_evcap.default_model()) / "memory").names)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    added = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        added |= set(re.findall(r"""add_images\([^"]*"([\w ]+)"\)""", text))
        added |= set(re.findall(r"hf-evcap memory add \S+ (\w+)", text))
    assert {"raccoon", "whisk"} <= added and added & shipped == set()
    assert {"crocodile", "lobster", "panda"} <= shipped  # README counts them apart


# The test of the test


def test_a_page_is_read_as_its_reader_does() -> None:
    text = "a\n```sh\nhf-evcap env  # versions\nhf-evcap caption a.jpg \\\n    --names\n```\n\n"
    text += "```\nout\n```\n```python\nx\n```\n"
    shell, python = blocks_of(text)
    assert (shell.language, shell.line, shell.printed, python.code, python.printed) == ("sh", 3, "out\n", "x\n", None)
    assert commands_of(shell.code) == ["hf-evcap env", "hf-evcap caption a.jpg --names"]
    code = "a  # 'b'\nc = 1  # 'not a result'\nd(\n    e\n)  # [1.5, None]\nf  # words\n"
    assert shown_values(code) == {1: "b", 5: [1.5, None]}
    with pytest.raises(AssertionError, match="looks like a result"):
        shown_values("a  # 'b")


def test_results_are_compared() -> None:
    assert same_value([{"a": 0.77}], [{"a": 0.769}]) and not same_value(0.7, 0.8) and not same_value("a", "b")
    assert not same_value((1,), [1]) and not same_value(1, 2) and not same_value({"a": 1}, {"b": 1})
    assert same_text("| CIDEr | 34.7 |\n... rows", "| CIDEr | 34.8 |  1,000 rows\n")
    assert not same_text("CIDEr 34.7", "CIDEr 20.1") and same_text("CIDEr 34.7", "CIDEr 20.1", figures=False)
    assert not same_text("CIDEr 34.7", "BLEU 34.7", figures=False)


@pytest.mark.parametrize("command", ["rm -rf /", "hf-evcap sing", "python train.py", "scripts/none", "curl x"])
def test_unknown_commands_are_failures(reader: Reader, command: str) -> None:
    with pytest.raises(ValueError, match="does not know|no verb"):
        reader.run(command, "page")
