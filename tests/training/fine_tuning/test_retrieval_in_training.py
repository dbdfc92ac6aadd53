"""Leave-one-out, drawn and withheld names, and memories that are edited while a model is trained."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_smallcap
import torch
from PIL import Image
from tiny_models import NAMES, make_model
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from hf_evcap import MemoryLayers, VisualNameMemory
from hf_evcap.caption_data import load_caption_data
from hf_evcap.memory_building import annotated_boxes, build_memory, photo_folder
from hf_evcap.photo_loading import hash_photo, load_photo
from hf_evcap.photo_rows import OwnRows, photo_keys
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples
from hf_evcap.training.fine_tuning.caption_trainer import CaptionTrainer
from hf_evcap.training.fine_tuning.retrieval_in_training import TrainingRetrieval


@pytest.fixture
def model() -> Any:
    """A model of the test's own, trained by the paper's policy."""
    made = make_model()
    made.freeze_for_training("paper")
    return made


@pytest.fixture
def own_memory(model: Any, processor: Any, photo_paths: list[str]) -> VisualNameMemory:
    """A memory of the four photos, each of them under a name of its own."""
    rows = [{"image": path, "name": f"thing {n}", "image_id": str(n)} for n, path in enumerate(photo_paths)]
    return VisualNameMemory.from_images(model, processor, rows, columns=["image_id"])


def retrieved(model: Any, inputs: Any, **options: Any) -> list[set[str]]:
    """The names that each photo retrieves."""
    with torch.no_grad():
        return [set(names) for names in model.encode_images(inputs["pixel_values"], **options).names.names]


def test_a_photo_does_not_retrieve_itself(
    model: Any, own_memory: VisualNameMemory, inputs: Any, photos: list, photo_paths: list[str]
) -> None:
    model.set_memory(own_memory)
    things = {f"thing {n}" for n in range(4)}
    assert retrieved(model, inputs) == [things] * 4
    retrieval = TrainingRetrieval(model)
    by_id = photo_keys([{"image_id": n} for n in (0, "1", None, "elsewhere")])
    prepared = retrieval.prepare({"photo_keys": by_id}, step=0)
    assert prepared["exclude_rows"].tolist() == [[0], [1], [-1], [-1]]
    found = retrieved(model, inputs, exclude_rows=prepared["exclude_rows"])
    assert found == [things - {"thing 0"}, things - {"thing 1"}, things, things]
    own_memory.set_column("image_id", None)
    own_memory.set_column("photo_hash", [hash_photo(photo) for photo in photos])
    by_pixels = photo_keys([{}, {}, {}, {}], photo_paths)
    assert retrieval.prepare({"photo_keys": by_pixels}, 0)["exclude_rows"].tolist() == [[0], [1], [2], [3]]
    from_cache = photo_keys([{"photo_hash": hash_photo(photos[2]), "image_id": "x"}])
    assert retrieval.prepare({"photo_keys": from_cache}, 0)["exclude_rows"].tolist() == [[2]]
    given = {"photo_keys": by_pixels, "exclude_rows": torch.full((4, 1), 3)}
    assert retrieval.prepare(given, 0)["exclude_rows"].tolist() == [[3, 0], [3, 1], [3, 2], [3, 3]]
    assert TrainingRetrieval(model, leave_one_out=False).prepare({"photo_keys": by_pixels}, 0) == {}


def test_own_rows_follow_edits(model: Any, own_memory: VisualNameMemory) -> None:
    model.set_memory(own_memory)
    retrieval = TrainingRetrieval(model)
    keys = photo_keys([{"image_id": n} for n in (0, 3)]).numpy()
    assert retrieval.own_rows(keys).tolist() == [[0], [3]]
    own_memory.add(["again", "other"], own_memory.keys[[3, 3]], image_id=["3", "9"])
    assert retrieval.own_rows(keys).tolist() == [[0, -1], [3, 4]]
    own_memory.remove(["thing 1"])
    assert retrieval.own_rows(keys).tolist() == [[0, -1], [2, 3]]
    other = own_memory.subset(["thing 3"])
    model.set_memory({"all": own_memory, "one": other})
    assert isinstance(model.memory, MemoryLayers)
    assert retrieval.own_rows(keys).tolist() == [[0, -1, -1], [2, 3, 5]]
    model.set_memory(None)
    assert retrieval.own_rows(keys).tolist() == [[], []]


def test_smallcap_leaves_out_and_draws_captions() -> None:
    model = tiny_smallcap.make_model()
    image_id = model.datastore.image_ids[0]
    own = [row for row, other in enumerate(model.datastore.image_ids) if other == image_id]
    queries = torch.from_numpy(model.datastore.keys[:1].copy())
    retrieval = TrainingRetrieval(model, sample_from=6, keep_best=0)
    keys = photo_keys([{"image_id": image_id}])
    model.train()
    drawn = set()
    for step in range(10):
        excluded = retrieval.prepare({"photo_keys": keys}, step)["exclude_rows"]
        assert excluded.tolist() == [own]
        rows = model.retrieve_captions(queries, excluded).row_ids[0].tolist()
        assert len(rows) == model.config.num_retrieved_captions and not set(rows) & set(own)
        drawn |= set(rows)
    assert len(drawn) > model.config.num_retrieved_captions


def test_a_memory_that_tells_no_photos_is_reported(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("hf_evcap").propagate = True
    assert not OwnRows(model.memory).known
    keys = photo_keys([{"image_id": "1"}])
    assert "exclude_rows" not in TrainingRetrieval(model).prepare({"photo_keys": keys}, 0)
    assert "a photo that is in it retrieves itself in training" in caplog.text


def test_draws_are_of_the_photo_and_the_step(model: Any) -> None:
    retrieval = TrainingRetrieval(model, sample_from=8, keep_best=2, seed=3)
    present = torch.ones(3, 8, dtype=torch.bool)
    present[2, 1:] = False
    keys = photo_keys([{"image_id": n} for n in "abc"])

    def kept(which: list[int], step: int) -> torch.Tensor:
        retrieval.prepare({"photo_keys": keys[which]}, step)
        return retrieval.kept(present[which], 4)

    together = kept([0, 1, 2], 5)
    assert together.sum(1).tolist() == [4, 4, 1] and together[:2, :2].all()
    # The same in other company, as on another process or with gradient accumulation; different at another step.
    assert torch.equal(torch.cat([kept([0], 5), kept([1, 2], 5)]), together)
    steps = torch.stack([kept([0], step)[0] for step in range(400)])
    shares = steps[:, 2:].float().mean(0)
    torch.testing.assert_close(shares, torch.full((6,), 2 / 6), atol=0.08, rtol=0)
    retrieval = TrainingRetrieval(model, name_dropout=0.25, photo_dropout=0.5)
    masks = []
    for step in range(400):
        retrieval.prepare({"photo_keys": keys[:1]}, step)
        masks.append(retrieval.kept(present[:1], 4)[0])
    masks = torch.stack(masks).float()
    assert not masks[:, 4:].any()
    assert masks.any(1).float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert masks[masks.any(1)][:, :4].mean().item() == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize("rule", ["release", "paper", "vote"])
def test_names_are_drawn_in_training_mode_alone(rule: str, inputs: Any) -> None:
    space = {"retrieval_space": "vision", "retrieval_options": {"key_size": 4}} if rule == "vote" else {}
    model = make_model(retrieval_rule=rule, memory=rule != "vote", num_retrieved_names=2, **space)
    if rule == "vote":
        torch.nn.init.normal_(model.vision_space.whitening)
        keys = torch.randn(len(NAMES), model.memory_key_size)
        model.set_memory(VisualNameMemory.from_rows(NAMES, keys, kind="scene"))
    with torch.no_grad():
        features = model.get_image_features(inputs["pixel_values"])
    best = model.retrieve_names(features.retrieval_queries)
    retrieval = TrainingRetrieval(model, sample_from=6, keep_best=1)
    assert model.retrieve_names(features.retrieval_queries).names == best.names
    model.train()
    drawn = set()
    for step in range(20):
        retrieval.prepare({"photo_keys": photo_keys([{"image_id": n} for n in range(4)])}, step)
        found = model.retrieve_names(features.retrieval_queries)
        drawn |= {name for names in found.names for name in names[1:]}
        for names, first in zip(found.names, best.names, strict=True):
            assert names[:1] == first[:1] and len(set(names)) == len(names) <= 2
        joined = model.tokenize_names(found.names)  # tokens are those of the drawn names
        assert torch.equal(joined.input_ids, found.input_ids)
    assert len(drawn) > len({name for names in best.names for name in names[1:]})
    model.eval()
    assert model.retrieve_names(features.retrieval_queries).names == best.names
    retrieval.detach()
    assert model.train().retrieve_names(features.retrieval_queries).names == best.names
    TrainingRetrieval(model, photo_dropout=1.0)
    assert model.retrieve_names(features.retrieval_queries).names == [[], [], [], []]


def test_wrong_numbers_are_refused(model: Any) -> None:
    for argument, value in {"name_dropout": 1.5, "photo_dropout": -0.1, "sample_from": 0, "keep_best": -1}.items():
        with pytest.raises(ValueError, match=f"`{argument}`.*{value}"):
            TrainingRetrieval(model, **{argument: value})
    assert model.training_retrieval is None


class EditsTheMemory(TrainerCallback):
    """Changes the model's memory after each step, and notes what the model retrieves."""

    def __init__(self, replacement: VisualNameMemory) -> None:
        self.replacement = replacement

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            model.memory.add(["brand new"], model.memory.keys[:1] * 2, image_id=["0"])
        elif state.global_step == 2:
            model.memory.rename({"thing 1": "renamed"})
        elif state.global_step == 3:
            model.memory.remove(["renamed", "thing 2"])
        elif state.global_step == 4:
            model.set_memory(self.replacement)


def test_memories_may_be_edited_between_steps(
    model: Any, processor: Any, own_memory: VisualNameMemory, photo_paths: list[str], tmp_path: Path
) -> None:
    """Each step retrieves from the memory as it then is, tokens and left-out rows included."""
    lines = [
        json.dumps({"image": path, "image_id": str(n), "captions": ["a thing"]}) for n, path in enumerate(photo_paths)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")
    seen: list[Any] = []
    forward = model.forward

    def noting(**inputs: Any) -> Any:
        outputs = forward(**inputs)
        seen.append((outputs.names, inputs["exclude_rows"], model.memory.names))
        return outputs

    model.forward = noting
    model.set_memory(own_memory)
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path / "run"),
        max_steps=6,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    replacement = own_memory.copy().rename({f"thing {n}": f"object {n}" for n in range(4)})
    trainer = CaptionTrainer(
        model,
        arguments,
        processing_class=processor,
        data_collator=PhotoCaptionCollator(processor, photo_keys=photo_keys),
        train_dataset=CaptionExamples(load_caption_data(tmp_path / "data.jsonl"), processor),
        retrieval=TrainingRetrieval(model),
        callbacks=[EditsTheMemory(replacement)],
    )
    trainer.train()
    assert len(seen) == 6
    wordings = []
    for found, excluded, memory_names in seen:
        for names, rows, own in zip(found.names, found.row_ids.tolist(), excluded.tolist(), strict=True):
            assert names == [memory_names[row] for row in rows if row >= 0] and not set(rows) & (set(own) - {-1})
        assert torch.equal(found.input_ids, model.tokenize_names(found.names).input_ids)
        wordings.append({name for names in found.names for name in names})
    assert wordings[0] == {f"thing {n}" for n in range(4)}
    assert wordings[1] == {"brand new", *wordings[0]} and [0, 4] in seen[1][1].tolist()
    assert wordings[2] == {"thing 0", "renamed", "thing 2", "thing 3", "brand new"}
    assert wordings[3] == {"thing 0", "thing 3", "brand new"}
    assert wordings[4] == wordings[5] == {f"object {n}" for n in range(4)}


def test_built_memories_tell_photos(tiny_model: Any, processor: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "things" / "owl").mkdir(parents=True)
    for number in range(2):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "things" / "owl" / f"{number}.png")
    build_memory(tiny_model, processor, photo_folder(tmp_path / "things"), tmp_path / "memory")
    memory = VisualNameMemory.from_pretrained(tmp_path / "memory")
    files = sorted((tmp_path / "things" / "owl").iterdir())
    assert memory.columns["photo_hash"].to_pylist() == [hash_photo(load_photo(file)) for file in files]
    keys = photo_keys([{}, {}], [files[1], files[0]]).numpy()
    assert [rows.tolist() for rows in OwnRows(memory)(keys)] == [[1], [0]]
    listing = {
        "images": [{"id": 7, "file_name": "0.png"}],
        "annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 20, 20]}],
        "categories": [{"id": 1, "name": "owl"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(listing), encoding="utf-8")
    boxes = annotated_boxes(tmp_path / "boxes.json", tmp_path / "things" / "owl")
    build_memory(tiny_model, processor, boxes, tmp_path / "crops")
    crops = VisualNameMemory.from_pretrained(tmp_path / "crops")
    keys = photo_keys([{"image_id": "7"}], [files[0]]).numpy()  # a crop is its photo's, by id
    assert [rows.tolist() for rows in OwnRows(crops)(keys)] == [[0]]
