"""Chats through the pipeline, and what users of stock `image-text-to-text` pipelines give and expect."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from tiny_smallcap import make_model as make_smallcap
from tiny_smallcap import make_processor as make_smallcap_processor
from transformers import GenerationConfig, pipeline
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils.chat_template_utils import Chat

import hf_evcap


@pytest.fixture(scope="module")
def embedded():
    return pipeline("image-text-to-text", model=hf_evcap.default_model())


@pytest.fixture(scope="module")
def tiny(tiny_dir):
    return pipeline("image-text-to-text", model=str(tiny_dir))


@pytest.fixture(scope="module")
def smallcap():
    return pipeline("image-text-to-text", model=make_smallcap(), processor=make_smallcap_processor())


def chat(photo, text=None):
    parts = [{"type": "image"} if photo is None else {"type": "image", "image": photo}]
    return [{"role": "user", "content": parts + ([] if text is None else [{"type": "text", "text": text}])}]


def answers(results):
    """The assistant's words in the results of several chats."""
    return [result[0]["generated_text"][-1]["content"] for result in results]


def captions(pipe, photos, **options):
    return [result[0]["generated_text"] for result in pipe(photos, **options)]


# Ways to send a chat


@pytest.mark.parametrize("which", ["embedded", "tiny", "smallcap"])
def test_a_chat_is_answered(request, which, photo_paths, photos, photo_server):
    pipe = request.getfixturevalue(which)
    [expected] = pipe(photo_paths[1])
    messages = chat(photo_paths[1])
    for result in (pipe(text=messages), pipe(messages), pipe(images=messages), pipe(Chat(messages))):
        [answer] = result
        assert answer["input_text"] == messages
        said = {"role": "assistant", "content": expected["generated_text"]}
        assert answer["generated_text"] == [*messages, said]
        assert answer[pipe.model.retrieved_field] == expected[pipe.model.retrieved_field] != []
    for photo in (photos[1], Path(photo_paths[1]), f"{photo_server}/cat.jpg", Path(photo_paths[1]).read_bytes()):
        assert answers([pipe(text=chat(photo))]) == [expected["generated_text"]]
    openai = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": photo_paths[1]}}]}]
    assert answers([pipe(text=openai)]) == [expected["generated_text"]]
    assert pipe(text=messages, return_full_text=False)[0]["generated_text"] == expected["generated_text"]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_several_chats(embedded, tiny, smallcap, photo_paths, photos, batch_size):
    for pipe in (embedded, tiny, smallcap):
        expected = captions(pipe, photo_paths)
        chats = [chat(path) for path in photo_paths]
        assert answers(pipe(text=chats, batch_size=batch_size)) == expected
        assert answers(pipe((one for one in chats), batch_size=batch_size)) == expected
        assert answers(pipe(photo_paths, text=[chat(None)] * 4, batch_size=batch_size)) == expected
        beside = datasets.Dataset.from_dict({"messages": [chat(None)] * 4, "images": [[path] for path in photo_paths]})
        beside = beside.cast_column("images", datasets.List(datasets.Image()))
        assert answers(pipe(beside, batch_size=batch_size)) == expected
        assert answers(pipe(beside.to_iterable_dataset(), batch_size=batch_size)) == expected
        inside = datasets.Dataset.from_dict({"messages": chats, "other": [1] * 4})
        assert answers(pipe(inside, batch_size=batch_size)) == expected
        assert answers(pipe(KeyDataset(inside, "messages"), batch_size=batch_size)) == expected
        assert answers(pipe(text=KeyDataset(inside, "messages"), batch_size=batch_size)) == expected


def test_requests_of_different_lengths(tiny, photo_paths):
    texts = ["a", "What is on the table in this photo?", "Name the cat.", "two"]
    expected = captions(tiny, photo_paths, text=texts)
    assert len(set(expected)) > 2
    chats = [chat(path, text) for path, text in zip(photo_paths, texts, strict=True)]
    for batch_size in (1, 4):
        assert answers(tiny(text=chats, batch_size=batch_size)) == expected


@pytest.mark.parametrize("which", ["embedded", "smallcap"])
def test_requests_to_a_model_that_knows_none(request, which, photo_paths, caplog):
    """A chat is captioned, and a warning says what became of the text; a prompt that has no place is refused."""
    pipe = request.getfixturevalue(which)
    with caplog.at_level(logging.WARNING):
        assert answers([pipe(text=chat(photo_paths[0], "What is this?"))]) == captions(pipe, photo_paths[:1])
    assert "whatever the messages ask ('What is this?')" in caplog.text
    if which == "embedded":
        with pytest.raises(ValueError, match=r"has no place for the text 'a photo of'.*Leave the text out"):
            pipe(photo_paths[0], text="a photo of")
        with pytest.raises(ValueError, match="has no place for the text 'a caption'"):
            pipe({"image": photo_paths[0], "text": "a caption"})


def test_a_caption_that_is_begun(embedded, photo_paths):
    expected = captions(embedded, photo_paths[1:2], text="{image}<s>a photo of")[0]
    begun = [*chat(photo_paths[1]), {"role": "assistant", "content": "a photo of"}]
    [answer] = embedded(text=begun)
    assert answer["generated_text"][-1] == {"role": "assistant", "content": f"a photo of {expected}"}
    assert embedded(text=begun, return_full_text=False)[0]["generated_text"] == f" {expected}"
    parts = [*chat(photo_paths[1]), {"role": "assistant", "content": [{"type": "text", "text": "a photo of"}]}]
    assert embedded(text=parts)[0]["generated_text"][-1]["content"][0]["text"] == f"a photo of {expected}"
    again = embedded(text=begun, continue_final_message=False)[0]["generated_text"]
    assert [message["role"] for message in again] == ["user", "assistant", "assistant"]


def test_chats_that_cannot_be_captioned(embedded, photo_paths):
    with pytest.raises(ValueError, match="one photo, this one has 0"):
        embedded(text=[{"role": "user", "content": "What is this?"}])
    with pytest.raises(ValueError, match="one photo, this one has 2"):
        embedded(photo_paths[0], text=chat(photo_paths[1]))
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        embedded(text=chat("none.jpg"))
    skipped = embedded(text=[chat("none.jpg"), chat(photo_paths[1])], on_error="skip")
    assert skipped[0][0]["generated_text"] is None and "none.jpg" in skipped[0][0]["error"]
    assert answers(skipped[1:]) == captions(embedded, photo_paths[1:2])
    with pytest.raises(ValueError, match="Give a photo"):
        embedded(text=["a", "b"])
    with pytest.raises(ValueError, match="in the chat's messages"):
        embedded({"messages": chat(photo_paths[0]), "text": "a"})


# Arguments of stock pipelines


def test_what_is_given_back(embedded, tiny, photo_paths, photos):
    [plain] = embedded(photo_paths[1])
    assert embedded(photo_paths[1], return_full_text=True) == [plain]
    [full] = tiny(photo_paths[1], text="What is this?", return_full_text=True)
    assert full["generated_text"] == f"What is this? {captions(tiny, photo_paths[1:2], text='What is this?')[0]}"
    [tokens] = embedded(photo_paths[1], return_tensors=True)
    decoded = embedded.tokenizer.decode(tokens["generated_token_ids"], skip_special_tokens=True)
    assert decoded.strip() == plain["generated_text"] and "generated_text" not in tokens
    [ended] = embedded(photo_paths[1], skip_special_tokens=False)
    assert ended["generated_text"] == f"{plain['generated_text']}</s>"
    with pytest.raises(ValueError, match="give one"):
        embedded(photo_paths[1], return_full_text=True, return_tensors=True)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_outputs_as_dictionaries(embedded, photo_paths, batch_size):
    expected = embedded(photo_paths[:2])
    options = {"return_dict_in_generate": True, "output_scores": True, "batch_size": batch_size}
    assert embedded(photo_paths[:2], **options) == expected
    config = GenerationConfig(max_new_tokens=4, num_beams=1, return_dict_in_generate=True, pad_token_id=0)
    short = embedded(photo_paths[:2], generation_config=config, batch_size=batch_size)
    assert len(short) == 2 and short != expected


def test_stop_sequences(embedded, photo_paths):
    [text] = captions(embedded, photo_paths[1:2])
    for stop in ("of", ["of", "zebra"]):
        assert captions(embedded, photo_paths[1:2], stop_sequence=stop) == [text[: text.index("of") + 2]]
    config = GenerationConfig(max_new_tokens=9, num_beams=5, stop_strings=["of"], length_penalty=0.8, pad_token_id=0)
    config.eos_token_id = 2
    assert captions(embedded, photo_paths[1:2], generation_config=config) == [text[: text.index("of") + 2]]
    with pytest.raises(ValueError, match="mean the same"):
        embedded(photo_paths[1], stop_sequence="of", generate_kwargs={"stop_strings": ["a"]})


def test_processor_kwargs(embedded, photos):
    """Options of the image processor and the tokenizer reach them; others do not pass in silence."""
    grey = Image.new("RGB", (288, 288), (127, 127, 127))
    assert captions(embedded, [photos[0]], processor_kwargs={"do_normalize": True}) == captions(embedded, [photos[0]])
    dark = embedded.preprocess(grey, processor_kwargs={"do_normalize": False, "do_rescale": False})
    assert dark["pixel_values"].max() == 127
    with pytest.raises(TypeError, match="colour"):
        embedded(photos[0], processor_kwargs={"colour": "red"})


@pytest.mark.parametrize("options", [{}, {"num_beams": 1}, {"num_return_sequences": 3}, {"do_sample": True}])
def test_words_are_known_or_retrieved(embedded, photo_paths, options):
    """`known_words_only` of the embedded model holds with every option of generation, in chats, too."""
    assert embedded.model.config.known_words_only
    is_word = embedded.model.spelling.is_word
    torch.manual_seed(0)
    results = embedded(text=[chat(path) for path in photo_paths], return_full_text=False, batch_size=2, **options)
    for answer in (answer for result in results for answer in result):
        named = {word for entry in answer["retrieved_names"] for word in entry["name"].split()}
        words = answer["generated_text"].split()
        assert words
        for word in set(words) - named:
            ids = embedded.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            assert len(ids) == 1 and is_word[ids[0]], (word, answer["generated_text"])
