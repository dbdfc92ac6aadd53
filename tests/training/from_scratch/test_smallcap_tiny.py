"""The recipe of the small SmallCap, end to end on a handful of photos and steps."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image
from tiny_models import PHOTOS
from tiny_smallcap import ENCODERS, make_model

from hf_evcap import SmallCapForConditionalGeneration, SmallCapProcessor
from hf_evcap.caption_data.caption_words import content_words
from hf_evcap.training.from_scratch import smallcap_tiny
from hf_evcap.training.from_scratch.smallcap_tiny import PromptDocuments, SmallCapTiny


ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "src" / "hf_evcap" / "training" / "recipes" / "smallcap-tiny.yaml"
WORDS = ["cat", "dog", "bus", "tree", "astronaut", "coffee", "raccoon", "street", "umbrella", "boy", "girl", "ball"]


def sentence(number):
    first, second = WORDS[number % 12], WORDS[(number * 5 + 1) % 12]
    return f"A {first} is next to the {second} number {number} ."


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve photos with two captions each, four more for validation, and text."""
    folder = tmp_path_factory.mktemp("data")
    paths = [PHOTOS / f"{name}.jpg" for name in ("astronaut", "cat", "coffee", "raccoon")]

    def table(count, start):
        rows = []
        for number in range(start, start + count):
            file = io.BytesIO()
            photo = Image.open(paths[number % 4]).convert("RGB").resize((64, 64)).rotate(number * 17)
            photo.save(file, "PNG")
            captions = [sentence(number), sentence(number + 1)]
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "captions": captions,
                         "image_id": f"photo-{number}", "source": "tests"})  # fmt: skip
        return pd.DataFrame(rows)

    (folder / "captions").mkdir()
    (folder / "text").mkdir()
    table(12, 0).to_parquet(folder / "captions" / "train.parquet")
    table(4, 20).to_parquet(folder / "captions" / "validation.parquet")
    with gzip.open(folder / "text" / "captions.txt.gz", "wt", encoding="utf-8") as text:
        text.write("\n".join(sentence(number) for number in range(200)))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    make_model("gpt2", "efficientnet_lite", datastore=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe():
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["data"]["held_out_photos"] = 2
    recipe["vision"] |= {"config": ENCODERS["efficientnet_lite"], "key_size": 8, "views": 2}
    recipe["tokenizer"]["vocab_size"] = 300
    recipe["model"]["text_config"] |= {"n_embd": 16, "n_layer": 1, "n_head": 2}
    recipe["language"] |= {"steps": 2, "batch_size": 4, "block_length": 32}
    recipe["cross_attention"] |= {"steps": 2, "batch_size": 4}
    return recipe


@pytest.fixture(scope="module")
def run(recipe, data, encoder, tmp_path_factory):
    return SmallCapTiny(recipe, data, tmp_path_factory.mktemp("work"), encoder)


def test_documents(run):
    model = run.new_model()
    documents = PromptDocuments(run.corpus, model, plain=0.5, related_words=1.0, seed=3)
    drawn = documents(60)
    plain = [text for text in drawn if text.startswith("this image shows a ")]
    prompted = [text for text in drawn if text.startswith("similar images show\n ")]
    assert len(plain) + len(prompted) == 60 and 15 < len(plain) < 45
    for text in prompted:
        prompt, caption = text.split(".\n this image shows ")
        related = prompt.removeprefix("similar images show\n ").split("\n ")
        assert len(related) == 4 and caption.endswith(".")
        assert sum(bool({*content_words(one)} & {*content_words(caption)}) for one in related) >= 3
    assert PromptDocuments(run.corpus, model, 0.5, 1.0, seed=3)(60) == drawn
    for text in PromptDocuments(run.corpus, model, plain=0.0, related_words=1.0, copied=1.0)(9):
        prompt, caption = text.split(".\n this image shows ")
        assert caption.removesuffix(".") in prompt.split("\n ")


def test_a_photo_never_retrieves_its_own_caption(run):
    model = run.new_model()
    store = run.datastore(model)
    model.set_datastore(store)
    assert len(store) == 10 and set(store.image_ids) == {f"photo-{number}" for number in run.training}
    own = dict(zip(store.image_ids, store.captions, strict=True))
    for photo, views in enumerate(run.retrieved(model)):
        assert len(views) == 2
        for captions in views:
            assert len(captions) == 4 and own.get(f"photo-{photo}") not in captions


def test_end_to_end(run, tmp_path):
    results = run.measure(tmp_path / "model")
    assert results["photos"] == 4
    for label in ("with_retrieval", "without_retrieval", "with_unrelated_captions", "nearest_caption_alone"):
        assert results[label]["cider"] >= 0 and len(results[label]["captions"]) == 4
    prompts = {label: [tuple(p) for _, p in results[label]["captions"]] for label in results if "with" in label}
    assert all(len(prompt) == 4 for prompt in prompts["with_retrieval"]) and set(prompts["without_retrieval"]) == {()}
    assert prompts["with_unrelated_captions"] == prompts["with_retrieval"][2:] + prompts["with_retrieval"][:2]
    # The decoder is one and the same, and frozen; the encoder, too.
    decoder = run.decoder()
    for retrieval in (True, False):
        model = run.trained(retrieval)
        changed = {
            name for name, tensor in model.language_model.state_dict().items() if (tensor != decoder[name]).any()
        }
        assert changed and all("crossattention" in name for name in changed)
    loaded = SmallCapForConditionalGeneration.from_pretrained(tmp_path / "model")
    processor = SmallCapProcessor.from_pretrained(tmp_path / "model")
    inputs = processor(images=PHOTOS / "cat.jpg", return_tensors="pt")
    assert loaded.generate(**inputs).shape[0] == 1 and len(loaded.datastore) == 10


def test_what_is_there_is_not_made_again(run, monkeypatch):
    run.trained(True)
    monkeypatch.setattr(smallcap_tiny, "run_stage", lambda *args, **kwargs: pytest.fail("trained again"))
    run.trained(True)


def test_missing_data(recipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.parquet \(recipe: data\.captions\)"):
        SmallCapTiny(recipe, tmp_path, tmp_path / "work")


def test_help():
    script = ROOT / "scripts" / "train_smallcap_tiny.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--held-out" in done.stdout
