"""What users of any transformers model expect of these: on tiny composites of both families and the embedded model."""

from __future__ import annotations

import copy
import inspect
from importlib.metadata import version

import pytest
import tiny_models
import tiny_smallcap
import torch
from accelerate import cpu_offload
from accelerate.hooks import attach_align_device_hook_on_blocks
from packaging.version import Version
from transformers import AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, GenerationConfig
from transformers.utils import logging

from hf_evcap import EVCapForConditionalGeneration, SmallCapForConditionalGeneration, default_model


FAMILIES = ("evcap", "evcap-gpt2", "evcap-tied", "smallcap-gpt2", "smallcap-opt")
PIXELS = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(5)).clamp(-2, 2) / 4 + 0.5


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def make(family):
    if family.startswith("smallcap"):
        return tiny_smallcap.make_model(family.partition("-")[2])
    if family == "evcap-tied":
        return tiny_models.make_model(tie_name_embeddings=True)
    return tiny_models.make_model(family.partition("-")[2] or "llama")


def inputs_of(model):
    """A prompt and photos; SmallCap's with captions that were retrieved."""
    if isinstance(model, SmallCapForConditionalGeneration):
        captions = [["a cat"], ["two dogs play with a ball", "a red bus"], ["a plate of food"]]
        ids, mask, _ = model.tokenize_prompts(captions)
        return {"pixel_values": PIXELS, "input_ids": ids, "attention_mask": mask}
    processor = tiny_models.make_processor(model.config)
    ids = processor(
        text=["{image} a", "{image} a dog on", "{image} what is it?"], images=list(PIXELS), return_tensors="pt"
    )
    return {**ids, "pixel_values": PIXELS}


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
    """All words of the prompt; not padding, not the photo (600)."""
    ids = inputs["input_ids"]
    return ids.masked_fill((inputs["attention_mask"] == 0) | (ids == 600), -100)


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
        if isinstance(model, EVCapForConditionalGeneration):  # image tokens are no words, masked or not
            ids = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
            close(model(**inputs, labels=ids).loss, loss)
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


@pytest.mark.parametrize("option", ["assistant_model", "prompt_lookup_num_tokens"])
def test_assistants_are_refused(model, inputs, option):
    with pytest.raises(ValueError, match=f"`{option}` cannot help here"):
        model.generate(**inputs, num_beams=1, **{option: model.language_model if option == "assistant_model" else 3})


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


# Parts elsewhere


PARTS = ("vision_model", "qformer", "fusion_qformer", "language_projection", "visual_projection", "language_model")


@pytest.mark.parametrize("part", [*PARTS, "everything"])
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded_parts(model, inputs, folder, tmp_path, where, part):
    """Weights that are fetched for each call, from memory (`cpu`, beside an accelerator) or from disk."""
    parts = list(dict(model.named_children()))
    if part not in (*parts, "everything"):
        pytest.skip(f"{type(model).__name__} has no {part}")
    moved = parts if part == "everything" else [part]
    ends = model.language_model.get_input_embeddings(), model.language_model.get_output_embeddings()
    if where == "disk" and "language_model" in moved and ends[0].weight is ends[1].weight:
        if Version(version("accelerate")) < Version("1.15"):
            pytest.skip("accelerate before 1.15 reads the wrong weights from disk where a language model ties its own")
    if where == "disk":
        queries = [name for name in ("query_tokens", "name_query_tokens") if hasattr(model, name)]
        device_map = {name: "disk" if name in moved else "cpu" for name in parts} | dict.fromkeys(queries, "disk")
        loaded = type(model).from_pretrained(folder, device_map=device_map, offload_folder=tmp_path)
    elif part == "everything":
        loaded = cpu_offload(type(model).from_pretrained(folder), "cpu")
    else:  # what `dispatch_model` does where another device is the main one
        loaded = type(model).from_pretrained(folder)
        attach_align_device_hook_on_blocks(
            loaded,
            execution_device=dict.fromkeys(["", *parts], "cpu"),
            offload={"": False, **{name: name in moved for name in parts}},
            weights_map={name: tensor.clone() for name, tensor in loaded.state_dict().items()},
        )
    meta = {name.split(".")[0] for name, parameter in loaded.named_parameters() if parameter.is_meta}
    assert meta >= {name for name in moved if any(True for _ in getattr(model, name).parameters())}
    with torch.no_grad():
        expected, output = model(**inputs), loaded(**inputs)
    close(output.logits, expected.logits)
    assert torch.equal(loaded.generate(**inputs, num_beams=2), model.generate(**inputs, num_beams=2))
    assert loaded.encoder_fingerprint == model.encoder_fingerprint
    assert loaded.query_tokens_hash == model.query_tokens_hash
    close(loaded.get_memory_keys(PIXELS), model.get_memory_keys(PIXELS))
    if isinstance(model, SmallCapForConditionalGeneration):
        assert torch.equal(loaded.generate(PIXELS), model.generate(PIXELS))  # with the model's own prompt


def test_checkpointing_sends_no_gradient_through_a_frozen_encoder(model, inputs):
    trained = copy.deepcopy(model)
    trained.freeze_for_training("paper")
    (getattr(trained, "activation_checkpointing_enable", None) or trained.gradient_checkpointing_enable)()
    assert not trained.get_vision_hidden_states(PIXELS).requires_grad
    output = trained(**inputs, labels=inputs["input_ids"].clamp(min=0))
    output.loss.backward()
    assert all(weight.grad is not None for weight in trained.parameters() if weight.requires_grad)


# Graphs


def test_compiled_model_that_never_ran(embedded):
    model, _, inputs = embedded
    cold = AutoModelForImageTextToText.from_pretrained(default_model())
    compiled = torch.compile(cold)
    with torch.no_grad():
        output, expected = compiled(**inputs), model(**inputs)
    assert output.names.names == expected.names.names
    close(output.logits, expected.logits)
    assert torch.equal(compiled.generate(**inputs), model.generate(**inputs))


def test_exported_graph_takes_another_batch(embedded):
    model, processor, inputs = embedded

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, pixel_values, attention_mask):
            ids = {"input_ids": input_ids, "attention_mask": attention_mask}
            return self.model(**ids, pixel_values=pixel_values, use_cache=False).logits

    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {name: {0: batch} for name in inputs}
    exported = torch.export.export(Logits().eval(), (), dict(inputs), dynamic_shapes=shapes, strict=False)
    more = processor(
        images=[tiny_models.PHOTOS / f"{n}.jpg" for n in ("raccoon", "cat", "coffee")], return_tensors="pt"
    )
    with torch.no_grad():
        close(exported.module()(**more), model(**more).logits)
