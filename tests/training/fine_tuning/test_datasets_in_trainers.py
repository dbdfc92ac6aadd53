"""Datasets as users have them, in transformers' own `Trainer` and in `CaptionTrainer`, with default arguments."""

from __future__ import annotations

import datasets
import pytest
import torch
from tiny_models import make_model, make_processor
from tiny_smallcap import make_model as make_smallcap
from tiny_smallcap import make_processor as make_smallcap_processor
from training_runs import CAPTIONS, write_photos
from transformers import Seq2SeqTrainingArguments, Trainer, TrainingArguments, pipeline

import hf_evcap
from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor
from hf_evcap.training.caption_trainer import CaptionTrainer
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples, StreamedCaptionExamples, with_captions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An imagefolder: photos with `metadata.jsonl`, as `datasets` documents it, but for the name of the captions."""
    folder = write_photos(tmp_path_factory.mktemp("photos"))
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"captions": [', '"text": ').replace("]", ""))
    return folder


@pytest.fixture(scope="module")
def imagefolder(folder):
    dataset = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert dataset.column_names == ["image", "text"]
    return dataset


def arguments(folder, kind=TrainingArguments, **options):
    defaults = {"output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
    defaults |= {"use_cpu": True, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}
    return kind(**{**defaults, **options})


def embedded():
    model = EVCapForConditionalGeneration.from_pretrained(hf_evcap.default_model())
    model.freeze_for_training("paper")
    return model, EVCapProcessor.from_pretrained(hf_evcap.default_model())


def tiny():
    model = make_model()
    model.freeze_for_training("paper")
    return model, make_processor()


def smallcap():
    model = make_smallcap()
    model.freeze_for_training("paper")
    return model, make_smallcap_processor()


MODELS = {"embedded": embedded, "tiny": tiny, "smallcap": smallcap}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# CaptionTrainer


@pytest.mark.parametrize("which", MODELS)
def test_caption_trainer_takes_an_imagefolder(which, imagefolder, tmp_path):
    model, processor = MODELS[which]()
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer = CaptionTrainer(
        model, arguments(tmp_path), processing_class=processor, train_dataset=imagefolder, eval_dataset=imagefolder
    )
    trainer.train()
    assert len(losses(trainer)) == 2 and all(loss > 0 for loss in losses(trainer))
    assert any(not torch.equal(weight, before[name]) for name, weight in model.named_parameters() if name in before)
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model()
    pipe = pipeline("image-to-text", model=str(tmp_path))
    assert pipe(imagefolder[0]["image"])[0]["generated_text"]


def variants(imagefolder):
    """The same photos and captions under every name and in every form."""
    names = sorted(set(CAPTIONS))
    classes = datasets.ClassLabel(names=names)
    lists = datasets.List(datasets.Value("string"))
    text = imagefolder.rename_column("text", "caption")
    many = imagefolder.map(lambda row: {"captions": [row["text"]]}, remove_columns="text")
    return {
        "caption": text,
        "captions": many,
        "a string under captions": imagefolder.rename_column("text", "captions"),
        "lists under text": many.rename_column("captions", "text"),
        "sentences": imagefolder.rename_column("text", "sentences"),
        "a photo column of another name": text.rename_column("image", "drawing").add_column("path", ["?"] * 8),
        "classes": text.map(lambda row: {"caption": names.index(row["caption"])}).cast_column("caption", classes),
        "list of classes": many.map(
            lambda row: {"captions": [names.index(one) for one in row["captions"]]}
        ).cast_column("captions", datasets.List(classes)),
        "paths": datasets.Dataset.from_dict(
            {
                "image": [one["path"] for one in text.cast_column("image", datasets.Image(decode=False))["image"]],
                "captions": [[caption] for caption in CAPTIONS],
            },
            features=datasets.Features({"image": datasets.Value("string"), "captions": lists}),
        ),
    }


def test_names_and_forms_of_columns(imagefolder, processor):
    expected = CaptionExamples(imagefolder, processor)
    for what, dataset in variants(imagefolder).items():
        streamed = iter(StreamedCaptionExamples(dataset.to_iterable_dataset(), processor))
        examples = CaptionExamples(dataset, processor)
        assert len(examples) == 8, what
        for number in range(8):
            for example in (examples[number], next(streamed)):
                assert example["caption"] == expected[number]["caption"] == CAPTIONS[number], what
                assert example["image"].tobytes() == expected[number]["image"].tobytes(), what


def test_columns_that_are_not_there_are_named(imagefolder, processor):
    with pytest.raises(ValueError, match=r"no column `captions`; the columns are image, words"):
        CaptionExamples(imagefolder.rename_column("text", "words"), processor)
    two = imagefolder.rename_column("image", "left").map(lambda row: {"right": row["left"]})
    with pytest.raises(ValueError, match=r"no column `image`; the columns are left, text, right"):
        CaptionExamples(two, processor)
    with pytest.raises(ValueError, match=r"'text' must hold a caption or a list"):
        with_captions(imagefolder.map(lambda row: {"text": 3.5}))
    with pytest.raises(ValueError, match=r"Choose a split .* dataset\['train'\]"):
        CaptionTrainer(
            make_model(), processing_class=processor, train_dataset=datasets.DatasetDict({"train": imagefolder})
        )


def test_defaults_are_those_of_a_run(imagefolder, tmp_path):
    """Unused columns stay, captions are generated and scored, and no photo retrieves itself."""
    model, processor = embedded()
    known = imagefolder.add_column("image_id", [f"photo-{row}" for row in range(8)])
    memory = type(model.memory).from_images(model, processor, known, name_column="text", columns=["image_id"])
    model.set_memory(memory)
    args = arguments(tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True, generation_max_length=4)
    assert args.remove_unused_columns
    trainer = CaptionTrainer(
        model, args, processing_class=processor, train_dataset=known, eval_dataset={"seen": known}
    )
    assert not trainer.args.remove_unused_columns
    seen, retrieve_names = [], model.retrieve_names

    def watch(queries, exclude_rows=None, *given):
        seen.append((model.training, exclude_rows))
        return retrieve_names(queries, exclude_rows, *given)

    model.retrieve_names = watch
    trainer.train()
    trained = [excluded for training, excluded in seen if training]
    assert len(trained) == 2  # each photo's own row is left out, and nothing else
    assert sorted(torch.cat(trained).flatten().tolist()) == list(range(8))
    single = CaptionTrainer(
        model, args, processing_class=processor, train_dataset=imagefolder, eval_dataset=imagefolder.select(range(3))
    )
    assert set(single.evaluate()) >= {"eval_cider", "eval_bleu_4", "eval_loss"}


def test_a_stream(imagefolder, tmp_path):
    model, processor = embedded()
    stream = imagefolder.to_iterable_dataset()
    trainer = CaptionTrainer(model, arguments(tmp_path), processing_class=processor, train_dataset=stream)
    trainer.train()
    assert len(losses(trainer)) == 2
    with pytest.raises(ValueError, match="dataset with an end"):
        CaptionTrainer(model, arguments(tmp_path), processing_class=processor, eval_dataset=stream)


# transformers' own Trainer


@pytest.mark.parametrize("which", MODELS)
def test_plain_trainer_with_our_examples(which, imagefolder, tmp_path):
    """`remove_unused_columns` is `True` by default."""
    model, processor = MODELS[which]()
    trainer = Trainer(
        model,
        arguments(tmp_path),
        train_dataset=CaptionExamples(imagefolder, processor),
        eval_dataset=CaptionExamples(imagefolder, processor, captions="first"),
        data_collator=PhotoCaptionCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    assert len(losses(trainer)) == 2 and trainer.evaluate()["eval_loss"] > 0
    trainer.save_model()
    assert type(model).from_pretrained(tmp_path).memory is not None


@pytest.mark.parametrize("which", MODELS)
def test_plain_trainer_with_raw_rows(which, imagefolder, tmp_path):
    model, processor = MODELS[which]()
    for dataset in (imagefolder, variants(imagefolder)["captions"]):
        trainer = Trainer(
            model,
            arguments(tmp_path, remove_unused_columns=False, max_steps=1),
            train_dataset=dataset,
            data_collator=PhotoCaptionCollator(processor),
        )
        trainer.train()
        assert len(losses(trainer)) == 1
    with pytest.raises(ValueError, match=r"CaptionExamples\(dataset, processor\)`, or set `remove_unused_columns"):
        PhotoCaptionCollator(processor)([{"captions": ["a cat"]}])
    with pytest.raises(ValueError, match="no caption in 'captions'"):
        PhotoCaptionCollator(processor)([{"image": imagefolder[0]["image"], "captions": []}])


def test_plain_trainer_with_processed_columns(imagefolder, tmp_path):
    """The way of transformers' examples: the processor in `map`, and the raw columns dropped by the trainer."""
    model, processor = embedded()
    processed = imagefolder.map(
        lambda rows: processor(images=rows["image"], suffix=rows["text"], padding="max_length", max_length=80),
        batched=True,
    )
    trainer = Trainer(model, arguments(tmp_path), train_dataset=processed, eval_dataset=processed)
    trainer.train()
    assert len(losses(trainer)) == 2 and trainer.evaluate()["eval_loss"] > 0


# Chats


def chats(imagefolder, text="What is this?"):
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": parts},
                {"role": "assistant", "content": [{"type": "text", "text": row["text"]}]},
            ],
            "images": [row["image"]],
        }
        for row in imagefolder
    ]
    message = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    features = {
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.List(message)}),
        "images": datasets.List(datasets.Image()),
    }
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


class StockCollator:
    """As in transformers' and TRL's guides to vision-language fine-tuning."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, examples):
        texts = self.processor.apply_chat_template([example["messages"] for example in examples])
        images = [example["images"] for example in examples]
        batch = self.processor(
            images=images, text=texts, padding=True, padding_side="right", pad_to_multiple_of=8,
            truncation=True, max_length=512, return_tensors="pt", add_special_tokens=False,
        )  # fmt: skip
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return batch


@pytest.mark.parametrize("which", ["embedded", "tiny"])
def test_chats_with_a_stock_collator(which, imagefolder, tmp_path):
    model, processor = MODELS[which]()
    data = chats(imagefolder)
    batch = StockCollator(processor)(data.select(range(3)))
    request = None if which == "embedded" else "What is this?"
    plain = processor(images=imagefolder[:3]["image"], text=request, suffix=CAPTIONS[:3], return_tensors="pt")
    rows = zip(batch["input_ids"], batch["attention_mask"], plain["input_ids"], plain["attention_mask"], strict=True)
    assert all(torch.equal(ids[mask.bool()], own[kept.bool()]) for ids, mask, own, kept in rows)
    assert model(**batch).loss > 0
    trainer = Trainer(
        model,
        arguments(tmp_path, remove_unused_columns=False),
        train_dataset=data,
        eval_dataset=data,
        data_collator=StockCollator(processor),
    )
    trainer.train()
    assert len(losses(trainer)) == 2 and trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("which", MODELS)
def test_chats_with_our_collator(which, imagefolder, tmp_path):
    """The caption is learned and the request is not; it is the prompt where the model takes one."""
    model, processor = MODELS[which]()
    data = chats(imagefolder)
    collate = PhotoCaptionCollator(processor)
    text = "What is this?" if which == "tiny" else None
    expected = collate([{**row, "request": text} for row in imagefolder.select(range(3))])
    batch = collate(list(data.select(range(3))))
    assert set(batch) == set(expected) and all(torch.equal(batch[name], expected[name]) for name in batch)
    trainer = CaptionTrainer(model, arguments(tmp_path), processing_class=processor, train_dataset=data)
    trainer.train()
    assert len(losses(trainer)) == 2
    with pytest.raises(ValueError, match="ends with the role 'user'"):
        collate([{"messages": data[0]["messages"][:1], "images": data[0]["images"]}])
    with pytest.raises(ValueError, match="has 0 photos"):
        collate([{"messages": data[0]["messages"]}])


def test_photos_are_not_learned(imagefolder):
    """Labels that name image tokens, which stand beyond the vocabulary, do not count."""
    model, processor = tiny()
    batch = processor(images=imagefolder[0]["image"], suffix="a cat", return_tensors="pt")
    whole = batch["input_ids"].clone()
    assert whole.max() == model.config.image_token_id >= model.get_output_embeddings().out_features
    prompt = whole.masked_fill(whole == model.config.image_token_id, -100)
    model.eval()
    assert torch.equal(model(**{**batch, "labels": whole}).loss, model(**{**batch, "labels": prompt}).loss)
    cut = batch["labels"][:, -5:]
    torch.testing.assert_close(model(**{**batch, "labels": cut}).loss, model(**batch).loss)
