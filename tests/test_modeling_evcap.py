"""What the Hugging Face libraries expect of a model, on tiny random ones, and what EVCap adds."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from hf_evcap import EVCapConfig, EVCapForConditionalGeneration, EVCapProcessor, VisualNameMemory
from hf_evcap.modeling_retrieval import hash_tensors


ATTENTION = ("vision_model", "qformer", "language_model")


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def row(inputs, index):
    return {name: tensor[index : index + 1] for name, tensor in inputs.items()}


@pytest.fixture
def model(tiny_model):
    """A copy to change."""
    return copy.deepcopy(tiny_model)


@pytest.fixture(scope="module")
def training_batch(processor, photos):
    captions = ["a dog on the table", "a cat", "two cups of the street", "a raccoon and a tree"]
    return processor(images=photos, suffix=captions, return_tensors="pt")


@pytest.fixture(scope="module")
def logits(tiny_model, inputs):
    with torch.no_grad():
        return tiny_model(**inputs).logits


def test_the_tiny_model_tells_photos_apart(tiny_model, inputs):
    """What the other tests rely on: photos give different names and captions."""
    captions = tiny_model.generate(**inputs, num_beams=1).tolist()
    assert len({tuple(caption) for caption in captions}) == 4
    names = tiny_model.encode_images(inputs["pixel_values"]).names.names
    assert len({tuple(photo) for photo in names}) > 1


# Saving and loading


def test_save_and_load_are_bit_equal(tiny_model, tiny_dir, inputs, logits):
    loaded = EVCapForConditionalGeneration.from_pretrained(tiny_dir)
    state, expected = loaded.state_dict(), tiny_model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert loaded.generation_config.to_dict() == tiny_model.generation_config.to_dict()
    assert loaded.memory.fingerprint == tiny_model.memory.fingerprint
    assert loaded.name_tokenizer.get_vocab() == tiny_model.name_tokenizer.get_vocab()
    assert loaded.config.encoder_fingerprint == tiny_model.encoder_fingerprint
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, logits)


def test_config_survives_json(tiny_model, tiny_dir):
    loaded = EVCapConfig.from_pretrained(tiny_dir)
    for part in ("vision_config", "qformer_config", "fusion_qformer_config", "text_config"):
        assert type(getattr(loaded, part)) is type(getattr(tiny_model.config, part))
        assert getattr(loaded, part).hidden_size == 32
    again = EVCapConfig.from_dict(loaded.to_dict())
    assert again.to_json_string() == loaded.to_json_string()


def test_saved_config_holds_no_local_path(tiny_dir):
    for file in tiny_dir.rglob("*.json"):
        assert str(tiny_dir) not in file.read_text(encoding="utf-8"), file
        assert "/tmp/" not in file.read_text(encoding="utf-8"), file


def test_auto_classes(tiny_dir, inputs, logits):
    assert type(AutoConfig.from_pretrained(tiny_dir)) is EVCapConfig
    assert type(AutoProcessor.from_pretrained(tiny_dir)) is EVCapProcessor
    model = AutoModelForImageTextToText.from_pretrained(tiny_dir)
    assert type(model) is EVCapForConditionalGeneration
    assert len(model.memory) == 14
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_memory_argument(tiny_model, tiny_dir, tmp_path):
    other = tiny_model.memory.subset(["owl"])
    other.save_pretrained(tmp_path / "owl")
    for memory in (tmp_path / "owl", str(tmp_path / "owl"), other):
        loaded = EVCapForConditionalGeneration.from_pretrained(tiny_dir, memory=memory)
        assert set(loaded.memory.names) == {"owl"}
    assert AutoModelForImageTextToText.from_pretrained(tiny_dir, memory=other).memory is other
    assert EVCapForConditionalGeneration.from_pretrained(tiny_dir, memory=False).memory is None
    with pytest.raises(FileNotFoundError, match="nowhere"):
        EVCapForConditionalGeneration.from_pretrained(tiny_dir, memory="./nowhere")


def test_a_detached_memory_does_not_come_back(model, tmp_path):
    model.save_pretrained(tmp_path)
    model.set_memory(None)
    model.save_pretrained(tmp_path)
    assert EVCapForConditionalGeneration.from_pretrained(tmp_path).memory is None


def test_missing_weights_are_initialised_and_others_kept(tiny_model, tmp_path):
    """What a converter of a partial checkpoint relies on."""
    state = {k: v for k, v in tiny_model.state_dict().items() if not k.startswith("fusion_qformer")}
    model, info = EVCapForConditionalGeneration.from_pretrained(
        None, config=copy.deepcopy(tiny_model.config), state_dict=state, output_loading_info=True
    )
    assert all(key.startswith("fusion_qformer") for key in info["missing_keys"])
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    assert loaded["fusion_qformer.embeddings.LayerNorm.weight"].eq(1).all()
    assert loaded["fusion_qformer.embeddings.word_embeddings.weight"].std() > 0.1


def test_missing_folder():
    with pytest.raises(OSError, match="no-such-model"):
        EVCapForConditionalGeneration.from_pretrained("./no-such-model")


# Precision, devices, attention


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_dir, inputs, logits, dtype):
    model = EVCapForConditionalGeneration.from_pretrained(tiny_dir, dtype=dtype)
    fp32 = ("qformer", "fusion_qformer", "query_tokens", "name_query_tokens")
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.split(".")[0] in fp32 else dtype), name
    with torch.no_grad():
        output = model(**inputs)
    assert output.logits.dtype == dtype
    assert (output.logits.float() - logits).abs().mean() < 0.2 * logits.abs().mean()
    assert model.generate(**inputs, num_beams=2).shape[0] == 4
    assert len(model.memory) == 14  # the stored fingerprint still fits


def test_whole_model_cast_to_half(model, inputs):
    model = model.to(torch.bfloat16)
    assert model.generate(**inputs).shape[0] == 4
    assert model.get_memory_keys(inputs["pixel_values"]).dtype == torch.bfloat16


def test_device_map_auto(tiny_dir, inputs, logits):
    model = EVCapForConditionalGeneration.from_pretrained(tiny_dir, device_map="auto")
    with torch.no_grad():
        close(model(**inputs).logits.cpu(), logits, 1e-3)


def test_no_split_modules_include_the_language_models(tiny_model):
    assert {"LlamaDecoderLayer", "Blip2EncoderLayer", "Blip2QFormerLayer"} <= set(tiny_model._no_split_modules)


def attention_of(model):
    fusion = model.fusion_qformer.encoder.layer[0].attention.attention
    return {
        **{part: getattr(model, part).config._attn_implementation for part in ATTENTION},
        "fusion_qformer": fusion.config._attn_implementation,
    }


@pytest.mark.parametrize("way", ["load", "switch"])
def test_sdpa_equals_eager(tiny_dir, inputs, way):
    outputs = {}
    model = EVCapForConditionalGeneration.from_pretrained(tiny_dir)
    for attention in ("eager", "sdpa"):
        if way == "load":
            model = EVCapForConditionalGeneration.from_pretrained(tiny_dir, attn_implementation=attention)
        else:
            model.set_attn_implementation(attention)
        assert set(attention_of(model).values()) == {attention}
        with torch.no_grad():
            outputs[attention] = model(**inputs, output_attentions=attention == "eager")
    assert outputs["eager"].attentions is not None
    close(outputs["sdpa"].logits, outputs["eager"].logits, 1e-4)
    assert outputs["sdpa"].names.names == outputs["eager"].names.names


def test_attention_weights_of_each_part_follow_the_switch(tiny_dir, inputs, monkeypatch):
    """The names of the settings could change without the attention that runs."""
    calls = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return stock(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model = EVCapForConditionalGeneration.from_pretrained(tiny_dir, attn_implementation="sdpa")
    layers = 2 + 2 + 1 + 2 + 1 + 2  # vision, Q-Former with one cross-attention, fusion likewise, language model
    with torch.no_grad():
        model(**inputs)
        assert len(calls) == layers
        model.set_attn_implementation("eager")
        model(**inputs)
    assert len(calls) == layers


# Training


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def enable_checkpointing(model):
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:  # its name before transformers 5.20 or so
        model.gradient_checkpointing_enable()


@pytest.mark.parametrize("policy", ["full", "paper"])
def test_gradient_checkpointing_gives_equal_gradients(tiny_model, training_batch, policy):
    found = {}
    for checkpointing in (False, True):
        model = copy.deepcopy(tiny_model)
        for module in model.modules():  # dropout would draw other numbers
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.qformer_config.attention_probs_dropout_prob = 0.0
        for layer in [*model.qformer.encoder.layer, *model.fusion_qformer.encoder.layer]:
            for attention in (layer.attention, getattr(layer, "crossattention", None)):
                if attention is not None:
                    attention.attention.attention_dropout = 0.0
        model.freeze_for_training(policy)
        model.train()
        if checkpointing:
            enable_checkpointing(model)
        model(**training_batch, use_cache=False).loss.backward()
        found[checkpointing] = gradients(model)
    assert found[True].keys() == found[False].keys()
    assert {"query_tokens", "name_query_tokens", "language_projection.weight"} <= found[True].keys()
    for name, gradient in found[False].items():
        close(found[True][name], gradient, 1e-6)
        if name.startswith(("query_tokens", "name_query_tokens", "language_projection")):
            assert gradient.abs().max() > 0, name


def test_checkpointing_reaches_a_frozen_language_model(model, training_batch, monkeypatch):
    """Its activations are most of what training holds; being in eval mode must not turn checkpointing off."""
    model.freeze_for_training("paper")
    enable_checkpointing(model)
    model.train()
    passes = []
    layer = model.language_model.model.layers[0].mlp
    stock = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args: passes.append(1) or stock(*args))
    model(**training_batch, use_cache=False).loss.backward()
    assert len(passes) == 2  # forward, and once more on the way back


PAPER = {"query_tokens", "name_query_tokens", "language_projection.weight", "language_projection.bias"}


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_papers_freezing_policy(model, reference):
    count = model.freeze_for_training("paper")
    assert trainable(model) == PAPER
    assert count == sum(p.numel() for n, p in model.named_parameters() if n in PAPER)
    saved_by_the_reference = torch.load(reference.trainable, weights_only=True)["model"]
    names = {"query_tokens": "query_tokens", "query_tokens_txt": "name_query_tokens"}
    saved = {
        key.removeprefix("module.").replace("llama_proj", "language_projection") for key in saved_by_the_reference
    }
    assert {names.get(key, key) for key in saved} == PAPER


def test_other_policies(model):
    model.freeze_for_training("fusion")
    assert {name for name in trainable(model) if not name.startswith("fusion_qformer.")} == PAPER
    assert any(name.startswith("fusion_qformer.") for name in trainable(model))
    model.freeze_for_training("full")
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    with pytest.raises(ValueError, match="paper, fusion, qformers, full"):
        model.freeze_for_training("everything")


def test_frozen_parts_stay_in_eval_mode(model):
    model.freeze_for_training("paper")
    model.train()
    assert model.training and model.language_projection.training
    for part in ("vision_model", "qformer", "fusion_qformer", "language_model"):
        assert not any(module.training for module in getattr(model, part).modules()), part
    model.freeze_for_training("full")
    assert model.qformer.training and model.language_model.training
    model.eval()
    assert not any(module.training for module in model.modules())


def test_one_step_changes_what_is_trained_and_nothing_else(model, training_batch):
    model.freeze_for_training("paper")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**training_batch).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == PAPER


def test_loss_goes_down(model, training_batch):
    model.freeze_for_training("paper")
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(8):
        loss = model(**training_batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_full_size_model_trains_exactly_what_the_paper_says():
    with torch.device("meta"):
        model = EVCapForConditionalGeneration(EVCapConfig())
    assert model.freeze_for_training("paper") == 3_968_000
    assert trainable(model) == PAPER
    assert model.config.text_config.hidden_size == 5120
    assert model.config.vision_config.num_hidden_layers == 39


def test_fingerprints(model, training_batch):
    fingerprint, queries = model.encoder_fingerprint, model.query_tokens_hash
    with torch.no_grad():
        model.query_tokens += 1
        model.language_projection.weight += 1
    assert model.encoder_fingerprint == fingerprint  # trained parts do not change what keys mean
    assert model.query_tokens_hash != queries
    for part in (model.vision_model.embeddings.position_embedding, model.qformer.layernorm.weight):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in changed.parameters():
                if parameter.shape == part.shape and torch.equal(parameter, part):
                    parameter += 0.1
        changed.config.encoder_fingerprint = None
        assert changed.encoder_fingerprint != fingerprint
    model.config.encoder_fingerprint = fingerprint
    model.freeze_for_training("full")  # about to become another encoder
    assert model.config.encoder_fingerprint is None
    assert hash_tensors({"a": torch.ones(2, 3)}) != hash_tensors({"a": torch.ones(3, 2)})
    assert hash_tensors({"a": torch.ones(2)}) != hash_tensors({"b": torch.ones(2)})


# Forward


def test_vision_hidden_states_replace_pixels(tiny_model, inputs, logits):
    with torch.no_grad():
        features = tiny_model.get_image_features(inputs["pixel_values"])
        hidden = features.vision_hidden_states
        rest = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        assert torch.equal(tiny_model(vision_hidden_states=hidden, **rest).logits, logits)
        half = tiny_model(vision_hidden_states=hidden.half(), **rest).logits  # as a feature cache stores them
    assert (half - logits).abs().mean() < 0.05
    ids = tiny_model.generate(vision_hidden_states=hidden, **rest)
    assert torch.equal(ids, tiny_model.generate(**inputs))
    with pytest.raises(ValueError, match="either `pixel_values` or `vision_hidden_states`"):
        tiny_model(vision_hidden_states=hidden, **inputs)


def test_stages_compose_to_the_prefix(tiny_model, inputs):
    with torch.no_grad():
        features = tiny_model.get_image_features(inputs["pixel_values"])
        names = tiny_model.retrieve_names(features.retrieval_queries)
        fused = tiny_model.fuse_names(features.query_output, names.input_ids, names.attention_mask)
        prefix = tiny_model.project(features.query_output, fused)
        encoded = tiny_model.encode_images(inputs["pixel_values"])
    assert features.query_output.shape == (4, 6, 32)
    assert fused.shape == (4, 3, 32)
    assert prefix.shape == (4, 9, 32)
    assert torch.equal(prefix, encoded.prefix)
    assert encoded.names.names == names.names


def test_padding_of_names_does_not_change_the_fusion(tiny_model, inputs):
    with torch.no_grad():
        query_output = tiny_model.get_image_features(inputs["pixel_values"]).query_output[:1]
        names = tiny_model.tokenize_names([["owl", "dog"]])
        pad = torch.zeros(1, 5, dtype=torch.long)
        fused = tiny_model.fuse_names(query_output, names.input_ids, names.attention_mask)
        padded = tiny_model.fuse_names(
            query_output, torch.cat([names.input_ids, pad], 1), torch.cat([names.attention_mask, pad], 1)
        )
    close(padded, fused)


def test_given_names(tiny_model, inputs, logits):
    names = [["owl"], [], ["Fire_Hydrant", "dog", "ladder"], ["dog"]]
    with torch.no_grad():
        output = tiny_model(**inputs, names=names)
        assert output.names.names == [["owl"], [], ["fire hydrant", "dog", "ladder"], ["dog"]]
        assert not torch.allclose(output.logits, logits)
        retrieved = tiny_model(**inputs).names
        assert torch.equal(tiny_model(**inputs, names=retrieved).logits, logits)
        assert torch.equal(tiny_model(**inputs, names=retrieved.names).logits, logits)
    assert not torch.equal(tiny_model.generate(**inputs, names=names), tiny_model.generate(**inputs))
    with pytest.raises(ValueError, match="names for 1 of 4 photos"):
        tiny_model(**inputs, names=[["owl"]])
    with pytest.raises(TypeError, match="list of names for each photo"):
        tiny_model(**inputs, names=["owl", "dog", "owl", "dog"])


def test_exclude_rows(tiny_model, inputs):
    encode = tiny_model.encode_images
    best = encode(inputs["pixel_values"]).names.row_ids[:, :2]
    left = encode(inputs["pixel_values"], exclude_rows=best).names
    for excluded, rows in zip(best.tolist(), left.row_ids.tolist(), strict=True):
        assert not set(excluded) & set(rows)
    nothing = torch.full((4, 3), -1)
    assert (
        encode(inputs["pixel_values"], exclude_rows=nothing).names.names == encode(inputs["pixel_values"]).names.names
    )
    with torch.no_grad():
        output = tiny_model(**inputs, exclude_rows=best)
    assert output.names.names == left.names
    generated = tiny_model.generate(**inputs, exclude_rows=best)
    assert torch.equal(generated, tiny_model.generate(**inputs, names=left))


def test_loss_is_the_next_token_cross_entropy(tiny_model, training_batch):
    with torch.no_grad():
        output = tiny_model(**training_batch)
    labels = training_batch["labels"][:, 1:]
    log_probabilities = output.logits[:, :-1].log_softmax(-1)
    picked = log_probabilities.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = -(picked * (labels >= 0)).sum() / (labels >= 0).sum()
    close(output.loss, expected)
    with torch.no_grad():  # gradient accumulation divides by the tokens of all its batches
        accumulated = tiny_model(**training_batch, num_items_in_batch=torch.tensor(1000)).loss
    close(accumulated, expected * (labels >= 0).sum() / 1000)


def test_placeholders_must_fit(tiny_model, inputs):
    broken = {**inputs, "input_ids": inputs["input_ids"].clone()}
    broken["input_ids"][2][broken["input_ids"][2] == 600] = 5
    with pytest.raises(ValueError, match=r"9 image tokens \(id 600\).*\[9, 9, 0, 9\]"):
        tiny_model(**broken)
    with pytest.raises(ValueError, match="processor"):
        tiny_model.generate(**broken)
    with pytest.raises(ValueError, match="2 photos"):
        tiny_model(**{**inputs, "pixel_values": inputs["pixel_values"][:2]})
    with pytest.raises(ValueError, match="`input_ids`"):
        tiny_model.generate(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="`input_ids` or `inputs_embeds`"):
        tiny_model(pixel_values=inputs["pixel_values"])


def test_resize_token_embeddings(model, inputs, logits):
    model.resize_token_embeddings(610)
    assert model.config.text_config.vocab_size == model.language_model.config.vocab_size == 610
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().out_features == 610
    with torch.no_grad():
        resized = model(**inputs).logits
    close(resized[..., :600], logits)


# Other language models and vision towers


@pytest.mark.parametrize("text", ["gpt2", "opt", "qwen2", "qwen3"])
def test_language_models(model_of, training_batch, inputs, tmp_path, text):
    model = model_of(text)
    output = model(**training_batch)
    assert output.logits.shape[-1] == 600
    output.loss.backward()
    assert model.query_tokens.grad.abs().max() > 0
    assert model.get_input_embeddings().weight.grad.abs().max() > 0
    model.save_pretrained(tmp_path)
    loaded = EVCapForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert torch.equal(loaded.generate(**inputs, num_beams=2), model.generate(**inputs, num_beams=2))
    tied = model.config.text_config.tie_word_embeddings
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("vision", ["clip", "vit", "efficientnet_lite", "resnet", "convnext"])
def test_vision_towers(model_of, training_batch, inputs, tmp_path, vision):
    model = model_of(vision=vision)
    model(**training_batch).loss.backward()
    features = model.get_image_features(inputs["pixel_values"])
    assert features.vision_hidden_states.shape[0::2] == (4, 32)
    assert features.vision_hidden_states.ndim == 3
    assert features.query_output.std(0).mean() > 1e-4  # photos differ
    model.save_pretrained(tmp_path)
    loaded = EVCapForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        close(loaded.get_image_features(inputs["pixel_values"]).query_output, features.query_output.detach(), 1e-6)
    assert torch.equal(loaded.generate(**inputs), model.generate(**inputs))
    assert loaded.memory.names == model.memory.names


def test_vision_layer_norm_has_the_references_epsilon(tiny_model):
    assert tiny_model.vision_model.post_layernorm.eps == 1e-5
    assert tiny_model.vision_model.encoder.layers[0].layer_norm1.eps == 1e-6


# Configuration


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retrieval_rule": "nearest"}, "release, paper, vote"),
        ({"retrieval_space": "text"}, "query, vision"),
        ({"num_query_tokens": 0}, "num_query_tokens"),
        ({"num_retrieved_names": -1}, "num_retrieved_names"),
        ({"retrieval_options": {"slots": 1}}, "slots"),
        ({"retrieval_rule": "vote", "retrieval_options": {"ridge_penalty": 0}}, "ridge_penalty.*above 0"),
        ({"memory_reference": {"path": "x"}}, "memory_reference"),
        ({"fusion_qformer_config": {"hidden_size": 64}}, "must equal"),
        ({"text_config": {"model_type": "unheard-of"}}, "unheard-of"),
    ],
)
def test_impossible_configurations(config_of, fields, message):
    with pytest.raises(ValueError, match=message):
        config_of(**fields)


def test_config_argument_of_wrong_type(config_of):
    with pytest.raises(TypeError, match="text_config"):
        config_of(text_config="lmsys/vicuna-13b-v1.3")


def test_configs_do_not_share_parts(config_of):
    left, right = config_of(), config_of()
    left.qformer_config.hidden_size = 1
    assert right.qformer_config.hidden_size == 32


# Memory on the model


def test_memory_of_another_dimension_or_encoder(model):
    with pytest.raises(ValueError, match=r"5.*32|32.*5"):
        model.set_memory(VisualNameMemory.from_rows(["owl"], torch.ones(1, 5)))
    other = VisualNameMemory.from_rows(["owl"], torch.ones(1, 32), encoder_fingerprint="another")
    with pytest.raises(ValueError, match="another encoder|encoder"):
        model.set_memory(other)
    assert len(model.memory) == 14  # the one it had is still there
    model.set_memory(VisualNameMemory.from_rows(["owl"], torch.ones(1, 32)))  # of unknown origin
    assert set(model.memory.names) == {"owl"}


def test_memory_needs_a_name_tokenizer(model):
    memory, tokenizer = model.memory, model.name_tokenizer
    model.set_memory(None)
    model.name_tokenizer = None
    with pytest.raises(ValueError, match="name_tokenizer=processor.name_tokenizer"):
        model.set_memory(memory)
    model.set_memory(memory, name_tokenizer=tokenizer)
    assert model.memory is memory


def test_model_without_memory_and_tokenizer_captions(model, inputs):
    model.set_memory(None)
    with_tokenizer = model.generate(**inputs)
    model.name_tokenizer = None
    assert model.generate(**inputs).shape == with_tokenizer.shape
    with pytest.raises(ValueError, match="name tokenizer"):
        model.generate(**inputs, names=[["owl"]] * 4)


def test_memory_keys_of_photos(tiny_model, processor, photos, photo_paths):
    pixels = processor.image_processor(photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = tiny_model.get_image_features(pixels).query_output.mean(1)
        close(tiny_model.get_memory_keys(pixels), expected)
    close(tiny_model.encode_memory_keys(processor, photo_paths), expected)


@pytest.mark.skipif(
    torch.__version__.startswith("2.7."),
    reason="torch 2.7 breaks the graph at an attribute of a configuration that holds others",
)
def test_compiled_encoder_equals_plain(tiny_model, inputs):
    """`torch.compile` traces vision and Q-Former without a graph break (the eager backend needs no C++ compiler)."""
    compiled = torch.compile(tiny_model.get_image_features, fullgraph=True, backend="eager")
    with torch.no_grad():
        close(
            compiled(inputs["pixel_values"]).query_output,
            tiny_model.get_image_features(inputs["pixel_values"]).query_output,
        )


@pytest.mark.parametrize("count", [1, 63, 2**24 + 3, 49152 * 576])
def test_weights_of_any_size_have_a_fingerprint(count):
    values = torch.zeros(1).expand(count)
    assert hash_tensors({"embeddings": values}) != hash_tensors({"embeddings": torch.ones(1).expand(count)})
