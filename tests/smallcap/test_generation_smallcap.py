"""Writing captions: batches, caches, beams, prompts."""

from __future__ import annotations

import pytest
import torch
from tiny_smallcap import DECODERS, make_model
from transformers import GenerationConfig

from hf_evcap.cache_name import CACHE, CACHE_NAMES


OPTIONS = {
    "greedy": {"num_beams": 1},
    "beams": {},
    "several": {"num_beams": 4, "num_return_sequences": 2},
    "sampled": {"num_beams": 1, "do_sample": True, "top_k": 0},
}


@pytest.fixture(scope="module", params=sorted(DECODERS))
def model(request):
    return make_model(request.param)


def trimmed(ids, model):
    """Token ids of each row up to the end of its caption."""
    end = model.generation_config.eos_token_id
    return [row[: row.index(end) + 1] if end in row else row for row in ids.tolist()]


@pytest.mark.parametrize("options", ["greedy", "beams", "several", "sampled"])
def test_cache_on_and_off(model, pixels, options):
    def write(**more):
        torch.manual_seed(0)
        return model.generate(pixels[:3], **OPTIONS[options], **more)

    ids = write()
    assert torch.equal(ids, write(use_cache=False))
    assert ids.shape[0] == 3 * OPTIONS[options].get("num_return_sequences", 1) and ids.shape[1] <= 25


def test_batch_of_eight_equals_eight_singles(model, pixels):
    prompts = model.build_prompts(model.encode_images(pixels).captions.captions)
    lengths = {len(ids) for ids in model.tokenizer(prompts)["input_ids"]}
    assert len(lengths) > 3  # padded by different amounts
    for options in ({"num_beams": 1}, {}):
        batch = trimmed(model.generate(pixels, **options), model)
        singles = [trimmed(model.generate(pixels[place : place + 1], **options), model)[0] for place in range(8)]
        assert batch == singles
        assert len({tuple(row) for row in batch}) > 4


def test_shared_prefill_equals_stock_beams(model, pixels, monkeypatch):
    options = {"num_beams": 4, "return_dict_in_generate": True, "output_scores": True}
    shared = model.generate(pixels[:3], **options)
    monkeypatch.setattr(type(model), "_shared_prefill", lambda *args: None)
    stock = model.generate(pixels[:3], **options)
    assert torch.equal(shared.sequences, stock.sequences)
    assert torch.allclose(shared.sequences_scores, stock.sequences_scores, atol=1e-4)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_cached_steps_equal_one_pass(model, pixels, name):
    """Logits token by token, the photo's keys and values taken from the cache, equal those of a whole pass."""
    ids, mask, _ = model.tokenize_prompts([["a cat"], ["two dogs play with a ball", "a red bus"]])
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, pixel_values=pixels[:2]).logits
        start = model(input_ids=ids[:, :-2], attention_mask=mask[:, :-2], pixel_values=pixels[:2], use_cache=True)
        cache, found = start[CACHE], [start.logits[:, -1]]
        shapes = [tuple(layer.keys.shape) for layer in cache.cross_attention_cache.layers]
        for place in (-2, -1):
            stop = ids.shape[1] + place + 1
            step = model(
                input_ids=ids[:, stop - 1 : stop],
                attention_mask=mask[:, :stop],
                vision_hidden_states=torch.zeros(2, 17, 24),  # not read: the cache has them
                use_cache=True,
                **{name: cache},
            )
            found.append(step.logits[:, -1])
    heads = model.config.text_config.num_attention_heads
    assert shapes == [(2, heads, 17, 32 // heads // 4)] * 2  # narrow heads
    assert torch.allclose(torch.stack(found, 1), whole[:, -3:], atol=1e-4)


def test_what_generate_takes(model, pixels):
    encoded = model.encode_images(pixels[:2])
    ids = model.generate(pixels[:2])
    assert torch.equal(model.generate(encoded_images=encoded), ids)
    hidden = encoded.vision_hidden_states
    assert torch.equal(model.generate(vision_hidden_states=hidden), ids)
    assert torch.equal(model.generate(pixels[:2], captions=encoded.captions.captions), ids)
    prompt_ids, mask, _ = model.tokenize_prompts(encoded.captions.captions)
    assert torch.equal(model.generate(pixels[:2], input_ids=prompt_ids, attention_mask=mask), ids)
    config = GenerationConfig(max_new_tokens=3, num_beams=1, pad_token_id=0, eos_token_id=None)
    assert model.generate(pixels[:2], generation_config=config).shape == (2, 3)
    other = model.generate(pixels[:2], prompts="Seen before: {captions}. Now: ")
    assert not torch.equal(other, ids)


def test_photo_matters(model, pixels):
    """Cross-attention is not a no-op: other patches, same prompt, another caption."""
    captions = [["a cat"]] * 8
    assert len({tuple(row) for row in model.generate(pixels, captions=captions).tolist()}) > 4


def test_cross_attentions_can_be_looked_at(pixels):
    model = make_model()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(pixel_values=pixels[:2], output_attentions=True)
    assert len(outputs.cross_attentions) == 2
    weights = outputs.cross_attentions[0]
    assert weights.shape == (2, 2, outputs.logits.shape[1], 17)
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)


def test_half_precision(pixels):
    model = make_model().to(torch.bfloat16)
    assert model.generate(pixels[:2], max_new_tokens=3).shape[0] == 2
