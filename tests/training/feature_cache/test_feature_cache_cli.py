"""Cached vision features: made from the command line, the same losses from them, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny_smallcap
import torch
from PIL import Image
from tiny_models import make_model, make_processor

from hf_evcap.caption_data import load_caption_data
from hf_evcap.cli.main import main
from hf_evcap.photo_loading import hash_photo
from hf_evcap.training.feature_cache import VisionFeatureCache, build_feature_cache, vision_cache_building
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven noisy photos with two captions each."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(7):
        pixels = rng.integers(0, 255, (40, 50 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        captions = [f"a photo of thing {number}", "noise in many colours"]
        lines.append(json.dumps({"image": f"{number}.png", "image_id": f"id-{number}", "captions": captions}))
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder / "captions.jsonl"


@pytest.fixture(scope="module")
def cached(tiny_dir: Path, listing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 cache of the photos. Tests must not change it."""
    folder = tmp_path_factory.mktemp("cache") / "features"
    assert main(command(tiny_dir, listing, folder, "--dtype", "float32")) == 0
    return folder


def command(model: Path, listing: Path, output: Path, *options: str) -> list[str]:
    required = ["--model", str(model), "--dataset", str(listing), "--output", str(output)]
    return ["cache-features", *required, "--batch-size", "2", "--shard-size", "3", *options]


def test_a_cache_is_a_dataset_of_what_the_encoder_gives(
    tiny_model: Any, processor: Any, listing: Path, cached: Path
) -> None:
    photos = load_caption_data(listing)
    cache = VisionFeatureCache.open(cached, tiny_model, processor)
    assert repr(cache) == "VisionFeatureCache(7 photos, 17 x 32, float32)"
    assert cache.image_ids == [f"id-{number}" for number in range(7)]
    with torch.no_grad():
        pixels = processor.image_processor([photos[4]["image"]], return_tensors="pt")["pixel_values"]
        expected = tiny_model.get_image_features(pixels).vision_hidden_states
    torch.testing.assert_close(cache(["id-4"]), expected, atol=1e-5, rtol=1e-5)
    assert cache[4]["photo_hash"] == hash_photo(photos[4]["image"])
    plain = datasets.load_from_disk(str(cached))
    assert plain.column_names == ["image_id", "photo_hash", "vision_hidden_states", "crc32"]
    np.testing.assert_array_equal(
        plain.with_format("numpy")[4]["vision_hidden_states"], cache[4]["vision_hidden_states"]
    )
    assert sorted(path.name for path in cached.iterdir()) == [
        "dataset_info.json", "feature_cache.json", *(f"part-00000{shard}.arrow" for shard in range(3)), "state.json"
    ]  # fmt: skip


def test_losses_from_the_cache_are_those_without_it(
    tiny_model: Any, processor: Any, tiny_dir: Path, listing: Path, cached: Path, tmp_path: Path
) -> None:
    photos = load_caption_data(listing)
    collate = PhotoCaptionCollator(processor)

    def losses(dataset: Any) -> list[float]:
        examples, found = CaptionExamples(dataset, processor), []
        with torch.no_grad():
            for number in range(len(examples)):
                batch = collate([examples[number]])
                found.append(tiny_model(**batch, logits_to_keep=batch["labels"].shape[1]).loss.item())
        return found

    without = losses(photos)
    assert len(without) == 14
    np.testing.assert_allclose(losses(VisionFeatureCache.open(cached).attach(photos)), without, atol=1e-4)
    main(command(tiny_dir, listing, tmp_path / "half"))
    half = VisionFeatureCache.open(tmp_path / "half")
    assert half.dtype == "float16" and half[0]["vision_hidden_states"].dtype == np.float16
    np.testing.assert_allclose(losses(half.attach(photos)), without, atol=2e-2)
    streamed = list(half.attach(photos.to_iterable_dataset()))
    assert [row["image_id"] for row in streamed] == photos["image_id"] and "image" not in streamed[0]
    np.testing.assert_array_equal(streamed[6]["vision_hidden_states"], half[6]["vision_hidden_states"])


def test_smallcap_reads_caches_of_its_encoder(tiny_model: Any, listing: Path, tmp_path: Path) -> None:
    model, processor, photos = tiny_smallcap.make_model(), tiny_smallcap.make_processor(), load_caption_data(listing)
    build_feature_cache(model, processor, photos, tmp_path / "features", dtype="float32")
    cache = VisionFeatureCache.open(tmp_path / "features", model, processor)
    collate, losses = PhotoCaptionCollator(processor), []
    for dataset in (photos, cache.attach(photos)):
        examples = CaptionExamples(dataset, processor)
        batch = collate([examples[number] for number in range(4)])
        with torch.no_grad():
            losses.append(model(**batch).loss.item())
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    with pytest.raises(ValueError, match="was made by the vision encoder"):
        cache.check_model(tiny_model)


def test_rows_are_found_by_id(listing: Path, cached: Path) -> None:
    photos, cache = load_caption_data(listing), VisionFeatureCache.open(cached)
    attached = cache.attach(photos.select([5, 2]))
    assert [row["image_id"] for row in attached] == ["id-5", "id-2"]
    np.testing.assert_array_equal(attached[1]["vision_hidden_states"], cache[2]["vision_hidden_states"])
    assert set(attached.column_names) == {"image_id", "captions", "vision_hidden_states", "photo_hash"}
    unknown = photos.select([0]).map(lambda row: {"image_id": "elsewhere"})
    with pytest.raises(ValueError, match=r"has no photo 'elsewhere'.*same --dataset and --split"):
        cache.attach(unknown)
    swapped = photos.map(lambda row, n: {"image_id": f"id-{6 - n}"}, with_indices=True)
    with pytest.raises(ValueError, match="Photo 'id-6' of the dataset is not the one of that id in the feature cache"):
        cache.attach(swapped)
    without_photos = photos.remove_columns("image")
    assert len(cache.attach(without_photos)) == 7  # training from a cache needs no photos
    with pytest.raises(ValueError, match="no column `image_id`"):
        cache.attach(photos.remove_columns("image_id"))


def test_caches_of_others_are_refused(tiny_model: Any, processor: Any, cached: Path, tmp_path: Path) -> None:
    other = make_model(vision="clip", memory=False)
    with pytest.raises(ValueError, match="was made by the vision encoder .* this model's is"):
        VisionFeatureCache.open(cached, other)
    VisionFeatureCache.open(cached, make_model(memory=False).bfloat16(), processor)  # the same in less precision
    other_processor = make_processor()
    other_processor.image_processor.size = {"height": 28, "width": 28}
    with pytest.raises(ValueError, match=r"another preprocessing of photos \(size: .*'height': 56"):
        VisionFeatureCache.open(cached, processor=other_processor)
    with pytest.raises(FileNotFoundError, match="no feature cache in .*nowhere"):
        VisionFeatureCache.open(tmp_path / "nowhere")
    (tmp_path / "nowhere.building").mkdir()
    with pytest.raises(FileNotFoundError, match="is unfinished.*again"):
        VisionFeatureCache.open(tmp_path / "nowhere")


def test_a_damaged_shard_is_named(cached: Path, tmp_path: Path) -> None:
    broken = tmp_path / "features"
    shutil.copytree(cached, broken)
    shard = broken / "part-000001.arrow"
    content = bytearray(shard.read_bytes())
    cache = VisionFeatureCache.open(broken)
    place = content.find(cache[4]["vision_hidden_states"].tobytes())
    content[place + 100] ^= 1
    shard.write_bytes(content)
    cache = VisionFeatureCache.open(broken)
    cache[3]
    with pytest.raises(ValueError, match=r"Shard part-000001\.arrow of .* is damaged: the features of photo 'id-4'"):
        cache[4]
    shard.write_bytes(content[:-500])
    with pytest.raises(ValueError, match=r"Shard part-000001\.arrow of .* has [\d,]+ bytes instead of"):
        VisionFeatureCache.open(broken)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks its shard part-000001\.arrow.*--restart"):
        VisionFeatureCache.open(broken)
    (broken / "feature_cache.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"feature_cache\.json is damaged"):
        VisionFeatureCache.open(broken)


def test_bad_photos_are_named_or_skipped(
    tiny_dir: Path, listing: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(listing.parent, tmp_path / "photos")
    damaged = tmp_path / "photos" / "2.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    copy = tmp_path / "photos" / listing.name
    assert main(command(tiny_dir, copy, tmp_path / "features")) == 1
    assert "Photo 'id-2' (row 2) cannot be used: Could not read" in capsys.readouterr().err
    assert not (tmp_path / "features").exists()
    assert main(command(tiny_dir, copy, tmp_path / "features", "--on-error", "skip", "--restart")) == 0
    printed = capsys.readouterr().out
    assert "features of 6 photos (17 x 32, float16" in printed and "skipped photo id-2: Could not read" in printed
    cache = VisionFeatureCache.open(tmp_path / "features")
    assert list(cache.skipped) == ["id-2"] and "id-2" not in cache.image_ids
    photos = load_caption_data(copy)
    assert len(cache.attach(photos)) == 6
    assert len(list(cache.attach(photos.to_iterable_dataset()))) == 6


def test_what_is_there_is_kept(
    tiny_model: Any, processor: Any, tiny_dir: Path, listing: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photos, folder = load_caption_data(listing), tmp_path / "features"
    folder.mkdir()
    main(command(tiny_dir, listing, folder))
    before = (folder / "part-000000.arrow").stat().st_mtime_ns
    assert main(command(tiny_dir, listing, folder)) == 0  # finished: nothing is made again
    assert "3 of 3 shards from an earlier run" in capsys.readouterr().out
    assert (folder / "part-000000.arrow").stat().st_mtime_ns == before
    assert main(command(tiny_dir, listing, folder, "--dtype", "float32")) == 1
    assert "holds a feature cache that differs in dtype" in capsys.readouterr().err
    assert main(command(tiny_dir, listing, folder, "--dtype", "float32", "--restart")) == 0
    assert VisionFeatureCache.open(folder).dtype == "float32"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match="exists and is no feature cache"):
        build_feature_cache(tiny_model, processor, photos, tmp_path / "mine")
    twice = datasets.concatenate_datasets([photos, photos])
    with pytest.raises(ValueError, match="The id 'id-0' stands for several photos"):
        build_feature_cache(tiny_model, processor, twice, tmp_path / "twice")
    with pytest.raises(ValueError, match="no column image_id"):
        build_feature_cache(tiny_model, processor, photos.remove_columns("image_id"), tmp_path / "twice")


def test_a_full_disk_stops_early_and_the_rest_follows(
    tiny_model: Any, processor: Any, listing: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, free = load_caption_data(listing), shutil.disk_usage(tmp_path)
    settings = {"dtype": "float32", "batch_size": 2, "shard_size": 3}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=1000))
    with pytest.raises(OSError, match=r"0\.0 MB left, the features still to come take \d.*goes on where it stopped"):
        build_feature_cache(tiny_model, processor, photos, tmp_path / "features", **settings)
    monkeypatch.undo()
    write = vision_cache_building._ShardWriter.write

    def fill_up(self: Any, file: Any, numbers: range, **options: Any) -> None:
        write(self, file, numbers, **options)
        if numbers.start == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(vision_cache_building._ShardWriter, "write", fill_up)
    with pytest.raises(OSError, match="Make room, or choose"):
        build_feature_cache(tiny_model, processor, photos, tmp_path / "features", **settings)
    assert sorted(path.name for path in (tmp_path / "features.building").iterdir()) == [
        "part-000000.arrow",
        "plan.json",
    ]
    monkeypatch.undo()
    report = build_feature_cache(tiny_model, processor, photos, tmp_path / "features", **settings)
    assert report is not None and (report.resumed, report.shards) == (1, 3)
    assert same_shards(tmp_path / "features", cached)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_the_middle_it_goes_on_to_the_same_cache(
    tiny_model: Any, processor: Any, listing: Path, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, folder = load_caption_data(listing), tmp_path / "features"
    settings = {"dtype": "float32", "batch_size": 2, "shard_size": 3}
    encode = vision_cache_building.encode_photos

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.05)
        return encode(*arguments)

    monkeypatch.setattr(vision_cache_building, "encode_photos", slowly)
    for seconds in (0.1, 0.25, 0.3):
        child = os.fork()
        if child == 0:
            try:
                build_feature_cache(tiny_model, processor, photos, folder, **settings)
            finally:
                os._exit(0)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    report = build_feature_cache(tiny_model, processor, photos, folder, **settings)
    assert report is not None and report.photos == 7
    assert same_shards(folder, cached)
    assert not Path(f"{folder}.building").exists()


def same_shards(one: Path, other: Path) -> bool:
    """Whether two caches hold the same bytes."""
    names = sorted(path.name for path in other.iterdir())
    return sorted(path.name for path in one.iterdir()) == names and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names
    )


def test_a_trained_encoder_takes_no_cache(
    tiny_dir: Path, listing: Path, cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = ["train", "--model", str(tiny_dir), "--dataset", str(listing), "--feature_cache", str(cached)]
    assert main([*options, "--policy", "full", "--max_steps", "1", "--output_dir", str(tmp_path / "run")]) == 1
    assert "The vision encoder is to be trained, but the features in" in capsys.readouterr().err
