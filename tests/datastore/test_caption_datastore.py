"""The datastore as rows: what it holds, finds and leaves out, and its way through files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_clip import CAPTIONS, write_clip
from transformers import CLIPModel, CLIPVisionModelWithProjection

from hf_evcap import CaptionDatastore, ClipEncoder, VisualNameMemory
from hf_evcap.clip_encoder import clip_fingerprint
from hf_evcap.retrieval_rows import RowRetriever


def test_keys_are_the_captions_own(datastore: CaptionDatastore, encoder: ClipEncoder) -> None:
    assert datastore.captions == [caption for caption, _ in CAPTIONS]
    assert datastore.image_ids == [image_id for _, image_id in CAPTIONS]
    assert datastore.encoder_fingerprint == encoder.fingerprint
    one_by_one = np.concatenate([encoder.encode_captions([caption]) for caption, _ in CAPTIONS])
    np.testing.assert_allclose(datastore.keys, one_by_one, atol=1e-5)  # padding in a batch changes nothing
    scores, rows = datastore.search(one_by_one[3:5], 1)
    assert rows[:, 0].tolist() == [3, 4] and np.allclose(scores, 1, atol=1e-5)


def test_photos_and_captions_are_in_one_space(
    datastore: CaptionDatastore, encoder: ClipEncoder, photo_paths: list[str]
) -> None:
    queries = encoder.encode_photos(photo_paths[:2])
    assert queries.shape == (2, datastore.dim) and not np.allclose(queries[0], queries[1])
    scores, rows = datastore.search(queries, 4)
    keys = datastore.keys / np.linalg.norm(datastore.keys, axis=1, keepdims=True)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ keys.T
    assert rows.tolist() == (-cosines).argsort(axis=1)[:, :4].tolist()
    np.testing.assert_allclose(scores, np.sort(cosines, axis=1)[:, ::-1][:, :4], atol=1e-5)


def test_own_captions_are_left_out(datastore: CaptionDatastore) -> None:
    queries = datastore.keys[[0, 2, 5, 4]]
    scores, rows = datastore.search(queries, 4, exclude_image_ids=["7", 9, None, "unknown"])
    found = [[datastore.image_ids[row] for row in of_query] for of_query in rows]
    assert "7" not in found[0] and "9" not in found[1]
    assert rows[2, 0] == 5 and rows[3, 0] == 4  # nothing was left out there
    everything, _ = datastore.search(queries, 6)
    assert (scores[2:] == everything[2:, :4]).all()
    _, without = datastore.search(queries[:1], 6, exclude_rows=[[0, -1]], exclude_image_ids=["9"])
    assert sorted(without[0].tolist()) == [-1, -1, -1, 1, 4, 5]
    assert datastore.rows_of_images(["9", None, "7"]).tolist() == [[2, 3], [-1, -1], [0, 1]]
    with pytest.raises(ValueError, match="got 1 for 4 queries"):
        datastore.search(queries, 1, exclude_image_ids=["7"])
    with pytest.raises(ValueError, match=r"shape \(4, n\)"):
        datastore.search(queries, 1, exclude_rows=[[1]])


def test_rows_of_images_follow_edits(datastore: CaptionDatastore) -> None:
    assert datastore.rows_of_images(["11"]).tolist() == [[4]]
    datastore.add(["rain"], np.ones((1, datastore.dim)), image_id=11)
    assert datastore.rows_of_images(["11"]).tolist() == [[4, 6]]
    datastore.remove(["a sleeping cat"])
    assert datastore.rows_of_images(["11", "7"]).tolist() == [[3, 5], [0, -1]]


@pytest.mark.parametrize("index", ["Flat", "HNSW8"])
def test_device_search_agrees_and_excludes(datastore: CaptionDatastore, index: str) -> None:
    datastore.index_factory = index
    queries = torch.from_numpy(datastore.keys[:3].copy())
    exclude = torch.from_numpy(datastore.rows_of_images(["7", None, "9"]))
    scores, rows = RowRetriever(datastore).nearest(queries[:, None], 3, exclude)
    expected = datastore.search(queries, 3, exclude_rows=exclude.numpy())
    assert rows[:, 0].tolist() == expected[1].tolist()
    np.testing.assert_allclose(scores[:, 0].numpy(), expected[0], atol=1e-5)


def test_files_give_the_same_back(datastore: CaptionDatastore, tmp_path: Path) -> None:
    import datasets

    datastore.retrieval["min_similarity"] = 0.2
    datastore.save_pretrained(tmp_path / "store")
    loaded = CaptionDatastore.from_pretrained(tmp_path / "store")
    assert loaded.fingerprint == datastore.fingerprint and loaded.image_ids == datastore.image_ids
    assert loaded.min_similarity == 0.2 and loaded.encoder_fingerprint == datastore.encoder_fingerprint
    plain = datasets.load_dataset(str(tmp_path / "store"), split="train")
    assert plain["caption"][:2] == ["a cat sleeps on a mat", "a sleeping cat"]
    assert plain.column_names == ["caption", "key", "image_id", "source"]
    with pytest.raises(ValueError, match="describes a 'caption-datastore', not a 'visual-name-memory'"):
        VisualNameMemory.from_pretrained(tmp_path / "store")


def test_algebra(datastore: CaptionDatastore, encoder: ClipEncoder) -> None:
    cats = datastore.subset(lambda caption: "cat" in caption)
    assert cats.captions == ["a cat sleeps on a mat", "a sleeping cat"]
    assert len(cats.merge(datastore)) == 6 and len(datastore.merge(cats)) == 6
    again = cats.copy().add_captions(encoder, ["a sleeping cat"], image_id="8")
    assert len(again.merge(cats)) == 3  # the same caption of another photo is another row
    found = datastore.diff(cats)
    assert (found.added_rows, found.removed_rows) == (0, 4) and found.removed["a red bus"] == 1
    assert datastore.describe()["images"] == 3 and datastore.describe()["captions"] == 6


def test_captions_of_another_encoder_are_refused(
    datastore: CaptionDatastore, encoder: ClipEncoder, tmp_path: Path
) -> None:
    other = ClipEncoder.from_pretrained(write_clip(tmp_path / "other", seed=1))
    before = datastore.fingerprint
    with pytest.raises(ValueError, match="Use the encoder that built it, or build it anew"):
        datastore.add_captions(other, ["a cow"])
    with pytest.raises(ValueError, match="datastore rows come from different encoders"):
        datastore.merge(CaptionDatastore.from_captions(other, ["a cow"]))
    with pytest.raises(ValueError, match="A caption must not be empty; caption 1 is ' '"):
        datastore.add_captions(encoder, ["a cow", " "])
    assert datastore.fingerprint == before


def test_fingerprint_stands_for_both_sides(clip_dir: Path, encoder: ClipEncoder) -> None:
    vision = CLIPVisionModelWithProjection.from_pretrained(clip_dir)
    assert clip_fingerprint(vision) == clip_fingerprint(vision.state_dict()) == encoder.fingerprint
    with torch.no_grad():
        vision.visual_projection.weight.mul_(2)
    assert clip_fingerprint(vision) != encoder.fingerprint
    with pytest.raises(ValueError, match="no vision side"):
        clip_fingerprint(CLIPModel.from_pretrained(clip_dir).text_model)


def test_folders_of_this_machine_are_not_recorded(encoder: ClipEncoder, datastore: CaptionDatastore) -> None:
    assert encoder.name is None and datastore.retrieval == {}
    named = ClipEncoder(encoder.model, encoder.tokenizer, name="org/clip")
    assert CaptionDatastore.from_captions(named, ["a cat"]).retrieval == {"encoder": "org/clip"}


def test_photo_keys_are_shared_by_a_photos_captions(tiny_model: Any, processor: Any, photo_paths: list[str]) -> None:
    rows = [
        {"image": photo_paths[0], "captions": ["an astronaut", "a woman smiles"], "id": 3},
        {"image": photo_paths[1], "captions": ["a cat"], "id": 4},
    ]
    made = CaptionDatastore.from_images(tiny_model, processor, rows, image_id_column="id")
    assert made.captions == ["an astronaut", "a woman smiles", "a cat"] and made.image_ids == ["3", "3", "4"]
    assert (made.keys[0] == made.keys[1]).all() and not np.allclose(made.keys[0], made.keys[2])
    assert made.encoder_fingerprint == tiny_model.encoder_fingerprint
    keys = tiny_model.encode_memory_keys(processor, photo_paths[:2]).numpy()
    np.testing.assert_allclose(made.keys[[0, 2]], keys, atol=1e-5)
    made.add_images(tiny_model, processor, photo_paths[1:2], "a grey cat", image_id=4)
    np.testing.assert_allclose(made.keys[3], made.keys[2], atol=1e-5)
    with pytest.raises(ValueError, match="give one caption a photo, or one for all"):
        made.add_images(tiny_model, processor, photo_paths[:2], ["one"])
