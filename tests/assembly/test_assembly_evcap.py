"""EVCap put together from pretrained parts: the parts' own values, sensible choices, captions from day one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import NAMES, make_model, make_name_tokenizer, make_processor
from tiny_parts import CHAT_TEMPLATE, LANGUAGE_MODELS, save_language_model, text_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel

import hf_evcap
from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor, VisualNameMemory
from hf_evcap.assembly_evcap import EVCapAssembly
from hf_evcap.conversion import ConversionReport
from hf_evcap.conversion.evcap import convert_state_dict
from hf_evcap.model_source import own_config
from hf_evcap.part_sources import PartSource
from hf_evcap.vision_space_evcap import fit_vision_space


TOWERS = ("clip", "siglip", "dinov2", "vit", "efficientnet_lite")


def assemble(encoder: Any, language_model: Any, **options: Any) -> tuple[EVCapForConditionalGeneration, Any]:
    """Model and processor."""
    memory = options.pop("memory", None)
    assembly = EVCapAssembly(EVCapProcessor, encoder, language_model, **options)
    return assembly.load(EVCapForConditionalGeneration, memory), assembly.processor


def part_of(model: Any, part: str) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name.removeprefix(f"{part}."): state[name] for name in state if name.startswith(f"{part}.")}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# The paper's parts


def test_parts_of_the_reference_equal_the_converted_checkpoint(
    reference: SimpleNamespace, reference_parts: SimpleNamespace, converted: SimpleNamespace
) -> None:
    model = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(
        reference_parts.blip2, reference_parts.llama, name_tokenizer=reference_parts.name_tokenizer
    )
    expected, found = converted.model.state_dict(), model.state_dict()
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        if not name.startswith(("fusion_qformer.", "name_query_tokens", "language_projection.")):
            assert torch.equal(found[name], value), name
    assert model.config.image_token_id == converted.model.config.image_token_id
    assert model.generation_config.eos_token_id == converted.model.generation_config.eos_token_id
    assert model.config.retrieval_space == "query"
    pixels = reference.tensors["pixel_values"]
    with torch.no_grad():
        ours, theirs = (one.get_image_features(pixels).query_output for one in (model, converted.model))
    assert torch.equal(ours, theirs)
    # with the paper's weights in the places that are trained, it is the paper's model
    model.load_state_dict(expected)
    model.set_memory(converted.model.memory)
    with torch.no_grad():
        names = model.retrieve_names(model.get_image_features(pixels).retrieval_queries).names
    assert names == reference.expected["names"]


def test_it_trains_what_the_reference_trains(reference: SimpleNamespace, reference_parts: SimpleNamespace) -> None:
    model, _ = assemble(reference_parts.blip2, reference_parts.llama, name_tokenizer=reference_parts.name_tokenizer)
    names = set(convert_state_dict(torch.load(reference.trainable, weights_only=True)["model"], ConversionReport()))
    assert len(names) == 4
    model.freeze_for_training("paper")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == names


def test_the_fusion_starts_from_the_image_qformer_as_far_as_shapes_allow(reference_parts: SimpleNamespace) -> None:
    model, _ = assemble(reference_parts.blip2, reference_parts.llama, name_tokenizer=reference_parts.name_tokenizer)
    image, fusion = part_of(model, "qformer"), part_of(model, "fusion_qformer")
    layer = "encoder.layer.1"
    for name in ("attention.attention.query.weight", "intermediate_query.dense.weight", "output_query.LayerNorm.bias"):
        assert torch.equal(fusion[f"{layer}.{name}"], image[f"{layer}.{name}"])
    assert torch.equal(fusion["embeddings.LayerNorm.weight"], image["layernorm.weight"])
    # it reads names, which are narrower than patches
    reads = "encoder.layer.0.crossattention.attention.key.weight"
    assert fusion[reads].shape != image[reads].shape
    assert fusion[reads].std().item() == pytest.approx(model.config.fusion_qformer_config.initializer_range, rel=0.2)
    assert "fusion_qformer" in model.config.untrained_parts and "qformer" not in model.config.untrained_parts


def test_chance_is_the_same_for_a_seed_and_leaves_the_callers_alone(reference_parts: SimpleNamespace) -> None:
    def fusion(init: str) -> dict[str, torch.Tensor]:
        options = {"name_tokenizer": reference_parts.name_tokenizer, "fusion_init": init}
        return part_of(assemble(reference_parts.blip2, reference_parts.llama, **options)[0], "fusion_qformer")

    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = fusion("random:7")
    assert torch.equal(torch.rand(1), expected)
    assert_equal(fusion("random:7"), first)
    word = "embeddings.word_embeddings.weight"
    assert not torch.equal(fusion("random:8")[word], first[word])
    assert torch.equal(first[word].bfloat16().float(), first[word])  # a file keeps it in half the room


# Vision towers alone


@pytest.mark.parametrize("kind", TOWERS)
def test_a_tower_alone_retrieves_from_the_first_day_and_must_train_its_qformers(
    kind: str, tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path], photos: list[Image.Image],
    tmp_path: Path,
) -> None:  # fmt: skip
    encoder = tower_of(kind)
    model, processor = assemble(encoder, language_model_of("llama"))
    if kind != "efficientnet_lite":
        tower = AutoModel.from_pretrained(encoder)
        expected = {**getattr(tower, "vision_model", tower).state_dict()}
        assert_equal(part_of(model, "vision_model"), expected)
    assert model.config.retrieval_space == "vision" and model.config.tie_name_embeddings
    memory = VisualNameMemory.from_images(
        model, processor, [{"image": photo, "name": name} for photo, name in zip(photos, NAMES, strict=False)]
    )
    model.set_memory(memory)
    inputs = processor(images=photos, return_tensors="pt")
    with torch.no_grad():
        queries = model.get_image_features(inputs["pixel_values"]).retrieval_queries
    found = model.retrieve_names(queries[:, :1]).names
    assert [names[0] for names in found] == [name.replace("_", " ").lower() for name in NAMES[: len(photos)]]

    with pytest.raises(ValueError, match=r"'paper' leaves the image Q-Former frozen.*policy qformers or full"):
        model.freeze_for_training("paper")
    model.freeze_for_training("qformers")
    trained = {name.split(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"query_tokens", "name_query_tokens", "language_projection", "fusion_qformer", "qformer"}
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = EVCapForConditionalGeneration.from_pretrained(tmp_path)
    assert_equal(again.state_dict(), model.state_dict())
    assert again.generate(**inputs, num_beams=1).tolist() == model.generate(**inputs, num_beams=1).tolist()
    again.freeze_for_training("paper")  # now that they have been trained
    assert not any(word in (tmp_path / "config.json").read_text() for word in (str(encoder), "/tmp", "\\Users"))


def test_a_tower_is_fitted_to_photos(
    tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path], photos: list[Image.Image]
) -> None:
    shown = [photo.rotate(90 * turn) for photo in photos for turn in range(4)]
    model, processor = assemble(tower_of("vit"), language_model_of("llama"), vision_space_photos=shown)
    assert model.config.retrieval_options["key_size"] == model.memory_key_size == 15
    with torch.no_grad():
        keys = model.encode_memory_keys(processor, shown)
        plain = assemble(tower_of("vit"), language_model_of("llama"))[0]
        before = plain.encode_memory_keys(processor, shown)
    assert keys.shape == (16, 15)
    # whitened keys of different photos point apart, plain ones much the same way
    apart = ~torch.eye(16, dtype=torch.bool)
    assert (keys @ keys.T)[apart].mean() < 0.02 < 0.3 < (before @ before.T)[apart].mean()
    assert plain.encoder_fingerprint != model.encoder_fingerprint  # a memory of one does not fit the other
    with pytest.raises(ValueError, match="Keys of 32 numbers are learnt from more photos than that; got 16"):
        fit_vision_space(plain, processor, shown)
    with pytest.raises(ValueError, match="learnt from photos: give `vision_space_photos`"):
        assemble(tower_of("vit"), language_model_of("llama"), retrieval_options={"key_size": 8})


def test_a_qformer_starts_from_a_bert_as_blip2_began(
    tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    bert = BertModel(BertConfig(vocab_size=170, max_position_embeddings=40, **sizes))
    bert.save_pretrained(tmp_path)
    names = make_name_tokenizer()
    model, _ = assemble(
        tower_of("clip"), language_model_of("gpt2"), qformer_init=str(tmp_path), name_tokenizer=names,
        fusion_init="blip2",
    )  # fmt: skip
    assert model.config.qformer_config.num_hidden_layers == 4
    assert model.config.untrained_parts == ["fusion_qformer", "qformer"]
    state, image, fusion = bert.state_dict(), part_of(model, "qformer"), part_of(model, "fusion_qformer")
    layer = "encoder.layer.3"
    assert torch.equal(image[f"{layer}.attention.attention.value.bias"], state[f"{layer}.attention.self.value.bias"])
    for part in (image, fusion):
        assert torch.equal(part[f"{layer}.output_query.dense.weight"], state[f"{layer}.output.dense.weight"])
    assert torch.equal(fusion[f"{layer}.output.dense.weight"], state[f"{layer}.output.dense.weight"])
    assert torch.equal(image["layernorm.weight"], state["embeddings.LayerNorm.weight"])
    words = fusion["embeddings.word_embeddings.weight"]
    assert len(words) == len(names) == 171
    assert torch.equal(words[:170], state["embeddings.word_embeddings.weight"])  # [DEC] is new
    assert "encoder.layer.0.crossattention.attention.key.weight" in image  # every second layer, as in BLIP-2
    assert "encoder.layer.1.crossattention.attention.key.weight" not in image
    # What one weight of the BERT starts learns by itself from here on.
    places = [parameter.data_ptr() for parameter in model.parameters()]
    assert len(set(places)) == len(places)
    model.save_pretrained(tmp_path / "model")
    saved = EVCapForConditionalGeneration.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_a_tower_takes_the_trained_qformer_that_belongs_to_it(
    tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    first, processor = assemble(tower_of("clip"), language_model_of("llama"))
    first.freeze_for_training("qformers")
    first.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model, _ = assemble(tower_of("clip"), language_model_of("gpt2"), qformer_init=str(tmp_path))
    assert_equal(part_of(model, "qformer"), part_of(first, "qformer"))
    assert torch.equal(model.query_tokens, first.query_tokens)
    assert model.config.retrieval_space == "query"
    model.freeze_for_training("paper")


# Another EVCap


def test_an_evcap_gets_another_language_model_and_keeps_its_memory(
    tmp_path: Path, language_model_of: Callable[[str], Path], photos: list[Image.Image]
) -> None:
    old = make_model()
    old.save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    model, processor = assemble(tmp_path, language_model_of("gpt2"))
    for part in ("vision_model", "qformer", "fusion_qformer"):
        assert_equal(part_of(model, part), part_of(old, part))
    assert torch.equal(model.name_query_tokens, old.name_query_tokens)
    assert_equal(
        part_of(model, "language_model"), AutoModelForCausalLM.from_pretrained(language_model_of("gpt2")).state_dict()
    )
    pixels = processor(images=photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found = [one.retrieve_names(one.get_image_features(pixels).retrieval_queries).names for one in (old, model)]
    assert found[0] == found[1]
    assert model.config.untrained_parts == []
    assert assemble(tmp_path, language_model_of("gpt2"), memory=False)[0].memory is None


def test_the_embedded_model_goes_on_reading_names_with_its_own_words(
    language_model_of: Callable[[str], Path], photo_paths: list[str]
) -> None:
    old = EVCapForConditionalGeneration.from_pretrained(hf_evcap.default_model())
    model, processor = assemble(hf_evcap.default_model(), language_model_of("llama"))
    inputs = processor(images=photo_paths, return_tensors="pt")
    with torch.no_grad():
        fused = []
        for one in (old, model):
            features = one.get_image_features(inputs["pixel_values"])
            names = one.retrieve_names(features.retrieval_queries)
            fused.append((names.names, one.fuse_names(features.query_output, names.input_ids, names.attention_mask)))
    assert fused[0][0] == fused[1][0]
    assert torch.equal(fused[0][1], fused[1][1])
    assert not model.config.tie_name_embeddings and model.config.fusion_qformer_config.vocab_size == 8192
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 4


# Language models


@pytest.mark.parametrize("kind", sorted(LANGUAGE_MODELS))
def test_language_models(
    kind: str, tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path], photo_paths: list[str]
) -> None:
    folder = language_model_of(kind)
    model, processor = assemble(tower_of("dinov2"), folder)
    assert_equal(part_of(model, "language_model"), AutoModelForCausalLM.from_pretrained(folder).state_dict())
    tokenizer = processor.tokenizer
    ends = {tokenizer.decode([end]).strip(" ") for end in model.generation_config.eos_token_id}
    assert {"."} < ends and ends <= {".", "\n", tokenizer.eos_token}
    inputs = processor(images=photo_paths[:2], suffix=["a cat", "a red bus"], return_tensors="pt")
    model(**inputs).loss.backward()
    assert model.language_projection.weight.grad.abs().sum() > 0
    prompts = processor(images=photo_paths[:2], return_tensors="pt")
    alone = [processor(images=photo, return_tensors="pt") for photo in photo_paths[:2]]
    together = model.generate(**prompts, num_beams=1, max_new_tokens=6, min_new_tokens=6)
    for row, one in zip(together, alone, strict=True):
        assert torch.equal(row, model.generate(**one, num_beams=1, max_new_tokens=6, min_new_tokens=6)[0])


def test_a_chat_models_own_template_is_the_prompt(
    tower_of: Callable[[str], Path], photo_paths: list[str], tmp_path: Path
) -> None:
    tokenizer = text_tokenizer("bpe")
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "extra_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHAT_TEMPLATE
    save_language_model(tmp_path, "llama", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(tmp_path)
    parts = (tower_of("vit"), tmp_path)
    options = {"use_chat_template": True, "processor_options": {"prompt": "What is this?"}}
    processor = EVCapProcessor.from_encoder_and_language_model_pretrained(*parts, **options)
    model = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(*parts, processor=processor)
    assert model.config.tie_name_embeddings  # the processor's name tokenizer is the language model's
    text = processor.tokenizer.decode(processor.encode_prompt(processor.prompt))
    photo = "<image>" * 40
    assert text == f"<|im_start|>user\n{photo}\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
    assert processor.encode_caption("a cat")[-1] == processor.tokenizer.eos_token_id
    assert model.generate(**processor(images=photo_paths[0], return_tensors="pt"), max_new_tokens=2).shape[0] == 1
    with pytest.raises(ValueError, match="no chat template: it is no chat model"):
        assemble(tower_of("vit"), save_language_model(tmp_path / "plain", "llama"), use_chat_template=True)


def test_precision_and_devices(tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path]) -> None:
    model, _ = assemble(
        tower_of("siglip"), language_model_of("qwen2"), dtype="bfloat16", device_map={"": "cpu"},
        attn_implementation="eager", num_name_query_tokens=5, vision_config={"attention_dropout": 0.25},
        qformer_config={"num_hidden_layers": 3},
    )  # fmt: skip
    dtypes = {part: getattr(model, part).dtype for part in ("vision_model", "qformer", "language_model")}
    assert dtypes == {"vision_model": torch.bfloat16, "qformer": torch.float32, "language_model": torch.bfloat16}
    assert model.language_model.config._attn_implementation == "eager"
    assert model.config.vision_config.attention_dropout == 0.25
    assert model.config.qformer_config.num_hidden_layers == len(model.qformer.encoder.layer) == 3
    assert model.name_query_tokens.shape[1] == 5
    half = language_model_of("qwen2").parent / "half"
    AutoModelForCausalLM.from_pretrained(language_model_of("qwen2"), dtype=torch.float16).save_pretrained(half)
    text_tokenizer("bpe").save_pretrained(half)
    assert assemble(tower_of("siglip"), half)[0].language_model.dtype == torch.float16  # as the file has it


def test_parts_are_recorded_from_hubs_alone(
    tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path]
) -> None:
    model, _ = assemble(tower_of("clip"), language_model_of("llama"))
    assert model.config.part_sources is None
    assert PartSource(weights={"x": torch.zeros(1)}).record is None
    assert own_config(model.config.vision_config)._name_or_path == ""


def test_a_model_in_half_precision_is_saved_and_loaded_as_such(tmp_path: Path) -> None:
    model = make_model().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "first")
    again = EVCapForConditionalGeneration.from_pretrained(tmp_path / "first")
    assert again.language_model.dtype == torch.bfloat16 and again.qformer.dtype == torch.float32
    again.save_pretrained(tmp_path / "second")  # its first parameter is in float32
    last = EVCapForConditionalGeneration.from_pretrained(tmp_path / "second")
    assert last.language_model.dtype == last.vision_model.dtype == last.dtype == torch.bfloat16
