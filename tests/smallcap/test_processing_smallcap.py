"""SmallCap's processor."""

from __future__ import annotations

import pytest
import torch
from tiny_smallcap import IMAGE_SIZE, make_processor, make_tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hf_evcap import SmallCapProcessor


def test_photos_alone(smallcap_processor, photo_paths):
    batch = smallcap_processor(images=photo_paths, return_tensors="pt")
    assert set(batch) == {"pixel_values"} and batch["pixel_values"].shape == (4, 3, IMAGE_SIZE, IMAGE_SIZE)


def test_labels(smallcap_processor, photo_paths):
    tokenizer = smallcap_processor.tokenizer
    captions = ["a cat", "A man rides a horse."]
    for batch in (
        smallcap_processor(suffix=captions, return_tensors="pt"),
        smallcap_processor(images=photo_paths[:2], suffix=captions, return_tensors="pt"),
    ):
        labels = batch["labels"]
        rows = [row[row >= 0].tolist() for row in labels]
        # One full stop ends a caption, whether it had one or not; nothing stands in front of it.
        assert [tokenizer.decode(row) for row in rows] == ["a cat.", "A man rides a horse."]
        assert [row.count(tokenizer.eos_token_id) for row in rows] == [1, 1]
        assert labels[0, len(rows[0]) :].eq(-100).all()
    same = smallcap_processor(images=photo_paths[:2], suffix="a cat", return_tensors="pt")["labels"]
    assert torch.equal(same[0], same[1])


def test_long_captions_are_cut(smallcap_processor):
    end = smallcap_processor.tokenizer.eos_token_id
    long = "umbrellas in the rain " * 20
    row = smallcap_processor(suffix=[long])["labels"][0]
    assert len(row) == 26 and row[-1] == end and end not in row[:-1]
    assert len(smallcap_processor(suffix=[long], max_length=9)["labels"][0]) == 9


def test_prompts_are_passed_on(smallcap_processor, photo_paths):
    batch = smallcap_processor(images=photo_paths[:2], text="Look: {captions}", return_tensors="pt")
    assert batch["prompts"] == ["Look: {captions}"] * 2
    assert smallcap_processor(prompts=["a", "b"])["prompts"] == ["a", "b"]
    assert smallcap_processor(text=["a", "{prompt}b"])["prompts"] == ["a", "{prompt}b"]


def test_prompts_without_retrieval_are_tokenised(smallcap_processor, smallcap, photo_paths):
    """As a tokenizer would, with its options; the model reads the same, and needs no datastore."""
    text = "The U.S. flag. This image shows "
    batch = smallcap_processor(images=photo_paths[:2], text=[text, "A"], return_tensors="pt")
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask"}
    assert batch["attention_mask"][1].tolist() == [0] * (batch["input_ids"].shape[1] - 1) + [1]
    prompts = smallcap_processor(images=photo_paths[:2], prompts=[text, "A"], return_tensors="pt")
    assert torch.equal(smallcap.generate(**batch), smallcap.generate(**prompts))
    wide = smallcap_processor(text=text, padding="max_length", max_length=30, return_tensors="pt")
    assert wide["input_ids"].shape == (1, 30)
    cut = smallcap_processor(text=text, text_kwargs={"truncation": True, "max_length": 4})
    assert cut["input_ids"] == [batch["input_ids"][0].tolist()[:4]]
    right = smallcap_processor(text=["A", text], padding_side="right", images_kwargs={"do_normalize": False})
    assert right["attention_mask"][0][:2] == [1, 0]
    with pytest.raises(ValueError, match="give one"):
        smallcap_processor(text="a", prompts="b")


def test_nested_photos(smallcap_processor, photos):
    expected = smallcap_processor(images=photos, images_kwargs={"do_normalize": False}, return_tensors="pt")
    nested = smallcap_processor(images=[[photo] for photo in photos], do_normalize=False, return_tensors="pt")
    assert torch.equal(nested["pixel_values"], expected["pixel_values"])
    with pytest.raises(ValueError, match="one photo; got 2"):
        smallcap_processor(images=[photos[:2]])


def test_chats_leave_the_prompt_to_the_model(smallcap_processor, smallcap, photos, caplog):
    def model_inputs(chats, **options):
        return smallcap_processor.apply_chat_template(
            chats, tokenize=True, return_dict=True, return_tensors="pt", **options
        )

    chats = [[{"role": "user", "content": [{"type": "image", "image": photo}]}] for photo in photos[:2]]
    chats[1][0]["content"].append({"type": "text", "text": "What is this?"})
    batch = model_inputs(chats)
    assert batch["prompts"] == ["{prompt}"] * 2 and "whatever the messages ask" in caplog.text
    expected = smallcap.generate(**smallcap_processor(images=photos[:2], return_tensors="pt"))
    assert torch.equal(smallcap.generate(**batch), expected)
    answer = {"role": "assistant", "content": "two dogs"}
    begun = model_inputs([*chats[0], answer], continue_final_message=True)
    assert begun["prompts"] == ["{prompt}two dogs"]
    captions = smallcap.encode_images(begun["pixel_values"]).captions.captions
    [prompt] = smallcap.build_prompts(captions, begun["prompts"])
    assert prompt == smallcap.build_prompts(captions)[0] + "two dogs"


def test_full_stops_inside_words_stay_whole(smallcap_processor):
    """Pad and end are ordinary tokens of GPT-2: making them special must not change how text is split."""
    plain, ours = make_tokenizer(), smallcap_processor.tokenizer
    for text in ("the U.S. flag...", "wow! what a cat ", "Similar images show\n\na cat.\n\nThis image shows "):
        encoded = ours(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert encoded == plain(text, add_special_tokens=False)["input_ids"]


def test_decoding(smallcap_processor):
    tokenizer = smallcap_processor.tokenizer
    row = tokenizer("a cat on a mat")["input_ids"] + [tokenizer.eos_token_id] + [tokenizer.pad_token_id] * 3
    assert smallcap_processor.post_process_image_text_to_text(torch.tensor([row])) == ["a cat on a mat"]
    assert smallcap_processor.batch_decode([row], skip_special_tokens=True) == ["a cat on a mat"]


def test_save_and_load(smallcap_processor, tmp_path, photo_paths):
    processor = make_processor()
    processor.max_caption_length = 7
    processor.save_pretrained(tmp_path)
    loaded = SmallCapProcessor.from_pretrained(tmp_path)
    assert loaded.max_caption_length == 7
    assert (loaded.tokenizer.pad_token, loaded.tokenizer.eos_token, loaded.tokenizer.padding_side) == (
        "!",
        ".",
        "left",
    )
    assert (tmp_path / "processing_smallcap.py").is_file()
    first, second = (one(images=photo_paths, suffix="a cat.", return_tensors="pt") for one in (processor, loaded))
    assert torch.equal(first["pixel_values"], second["pixel_values"]) and torch.equal(
        first["labels"], second["labels"]
    )


def test_bad_input(smallcap_processor, photo_paths):
    with pytest.raises(ValueError, match="`images`, `suffix`"):
        smallcap_processor()
    with pytest.raises(ValueError, match="empty"):
        smallcap_processor(images=[])
    with pytest.raises(ValueError, match="Got 1 strings in `suffix` for 2 photos"):
        smallcap_processor(images=photo_paths[:2], suffix=["a"])
    with pytest.raises(TypeError, match="colour"):
        smallcap_processor(suffix=["a"], colour=1)
    with pytest.raises(ValueError, match="'<end>' is not"):
        SmallCapProcessor(CLIPImageProcessorPil(), make_tokenizer(), end_token="<end>")
