"""`generate` of the model: every way of decoding, beams that share the prefill, batches of prompts."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from hf_evcap.cache_name import CACHE, CACHE_NAMES
from hf_evcap.modeling_evcap import EVCapEncodedImages


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def row(inputs, index):
    return {name: tensor[index : index + 1] for name, tensor in inputs.items()}


def test_outputs_hold_no_prompt(tiny_model, inputs):
    ids = tiny_model.generate(**inputs, max_new_tokens=5, eos_token_id=None)
    assert ids.shape == (4, 5)
    assert (ids != 600).all()


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_manual_loop_equals_generate_and_the_cache_changes_nothing(tiny_model, inputs, name):
    generated = tiny_model.generate(**inputs, max_new_tokens=6, eos_token_id=None)
    assert torch.equal(tiny_model.generate(**inputs, max_new_tokens=6, eos_token_id=None, use_cache=False), generated)
    ids, mask, cache = (
        inputs["input_ids"],
        inputs["attention_mask"],
        DynamicCache(config=tiny_model.config.text_config),
    )
    whole_ids, new = ids, []
    with torch.no_grad():
        output = tiny_model(**inputs, use_cache=True, **{name: cache})
        for _ in range(6):
            token = output.logits[:, -1:].argmax(-1)
            new.append(token)
            whole_ids, mask = torch.cat([whole_ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
            output = tiny_model(input_ids=token, attention_mask=mask, use_cache=True, **{name: output[CACHE]})
            without = tiny_model(input_ids=whole_ids, attention_mask=mask, pixel_values=inputs["pixel_values"])
            close(output.logits[:, -1], without.logits[:, -1], 1e-4)
    assert torch.equal(torch.cat(new, 1), generated)


def test_a_cache_is_given_once(tiny_model, inputs):
    with pytest.raises(ValueError, match="two names of one argument"):
        tiny_model(**inputs, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("options", [
    {"num_beams": 5},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True},
    {"num_beams": 3, "max_new_tokens": 1},
    {"num_return_sequences": 3, "do_sample": True},
    {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Passing `.*` with `inputs_embeds`")  # the penalties spare the prompt, as meant
@pytest.mark.parametrize("text", ["llama", "gpt2", "opt"])
def test_shared_prefill_equals_stock_beams(model_of, inputs, monkeypatch, options, text):
    model = model_of(text)
    prompts = []
    forward = model.language_model.base_model.forward

    def counted(*args, inputs_embeds=None, **kwargs):
        prompts.append(0 if inputs_embeds is None else len(inputs_embeds) * (inputs_embeds.shape[1] > 1))
        return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

    counted.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(model.language_model.base_model, "forward", counted)
    settings = {"return_dict_in_generate": True, "output_scores": True, **options}
    torch.manual_seed(3)
    shared = model.generate(**inputs, **settings)
    assert sum(prompts) == 4  # once a photo, not once a beam
    monkeypatch.setattr(type(model), "_shared_prefill", lambda *args: None)
    torch.manual_seed(3)
    stock = model.generate(**inputs, **settings)
    assert torch.equal(shared.sequences, stock.sequences)
    close(torch.stack(shared.scores).nan_to_num(neginf=-99), torch.stack(stock.scores).nan_to_num(neginf=-99), 1e-4)


def test_return_sequences_and_sampling(tiny_model, inputs):
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 6, "eos_token_id": None}
    torch.manual_seed(1)
    first = tiny_model.generate(**inputs, **options)
    torch.manual_seed(1)
    again = tiny_model.generate(**inputs, **options)
    other = tiny_model.generate(**inputs, **options)
    assert first.shape == (8, 6)
    assert torch.equal(first, again) and not torch.equal(first, other)
    beams = tiny_model.generate(**inputs, num_beams=3, num_return_sequences=3)
    best = tiny_model.generate(**inputs, num_beams=3)
    assert len(beams) == 12
    assert torch.equal(beams[::3, : best.shape[1]], best)


def test_generation_config_argument(tiny_model, inputs):
    config = GenerationConfig(max_new_tokens=3, num_beams=2, pad_token_id=2)
    assert torch.equal(
        tiny_model.generate(**inputs, generation_config=config),
        tiny_model.generate(**inputs, max_new_tokens=3, num_beams=2),
    )
    with pytest.raises(ValueError, match="not_an_option"):
        tiny_model.generate(**inputs, not_an_option=1)


def test_return_dict(tiny_model, inputs):
    output = tiny_model.generate(
        **inputs, return_dict_in_generate=True, output_scores=True, output_hidden_states=True, max_new_tokens=4
    )
    assert output.sequences.shape == (4, 4)
    assert len(output.scores) == 4 and output.scores[0].shape == (4, 600)
    assert torch.equal(output.sequences, tiny_model.generate(**inputs, max_new_tokens=4))


def test_streamers(tiny_model, processor, inputs, capsys):
    one = row(inputs, 0)
    ids = tiny_model.generate(**one)
    text = processor.decode(ids[0], skip_special_tokens=True)
    tiny_model.generate(**one, streamer=TextStreamer(processor.tokenizer, skip_special_tokens=True))
    assert capsys.readouterr().out.rstrip("\n") == text.rstrip("\n")
    streamer = TextIteratorStreamer(processor.tokenizer, skip_special_tokens=True)
    tiny_model.generate(**one, streamer=streamer)
    assert "".join(streamer) == text


def test_stopping_criteria(tiny_model, inputs):
    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 3)

    ids = tiny_model.generate(**inputs, stopping_criteria=StoppingCriteriaList([AfterThree()]), eos_token_id=None)
    assert ids.shape == (4, 3)


def test_encoded_images_instead_of_photos(tiny_model, inputs):
    encoded = tiny_model.encode_images(inputs["pixel_values"])
    assert isinstance(encoded, EVCapEncodedImages)
    rest = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(tiny_model.generate(**rest, encoded_images=encoded), tiny_model.generate(**inputs))
    assert torch.equal(
        tiny_model.generate(inputs["input_ids"], encoded_images=encoded), tiny_model.generate(**inputs)
    )  # without a mask nothing is padding


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("text", ["llama", "gpt2", "opt", "qwen2", "qwen3", "mamba"])
def test_left_padding_changes_nothing(model_of, processor, photos, text, num_beams):
    """Prompts of different lengths in a batch give what each gives alone."""
    model = model_of(text)
    prompts = ["a", "a dog on the table", "Describe the cat and the street in detail, please.", "two"]
    batch = processor(images=photos, text=prompts, return_tensors="pt")
    assert len(set(batch["attention_mask"].sum(1).tolist())) > 2
    together = model.generate(**batch, num_beams=num_beams, eos_token_id=None)
    for index, prompt in enumerate(prompts):
        alone = processor(images=photos[index], text=prompt, return_tensors="pt")
        assert torch.equal(model.generate(**alone, num_beams=num_beams, eos_token_id=None)[0], together[index])
        with torch.no_grad():
            close(model(**alone).logits[0, -1], model(**batch).logits[index, -1], 1e-4)
