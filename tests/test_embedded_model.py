"""What README names, on the model that README uses: the embedded one."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

import hf_evcap
from hf_evcap import EVCapForConditionalGeneration, VisualNameMemory
from hf_evcap.caption_data import load_caption_data
from hf_evcap.cli.main import main


@pytest.fixture(scope="module")
def pipe():
    return pipeline("image-to-text", model=hf_evcap.default_model())


@pytest.fixture(scope="module")
def expected(pipe, photo_paths):
    return [pipe(path) for path in photo_paths]


@pytest.fixture(scope="module")
def photo_folder(photo_paths, tmp_path_factory):
    """A folder a name, as `hf-evcap memory build` and an imagefolder read it."""
    folder = tmp_path_factory.mktemp("named")
    for name, path in zip(("astronaut", "tabby", "espresso", "raccoon"), photo_paths, strict=True):
        (folder / name).mkdir()
        Image.open(path).convert("RGB").save(folder / name / "1.png")
    return folder


def texts(results):
    return [result[0]["generated_text"] for result in results]


def same_names(result, other):
    return [one["name"] for one in result[0]["retrieved_names"]] == [
        one["name"] for one in other[0]["retrieved_names"]
    ]


# Caption


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_way_to_give_photos(pipe, expected, photo_paths, photos, photo_server, batch_size):
    rows = datasets.Dataset.from_dict({"image": photo_paths}).cast_column("image", datasets.Image())
    urls = [f"{photo_server}/{name}.jpg" for name in ("astronaut", "cat", "coffee", "raccoon")]
    ways = {
        "paths": photo_paths,
        "photos": photos,
        "URLs": urls,
        "arrays": [np.asarray(photo) for photo in photos],
        "generator": (path for path in photo_paths),
        "dataset": rows,
        "stream": rows.to_iterable_dataset(),
        "column": KeyDataset(rows, "image"),
    }
    for what, given in ways.items():
        assert texts(pipe(given, batch_size=batch_size)) == texts(expected), what


def test_a_bad_photo_is_reported(pipe, expected, photo_paths):
    results = pipe([photo_paths[0], "none.jpg", photo_paths[2]], on_error="skip", batch_size=2)
    assert texts([results[0], results[2]]) == texts([expected[0], expected[2]])
    assert results[1][0]["generated_text"] is None and "none.jpg" in results[1][0]["error"]


def test_the_command_line(expected, photo_folder, capsys):
    assert main(["caption", str(photo_folder / "tabby"), str(photo_folder / "esp*" / "*.png"), "--names"]) == 0
    out = capsys.readouterr().out
    assert expected[1][0]["generated_text"] in out and expected[2][0]["generated_text"] in out and "tabby (0." in out
    assert main(["caption", str(photo_folder / "tabby" / "1.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generated_text"] == expected[1][0]["generated_text"]


def test_generation_options(pipe, expected, photo_paths):
    assert len(pipe(photo_paths[0], num_return_sequences=2)) == 2
    assert texts([pipe(photo_paths[0], num_beams=5)]) == texts(expected[:1])
    assert len(pipe(photo_paths[0], max_new_tokens=1)[0]["generated_text"].split()) == 1
    torch.manual_seed(0)
    assert pipe(photo_paths[0], do_sample=True, num_beams=1, temperature=0.7)[0]["generated_text"]


# Edit the memory


def test_a_name_comes_and_goes(photo_paths):
    pipe = pipeline("image-to-text", model=hf_evcap.default_model())
    before = pipe(photo_paths[3])
    rows = len(pipe.model.memory)
    pipe.model.memory.add_images(pipe.model, pipe.processor, photo_paths[3:] * 3, "zebu calf")
    assert pipe(photo_paths[3])[0]["retrieved_names"][0]["name"] == "zebu calf"
    pipe.model.memory.remove(["zebu calf"])
    assert len(pipe.model.memory) == rows and same_names(pipe(photo_paths[3]), before)


def test_a_memory_of_ones_own(pipe, photo_folder, photo_paths, tmp_path):
    dataset = datasets.load_dataset("imagefolder", data_dir=str(photo_folder), split="train")
    memory = VisualNameMemory.from_images(pipe.model, pipe.processor, dataset)
    memory.save_pretrained(tmp_path / "memory")
    model = EVCapForConditionalGeneration.from_pretrained(hf_evcap.default_model(), memory=str(tmp_path / "memory"))
    assert model.memory.names == ["astronaut", "espresso", "raccoon", "tabby"]
    found = pipe(photo_paths[1], memory=str(tmp_path / "memory"))[0]["retrieved_names"]
    assert found[0]["name"] == "tabby" and {one["name"] for one in found} <= set(memory.names)
    both = pipe(photo_paths[1], memory=[str(tmp_path / "memory"), pipe.model.memory])[0]["retrieved_names"]
    assert len({one["memory"] for one in both}) == 2


def test_memory_verbs(photo_folder, tmp_path, capsys):
    built = str(tmp_path / "kitchen")
    model = ["--model", hf_evcap.default_model()]
    assert main(["memory", "build", str(photo_folder), "--out", built, *model]) == 0
    assert main(["memory", "add", built, "whisk", str(photo_folder / "raccoon" / "1.png"), *model]) == 0
    assert VisualNameMemory.from_pretrained(built).names == ["astronaut", "espresso", "raccoon", "tabby", "whisk"]
    assert main(["memory", "info", built, "--report"]) == 0
    capsys.readouterr()
    assert main(["caption", str(photo_folder / "tabby" / "1.png"), "--memory", built, "--names"]) == 0
    assert "tabby" in capsys.readouterr().out


# Stage by stage


def test_the_stages_give_what_the_pipeline_gives(pipe, expected, photos):
    model, processor = pipe.model, pipe.processor
    inputs = processor(images=photos, return_tensors="pt")
    features = model.get_image_features(inputs["pixel_values"])
    names = model.retrieve_names(features.retrieval_queries)
    fused = model.fuse_names(features.query_output, names.input_ids, names.attention_mask)
    prefix = model.project(features.query_output, fused)
    assert prefix.shape[1] == processor.num_prefix_tokens
    assert names.names == [[one["name"] for one in result[0]["retrieved_names"]] for result in expected]
    written = processor.batch_decode(model.generate(**inputs, num_beams=5), skip_special_tokens=True)
    assert [text.strip() for text in written] == texts(expected)


# Train


@pytest.fixture(scope="module")
def captioned(photo_folder):
    lines = [
        json.dumps({"file_name": f"{name}/1.png", "captions": [f"a photo of a {name}"]})
        for name in ("astronaut", "tabby", "espresso", "raccoon")
    ]
    (photo_folder / "metadata.jsonl").write_text("\n".join(lines))
    return photo_folder


def test_training_from_a_folder(captioned, tmp_path, capsys):
    """Plain photos with captions, no model named: the embedded one, from the folder and from cached features."""
    options = ["--max_steps", "1", "--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true"]
    assert main(["train", "--dataset", str(captioned), "--output_dir", str(tmp_path / "out"), *options]) == 0
    assert main(["cache-features", "--dataset", str(captioned), "--output", str(tmp_path / "features")]) == 0
    cached = ["--feature_cache", str(tmp_path / "features"), "--output_dir", str(tmp_path / "cached")]
    assert main(["train", "--dataset", str(captioned), *cached, *options]) == 0
    out = capsys.readouterr().out
    assert "Policy paper" in out and "4 examples of 4 photos" in out and "Trained 1 steps" in out
    [answer] = pipeline("image-to-text", model=str(tmp_path / "out"))(str(captioned / "tabby" / "1.png"))
    assert answer["generated_text"]


def test_training_data_without_captions(photo_paths, tmp_path, capsys):
    """The error names the columns, and how captions are given; classes of folders can be the captions."""
    (tmp_path / "photos" / "tabby").mkdir(parents=True)
    Image.open(photo_paths[1]).convert("RGB").resize((64, 64)).save(tmp_path / "photos" / "tabby" / "1.png")
    Image.open(photo_paths[1]).convert("RGB").resize((64, 64)).save(tmp_path / "photos" / "2.png")
    assert main(["train", "--dataset", str(tmp_path / "photos"), "--output_dir", str(tmp_path / "out")]) != 0
    said = capsys.readouterr().err
    assert "has no captions; its columns are image" in said and "metadata.jsonl" in said
    (tmp_path / "photos" / "2.png").rename(tmp_path / "photos" / "tabby" / "2.png")
    (tmp_path / "photos" / "cat").mkdir()
    (tmp_path / "photos" / "tabby" / "2.png").rename(tmp_path / "photos" / "cat" / "2.png")
    data = load_caption_data(tmp_path / "photos", caption_column="label", require_captions=True)
    assert data["captions"][:] == [["cat"], ["tabby"]]
