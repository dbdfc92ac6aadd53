"""Building memories: sources, interruption, many processes, photos that cannot be read."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from accelerate_launch import launch
from PIL import Image

from hf_evcap import EVCapForConditionalGeneration, VisualNameMemory
from hf_evcap.cli.main import main
from hf_evcap.memory_building import (
    NamedPhotos,
    annotated_boxes,
    build_memory,
    dataset_rows,
    joined,
    photo_folder,
    photo_table,
)
from hf_evcap.memory_building.synthetic_photos import synthetic_photos


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven noisy photos of three things."""
    folder = tmp_path_factory.mktemp("collection") / "things"
    rng = np.random.default_rng(0)
    for name, count in (("teapot", 5), ("owl", 2), ("fire_hydrant", 4)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "owl" / "notes.txt").write_text("not a photo", encoding="utf-8")
    return folder


def test_from_images_and_a_build_agree(tiny_model: Any, processor: Any, collection: Path, tmp_path: Path) -> None:
    report = build_memory(
        tiny_model, processor, photo_folder(collection), tmp_path / "memory", batch_size=4, shard_size=8
    )
    assert report is not None and (report.rows, report.photos, report.shards, report.skipped) == (11, 11, 2, {})
    built = VisualNameMemory.from_pretrained(tmp_path / "memory")
    rows = [{"image": str(file), "name": file.parent.name} for file in sorted(collection.glob("*/*.png"))]
    direct = VisualNameMemory.from_images(tiny_model, processor, rows, batch_size=4)
    assert built.names == direct.names == ["fire_hydrant"] * 4 + ["owl"] * 2 + ["teapot"] * 5
    np.testing.assert_allclose(built.keys, direct.keys, atol=1e-5)
    assert built.encoder_fingerprint == tiny_model.encoder_fingerprint
    assert built.query_tokens_hash == tiny_model.query_tokens_hash
    assert built.columns["source"].to_pylist() == ["things"] * 11
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]  # nothing is left of the work


def test_photos_that_cannot_be_read(
    tiny_model: Any, processor: Any, photo_paths: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(photo_paths[0]).read_bytes()[:500])
    rows = [
        {"image": path, "name": "thing", "place": n}
        for n, path in enumerate([photo_paths[0], str(broken), photo_paths[1]])
    ]
    with pytest.raises(ValueError, match=r"Photo 1 cannot be used: .*broken\.jpg"):
        VisualNameMemory.from_images(tiny_model, processor, rows)
    kept = VisualNameMemory.from_images(tiny_model, processor, rows, on_error="skip", columns=["place"])
    assert kept.columns["place"].to_pylist() == [0, 2]
    before = kept.fingerprint
    with pytest.raises(ValueError, match="Photo 1 cannot be used"):
        kept.add_images(tiny_model, processor, [photo_paths[0], str(broken)], "more")
    assert kept.fingerprint == before
    kept.add_images(tiny_model, processor, [str(broken), photo_paths[2]], ["a", "b"], on_error="skip", place=[7, 8])
    assert kept.names == ["thing", "thing", "b"] and kept.columns["place"].to_pylist() == [0, 2, 8]
    with pytest.raises(ValueError, match="no column 'label'; it has image, name, place"):
        VisualNameMemory.from_images(tiny_model, processor, rows, name_column="label")
    photos = NamedPhotos(3, lambda n: {"image": rows[n]["image"], "names": ["thing"]}, "listing", {})
    report = build_memory(tiny_model, processor, photos, tmp_path / "memory", on_error="skip")
    assert report is not None and report.rows == 2 and list(report.skipped) == [1]


def test_tables(collection: Path, tmp_path: Path) -> None:
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["photo", "what", "who"], ["owl/0.png", "owl, barn", "me"], ["https://x.org/a.jpg", "fox", "you"]]
        )
    photos = photo_table(tmp_path / "list.csv", "photo", "what", ["who"], images=collection)
    assert [photos[0], photos[1]] == [
        {"image": str(collection / "owl/0.png"), "names": ["owl, barn"], "source": "list.csv", "who": "me"},
        {"image": "https://x.org/a.jpg", "names": ["fox"], "source": "list.csv", "who": "you"},
    ]
    lines = [{"image": "owl/0.png", "name": ["owl", "bird"]}, {"image": "owl/1.png", "name": "owl"}]
    file = tmp_path / "list.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert [photo["names"] for photo in map(photo_table(file).get, range(2))] == [["owl", "bird"], ["owl"]]
    with pytest.raises(ValueError, match=r"list\.csv, line 2: there is no 'image'; the columns are photo, what, who"):
        photo_table(tmp_path / "list.csv")
    file.write_text('{"image": "a"}\nnonsense', encoding="utf-8")
    with pytest.raises(ValueError, match=r"list\.jsonl, line 2: not valid JSON"):
        photo_table(file)
    with pytest.raises(FileNotFoundError, match="holds no photos in sub-folders"):
        photo_folder(tmp_path)


def test_datasets_and_several_names_a_photo(tiny_model: Any, processor: Any, photos: list, tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["owl", "fox"]),
            "all": datasets.List(datasets.Value("string")),
        }
    )
    dataset = datasets.Dataset.from_dict(
        {"image": photos[:2], "label": [1, 0], "all": [["a", "b"], ["c"]]}, features=features
    )
    assert [dataset_rows(dataset, name_column="label")[n]["names"] for n in range(2)] == [["fox"], ["owl"]]
    build_memory(tiny_model, processor, dataset_rows(dataset, name_column="all"), tmp_path / "memory")
    memory = VisualNameMemory.from_pretrained(tmp_path / "memory")
    assert memory.names == ["a", "b", "c"]
    np.testing.assert_array_equal(memory.keys[0], memory.keys[1])
    assert dataset_rows(dataset.rename_column("image", "drawing"))[0]["names"] == ["fox"]
    with pytest.raises(ValueError, match="no column 'name'; it has image, kind, all"):
        dataset_rows(dataset.rename_column("label", "kind"))


def test_annotated_boxes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "val2017").mkdir()
    listing: dict[str, list] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "owl"}, {"id": 3, "name": "fox"}],
    }
    for photo in range(20):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "val2017" / f"{photo}.png")
        listing["images"].append({"id": photo, "coco_url": f"http://images/val2017/{photo}.png"})
        for category, size in ((7, 10), (7, 12), (3, 8), (3, 1)):  # a box of one pixel shows nothing
            if category == 7 or photo < 3:
                listing["annotations"].append(
                    {"image_id": photo, "category_id": category, "bbox": [35.2, 1, size, size]}
                )
    (tmp_path / "lvis.json").write_text(json.dumps(listing), encoding="utf-8")
    photos = annotated_boxes(tmp_path / "lvis.json", tmp_path, photos_per_name=4, seed=1)
    rows = [photos[number] for number in range(len(photos))]
    assert [row["names"] for row in rows] == [["fox"]] * 3 + [["owl"]] * 4
    assert rows[0]["image"]().size == (5, 8)  # cut at the photo's edge
    assert annotated_boxes(tmp_path / "lvis.json", tmp_path, 4, seed=1).identity == photos.identity
    assert annotated_boxes(tmp_path / "lvis.json", tmp_path, 4, seed=2).identity != photos.identity
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="not a file of LVIS or COCO annotations"):
        annotated_boxes(tmp_path / "other.json", tmp_path)


class FakePipeline:
    """Stands for a diffusers pipeline: its picture depends on the prompt and the generator."""

    def __call__(self, prompt: str, generator: Any, **options: Any) -> Any:
        import torch

        pixels = torch.randint(0, 255, (24, 24, 3), generator=generator, dtype=torch.uint8).numpy()
        pixels[0, 0] = len(prompt)
        return type("Output", (), {"images": [Image.fromarray(pixels)]})


def test_synthetic_photos_are_marked_and_repeat(
    tiny_model: Any, processor: Any, collection: Path, tmp_path: Path
) -> None:
    made = synthetic_photos(["owl", "fox"], 3, FakePipeline(), "fake/pipeline", num_inference_steps=2)
    assert [made[n]["names"] for n in range(6)] == [["owl"]] * 3 + [["fox"]] * 3
    pictures = [np.asarray(made[n]["image"]()) for n in (0, 1, 0)]
    assert (pictures[0] == pictures[2]).all() and not (pictures[0] == pictures[1]).all()
    build_memory(tiny_model, processor, joined([photo_folder(collection), made]), tmp_path / "memory")
    memory = VisualNameMemory.from_pretrained(tmp_path / "memory")
    assert memory.columns["synthetic"].to_pylist() == [None] * 11 + [True] * 6
    assert memory.names[11:] == ["owl"] * 3 + ["fox"] * 3


def test_synthetic_photos_by_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (extra `synthetic`)")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from hf_evcap.memory_building.synthetic_photos import load_diffusion_pipeline

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(
        json.dumps({token: n for n, token in enumerate(vocabulary)}), encoding="utf-8"
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=54
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=77),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(8, 8),
            layers_per_block=1,
            sample_size=8,
            norm_num_groups=4,
            cross_attention_dim=16,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(tmp_path / "pipeline")
    loaded = load_diffusion_pipeline(str(tmp_path / "pipeline"))
    made = synthetic_photos(["owl"], 2, loaded, "tiny", num_inference_steps=2, height=16, width=16)
    first, again, second = (np.asarray(made[n]["image"]()) for n in (0, 0, 1))
    assert first.shape == (16, 16, 3)
    assert (first == again).all() and not (first == second).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_build_goes_on_to_the_same_memory(
    tiny_model: Any, processor: Any, collection: Path, tmp_path: Path
) -> None:
    listed = photo_folder(collection)

    def slowly(number: int) -> dict:
        time.sleep(0.05)  # all 33 take longer than the five builds that are killed
        return listed[number % 11]

    photos = NamedPhotos(33, slowly, "listing", {})
    settings = {"batch_size": 3, "shard_size": 3}
    build_memory(tiny_model, processor, photos, tmp_path / "whole", **settings)
    choose = random.Random(0)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            try:
                build_memory(tiny_model, processor, photos, tmp_path / "killed", **settings)
            finally:
                os._exit(0)
        time.sleep(choose.uniform(0.02, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not (tmp_path / "killed").exists() or VisualNameMemory.from_pretrained(tmp_path / "killed")
    report = build_memory(tiny_model, processor, photos, tmp_path / "killed", **settings)
    assert report is not None and report.rows == 33
    whole, killed = (VisualNameMemory.from_pretrained(tmp_path / name) for name in ("whole", "killed"))
    assert killed.fingerprint == whole.fingerprint
    assert killed.table.equals(whole.table)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["killed", "whole"]


def test_an_interrupted_build_resumes_and_refuses_other_photos(
    tiny_model: Any, processor: Any, collection: Path, tmp_path: Path
) -> None:
    listed = photo_folder(collection)

    def failing(number: int) -> dict:
        if number == 9:
            raise RuntimeError("power cut")
        return listed[number]

    build_memory(tiny_model, processor, listed, tmp_path / "whole", batch_size=2, shard_size=4)
    interrupted = NamedPhotos(11, failing, listed.identity, {})
    with pytest.raises(RuntimeError, match="power cut"):
        build_memory(tiny_model, processor, interrupted, tmp_path / "memory", batch_size=2, shard_size=4)
    other = NamedPhotos(11, listed.get, "another listing", {})
    with pytest.raises(ValueError, match=r"unfinished build that differs in listing.*--restart"):
        build_memory(tiny_model, processor, other, tmp_path / "memory", batch_size=2, shard_size=4)
    report = build_memory(tiny_model, processor, listed, tmp_path / "memory", batch_size=2, shard_size=4)
    assert report is not None and (report.resumed, report.shards) == (2, 3)
    fingerprints = {VisualNameMemory.from_pretrained(tmp_path / name).fingerprint for name in ("whole", "memory")}
    assert len(fingerprints) == 1


def test_accelerate_launch_gives_what_one_process_gives(tiny_dir: Path, collection: Path, tmp_path: Path) -> None:
    options = [str(collection), "--model", str(tiny_dir), "--batch-size", "2", "--shard-size", "2", "--out"]
    printed = launch("-m", "hf_evcap.cli.main", "memory", "build", *options, str(tmp_path / "two"))
    assert printed.count("rows from 11 photos") == 1  # two that did not know of each other would both say so
    assert main(["memory", "build", *options, str(tmp_path / "one")]) == 0
    one, two = (VisualNameMemory.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert two.table.equals(one.table)
    assert two.fingerprint == one.fingerprint


def test_scenes_of_captioned_photos(tiny_dir: Path, photo_paths: list[str], tmp_path: Path) -> None:
    captions = [["A dog runs.", "the DOG on grass", "grass"], ["a red ball", "blue"], ["one cat"]]
    rows = {"image": photo_paths[:3], "image_id": ["a", "b", "c"], "captions": captions}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "scenes.parquet")
    words = ["memory", "build", str(tmp_path / "scenes.parquet"), "--model", str(tiny_dir), "--names-from", "captions"]
    assert main([*words, "--out", str(tmp_path / "memory"), "--source-name", "flickr8k"]) == 0
    memory = VisualNameMemory.from_pretrained(tmp_path / "memory")
    assert memory.names == ["dog", "grass", "cat"]  # no word of the second photo is said twice
    columns = {name: memory.columns[name].to_pylist() for name in ("kind", "image_id", "source")}
    assert columns == {"kind": ["scene"] * 3, "image_id": ["a", "a", "c"], "source": ["flickr8k"] * 3}
    assert np.array_equal(memory.keys[0], memory.keys[1]) and not np.array_equal(memory.keys[1], memory.keys[2])


def test_cached_features_give_the_same_keys(
    tiny_dir: Path, photo_paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"image": photo_paths[:3], "image_id": ["a", "b", "c"], "name": ["owl", "cat", "dog"]}
    for name, count in (("cached", 2), ("all", 3)):
        table = datasets.Dataset.from_dict({column: values[:count] for column, values in rows.items()})
        (tmp_path / name).mkdir()
        table.cast_column("image", datasets.Image()).to_parquet(tmp_path / name / "train.parquet")
    cache = ["--output", str(tmp_path / "features"), "--dtype", "float32"]
    photos = str(tmp_path / "cached" / "train.parquet")
    assert main(["cache-features", "--model", str(tiny_dir), "--dataset", photos, *cache]) == 0
    build = ["memory", "build", str(tmp_path / "all"), "--dataset", "--model", str(tiny_dir), "--batch-size", "2"]
    assert main([*build, "--out", str(tmp_path / "plain")]) == 0
    encoded: list[int] = []
    original = EVCapForConditionalGeneration.encode_memory_keys
    count = lambda model, processor, images: encoded.append(len(images)) or original(model, processor, images)  # noqa: E731
    monkeypatch.setattr(EVCapForConditionalGeneration, "encode_memory_keys", count)
    assert main([*build, "--out", str(tmp_path / "quick"), "--feature-cache", str(tmp_path / "features")]) == 0
    plain, quick = (VisualNameMemory.from_pretrained(tmp_path / name) for name in ("plain", "quick"))
    assert encoded == [1] and quick.names == plain.names == ["owl", "cat", "dog"]
    np.testing.assert_allclose(quick.keys, plain.keys, atol=1e-5)
