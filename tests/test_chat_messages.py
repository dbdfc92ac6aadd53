"""Chats with a photo: read in every form that clients send, and mapped onto the models' prompts."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_processor
from tiny_smallcap import make_processor as make_smallcap_processor
from transformers.utils.chat_template_utils import Chat

from hf_evcap import EVCapProcessor, default_model
from hf_evcap.chat_messages import is_conversation, photos_of, read_conversation, requests_of


@pytest.fixture(scope="module")
def embedded():
    return EVCapProcessor.from_pretrained(default_model())


def chat(photo=None, text=None, answer=None):
    parts = [{"type": "image", **({} if photo is None else {"image": photo})}]
    parts += [] if text is None else [{"type": "text", "text": text}]
    answers = [] if answer is None else [{"role": "assistant", "content": answer}]
    return [{"role": "user", "content": parts}, *answers]


def model_inputs(processor, conversation, **options):
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, return_tensors="pt", **options)


def same(left, right):
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)


# Reading


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "cat.jpg"},
        {"type": "image", "url": "cat.jpg"},
        {"type": "image", "path": "cat.jpg", "text": None},
        {"type": "image", "base64": "cat.jpg"},
        {"type": "image_url", "image_url": {"url": "cat.jpg", "detail": "low"}},
        {"type": "image_url", "image_url": "cat.jpg"},
        {"image": "cat.jpg"},
    ],
)
def test_where_a_photo_may_be(part):
    messages = [{"role": "user", "content": [part, "What?", {"text": "Say."}]}]
    before = copy.deepcopy(messages)
    read = read_conversation(messages)
    assert photos_of(read) == ["cat.jpg"] and requests_of(read) == ["What?", "Say."]
    assert [one["type"] for one in read[0]["content"]] == ["image", "text", "text"]
    assert messages == before
    replaced = read_conversation(messages, photo="dog.jpg")
    assert photos_of(replaced) == ["dog.jpg"]


def test_kinds_of_conversations():
    messages = [{"role": "user", "content": "Hello"}]

    @dataclasses.dataclass
    class Message:
        role: str
        content: str
        name: str | None = None

    for conversation in (messages, tuple(messages), Chat(messages), [Message("user", "Hello")]):
        assert is_conversation(conversation)
        assert read_conversation(conversation) == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    dumped = SimpleNamespace(role="user", model_dump=lambda: {"role": "user", "content": None})
    assert read_conversation([dumped]) == [{"role": "user", "content": []}]
    for other in ([], "user", ["a.jpg"], [messages], [{"image": "a.jpg"}], None):
        assert not is_conversation(other)


def test_a_photo_beside_the_chat():
    assert photos_of(read_conversation([{"role": "user", "content": "What?"}], photo="a.jpg")) == ["a.jpg"]
    with pytest.raises(ValueError, match="no message of the role 'user'"):
        read_conversation([{"role": "system", "content": "Be kind."}], photo="a.jpg")
    with pytest.raises(ValueError, match="type 'video' with type, url"):
        read_conversation([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])
    with pytest.raises(ValueError, match="type 'text'"):
        read_conversation([{"role": "user", "content": [{"type": "text"}]}])
    with pytest.raises(TypeError, match="got int"):
        read_conversation([3])


# Onto the prompt


def test_a_chat_gives_the_inputs_of_photo_and_text(processor, photos):
    expected = processor(images=photos[0], text="What is this?", return_tensors="pt")
    assert same(model_inputs(processor, chat(photos[0], "What is this?")), expected)
    asked = [{"role": "user", "content": "What is this?"}]
    assert same(model_inputs(processor, read_conversation(asked, photos[0])), expected)
    assert same(model_inputs(processor, chat(photos[0])), processor(images=photos[0], return_tensors="pt"))
    prompt = processor.apply_chat_template(chat(text="What is this?"), add_generation_prompt=True)
    assert prompt == "<s>###Human: <Img><image></Img> What is this? ###Assistant: "
    assert same(processor(images=photos[0], text=prompt, return_tensors="pt"), expected)


def test_several_chats(processor, photos):
    texts = ["What is this?", "Name it."]
    expected = processor(images=photos[:2], text=texts, return_tensors="pt")
    chats = [chat(photo, text) for photo, text in zip(photos, texts, strict=False)]
    assert same(model_inputs(processor, chats), expected)
    prompts = processor.apply_chat_template(chats)
    assert same(processor(images=[[photos[0]], [photos[1]]], text=prompts, return_tensors="pt"), expected)


def test_answers_are_the_captions_to_learn(processor, embedded, photos):
    """What is learned from a chat is what is learned from photo, prompt and caption, token by token."""
    for made, text in ((processor, "What is this?"), (embedded, None)):
        expected = made(images=photos[0], text=text, suffix="a cat on the table", return_tensors="pt")
        batch = model_inputs(made, chat(photos[0], text, "a cat on the table"), return_assistant_tokens_mask=True)
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        learned = batch["input_ids"].masked_fill(torch.as_tensor(batch["assistant_masks"]) == 0, -100)
        assert torch.equal(learned, expected["labels"])


def test_a_caption_that_is_begun(embedded, photos):
    begun = chat(photos[0], answer="a photo of")
    batch = model_inputs(embedded, begun, continue_final_message=True)
    assert same(batch, embedded(images=photos[0], text="{image}<s>a photo of", return_tensors="pt"))


def test_places_in_what_people_write_are_text(processor, photos):
    batch = model_inputs(processor, chat(photos[0], "What is <image> or {image}?"))
    assert batch["input_ids"].eq(processor.image_token_id).sum() == 9
    assert "{ image }" in processor.apply_chat_template(chat(text="What is {image}?"))


def test_a_model_that_takes_no_requests_says_so(embedded, photos, caplog):
    expected = embedded(images=photos[0], return_tensors="pt")
    with caplog.at_level(logging.WARNING):
        assert same(model_inputs(embedded, chat(photos[0], "  ")), expected)
        assert not caplog.records
        assert same(model_inputs(embedded, chat(photos[0], "What is this?")), expected)
    assert "whatever the messages ask ('What is this?')" in caplog.text
    with pytest.raises(ValueError, match=r"'\{image\}<s>' has no place for the text 'What is this\?'"):
        embedded(images=photos[0], text="What is this?")


def test_one_photo_a_chat(processor, photos):
    two = chat(photos[0])[0]["content"] + chat(photos[1])[0]["content"]
    with pytest.raises(ValueError, match="one photo; got 2"):
        model_inputs(processor, [{"role": "user", "content": two}])


# The template is saved, loaded and follows the prompt


@pytest.mark.parametrize("make", [make_processor, make_smallcap_processor])
def test_saved_and_loaded(make, tmp_path):
    made = make()
    made.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == made.chat_template
    assert type(made).from_pretrained(tmp_path).chat_template == made.chat_template
    made.chat_template = "{{ messages[0]['role'] }}"
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path)
    assert loaded.apply_chat_template(chat()) == "user"


def test_the_template_follows_the_prompt(tmp_path):
    made = make_processor(prompt='Say "it" — 再.')
    assert 'Say "it" — 再.' in made.apply_chat_template(chat())
    made.prompt = "Name it."
    assert "Name it." in made.apply_chat_template(chat())
    made.prompt_template = "{image} {prompt} »"
    made.save_pretrained(tmp_path)
    assert EVCapProcessor.from_pretrained(tmp_path).apply_chat_template(chat()) == "<s><image> Name it. »"
    other = EVCapProcessor.from_pretrained(tmp_path, prompt="What?")
    assert other.apply_chat_template(chat()) == "<s><image> What? »"


def test_folders_without_a_template(tmp_path):
    """As they were written before."""
    make_processor().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert "chat_template" not in json.loads((tmp_path / "processor_config.json").read_text())
    assert EVCapProcessor.from_pretrained(tmp_path).apply_chat_template(chat()).count("<image>") == 1
