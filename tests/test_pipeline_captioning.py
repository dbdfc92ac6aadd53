"""`transformers.pipeline` in every way a user may call it, for our models and, unchanged, for others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_model, make_processor
from tiny_smallcap import CAPTIONS
from tiny_smallcap import make_model as make_smallcap
from tiny_smallcap import make_processor as make_smallcap_processor
from transformers import (
    AutoModelForImageTextToText,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    GenerationConfig,
    ImageTextToTextPipeline,
    TextStreamer,
    pipeline,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.pipelines.pt_utils import KeyDataset

import hf_evcap
from hf_evcap import CaptioningPipeline, EVCapForConditionalGeneration, EVCapProcessor, VisualNameMemory


@pytest.fixture(scope="module")
def pipe(tiny_dir):
    return pipeline("image-to-text", model=str(tiny_dir))


@pytest.fixture(scope="module")
def expected(tiny_model, processor, inputs):
    """What the model itself writes for the four photos."""
    names = tiny_model.encode_images(inputs["pixel_values"]).names
    texts = processor.post_process_image_text_to_text(tiny_model.generate(**inputs))
    return [
        [
            {
                "generated_text": text,
                "retrieved_names": [
                    {"name": name, "score": pytest.approx(score, abs=1e-4)}
                    for name, score in zip(photo, scores, strict=True)
                ],
            }
        ]
        for text, photo, scores in zip(texts, names.names, names.scores.tolist(), strict=True)
    ]


# Ways in


@pytest.mark.parametrize("task", ["image-to-text", "image-text-to-text"])
def test_photo_alone(tiny_dir, photo_paths, expected, task):
    pipe = pipeline(task, model=str(tiny_dir))
    assert type(pipe) is CaptioningPipeline
    assert pipe(photo_paths[0]) == expected[0]


def test_objects_instead_of_a_folder(tiny_model, processor, photo_paths, expected):
    assert pipeline("image-to-text", model=tiny_model, processor=processor)(photo_paths[0]) == expected[0]


def test_task_is_inferred_for_a_folder(tiny_dir, photo_paths, expected):
    model = AutoModelForImageTextToText.from_pretrained(tiny_dir)
    processor = EVCapProcessor.from_pretrained(tiny_dir)
    assert CaptioningPipeline(model=model, processor=processor)(photo_paths[2]) == expected[2]


def test_result_is_plain_data(pipe, photo_paths):
    result = pipe(photo_paths[0])
    assert json.loads(json.dumps(result)) == result
    assert set(result[0]) == {"generated_text", "retrieved_names"}
    scores = [entry["score"] for entry in result[0]["retrieved_names"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == 4


def test_kinds_of_photos(pipe, photo_paths, photos, photo_server, expected):
    assert pipe(photos[0]) == expected[0]
    assert pipe(Path(photo_paths[0])) == expected[0]
    assert pipe(f"{photo_server}/astronaut.jpg") == expected[0]
    assert pipe(np.asarray(photos[0])) == expected[0]
    assert pipe(Path(photo_paths[0]).read_bytes()) == expected[0]
    assert pipe(images=photo_paths[0]) == expected[0]
    assert pipe(inputs=photo_paths[0]) == expected[0]
    assert pipe({"image": photos[0]}) == pipe({"images": photos[0]}) == expected[0]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_lists_and_batches(pipe, photo_paths, photos, expected, batch_size):
    assert pipe(photo_paths, batch_size=batch_size) == expected
    assert pipe(photos, batch_size=batch_size) == expected
    assert pipe(tuple(photo_paths), batch_size=batch_size) == expected


def test_lists_of_one_and_none(pipe, photo_paths, expected):
    assert pipe(photo_paths[:1]) == expected[:1]
    assert pipe([]) == []


def test_generators(pipe, photo_paths, expected):
    outputs = pipe(path for path in photo_paths)
    assert not isinstance(outputs, list)
    assert list(outputs) == expected
    assert list(pipe((path for path in photo_paths), batch_size=3)) == expected
    assert list(pipe(iter(photo_paths), batch_size=2)) == expected


def test_datasets(pipe, photo_paths, expected):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": photo_paths, "other": ["x"] * 4})
    decoded = rows.cast_column("image", datasets.Image())
    assert list(pipe(decoded, batch_size=2)) == expected
    assert list(pipe(KeyDataset(decoded, "image"), batch_size=2)) == expected
    assert list(pipe(rows)) == expected
    assert list(pipe(decoded.to_iterable_dataset())) == expected
    assert list(pipe(decoded["image"])) == expected


class Photos(torch.utils.data.Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return {"image": self.paths[index]}


def test_torch_datasets(pipe, photo_paths, expected):
    assert list(pipe(Photos(photo_paths), batch_size=4)) == expected
    assert list(pipe(Photos(photo_paths), batch_size=2, num_workers=1)) == expected


# Prompts


def test_prompts(pipe, tiny_model, processor, photo_paths, photos, expected):
    def direct(photo, text):
        ids = tiny_model.generate(**processor(images=photo, text=text, return_tensors="pt"))
        return processor.post_process_image_text_to_text(ids)[0]

    texts = ["a", "What is on the table in this photo?", "Name the cat.", "two"]
    wanted = [direct(photo, text) for photo, text in zip(photos, texts, strict=True)]
    assert len({*wanted, expected[0][0]["generated_text"]}) > 2

    def written(results):
        return [result[0]["generated_text"] for result in results]

    assert written([pipe(photo_paths[1], text=texts[1])]) == wanted[1:2]
    for batch_size in (1, 4):  # prompts of different lengths in a batch
        assert written(pipe(photo_paths, text=texts, batch_size=batch_size)) == wanted
        rows = [{"image": path, "text": text} for path, text in zip(photo_paths, texts, strict=True)]
        assert written(pipe(rows, batch_size=batch_size)) == wanted
    assert written(pipe(photo_paths, text=texts[2], batch_size=2)) == [direct(photo, texts[2]) for photo in photos]
    made = pipeline("image-to-text", model=tiny_model, processor=processor, text=texts[3])
    assert written([made(photo_paths[3])]) == wanted[3:]
    with pytest.raises(ValueError, match="one for each photo"):
        pipe(photo_paths, text=texts[:2])
    with pytest.raises(ValueError, match="Give a photo"):
        pipe(text="a")


# Options of generation


def test_options_at_construction_and_at_call(tiny_dir, tiny_model, processor, photo_paths, inputs):
    def direct(**options):
        one = {name: tensor[:1] for name, tensor in inputs.items()}
        return processor.post_process_image_text_to_text(tiny_model.generate(**one, **options))[0]

    short = pipeline("image-to-text", model=str(tiny_dir), max_new_tokens=3, num_beams=2)
    assert short(photo_paths[0])[0]["generated_text"] == direct(max_new_tokens=3, num_beams=2)
    assert short(photo_paths[0], max_new_tokens=6)[0]["generated_text"] == direct(max_new_tokens=6, num_beams=2)
    assert short(photo_paths[0])[0]["generated_text"] == direct(max_new_tokens=3, num_beams=2)  # not remembered
    plain = pipeline("image-to-text", model=str(tiny_dir))
    assert plain(photo_paths[0])[0]["generated_text"] == direct()
    assert plain(photo_paths[0], num_beams=3)[0]["generated_text"] == direct(num_beams=3)
    assert plain(photo_paths[0], generate_kwargs={"num_beams": 3})[0]["generated_text"] == direct(num_beams=3)
    config = GenerationConfig(max_new_tokens=4, num_beams=4, pad_token_id=2)
    assert plain(photo_paths[0], generation_config=config)[0]["generated_text"] == direct(generation_config=config)
    assert short(photo_paths[0], generation_config=config)[0]["generated_text"] == direct(generation_config=config)


def test_several_sequences(pipe, photo_paths):
    results = pipe(photo_paths, num_beams=4, num_return_sequences=3, batch_size=2)
    assert [len(result) for result in results] == [3] * 4
    for result in results:
        assert len({entry["generated_text"] for entry in result}) == 3
        assert result[0]["retrieved_names"] == result[2]["retrieved_names"] != []
    best = pipe(photo_paths, num_beams=4)
    assert [result[0] for result in results] == [result[0] for result in best]
    alone = pipe(photo_paths[0], num_beams=4, num_return_sequences=3)
    assert alone == results[0]


def test_stop_strings_and_streamers(pipe, photo_paths, processor, capsys):
    text = pipe(photo_paths[0])[0]["generated_text"]
    stop = text[1:3]
    stopped = pipe(photo_paths[0], stop_strings=[stop])[0]["generated_text"]
    assert text.startswith(stopped) and len(stopped) < len(text) and stop in stopped
    pipe(photo_paths[0], streamer=TextStreamer(processor.tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out.strip() == text


def test_unknown_arguments(pipe, tiny_dir, photo_paths):
    with pytest.raises(TypeError, match="num_beam'"):
        pipe(photo_paths[0], num_beam=3)
    with pytest.raises(TypeError, match="colour"):
        pipeline("image-to-text", model=str(tiny_dir), colour="red")
    with pytest.raises(ValueError, match="give them once"):
        pipe(photo_paths[0], num_beams=2, generate_kwargs={"num_beams": 3})
    with pytest.raises(ValueError, match="raise, skip"):
        pipe(photo_paths[0], on_error="ignore")


# Bad photos


def test_on_error(pipe, photo_paths, expected, tmp_path, photo_server):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(photo_paths[0]).read_bytes()[:3000])
    missing, gone = str(tmp_path / "missing.jpg"), f"{photo_server}/gone.jpg"
    photos = [photo_paths[0], str(broken), photo_paths[1], missing, gone, "http://127.0.0.1:9/x.jpg", photo_paths[2]]
    for batch_size in (1, 3):
        results = pipe(photos, on_error="skip", batch_size=batch_size)
        assert [results[0], results[2], results[6]] == expected[:3]
        for index, name in ((1, "broken.jpg"), (3, "missing.jpg"), (4, "gone.jpg"), (5, "127.0.0.1:9")):
            assert results[index][0]["generated_text"] is None
            assert results[index][0]["retrieved_names"] == []
            assert name in results[index][0]["error"]
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        pipe(photos)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        pipe(missing)
    assert pipe(missing, on_error="skip")[0]["generated_text"] is None
    with pytest.raises(TypeError, match="got int"):
        pipe(7)


# Saving


def test_saved_pipeline_is_complete(pipe, photo_paths, expected, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    assert EVCapForConditionalGeneration.from_pretrained(tmp_path / "saved").memory.names == pipe.model.memory.names
    assert (tmp_path / "saved" / "processor_config.json").is_file()
    again = pipeline("image-to-text", model=str(tmp_path / "saved"))
    assert type(again) is CaptioningPipeline
    assert again(photo_paths, batch_size=4) == expected


def test_memory_through_model_kwargs(tiny_dir, tiny_model, photo_paths):
    memory = tiny_model.memory.subset(["owl"])
    pipe = pipeline("image-to-text", model=str(tiny_dir), model_kwargs={"memory": memory})
    assert [entry["name"] for entry in pipe(photo_paths[0])[0]["retrieved_names"]] == ["owl"]


def test_half_precision(tiny_dir, photo_paths):
    pipe = pipeline("image-to-text", model=str(tiny_dir), dtype=torch.bfloat16)
    assert pipe.model.language_model.dtype == torch.bfloat16
    assert len(pipe(photo_paths, batch_size=2)) == 4


# Models of other families


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A tiny random BLIP captioner, which is not ours."""
    folder = tmp_path_factory.mktemp("blip")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = BlipConfig(
        text_config={**tower, "vocab_size": 171, "bos_token_id": 170, "eos_token_id": 8, "pad_token_id": 0,
                     "sep_token_id": 8, "encoder_hidden_size": 32, "initializer_range": 0.2},
        vision_config={**tower, "image_size": 56, "patch_size": 14},
    )  # fmt: skip
    model = BlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    image_processor = BlipImageProcessorPil(size={"height": 56, "width": 56})
    BlipProcessor(image_processor, make_processor().name_tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("task", ["image-to-text", "image-text-to-text"])
def test_other_models_are_unchanged(blip, photo_paths, photos, task):
    ours = pipeline(task, model=blip, max_new_tokens=5)
    stock = ImageTextToTextPipeline(model=ours.model, processor=ours.processor, max_new_tokens=5)
    for call in (
        lambda pipe: pipe(photo_paths[0], text="a cat"),
        lambda pipe: pipe(photos[:2], text=["a cat", "the dog"]),
        lambda pipe: pipe(photo_paths[0], text="a", generate_kwargs={"num_beams": 2}, return_full_text=False),
        lambda pipe: list(pipe({"images": path, "text": "a"} for path in photo_paths)),
    ):
        assert call(ours) == call(stock)
    for bad in (
        lambda pipe: pipe(photos[0]),
        lambda pipe: pipe(),
        lambda pipe: pipe(photo_paths[0], text="a", generate_kwargs={"max_new_tokens": 2}, max_new_tokens=3),
    ):
        with pytest.raises(Exception) as from_stock:  # noqa: B017 -- whatever the stock class raises
            bad(stock)
        with pytest.raises(type(from_stock.value)) as from_ours:
            bad(ours)
        assert str(from_ours.value) == str(from_stock.value)


def test_saving_other_models_is_unchanged(blip, tmp_path):
    ours = pipeline("image-text-to-text", model=blip)
    stock = ImageTextToTextPipeline(model=ours.model, processor=ours.processor)
    ours.save_pretrained(tmp_path / "ours")
    stock.save_pretrained(tmp_path / "stock")
    names = [sorted(path.name for path in (tmp_path / who).iterdir()) for who in ("ours", "stock")]
    assert names[0] == names[1]


# Where hf_evcap is not installed

REMOTE = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_evcap":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

photos, saved, *folders = sys.argv[1:]
photos, found = photos.split("|"), []
for number, folder in enumerate(folders):
    pipe = pipeline("image-to-text", model=folder, trust_remote_code=True)
    results = pipe(photos, batch_size=2)
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    ids = model.generate(**processor(images=photos, return_tensors="pt"))
    memory = type(model.memory).__name__, len(model.memory)
    pipe.save_pretrained(f"{saved}-{number}")
    again = pipeline("image-to-text", model=f"{saved}-{number}", trust_remote_code=True)(photos, batch_size=2)
    found.append([results, ids.tolist(), memory, again, type(pipe).__module__])
modules = [name for name in sys.modules if name.split(".")[0] == "hf_evcap"]
print("RESULT" + json.dumps([found, modules]))
"""


def run_without_the_package(folders, photo_paths, workplace):
    """Runs `REMOTE` in an interpreter that sees the dependencies but neither this package nor its source."""
    site = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"PYTHONPATH": os.pathsep.join(site), "HF_HOME": str(workplace / "home"), "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # two threads on a busy machine wait for each other
    # -S: no .pth files are read, so that an editable install is not on the path either
    command = [sys.executable, "-S", "-c", REMOTE, "|".join(photo_paths), str(workplace / "saved"), *map(str, folders)]
    done = subprocess.run(command, env=environment, cwd=workplace, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.split("RESULT")[1])


def texts_and_names(result):
    """A result without its scores, whose last digit depends on the number of threads."""
    field = next(field for field in result[0] if field.startswith("retrieved_"))
    text = {"retrieved_names": "name", "retrieved_captions": "caption"}[field]
    return [(entry["generated_text"], [found[text] for found in entry[field]]) for entry in result]


@pytest.fixture(scope="module")
def vision_space_dir(tmp_path_factory):
    """Folder of a model as the embedded default is: a tower of our own, and keys in the space of its features."""
    folder = tmp_path_factory.mktemp("vision-space")
    options = {"key_size": 8, "window_size": 2, "window_stride": 1}
    model = make_model(vision="efficientnet_lite", memory=False, retrieval_space="vision", retrieval_options=options)
    pixels = torch.randn(24, 3, 56, 56)
    with torch.no_grad():
        hidden = model.get_image_features(pixels).vision_hidden_states
        model.vision_space.fit(model.vision_space.pool(hidden)[:, 0])
        names = [f"thing {number}" for number in range(24)]
        model.set_memory(VisualNameMemory.from_rows(names, model.get_memory_keys(pixels)))
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def smallcap_dir(tmp_path_factory):
    """Folder of a SmallCap model."""
    folder = tmp_path_factory.mktemp("smallcap")
    make_smallcap().save_pretrained(folder)
    make_smallcap_processor().save_pretrained(folder)
    return folder


def test_remote_code(converted_dir, vision_space_dir, smallcap_dir, photo_paths, tmp_path):
    folders = [converted_dir, vision_space_dir, smallcap_dir]
    memories = [["VisualNameMemory", 200], ["VisualNameMemory", 24], ["CaptionDatastore", len(CAPTIONS)]]
    found, modules = run_without_the_package(folders, photo_paths, tmp_path)
    assert modules == []
    for folder, size, (remote, ids, memory, again, module) in zip(folders, memories, found, strict=True):
        local = pipeline("image-to-text", model=str(folder))(photo_paths, batch_size=2)
        assert [texts_and_names(result) for result in remote] == [texts_and_names(result) for result in local]
        assert again == remote
        assert len(ids) == 4 and memory == size
        assert module.startswith("transformers_modules.")


def test_local_classes_are_not_hindered(tiny_dir, photo_paths, expected):
    """A repo names its code for others; where the package is installed, nothing asks whether to trust it."""
    config = json.loads((tiny_dir / "config.json").read_text())
    assert config["auto_map"]["AutoModelForImageTextToText"] == "modeling_evcap.EVCapForConditionalGeneration"
    assert config["custom_pipelines"]["image-to-text"]["impl"] == "pipeline_captioning.CaptioningPipeline"
    for trust in (None, False):
        pipe = pipeline("image-to-text", model=str(tiny_dir), trust_remote_code=trust)
        assert type(pipe) is CaptioningPipeline and type(pipe.model) is EVCapForConditionalGeneration
        assert pipe(photo_paths[0]) == expected[0]


def test_trusting_with_the_package_installed(tiny_dir, photo_paths, expected):
    pipe = pipeline("image-to-text", model=str(tiny_dir), trust_remote_code=True)
    assert pipe(photo_paths[0]) == expected[0]


def test_repo_holds_all_code_it_needs(tiny_dir):
    source = Path(hf_evcap.__file__).parent
    files = {path.name for path in tiny_dir.glob("*.py")}
    assert {"modeling_evcap.py", "processing_evcap.py", "configuration_evcap.py", "pipeline_captioning.py"} <= files
    for name in files:
        assert (tiny_dir / name).read_text() == (source / name).read_text()


def test_bytes_that_are_no_photo(pipe):
    with pytest.raises(ValueError, match="photo"):
        pipe([Image.new("RGB", (4, 4)), b"no photo"])
