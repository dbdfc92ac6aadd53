"""The commands of docs/smollm2.md, run by scripts/train_smollm2.py on a random Llama and the embedded encoder."""

import importlib.util
import io
import json
import re
from pathlib import Path

import datasets
import pytest
from PIL import Image
from tiny_smallcap import make_tokenizer
from transformers import AutoImageProcessor, LlamaConfig, LlamaForCausalLM

import hf_evcap
from hf_evcap import EVCapForConditionalGeneration, VisualNameMemory


ROOT = Path(__file__).parents[1]
PHOTOS = sorted((ROOT / "src" / "hf_evcap" / "assets" / "photos").glob("*.jpg"))
SMALL = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--compile_layers", "false"]
CONFIG = """
num_query_tokens: 4
num_name_query_tokens: 24
max_name_length: 24
qformer_config: {num_hidden_layers: 1, hidden_dropout_prob: 0.1}
fusion_qformer_config: {num_hidden_layers: 1, cross_attention_frequency: 2, hidden_dropout_prob: 0.0}
retrieval_space: vision
retrieval_rule: vote
retrieval_options: {key_size: 4, ridge_penalty: 10.0, object_threshold: 0.1, scene_evidence: 1.0}
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_smollm2", ROOT / "scripts" / "train_smollm2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data(script, tmp_path_factory):
    """Tables with the columns of the real ones."""
    folder = tmp_path_factory.mktemp("data")
    bytes_of = {path.stem: path.read_bytes() for path in PHOTOS}
    turned = []  # twelve photos of an object, no two alike
    for number in range(12):
        file = io.BytesIO()
        Image.open(PHOTOS[number % len(PHOTOS)]).resize((64, 64)).rotate(20 * number).save(file, "png")
        turned.append(file.getvalue())

    def write(file, rows):
        (folder / file).parent.mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(folder / file)

    for part in ("captions", "validation"):
        for number, file in enumerate(script.PHOTOS[part]):
            rows = []
            for name, content in bytes_of.items():
                captions = [f"A {name} is here .", f"the {name}", "something else", f"a {name} , again"]
                row = {"image": {"bytes": content, "path": None}, "captions": captions, "source": "flickr8k"}
                rows.append({**row, "image_id": f"{part}-{number}-{name}"})
            write(file, rows)
    for part, names in (("objects", ["raccoon", "rocket"]), ("novel", ["zebu", "axolotl"])):
        for file in script.PHOTOS[part]:
            rows = [
                {"image": {"bytes": content, "path": None}, "name": name, "source": "made", "license": "CC0-1.0"}
                for name in names
                for content in turned
            ]
            write(file, rows)
    names = [{"name": name, "synonyms": []} for name in ("cat", "flower", "zebu", "coffee cup", "rocket")]
    (folder / script.PHOTOS["names"][0]).write_text(json.dumps(names))
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """A vision tower and a language model, each in a folder."""
    folder = tmp_path_factory.mktemp("parts")
    EVCapForConditionalGeneration.from_pretrained(hf_evcap.default_model()).vision_model.save_pretrained(
        folder / "lite"
    )
    AutoImageProcessor.from_pretrained(hf_evcap.default_model()).save_pretrained(folder / "lite")
    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = LlamaConfig(**sizes, **ends, vocab_size=len(tokenizer), tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


def test_the_page_shows_the_commands(script, capsys):
    assert script.main(["--print"]) == 0
    shown = [text for text in capsys.readouterr().out.split("hf-evcap ") if text.strip()]
    page = (ROOT / "docs" / "smollm2.md").read_text(encoding="utf-8")
    commands = [re.sub(r"\s+", " ", text).strip() for text in shown]
    written = re.sub(r"\s+", " ", page.replace("\\\n", " "))
    for command in commands:
        assert f"hf-evcap {command}" in written


def test_every_command_runs(script, data, parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "CONFIG", CONFIG)
    monkeypatch.chdir(tmp_path)
    flags = ["--data", str(data), "--work", str(tmp_path / "work")]
    flags += ["--encoder", str(parts / "lite"), "--language-model", str(parts / "llama"), "--train", *SMALL]
    assert script.main(flags) == 0, capsys.readouterr().err
    work = tmp_path / "work"
    memory = VisualNameMemory.from_pretrained(work / "memory")
    assert {"cat", "raccoon"} <= set(memory.names) and "zebu" not in memory.names
    assert set(memory.columns["kind"].to_pylist()) == {"scene", "object"}
    assert {"zebu", "axolotl"} <= set(VisualNameMemory.from_pretrained(work / "memory-novel").names)
    names = json.loads((work / "names.json").read_text())
    assert "cat" in names and not {"zebu", "axolotl"} & set(names)
    trained = EVCapForConditionalGeneration.from_pretrained(work / "lora")
    assert trained.memory is not None and trained.config.tie_name_embeddings
    for results in ("results-frozen", "results-lora", "results-novel", "results-not-novel"):
        assert (work / results / "results.json").is_file()
    # Given again, it makes nothing anew.
    assert script.main(flags, run=lambda words: pytest.fail(f"{words} ran again")) == 0
