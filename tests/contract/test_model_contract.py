"""What users of any transformers model expect of these: on tiny composites of both families and the embedded model."""

from __future__ import annotations

import copy
import inspect

import pytest
import tiny_models
import tiny_smallcap
import torch
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, GenerationConfig
from transformers.utils import logging

from hf_evcap import EVCapForConditionalGeneration, SmallCapForConditionalGeneration, default_model
from hf_evcap.cache_name import CACHE


FAMILIES = ("evcap", "evcap-gpt2", "evcap-tied", "smallcap-gpt2", "smallcap-opt")
PIXELS = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(5))


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def make(family):
    if family.startswith("smallcap"):
        return tiny_smallcap.make_model(family.partition("-")[2])
    if family == "evcap-tied":
        return tiny_models.make_model(tie_name_embeddings=True, fusion_vocabulary=True)
    return tiny_models.make_model(family.partition("-")[2] or "llama")


def inputs_of(model):
    """A prompt and photos; SmallCap's with captions that were retrieved."""
    if isinstance(model, SmallCapForConditionalGeneration):
        captions = [["a cat"], ["two dogs play with a ball", "a red bus"], ["a plate of food"]]
        ids, mask, _ = model.tokenize_prompts(captions)
        return {"pixel_values": PIXELS, "input_ids": ids, "attention_mask": mask}
    return dict(tiny_models.make_processor(model.config)(text=["", "a", "what is it?"], images=list(PIXELS), do_rescale=False, return_tensors="pt"))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    """Tests must not change it."""
    return make(request.param)


@pytest.fixture(scope="module")
def inputs(model):
    return inputs_of(model)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embedded():
    """The model that comes with the package, and photos for it."""
    model = AutoModelForImageTextToText.from_pretrained(default_model())
    processor = AutoProcessor.from_pretrained(default_model())
    photos = [tiny_models.PHOTOS / f"{name}.jpg" for name in ("cat", "coffee")]
    return model, processor, processor(images=photos, return_tensors="pt")


def labels_of(inputs):
    return inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)


# Outputs


def test_outputs_as_tuples(model, inputs, folder):
    with torch.no_grad():
        named = model(**inputs, labels=labels_of(inputs))
        plain = model(**inputs, labels=labels_of(inputs), return_dict=False)
        features = model.get_image_features(PIXELS, return_dict=False)
        loaded = type(model).from_pretrained(folder, return_dict=False)
        from_config = loaded(**inputs, labels=labels_of(inputs))
    assert type(plain) is type(from_config) is type(features) is tuple
    for output in (plain, from_config):
        assert len(output) == len(named.to_tuple())
        close(output[0], named.loss)
        close(output[1], named.logits)
    assert loaded.generate(**inputs).shape[0] == 3


@pytest.mark.parametrize("way", ["call", "load"])
def test_hidden_states_and_attentions(model, inputs, folder, way):
    wanted = {"output_hidden_states": True, "output_attentions": True}
    at_loading = wanted if way == "load" else {}
    loaded = type(model).from_pretrained(folder, attn_implementation="eager", **at_loading)
    with torch.no_grad():
        output = loaded(**inputs, **(wanted if way == "call" else {}))
        plain = loaded(**inputs, output_hidden_states=False, output_attentions=False)
    length = inputs["input_ids"].shape[1]
    assert len(output.hidden_states) == 3 and output.hidden_states[0].shape[:2] == (3, length)
    assert len(output.attentions) == 2 and output.attentions[0].shape[-2:] == (length, length)
    assert len(output.image_outputs.hidden_states) == 3 and len(output.image_outputs.attentions) == 2
    assert plain.hidden_states is None and plain.attentions is None
    assert plain.image_outputs.hidden_states is None


def test_image_features(model):
    features = model.get_image_features(PIXELS, output_hidden_states=True)
    assert features.last_hidden_state is features.vision_hidden_states
    assert features.last_hidden_state.shape[::2] == (3, model.config.vision_config.hidden_size)
    assert features.pooler_output[0].ndim == 2 and len(features.pooler_output) == 3
    assert len(features.hidden_states) == 3
    again = model.get_image_features(vision_hidden_states=features.last_hidden_state)
    close(again.retrieval_queries, features.retrieval_queries)
    with pytest.raises(ValueError, match="either"):
        model.get_image_features()


# Loss


def test_labels_that_are_shifted_already(model, inputs):
    labels = labels_of(inputs)
    with torch.no_grad():
        loss = model(**inputs, labels=labels).loss
        shifted = model(**inputs, shift_labels=torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]).loss
    assert loss > 0
    close(shifted, loss)


@pytest.mark.parametrize("kept", [3, torch.tensor([-4, -2])])
def test_labels_where_some_logits_are_kept(model, inputs, kept):
    labels = labels_of(inputs)
    with torch.no_grad():
        logits = model(**inputs).logits
        output = model(**inputs, labels=labels, logits_to_keep=kept)
    places = torch.tensor([-3, -2, -1]) if isinstance(kept, int) else kept
    close(output.logits, logits[:, places])
    targets = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:][:, places]
    close(output.loss, torch.nn.functional.cross_entropy(logits[:, places].flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_equal_gradients(model, inputs, reentrant):
    found = []
    for checkpointing in (False, True):
        trained = copy.deepcopy(model)
        for module in trained.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in ("dropout", "attention_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        trained.train()
        if checkpointing:
            options = {"use_reentrant": reentrant}
            enable = getattr(trained, "activation_checkpointing_enable", None) or trained.gradient_checkpointing_enable
            (name,) = [name for name in inspect.signature(enable).parameters if "kwargs" in name][:1]
            enable(**{name: options})
        trained(**inputs, labels=labels_of(inputs), use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in trained.named_parameters() if p.grad is not None})
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        close(checkpointed[name], gradient, 1e-5)


# Generation


def test_embedded_prompts(model, inputs):
    expected = model.generate(**inputs)
    if isinstance(model, EVCapForConditionalGeneration):
        prefix = model.encode_images(PIXELS).prefix
        embedded = model.embed_prompt(inputs["input_ids"], prefix)
        with pytest.raises(ValueError, match="has no embedding.*embed_prompt"):
            model.generate(inputs_embeds=embedded, pixel_values=PIXELS)
        found = model.generate(inputs_embeds=embedded, attention_mask=inputs["attention_mask"])
    else:
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        found = model.generate(PIXELS, inputs_embeds=embedded, attention_mask=inputs["attention_mask"])
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="either `input_ids` or `inputs_embeds`"):
        model.generate(**inputs, inputs_embeds=embedded)


def test_photos_in_embedded_prompts():
    """Where the image token is a word of the language model, its embedding marks the photo's place."""
    model = tiny_models.make_model(image_token_id=7)
    ids = inputs_of(tiny_models.make_model())["input_ids"]
    ids = torch.where(ids == 600, 7, ids.clamp(min=8))
    embedded = model.get_input_embeddings()(ids)
    expected = model.generate(ids, PIXELS)
    assert torch.equal(model.generate(inputs_embeds=embedded, pixel_values=PIXELS), expected)
    with torch.no_grad():
        close(model(inputs_embeds=embedded, pixel_values=PIXELS).logits, model(ids, PIXELS).logits)


def test_prompts_without_photos():
    model = tiny_models.make_model()
    text = torch.tensor([[1, 20, 30, 40]])
    assert model.generate(text, max_new_tokens=3, eos_token_id=None).shape == (1, 3)
    with pytest.raises(ValueError, match="image tokens: give its photos"):
        model.generate(**{**inputs_of(model), "pixel_values": None})


def test_first_step_of_attentions_with_beams(model, folder, inputs):
    eager = type(model).from_pretrained(folder, attn_implementation="eager")
    options = {"num_beams": 3, "max_new_tokens": 3, "output_attentions": True, "output_hidden_states": True}
    output = eager.generate(**inputs, **options, return_dict_in_generate=True)
    length = inputs["input_ids"].shape[1]
    assert output.attentions[0][0].shape[-2:] == (length, length)
    assert output.hidden_states[0][0].shape[1] == length
    assert torch.equal(output.sequences, eager.generate(**inputs, num_beams=3, max_new_tokens=3))


def test_generation_config_with_one_beam(model, inputs, tmp_path, caplog):
    changed = copy.deepcopy(model)
    changed.generation_config.update(num_beams=3, early_stopping=True, length_penalty=0.0)
    with caplog.at_level("WARNING"):
        logging.enable_propagation()
        changed.generate(**inputs, num_beams=1)
        changed.generation_config.num_beams = 1
        changed.save_pretrained(tmp_path)
        logging.disable_propagation()
    assert "generation flags" not in caplog.text
    assert changed.generation_config.early_stopping is True  # for when it has beams again
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.generation_config.num_beams == 1
    assert torch.equal(loaded.generate(**inputs), model.generate(**inputs, num_beams=1))
    GenerationConfig.from_pretrained(tmp_path).validate(strict=True)


def test_assistant_model(model, inputs):
    with pytest.raises(ValueError, match="assistant_model"):
        model.generate(**inputs, num_beams=1, assistant_model=model.language_model)


# Auto classes


def test_auto_classes(model, folder):
    for auto in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        assert type(auto.from_pretrained(folder)) is type(model)


# Buffers


def test_buffers_that_a_checkpoint_lacks(tmp_path):
    model = tiny_smallcap.make_model(vision="efficientnet_lite")
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("vision_space")}
    for _ in range(2):
        loaded = SmallCapForConditionalGeneration.from_pretrained(
            None, config=copy.deepcopy(model.config), state_dict=state
        )
        assert loaded.vision_space.mean.eq(0).all()
        assert torch.equal(loaded.vision_space.whitening, torch.eye(32, 8))
