"""Released SmallCap checkpoints: the same logits and tokens after convert, save and load."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_smallcap import REFERENCE, make_model, make_tokenizer
from transformers import CLIPConfig, CLIPModel

from hf_evcap import SmallCapForConditionalGeneration, SmallCapProcessor
from hf_evcap.cli.main import main
from hf_evcap.conversion import ConversionReport, convert_smallcap


GREEDY = {"num_beams": 1, "max_new_tokens": 15, "eos_token_id": None, "length_penalty": 1.0, "early_stopping": False}


@pytest.fixture(scope="module")
def expected():
    return load_file(REFERENCE / "expected.safetensors")


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Converted, saved, loaded."""
    report = ConversionReport()
    model, processor = convert_smallcap(REFERENCE, report=report)
    assert processor is None  # nothing tells which tokenizer a vocabulary of 300 belongs to
    assert report.missing == [] and report.unused == ["encoder.embeddings.position_ids"]
    folder = tmp_path_factory.mktemp("converted")
    model.save_pretrained(folder)
    return SmallCapForConditionalGeneration.from_pretrained(folder)


def test_what_the_release_gives(reloaded, expected):
    photo = {"pixel_values": expected["pixel_values"]}
    with torch.no_grad():
        features = reloaded.get_image_features(**photo)
        outputs = reloaded(input_ids=expected["decoder_input_ids"], **photo)
    assert (features.vision_hidden_states - expected["encoder_last_hidden_state"]).abs().max() < 1e-4
    assert (outputs.logits - expected["logits"]).abs().max() < 1e-4
    # The release's labels are shifted already; ours are shifted by the model.
    loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), expected["labels"].flatten())
    assert loss.item() == pytest.approx(expected["loss"].item(), abs=1e-4)
    ids = torch.cat([expected["decoder_input_ids"], torch.zeros(3, 1, dtype=torch.long)], dim=1)
    labels = torch.cat([torch.full((3, 1), -100), expected["labels"]], dim=1)
    with torch.no_grad():
        ours = reloaded(input_ids=ids, labels=labels, **photo).loss
    assert ours.item() == pytest.approx(expected["loss"].item(), abs=1e-4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_tokens_of_the_release(reloaded, expected, use_cache):
    ids = reloaded.generate(expected["pixel_values"], expected["prompt_ids"], use_cache=use_cache, **GREEDY)
    assert torch.equal(ids, expected["greedy_token_ids"])


def test_config_of_the_release(reloaded):
    config = reloaded.config
    assert (config.cross_attention_reduce_factor, config.num_retrieved_captions) == (4, 4)
    assert (config.retrieval_space, config.retrieval_encoder) == ("external", "RN50x64")
    assert (config.eos_token_id, config.pad_token_id) == (13, 0)
    assert config.text_config.tie_word_embeddings is False  # the checkpoint's own output embeddings
    generation = reloaded.generation_config
    assert (generation.num_beams, generation.eos_token_id, generation.pad_token_id) == (3, 13, 0)


def copy_reference(folder: Path, **changes) -> Path:
    """The reference's folder with another config."""
    shutil.copytree(REFERENCE, folder)
    path = folder / "config.json"
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    return folder


def test_older_forms_of_the_config(expected, tmp_path):
    """The whole CLIP's config as encoder, no reduce factor, causal masks among the weights, no retrieval."""
    raw = json.loads((REFERENCE / "config.json").read_text(encoding="utf-8"))
    clip = {"model_type": "clip", "projection_dim": 16, "vision_config": raw["encoder"]}
    decoder = {name: value for name, value in raw["decoder"].items() if "reduce" not in name}
    folder = copy_reference(tmp_path / "old", encoder=clip, decoder=decoder, rag=False)
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["decoder.transformer.h.0.attn.bias"] = torch.ones(1, 1, 160, 160, dtype=torch.uint8)
    state["decoder.transformer.h.0.crossattention.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "pytorch_model.bin")
    report = ConversionReport()
    model, _ = convert_smallcap(folder, report=report)
    assert len(report.unused) == 3 and model.config.num_retrieved_captions == 0
    ids = model.generate(expected["pixel_values"], expected["prompt_ids"], **GREEDY)
    assert torch.equal(ids, expected["greedy_token_ids"])


def test_opt_round_trip(tmp_path, pixels):
    """An OPT model in the release's names comes back as it was."""
    model = make_model("opt", datastore=False, retrieval_space="external", retrieval_encoder="RN50x64")
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("vision_model.", "encoder.", 1).replace("language_model.", "decoder.", 1)
        state[name.replace("ln_cross_attn", "encoder_attn_layer_norm").replace("crossattention", "encoder_attn")] = (
            tensor
        )
    torch.save(state, tmp_path / "pytorch_model.bin")
    decoder = {**model.config.text_config.to_dict(), "model_type": "this_opt", "cross_attention_reduce_factor": 4}
    raw = {"encoder": model.config.vision_config.to_dict(), "decoder": decoder, "k": 4, "rag": True}
    raw |= {"retrieval_encoder": "RN50x64", "eos_token_id": model.config.eos_token_id, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    make_tokenizer().save_pretrained(tmp_path)
    converted, processor = convert_smallcap(tmp_path)
    assert isinstance(processor, SmallCapProcessor) and converted.config.add_bos_token
    captions = [["a cat", "a dog"], ["a red bus"]]
    assert torch.equal(
        converted.generate(pixels[:2], captions=captions), model.generate(pixels[:2], captions=captions)
    )


def test_with_the_clip_that_the_encoder_comes_from(tmp_path, expected):
    """With CLIP's projection the model makes its own queries."""
    raw = json.loads((REFERENCE / "config.json").read_text(encoding="utf-8"))
    vision = {name: raw["encoder"][name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers",
                                                      "num_attention_heads", "image_size", "patch_size")}  # fmt: skip
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 60,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()
    other = tmp_path / "other"
    clip.save_pretrained(other)
    model, _ = convert_smallcap(REFERENCE)
    clip.vision_model.load_state_dict(model.vision_model.state_dict())
    clip.save_pretrained(tmp_path / "clip")
    model, _ = convert_smallcap(REFERENCE, clip=tmp_path / "clip")
    with torch.no_grad():
        ours = model.get_image_features(expected["pixel_values"]).retrieval_queries
        theirs = clip.get_image_features(pixel_values=expected["pixel_values"])
    assert torch.allclose(ours, getattr(theirs, "pooler_output", theirs), atol=1e-5)
    assert model.config.retrieval_space == "clip" and model.memory_key_size == 12
    with pytest.raises(ValueError, match="is not the CLIP model that the checkpoint's vision encoder comes from"):
        with torch.no_grad():
            clip.vision_model.post_layernorm.weight += 1
        clip.save_pretrained(other)
        convert_smallcap(REFERENCE, clip=other)


def test_command_line(tmp_path, capsys, expected):
    tokenizer = tmp_path / "tokenizer"
    make_tokenizer().save_pretrained(tokenizer)
    out = tmp_path / "out"
    assert main(["convert", "smallcap", str(REFERENCE), "--out", str(out), "--tokenizer", str(tokenizer)]) == 0
    printed = capsys.readouterr().out
    assert "104 keys used, 1 unused, 0 missing" in printed and "written to" in printed
    assert (out / "processor_config.json").is_file() and (out / "tokenizer.json").is_file()
    model = SmallCapForConditionalGeneration.from_pretrained(out)
    ids = model.generate(expected["pixel_values"], expected["prompt_ids"], **GREEDY)
    assert torch.equal(ids, expected["greedy_token_ids"])


class Command:
    """What a hostile checkpoint may hold."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_bad_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        convert_smallcap(tmp_path)
    hostile = copy_reference(tmp_path / "hostile")
    (hostile / "pytorch_model.bin").write_bytes(pickle.dumps({"encoder.x": Command(tmp_path / "ran")}))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is damaged or holds more than weights"):
        convert_smallcap(hostile)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="this_gpt2 or this_opt, it is 'this_xglm'"):
        convert_smallcap(copy_reference(tmp_path / "xglm", decoder={"model_type": "this_xglm"}))
    with pytest.raises(ValueError, match="not of a released SmallCap"):
        convert_smallcap(copy_reference(tmp_path / "none", encoder=None))
    lacking = copy_reference(tmp_path / "lacking")
    state = torch.load(lacking / "pytorch_model.bin", weights_only=True)
    del state["decoder.transformer.h.1.mlp.c_fc.weight"]
    torch.save(state, lacking / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"1 weights are not in the checkpoint.*h\.1\.mlp\.c_fc\.weight"):
        convert_smallcap(lacking)
