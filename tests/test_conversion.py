"""The converter against the released implementation's own outputs, and what it does with bad or partial input."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Model, LlamaForCausalLM
from transformers.models.blip_2.modeling_blip_2 import Blip2ForImageTextRetrieval

from hf_evcap import EVCapConfig, EVCapForConditionalGeneration, EVCapProcessor
from hf_evcap.conversion import ConversionReport, convert_evcap, load_evcap_memory


@pytest.fixture(scope="module")
def model(converted_dir):
    return EVCapForConditionalGeneration.from_pretrained(converted_dir)


@pytest.fixture(scope="module")
def processor(converted_dir):
    return EVCapProcessor.from_pretrained(converted_dir)


@pytest.fixture(scope="module")
def prompt(processor, reference):
    count = len(reference.expected["names"])
    return processor(
        text=[reference.expected["prompt"].replace("<ImageHere>", "<image>")] * count, return_tensors="pt"
    )


@pytest.fixture(scope="module")
def features(model, reference):
    with torch.no_grad():
        return model.get_image_features(reference.tensors["pixel_values"])


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# Exactness


def test_prompt_tokens(processor, reference, prompt):
    expected = reference.expected
    ids = [1, *expected["prompt_before_ids"], *[processor.image_token_id] * 40, *expected["prompt_after_ids"]]
    assert prompt["input_ids"].tolist() == [ids] * 4
    assert processor.encode_prompt(processor.prompt) == ids  # the processor's own prompt is the reference's


def test_caption_tokens(processor, reference):
    expected = reference.expected
    assert [processor.encode_caption(caption) for caption in expected["captions"]] == expected["caption_ids"]


def test_encoder(features, reference):
    close(features.vision_hidden_states, reference.tensors["vision_hidden_states"])
    close(features.query_output, reference.tensors["query_output"])


def test_retrieved_names(model, features, reference):
    names = model.retrieve_names(features.retrieval_queries)
    assert names.names == reference.expected["names"]
    assert names.input_ids.tolist() == reference.expected["name_input_ids"]
    assert names.attention_mask.tolist() == reference.expected["name_attention_mask"]
    for photo, rows in zip(names.names, names.row_ids.tolist(), strict=True):
        memory_names = [model.memory.names[row] for row in rows if row >= 0]
        assert len(memory_names) == len(photo)
    assert (names.scores.diff(dim=1) <= 0).all()


def test_prefix_and_prompt_embeddings(model, reference, prompt):
    with torch.no_grad():
        prefix = model.encode_images(reference.tensors["pixel_values"]).prefix
        embeddings = model.embed_prompt(prompt["input_ids"], prefix)
    close(prefix, reference.tensors["projected_prompt"])
    close(embeddings[:, 1:], reference.tensors["prompt_embeds"])


def test_loss(model, processor, reference, prompt):
    pixels = reference.tensors["pixel_values"]
    captions = reference.expected["captions"]
    batch = processor(text=[processor.prompt] * 4, suffix=captions, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=pixels, **batch)
    assert output.loss.item() == pytest.approx(reference.expected["loss"], abs=1e-4)
    assert output.names.names == reference.expected["names"]


def test_first_token_logits(model, reference, prompt):
    with torch.no_grad():
        logits = model(pixel_values=reference.tensors["pixel_values"], **prompt).logits[:, -1]
    close(logits, reference.tensors["first_token_logits"].reshape(logits.shape))


def test_greedy_tokens(model, reference, prompt):
    ids = model.generate(
        pixel_values=reference.tensors["pixel_values"],
        **prompt,
        num_beams=1,
        max_new_tokens=24,
        eos_token_id=None,
    )
    assert ids.tolist() == reference.tensors["greedy_token_ids"].tolist()


@pytest.mark.parametrize("num_beams", [1, 5])
def test_batch_of_four_equals_four_singles(model, reference, prompt, num_beams):
    pixels = reference.tensors["pixel_values"]
    options = {"num_beams": num_beams, "max_new_tokens": 16}
    together = model.generate(pixel_values=pixels, **prompt, **options).tolist()
    for row in range(4):
        one = {name: tensor[row : row + 1] for name, tensor in prompt.items()}
        alone = model.generate(pixel_values=pixels[row : row + 1], **one, **options)[0].tolist()
        assert together[row][: len(alone)] == alone
        assert set(together[row][len(alone) :]) <= {model.generation_config.pad_token_id}


def test_memory_keys(model, reference):
    with torch.no_grad():
        keys = model.get_memory_keys(reference.tensors["pixel_values"])
    close(keys, reference.tensors["query_output"].mean(dim=1))
    assert torch.equal(torch.tensor(model.memory.keys), reference.tensors["memory_keys"])
    assert model.memory.names == [" ".join(name.split()) for name in reference.expected["memory_names"]]


def test_reference_decoding_is_the_default(model, processor):
    config = model.generation_config
    assert (config.num_beams, config.max_new_tokens, config.do_sample) == (5, 32, False)
    stops = [processor.tokenizer(text, add_special_tokens=False)["input_ids"][-1] for text in ("a\n", "a.", "a .")]
    assert sorted({processor.tokenizer.eos_token_id, *stops}) == config.eos_token_id


# Configuration and tokenizers, in every form


def same_weights(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("form", ["object", "file", "saved folder"])
def test_config_forms(form, converted, converted_dir, reference, tmp_path):
    config = EVCapConfig(**reference.config)
    if form == "file":
        config = tmp_path / "sizes.json"
        config.write_text(json.dumps(reference.config))
    elif form == "saved folder":
        config = converted_dir
    model, _ = convert_evcap(
        reference.full,
        config=config,
        llm_tokenizer=reference.llm_tokenizer,
        name_tokenizer=reference.name_tokenizer,
    )
    assert same_weights(model, converted.model)
    assert model.config.vision_config.num_attention_heads == 4
    assert model.config.qformer_config.to_dict() == converted.model.config.qformer_config.to_dict()


def test_sizes_come_from_the_weights(converted, reference):
    config = converted.model.config
    assert config.vision_config.intermediate_size == reference.expected["vision_config"]["intermediate_size"]
    assert config.vision_config.num_hidden_layers == reference.expected["vision_config"]["num_hidden_layers"]
    assert config.vision_config.image_size == 56
    assert config.qformer_config.num_hidden_layers == 4
    assert config.fusion_qformer_config.vocab_size == 171
    assert (config.num_query_tokens, config.num_name_query_tokens) == (32, 8)


def test_depth_of_a_single_cross_attention_layer_is_read(reference):
    """Blocks of 4 layers with one cross-attention: its frequency cannot be told from a second one."""
    state = torch.load(reference.full, weights_only=True)["model"]
    state = {key: value for key, value in state.items() if "Qformer.bert.encoder.layer.2.crossattention" not in key}
    model, _ = convert_evcap(
        state, config=reference.config, llm_tokenizer=reference.llm_tokenizer, name_tokenizer=reference.name_tokenizer
    )
    assert model.config.qformer_config.cross_attention_frequency == 4
    assert model.config.fusion_qformer_config.cross_attention_frequency == 2


@pytest.mark.parametrize("form", ["folder with a bare file", "other file name", "saved folder", "tokenizer.json"])
def test_llm_tokenizer_forms(form, converted, converted_dir, reference, tmp_path):
    source = tmp_path / "llm"
    source.mkdir()
    if form == "folder with a bare file":
        shutil.copy(reference.llm_tokenizer, source / "tokenizer.model")
    elif form == "other file name":
        source = shutil.copy(reference.llm_tokenizer, source / "spiece.model")
    else:
        converted.processor.tokenizer.save_pretrained(source)
        source = source / "tokenizer.json" if form == "tokenizer.json" else source
    _, processor = convert_evcap(
        reference.full, config=reference.config, llm_tokenizer=source, name_tokenizer=reference.name_tokenizer
    )
    assert processor.encode_prompt(processor.prompt) == converted.processor.encode_prompt(processor.prompt)
    for caption, ids in zip(reference.expected["captions"], reference.expected["caption_ids"], strict=True):
        assert processor.encode_caption(caption) == ids


@pytest.mark.parametrize("form", ["object", "vocab.txt folder", "saved folder"])
def test_name_tokenizer_forms(form, converted, reference, tmp_path):
    source = converted.processor.name_tokenizer
    if form == "vocab.txt folder":
        source = tmp_path
        shutil.copy(reference.name_tokenizer, source / "vocab.txt")
    elif form == "saved folder":
        source.save_pretrained(tmp_path)
        source = tmp_path
    model, _ = convert_evcap(
        reference.full,
        config=reference.config,
        llm_tokenizer=reference.llm_tokenizer,
        name_tokenizer=source,
        memory=reference.memory,
    )
    with torch.no_grad():
        queries = model.get_image_features(reference.tensors["pixel_values"]).retrieval_queries
    assert model.retrieve_names(queries).input_ids.tolist() == reference.expected["name_input_ids"]


def test_unknown_tokenizer_file(reference, tmp_path):
    (tmp_path / "merges.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="merges.bin"):
        convert_evcap(
            reference.full,
            config=reference.config,
            llm_tokenizer=tmp_path / "merges.bin",
            name_tokenizer=reference.name_tokenizer,
        )


# Report


def test_report_names_every_key(converted, reference):
    state = torch.load(reference.full, weights_only=True)["model"]
    report = converted.report
    assert set(report.used) | set(report.unused) == set(state)
    assert report.missing == report.initialized == []
    assert report.unused == [key for key in state if key.endswith(("position_ids", "inv_freq"))]
    assert report.used["llama_proj.weight"] == "language_projection.weight"
    assert report.used["visual_encoder.blocks.0.attn.q_bias"].endswith("layers.0.self_attn.qkv.bias")
    assert f"{len(report.used)} keys used, {len(report.unused)} unused, 0 missing" in str(report)


def test_report_of_keys_without_a_place(reference):
    state = torch.load(reference.full, weights_only=True)["model"]
    extra = ["optimizer.step", "visual_encoder.blocks.9.norm1.weight", "llama_model.score.weight"]
    report = ConversionReport()
    convert_evcap(
        {**state, **{key: torch.zeros(1) for key in extra[::2]}},
        config=reference.config,
        llm_tokenizer=reference.llm_tokenizer,
        name_tokenizer=reference.name_tokenizer,
        report=report,
    )
    unused = [key for key in report.unused if not key.endswith(("position_ids", "inv_freq"))]
    assert len(unused) == 2 and unused[0] == "optimizer.step" and "score.weight" in unused[1]


# Trainable-only checkpoints


@pytest.fixture(scope="module")
def base_folders(converted, tmp_path_factory):
    """Folders of a BLIP-2 and a Llama that hold the frozen weights of the reference, as the Hub has them."""
    root = tmp_path_factory.mktemp("base")
    model, config = converted.model, converted.model.config
    state = model.state_dict()
    blip2_config = Blip2Config(
        vision_config=config.vision_config.to_dict(),
        qformer_config=config.qformer_config.to_dict(),
        text_config={"model_type": "opt", "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1,
                     "num_attention_heads": 2, "vocab_size": 50, "word_embed_proj_dim": 32,
                     "max_position_embeddings": 16},
        num_query_tokens=32,
    )  # fmt: skip
    encoder = {key: value for key, value in state.items() if key.startswith(("vision_model.", "qformer."))}
    encoder["query_tokens"] = torch.zeros_like(state["query_tokens"])  # the trained ones are in the checkpoint
    for name, cls, options in (
        ("generation", Blip2ForConditionalGeneration, {}),
        ("sharded", Blip2ForConditionalGeneration, {"max_shard_size": "300KB"}),
        ("base", Blip2Model, {}),
    ):
        blip2 = cls(blip2_config)
        missing, unexpected = blip2.load_state_dict(encoder, strict=False)
        assert not unexpected, unexpected
        blip2.save_pretrained(root / name, **options)
    assert len(list((root / "sharded").glob("*.safetensors"))) > 1
    (root / "bin").mkdir()
    shutil.copy(root / "generation" / "config.json", root / "bin")
    torch.save(blip2.state_dict() | encoder, root / "bin" / "pytorch_model.bin")
    language_model = LlamaForCausalLM(config.text_config)
    language_model.load_state_dict(model.language_model.state_dict())
    language_model.save_pretrained(root / "llama")
    return root


def convert_trainable(reference, base_folders, blip2="generation", **options):
    settings = {
        "config": reference.config,
        "llm_tokenizer": reference.llm_tokenizer,
        "name_tokenizer": reference.name_tokenizer,
        "memory": reference.memory,
        "blip2": base_folders / blip2,
        "language_model": base_folders / "llama",
        "fusion_init": "random:0",
    }
    return convert_evcap(reference.trainable, **{**settings, **options})


@pytest.mark.parametrize("blip2", ["generation", "sharded", "base", "bin"])
def test_trainable_only_is_completed_from_base_models(blip2, reference, base_folders, converted):
    report = ConversionReport()
    model, _ = convert_trainable(reference, base_folders, blip2, report=report)
    expected = converted.model.state_dict()
    for key, value in model.state_dict().items():
        if not key.startswith("fusion_qformer."):
            assert torch.equal(value, expected[key]), key
    assert report.initialized and all(key.startswith("fusion_qformer.") for key in report.initialized)
    assert report.missing == report.initialized
    with torch.no_grad():  # names do not depend on the fusion
        queries = model.get_image_features(reference.tensors["pixel_values"]).retrieval_queries
    assert model.retrieve_names(queries).names == reference.expected["names"]


def test_sizes_of_base_models_are_used_without_a_config(reference, base_folders):
    """Attention heads cannot be told from shapes; the base models' own configs know them."""
    model, _ = convert_trainable(reference, base_folders, config=None)
    assert model.config.vision_config.num_attention_heads == 4
    assert model.config.qformer_config.num_attention_heads == 4
    assert model.config.fusion_qformer_config.num_attention_heads == 4
    with torch.no_grad():
        features = model.get_image_features(reference.tensors["pixel_values"])
    close(features.query_output, reference.tensors["query_output"])


def test_trainable_only_without_fusion_is_refused(reference, base_folders):
    with pytest.raises(ValueError, match=r"(?s)fusion Q-Former.*did not save it.*fusion_init='blip2'.*random:SEED"):
        convert_trainable(reference, base_folders, fusion_init=None)


def test_unknown_fusion_init(reference, base_folders):
    with pytest.raises(ValueError, match="'blip2' or 'random:SEED'"):
        convert_trainable(reference, base_folders, fusion_init="zeros")


def test_random_fusion_is_reproducible(reference, base_folders):
    torch.manual_seed(5)
    first, _ = convert_trainable(reference, base_folders, fusion_init="random:7")
    torch.manual_seed(6)
    second, _ = convert_trainable(reference, base_folders, fusion_init="random:7")
    other, _ = convert_trainable(reference, base_folders, fusion_init="random:8")
    assert same_weights(first, second)
    assert not same_weights(first, other)
    weight = other.fusion_qformer.encoder.layer[0].attention.attention.query.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert other.fusion_qformer.embeddings.LayerNorm.weight.eq(1).all()


def test_the_seed_leaves_the_users_random_state_alone(reference, base_folders):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    convert_trainable(reference, base_folders, fusion_init="random:3")
    assert torch.equal(torch.rand(1), expected)


def test_fusion_from_blip2_takes_what_fits(reference, base_folders, converted):
    report = ConversionReport()
    model, _ = convert_trainable(reference, base_folders, fusion_init="blip2", report=report)
    qformer, fusion = converted.model.qformer.state_dict(), model.fusion_qformer.state_dict()
    own = "encoder.layer.1.attention.attention.query.weight"
    assert torch.equal(fusion[own], qformer[own])
    # T_obj's feed-forward is the query one; cross-attention reads names (48 wide) instead of patches (64)
    assert torch.equal(
        fusion["encoder.layer.0.intermediate_query.dense.weight"],
        qformer["encoder.layer.0.intermediate_query.dense.weight"],
    )
    left = {key for key in report.initialized if "crossattention.attention.key.weight" in key}
    assert len(left) == 2
    assert f"fusion_qformer.{own}" not in report.initialized
    assert "fusion_qformer.embeddings.word_embeddings.weight" in report.initialized


def test_fusion_from_a_blip2_with_text_embeddings(reference, base_folders, converted, tmp_path):
    """The retrieval variants of BLIP-2 hold the Q-Former's text side, word embeddings and feed-forward too."""
    config = Blip2Config.from_pretrained(base_folders / "generation")
    config.qformer_config.use_qformer_text_input = True
    config.qformer_config.vocab_size = 171
    retrieval = Blip2ForImageTextRetrieval(config)
    state = {k: v for k, v in converted.model.state_dict().items() if k.startswith(("vision_model.", "qformer."))}
    retrieval.load_state_dict(state, strict=False)
    retrieval.save_pretrained(tmp_path)
    report = ConversionReport()
    model, _ = convert_trainable(reference, base_folders, blip2=tmp_path, fusion_init="blip2", report=report)
    fusion = model.fusion_qformer
    assert torch.equal(fusion.embeddings.word_embeddings.weight, retrieval.embeddings.word_embeddings.weight)
    assert torch.equal(
        fusion.encoder.layer[0].intermediate.dense.weight, retrieval.qformer.encoder.layer[0].intermediate.dense.weight
    )
    assert all("crossattention.attention" in key for key in report.initialized)


# Bad checkpoints


def test_missing_checkpoint(reference):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        convert_evcap("nowhere.pt", config=reference.config)


def test_checkpoint_of_another_model(tmp_path, reference):
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no key of an EVCap model"):
        convert_evcap(tmp_path / "other.safetensors", config=reference.config)


@pytest.mark.parametrize("damage", ["text", "cut", "empty", "code", "cut safetensors"])
def test_damaged_checkpoint(damage, tmp_path, reference):
    path = tmp_path / "checkpoint.pt"
    marker = tmp_path / "ran"
    whole = reference.full.read_bytes()
    if damage == "text":
        path.write_text("not weights")
    elif damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut safetensors":
        path = tmp_path / "checkpoint.safetensors"
        path.write_bytes((reference.folder / "expected.safetensors").read_bytes()[:1000])
    else:
        torch.save({"model": Command(marker)}, path)
    with pytest.raises(ValueError, match=path.name):
        convert_evcap(path, config=reference.config)
    assert not marker.exists()


def test_missing_weights_are_named(reference):
    state = torch.load(reference.full, weights_only=True)["model"]
    del state["ln_vision.weight"]
    with pytest.raises(ValueError, match=r"vision_model\.post_layernorm\.weight"):
        convert_evcap(
            state,
            config=reference.config,
            llm_tokenizer=reference.llm_tokenizer,
            name_tokenizer=reference.name_tokenizer,
        )


def test_one_bias_of_two(reference):
    state = torch.load(reference.full, weights_only=True)["model"]
    del state["visual_encoder.blocks.1.attn.v_bias"]
    with pytest.raises(ValueError, match="q_bias and v_bias"):
        convert_evcap(state, config=reference.config)


def test_shapes_that_contradict(reference):
    state = torch.load(reference.full, weights_only=True)["model"]
    state["llama_proj.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"language_projection\.bias has shape \(3,\).*\(64,\)"):
        convert_evcap(
            state,
            config=reference.config,
            llm_tokenizer=reference.llm_tokenizer,
            name_tokenizer=reference.name_tokenizer,
        )


def test_half_precision_keeps_qformers_in_fp32(reference):
    model, _ = convert_evcap(
        reference.full,
        config=reference.config,
        llm_tokenizer=reference.llm_tokenizer,
        name_tokenizer=reference.name_tokenizer,
        dtype="bfloat16",
    )
    assert model.language_model.dtype == model.vision_model.dtype == torch.bfloat16
    assert model.qformer.dtype == torch.float32


# The reference's memory


class Command:
    """Unpickles to a call of `os.system` that leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


class Evaluation(Command):
    def __reduce__(self):
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


class TorchBytes(Command):
    """A storage whose own bytes are a pickle with a command."""

    def __reduce__(self):
        inner = io.BytesIO()
        torch.save(Command(self.marker), inner, _use_new_zipfile_serialization=False)
        return torch.storage._load_from_bytes, (inner.getvalue(),)


def test_memory_is_read(reference):
    memory = load_evcap_memory(reference.memory)
    assert (len(memory), memory.dim) == (200, 48)
    with reference.memory.open("rb") as file:
        keys, names = pickle.load(file)  # our own fixture
    assert memory.names == names
    assert torch.equal(torch.tensor(memory.keys), keys)


@pytest.mark.parametrize("kind", [Command, Evaluation, TorchBytes])
@pytest.mark.parametrize("place", ["whole", "keys", "name", "key of a dictionary"])
def test_hostile_memory_runs_nothing(kind, place, tmp_path):
    marker = tmp_path / "ran"
    bad = kind(marker)
    content = {
        "whole": bad,
        "keys": (bad, ["a"]),
        "name": (torch.zeros(1, 4), [bad]),
        "key of a dictionary": OrderedDict([("x", bad)]),
    }[place]
    path = tmp_path / "memory.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="memory.pkl"):
        load_evcap_memory(path)
    assert not marker.exists()


def test_attribute_setting_pickle_is_refused(tmp_path):
    """The BUILD opcode calls `__setstate__` or fills `__dict__` of what it finds."""
    path = tmp_path / "memory.pkl"
    path.write_bytes(b"ctorch.storage\n_load_from_bytes\n}S'__globals__'\n}sb.")
    with pytest.raises(ValueError, match="memory.pkl"):
        load_evcap_memory(path)


@pytest.mark.parametrize(
    "content",
    [
        {"keys": 1},
        (torch.zeros(2, 4), ["a", "b"], "c"),
        ([[1.0]], ["a"]),
        (torch.ones(2, 4), ("a", "b")),
        (torch.ones(2, 4), ["a"]),
        (torch.ones(2), ["a", "b"]),
        (torch.ones(2, 4), ["a", 5]),
        (torch.ones(2, 4), ["a", ""]),
        "text",
    ],
)
def test_memory_of_other_content(content, tmp_path):
    path = tmp_path / "memory.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises((TypeError, ValueError)):
        load_evcap_memory(path)


def test_persistent_ids_and_damage(tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return "elsewhere" if obj == "x" else None

    path = tmp_path / "memory.pkl"
    with path.open("wb") as file:
        Pickler(file).dump((torch.ones(1, 4), ["x"]))
    with pytest.raises(ValueError, match="memory.pkl.*outside itself"):
        load_evcap_memory(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="memory.pkl"):
        load_evcap_memory(path)
    with pytest.raises(FileNotFoundError, match="none.pkl"):
        load_evcap_memory(tmp_path / "none.pkl")
