"""docs/reproduce.md: every command of the page runs, in its order, on tiny parts that a Hub has under the real names.

Nothing of a command is changed but what `REPLACED` and `ADDED` declare; a command that the page's reader could not run
is a failure, and so is one that this test does not know how to run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_smallcap
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from caption_files import karpathy_image, write_coco, write_karpathy, write_whoops
from hub_client import Client
from hub_server import Blob, HubServer, Repo
from tiny_models import IMAGE_SIZE, PHOTOS, REFERENCE, make_name_tokenizer
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_evcap.cli.main import VERBS
from hf_evcap.hub.ready_configs import find_config


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reproduce.md"
REPLACED = {"USER": "alice"}  # whose repos are written
ADDED = {"train": ["--max_steps", "2", "--dataloader_num_workers", "0"]}  # instead of hundreds of thousands of steps
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
NAMES = ["kettle", "owl"]
CAPTIONS = [caption for caption, _ in tiny_smallcap.CAPTIONS]

RUN = """
import contextlib, io
from hf_evcap.cli.main import main
told = io.StringIO()
with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()) as printed:
    code = main(argv)
result = [code, printed.getvalue(), told.getvalue()[-2000:]]
"""
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


def commands(text: str) -> list[str]:
    """Commands of a page's shell blocks, each on one line."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in (one.strip() for one in lines) if line]


def arguments_of(command: str) -> list[str]:
    """
    Words of a command after `hf-evcap`, as the test runs it.

    Raises:
        ValueError: It is another program, or a verb that there is not.
    """
    command = re.sub(r"\$\(hf-evcap configs ([\w./-]+)\)", lambda found: find_config(found[1]), command)
    words = shlex.split(command)
    for name, value in REPLACED.items():
        words = [re.sub(rf"^{name}/", f"{value}/", word) for word in words]
    if words[:2] == ["accelerate", "launch"]:
        launched = launch_command_parser().parse_args(words[2:])
        assert Path(launched.config_file).is_file() and launched.module
        words = [launched.training_script, *launched.training_script_args]
        words[0] = "hf-evcap" if words[0] == "hf_evcap.cli.main" else words[0]
    if words[0] != "hf-evcap" or words[1] not in VERBS:
        raise ValueError(f"The page has a command that the test does not know: {command}")
    return [*words[1:], *ADDED.get(words[1], [])]


def serve(hub: HubServer, repo_id: str, folder: Path) -> None:
    """Puts a folder's files into a repo of the Hub, whoever its owner is."""
    repo = Repo("model", repo_id)
    files = {file.name: Blob(file.read_bytes(), file.suffix in (".safetensors", ".bin")) for file in folder.iterdir()}
    hub.objects.update({blob.sha256: blob.data for blob in files.values() if blob.lfs})
    repo.branches["main"] = repo.store(files, "parts", None)
    hub.repos["model", repo_id] = repo


def write_parts(folder: Path) -> dict[str, Path]:
    """Tiny models under the names of the real ones."""
    torch.manual_seed(0)
    made = {name: folder / name.replace("/", "--") for name in (
        "Salesforce/blip2-flan-t5-xxl", "lmsys/vicuna-13b-v1.3", "google-bert/bert-base-uncased",
        "openai/clip-vit-base-patch32", "openai-community/gpt2", "Yova/SmallCap7M",
    )}  # fmt: skip
    blip2, vicuna, bert, clip, gpt2, smallcap = made.values()
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    vision = {**SIZES, "image_size": IMAGE_SIZE, "patch_size": 14}
    text = {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "vocab_size": 50}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = Blip2Config(vision_config=vision, qformer_config={**SIZES, "vocab_size": 50}, text_config=text)
    Blip2ForConditionalGeneration(config).save_pretrained(blip2)
    BlipImageProcessorPil(size=side).save_pretrained(blip2)
    words = LlamaTokenizer.from_pretrained(str(REFERENCE), legacy=True)
    LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=len(words), max_position_embeddings=256)).save_pretrained(vicuna)
    words.save_pretrained(vicuna)
    make_name_tokenizer().save_pretrained(bert)
    decoder = tiny_smallcap.make_config().text_config
    GPT2LMHeadModel(GPT2Config(**{**decoder.to_dict(), "add_cross_attention": False})).save_pretrained(gpt2)
    tiny_smallcap.make_tokenizer().save_pretrained(gpt2)
    write_smallcap(smallcap, clip)
    return made


def write_smallcap(smallcap: Path, clip: Path) -> None:
    """A SmallCap as the reference saves it, and the CLIP that its encoder is from."""
    model = tiny_smallcap.make_model(datastore=False, retrieval_space="external", retrieval_encoder="RN50x64")
    smallcap.mkdir()
    names = {"vision_model.": "encoder.", "language_model.": "decoder."}
    state = {
        re.sub(r"^\w+\.", lambda found: names[found[0]], name): tensor for name, tensor in model.state_dict().items()
    }
    torch.save(state, smallcap / "pytorch_model.bin")
    decoder = {**model.config.text_config.to_dict(), "model_type": "this_gpt2", "cross_attention_reduce_factor": 4}
    raw = {"encoder": model.config.vision_config.to_dict(), "decoder": decoder, "k": 4, "rag": True}
    raw |= {"retrieval_encoder": "RN50x64", "eos_token_id": model.config.eos_token_id, "pad_token_id": 0}
    (smallcap / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    tiny_smallcap.make_tokenizer().save_pretrained(smallcap)
    text = {**SIZES, "vocab_size": 54, "max_position_embeddings": 24, "bos_token_id": 52, "eos_token_id": 53}
    whole = CLIPModel(CLIPConfig(text_config=text, vision_config=raw["encoder"], projection_dim=16))
    whole.vision_model.load_state_dict(model.vision_model.state_dict())
    whole.save_pretrained(clip)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = smallcap.parent / "vocab.json"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
    (smallcap.parent / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer(str(vocabulary), str(smallcap.parent / "merges.txt"), model_max_length=24).save_pretrained(clip)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size).save_pretrained(clip)


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
    hub: HubServer, environment_of: Callable[..., dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Client]]:
    """The folder in which the page's reader works, and a process there whose Hub has the page's parts."""
    folder = tmp_path_factory.mktemp("reader")
    write_data(folder)
    for name, part in write_parts(tmp_path_factory.mktemp("parts")).items():
        serve(hub, name, part)
    client = Client(environment_of())
    client(PREPARE, folder=str(folder))
    yield folder, client
    client.close()


def test_every_command_of_the_page_runs(place: tuple[Path, Client], hub: HubServer) -> None:
    folder, client = place
    printed: dict[str, str] = {}
    for command in commands(PAGE.read_text(encoding="utf-8")):
        code, out, told = client(RUN, argv=arguments_of(command))
        assert code == 0, f"{command}\n{told}"
        printed[command] = out
    check_results(folder, printed, hub)


def check_results(folder: Path, printed: dict[str, str], hub: HubServer) -> None:
    """What the commands promise is there."""
    plans = [out for command, out in printed.items() if command.startswith("hf-evcap plan")]
    told = PAGE.read_text(encoding="utf-8").split("## What it takes")[1].split("\n## ")[0]
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


# The test of the test


@pytest.mark.parametrize("command", ["rm -rf /", "hf-evcap sing", "python train.py", "pip install hf_evcap"])
def test_unknown_commands_are_failures(command: str) -> None:
    with pytest.raises(ValueError, match="does not know"):
        arguments_of(command)


def test_the_page_is_read_as_its_reader_does() -> None:
    text = "a\n```sh\nhf-evcap env\nhf-evcap caption a.jpg \\\n    --model USER/b\n```\n```python\nx\n```\n"
    assert commands(text) == ["hf-evcap env", "hf-evcap caption a.jpg      --model USER/b"]
    assert arguments_of(commands(text)[1]) == ["caption", "a.jpg", "--model", "alice/b"]
    launched = (
        'accelerate launch --config_file "$(hf-evcap configs accelerate/cpu)" -m hf_evcap.cli.main train --model x'
    )
    assert arguments_of(launched) == ["train", "--model", "x", *ADDED["train"]]


def test_the_page_has_the_papers_figures_from_where_they_are_kept() -> None:
    text = PAGE.read_text(encoding="utf-8")
    file = ROOT / "src" / "hf_evcap" / "evaluation" / "published_results.yaml"
    known = {
        str(value) for row in yaml.safe_load(file.read_text(encoding="utf-8")) for value in row["metrics"].values()
    }
    figures: list[Any] = re.findall(r"(?:CIDEr|BLEU-4)[^.\d]*?(\d+\.\d+)", text)
    assert figures and set(figures) <= known
