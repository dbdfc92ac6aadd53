"""A datastore of a CLIP's captions in a SmallCap that has that CLIP's vision side: from building to captioning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_clip import CAPTIONS, write_clip
from tiny_smallcap import make_config, make_tokenizer
from transformers import CLIPModel

from hf_evcap import CaptionDatastore, ClipEncoder, SmallCapForConditionalGeneration, SmallCapProcessor
from hf_evcap.cli.main import main


@pytest.fixture(scope="module")
def captioner_dir(clip_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SmallCap whose encoder is the tiny CLIP's vision side."""
    clip = CLIPModel.from_pretrained(clip_dir)
    torch.manual_seed(0)
    config = make_config(vision_config=clip.config.vision_config.to_dict())
    model = SmallCapForConditionalGeneration(config).eval()
    model.vision_model.load_state_dict(clip.vision_model.state_dict())
    model.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    encoder = ClipEncoder.from_pretrained(clip_dir)
    folder = tmp_path_factory.mktemp("captioner")
    model.save_pretrained(folder)
    SmallCapProcessor(encoder.image_processor, make_tokenizer()).save_pretrained(folder)
    return folder


def test_built_from_captions_alone_it_fits_the_captioner(
    captioner_dir: Path, clip_dir: Path, encoder: ClipEncoder, photo_paths: list[str], tmp_path: Path
) -> None:
    rows = [{"caption": caption, "image_id": image_id} for caption, image_id in CAPTIONS]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["datastore", "build", tmp_path / "captions.jsonl", "--clip", clip_dir, "--tokenizer", captioner_dir]
    assert main([*map(str, words), "--out", str(tmp_path / "store")]) == 0
    pipe = transformers.pipeline(
        "image-to-text", model=str(captioner_dir), model_kwargs={"memory": tmp_path / "store"}
    )
    assert pipe.model.encoder_fingerprint == encoder.fingerprint == pipe.model.memory.encoder_fingerprint
    answers = pipe(photo_paths, num_beams=1, max_new_tokens=4)
    _, expected = pipe.model.memory.search(encoder.encode_photos(photo_paths), 4)
    found = [[one["caption"] for one in answer[0]["retrieved_captions"]] for answer in answers]
    assert found == [[CAPTIONS[row][0] for row in of_photo] for of_photo in expected]


def test_a_swap_changes_what_is_retrieved_and_no_weights(
    captioner_dir: Path, encoder: ClipEncoder, datastore: CaptionDatastore, photo_paths: list[str], tmp_path: Path
) -> None:
    model = SmallCapForConditionalGeneration.from_pretrained(captioner_dir, datastore=datastore)
    processor = SmallCapProcessor.from_pretrained(captioner_dir)
    pixels = processor(images=photo_paths[:1], return_tensors="pt")["pixel_values"]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = model.encode_images(pixels).captions.captions
    other = CaptionDatastore.from_captions(encoder, ["a spaceship", "a planet", "stars", "a comet"])
    model.set_datastore(other)
    assert set(model.encode_images(pixels).captions.captions[0]) == set(other.captions) != set(first[0])
    model.memory.add_captions(encoder, ["an astronaut"])  # edited while attached
    assert len(set(model.retrieve_captions(model.get_image_features(pixels).retrieval_queries, k=5).captions[0])) == 5
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    stranger = ClipEncoder.from_pretrained(write_clip(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match="The datastore was built by the encoder"):
        model.set_datastore(CaptionDatastore.from_captions(stranger, ["a spaceship"]))
    with pytest.raises(ValueError, match="keys have dimension 3, this model's queries 16"):
        model.set_datastore(CaptionDatastore.from_rows(["a"], np.ones((1, 3))))
    assert model.datastore is other


def test_own_captions_are_left_out_by_rows(
    captioner_dir: Path, datastore: CaptionDatastore, photo_paths: list[str], photos: Any
) -> None:
    model = SmallCapForConditionalGeneration.from_pretrained(captioner_dir, datastore=datastore)
    processor = SmallCapProcessor.from_pretrained(captioner_dir)
    pixels = processor(images=photos[:2], return_tensors="pt")["pixel_values"]
    rows = torch.from_numpy(datastore.rows_of_images(["9", None]))
    found = model.encode_images(pixels, exclude_rows=rows).captions.image_ids
    assert "9" not in found[0] and found[1] == model.encode_images(pixels).captions.image_ids[1]


def test_a_folders_path_is_never_written(captioner_dir: Path, datastore: CaptionDatastore, tmp_path: Path) -> None:
    datastore.save_pretrained(tmp_path / "mine")
    model = SmallCapForConditionalGeneration.from_pretrained(captioner_dir, memory=str(tmp_path / "mine"))
    model.save_pretrained(tmp_path / "saved")
    for file in (tmp_path / "saved").rglob("*.json"):
        assert str(tmp_path) not in file.read_text(encoding="utf-8"), file
    again = SmallCapForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert again.config.memory_reference is None and again.datastore.fingerprint == datastore.fingerprint
