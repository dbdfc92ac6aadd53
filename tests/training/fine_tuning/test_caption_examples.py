"""Examples of captioned photos: which caption in which epoch, bad photos and captions, and what the collator makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from training_runs import CAPTIONS, train, write_photos

from hf_evcap.caption_data import load_caption_data
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator, cut_labels, prompts_alone
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples, StreamedCaptionExamples


def dataset_of(captions: list) -> datasets.Dataset:
    photos = [Image.new("RGB", (8, 8), (20 * row,) * 3) for row in range(len(captions))]
    ids = [f"photo-{row}" for row in range(len(captions))]
    features = {"image": datasets.Image(), "image_id": datasets.Value("string")}
    features["captions"] = datasets.List(datasets.Value("string"))
    columns = {"image": photos, "image_id": ids, "captions": captions}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


PAIRS = [["a cat", "a white cat"], ["a dog"], ["a bus", "the bus", "a car"]]


def test_all_pairs_of_photos_and_captions(processor):
    examples = CaptionExamples(dataset_of(PAIRS), processor)
    got = [(example["row"], example["caption"]) for example in (examples[i] for i in range(len(examples)))]
    assert got == [(row, caption) for row, captions in enumerate(PAIRS) for caption in captions]
    assert examples[3]["image"].getpixel((0, 0)) == (40, 40, 40)


def test_one_caption_a_photo_is_drawn_by_seed_and_epoch(processor):
    def drawn(seed: int) -> list[list[str]]:
        examples = CaptionExamples(dataset_of(PAIRS), processor, captions="one", seed=seed)
        epochs = []
        for epoch in range(6):
            examples.set_epoch(epoch)
            epochs.append([examples[item]["caption"] for item in range(len(examples))])
        return epochs

    epochs = drawn(0)
    assert all(caption in PAIRS[row] for epoch in epochs for row, caption in enumerate(epoch))
    assert {epoch[2] for epoch in epochs} == set(PAIRS[2])  # all come up
    assert drawn(0) == epochs and drawn(1) != epochs
    first = CaptionExamples(dataset_of(PAIRS), processor, captions="first")
    assert [first[item]["caption"] for item in range(3)] == ["a cat", "a dog", "a bus"]


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([["a cat"], ["a dog", "  "]], r"Photo 1 .*'photo-1'.*: a caption is empty"),
        ([["a cat"], []], r"Photo 1 .*'photo-1'.* has no caption"),
        ([["a cat"], ["a dog " * 30]], r"Photo 1 .*'photo-1'.*tokens, the limit is 20"),
    ],
)
def test_bad_captions_are_named_or_left_out(processor, captions, message):
    data = dataset_of(captions)
    with pytest.raises(ValueError, match=message):
        CaptionExamples(data, processor, max_caption_length=20)
    examples = CaptionExamples(data, processor, max_caption_length=20, on_error="skip")
    assert all(examples[item]["caption"] in ("a cat", "a dog") for item in range(len(examples)))
    assert examples.skipped_captions == (1 if captions[1] else 0)
    cut = CaptionExamples(dataset_of([["a dog " * 30]]), processor, max_caption_length=20, truncate=True)
    labels = PhotoCaptionCollator(processor, max_caption_length=20)([cut[0]])["labels"]
    assert (labels != -100).sum() == 20 and labels[0, -1] == processor.encode_caption("")[-1]


@pytest.mark.parametrize("streaming", [False, True])
def test_unreadable_photos_are_named_or_left_out(processor, tmp_path: Path, streaming: bool):
    write_photos(tmp_path, CAPTIONS[:4])
    data = load_caption_data(tmp_path, require_captions=True)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    if streaming:
        data = data.to_iterable_dataset()
    kind = StreamedCaptionExamples if streaming else CaptionExamples

    def items(examples, count: int = 4) -> list[int]:
        if streaming:
            return [example["row"] for example, _ in zip(examples, range(count), strict=False)]
        return [examples[item]["row"] for item in range(count)]

    with pytest.raises(FileNotFoundError, match=r"Photo 1 .*1\.png"):
        items(kind(data, processor))
    shutil.copy(tmp_path / "0.png", tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"Photo 2 .*2\.png.* damaged"):
        items(kind(data, processor))
    (tmp_path / "1.png").unlink()
    examples = kind(data, processor, on_error="skip")
    # The next photo stands in for one that cannot be read; a stream goes on with it, and then from the start.
    assert items(examples) == ([0, 3, 0, 3] if streaming else [0, 3, 3, 3])
    assert examples.skipped_photos >= 2 if streaming else examples.skipped_photos == 2


def test_nothing_usable_is_an_error(processor, tmp_path: Path):
    with pytest.raises(ValueError, match="None of the 2 photos"):
        CaptionExamples(dataset_of([[""], [" "]]), processor, on_error="skip")
    with pytest.raises(ValueError, match=r"no column `captions`; the columns are image, image_id"):
        CaptionExamples(dataset_of(PAIRS).remove_columns("captions"), processor)
    stream = dataset_of([[""]]).to_iterable_dataset()
    with pytest.raises(ValueError, match="without a single photo"):
        next(iter(StreamedCaptionExamples(stream, processor, on_error="skip")))
    for argument in ("captions", "on_error"):
        with pytest.raises(ValueError, match=f"`{argument}` must be"):
            CaptionExamples(dataset_of(PAIRS), processor, **{argument: "some"})


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_shards_are_named_or_left_out(tmp_path: Path, tiny_dir: Path, streaming: bool):
    for shard, rows in enumerate((PAIRS, PAIRS[1:])):
        ids = [f"{shard}-{row}" for row in range(len(rows))]
        dataset_of(rows).remove_columns("image_id").add_column("image_id", ids).to_parquet(
            tmp_path / f"{shard}.parquet"
        )
    content = (tmp_path / "1.parquet").read_bytes()
    (tmp_path / "1.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"1\.parquet is damaged"):
        train(tiny_dir, tmp_path, tmp_path / "out", streaming=streaming)
    trainer = train(tiny_dir, tmp_path, tmp_path / "out", streaming=streaming, on_bad_data="skip")
    assert {row["image_id"] for row in trainer.train_dataset.dataset} == {"0-0", "0-1", "0-2"}


def test_a_stream_that_breaks_off_is_named(processor):
    def rows():
        yield from dataset_of(PAIRS)
        raise pyarrow.ArrowInvalid("Corrupt snappy compressed data")

    stream = datasets.IterableDataset.from_generator(rows)
    with pytest.raises(ValueError, match="damaged after 3 photos: Corrupt snappy"):
        list(StreamedCaptionExamples(stream, processor))


def test_stream_goes_on_pass_after_pass(processor):
    stream = dataset_of(PAIRS).to_iterable_dataset()
    examples = iter(StreamedCaptionExamples(stream, processor))
    assert [next(examples)["caption"] for _ in range(8)] == [*sum(PAIRS, []), "a cat", "a white cat"]


def test_collator_gives_what_the_processor_gives(processor):
    examples = CaptionExamples(dataset_of(PAIRS), processor)
    rows = [examples[item] for item in (0, 2, 5)]
    batch = PhotoCaptionCollator(processor, with_rows=True)(rows)
    expected = processor(
        images=[row["image"] for row in rows], suffix=["a cat", "a dog", "a car"], return_tensors="pt"
    )
    for name in ("pixel_values", "input_ids", "attention_mask"):
        assert torch.equal(batch[name], expected[name])
    width = batch["labels"].shape[1]
    assert torch.equal(batch["labels"], expected["labels"][:, -width:])
    assert (expected["labels"][:, :-width] == -100).all() and (batch["labels"][:, 0] == -100).all()
    assert batch["row"].tolist() == [0, 1, 2]


def test_collator_takes_cached_features_instead_of_photos(processor):
    rows = [
        {"vision_hidden_states": np.full((4, 3), row, np.float16), "caption": "a cat", "row": row} for row in (5, 7)
    ]
    batch = PhotoCaptionCollator(processor, photo_keys=lambda rows, photos: torch.tensor([len(rows)]))(rows)
    assert "pixel_values" not in batch and batch["vision_hidden_states"].dtype == torch.float32
    assert batch["vision_hidden_states"][:, 0, 0].tolist() == [5, 7] and batch["photo_keys"].tolist() == [2]


def test_prompts_without_captions_are_those_of_the_processor(processor, photos):
    captions = ["a cat", "two zebra on the street and a pizza", "a bus"]
    batch = processor(images=photos[:3], suffix=captions, return_tensors="pt")
    ids, mask = prompts_alone(
        batch["input_ids"], batch["attention_mask"], cut_labels(batch["labels"]), processor.tokenizer.pad_token_id
    )
    prompt = processor(images=photos[:3], return_tensors="pt")
    assert torch.equal(ids, prompt["input_ids"]) and torch.equal(mask, prompt["attention_mask"])
