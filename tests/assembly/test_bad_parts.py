"""Parts that cannot work, or not together: each message says what was given and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import PHOTOS, make_model, make_processor
from tiny_parts import LANGUAGE_MODELS, save_language_model, text_tokenizer
from transformers import BertConfig, BertModel, T5Config

from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor, SmallCapForConditionalGeneration
from hf_evcap.cli.main import main


assemble = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained
assemble_smallcap = SmallCapForConditionalGeneration.from_encoder_decoder_pretrained


@pytest.fixture(scope="module")
def tower(tower_of: Callable[[str], Path]) -> Path:
    return tower_of("vit")


@pytest.fixture(scope="module")
def llama(language_model_of: Callable[[str], Path]) -> Path:
    return language_model_of("llama")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 48, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=170, **sizes)).save_pretrained(folder)
    return folder


def changed(folder: Path, target: Path, **fields: Any) -> Path:
    """A copy of a model's folder with other fields in its config."""
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    return target


# Encoders


def test_an_encoder_without_a_vision_tower(llama: Path, bert: Path) -> None:
    for encoder, kind in ((bert, "bert"), (llama, "llama")):
        with pytest.raises(
            ValueError, match=f"is a '{kind}' model and has no vision tower.*Give an encoder of photos"
        ):
            assemble(encoder, llama)


def test_an_encoder_that_is_nowhere(llama: Path, tmp_path: Path) -> None:
    for name in ("./nowhere", str(tmp_path / "nowhere"), "a/b/c"):
        with pytest.raises(FileNotFoundError, match="is neither a folder nor a Hub repo id such as 'org/name'"):
            assemble(name, llama)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json: give the folder or repo of a whole model"):
        assemble(tmp_path, llama)


def test_an_encoder_without_weights_or_with_some_missing(tower: Path, llama: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(tower, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"holds no weights \(model\.safetensors"):
        assemble(empty, llama)
    partial = shutil.copytree(tower, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    name = next(name for name in weights if "layer.1." in name and name.endswith("weight"))
    save_file({key: value for key, value in weights.items() if key != name}, partial / "model.safetensors")
    with pytest.raises(ValueError, match=r"The vision_model of '.*partial': 1 weights are missing.*no whole ViTModel"):
        assemble(partial, llama)
    with pytest.raises(ValueError, match=r"\d+ weights have other shapes"):
        assemble(changed(tower, tmp_path / "wide", intermediate_size=64), llama)
    damaged = shutil.copytree(tower, tmp_path / "damaged")
    data = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        assemble(damaged, llama)


def test_an_encoder_without_an_image_processor(tower: Path, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tower, tmp_path / "tower", ignore=shutil.ignore_patterns("*processor*"))
    with pytest.raises(ValueError, match=r"has no preprocessor_config\.json: pass its `image_processor`"):
        assemble(folder, llama)
    own = EVCapProcessor.from_encoder_and_language_model_pretrained(tower, llama).image_processor
    assert assemble(folder, llama, image_processor=own).config.vision_config.model_type == "vit"


def test_a_weight_file_that_is_no_efficientnet_lite(llama: Path, tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"'layer\.weight' is not one of EfficientNet-Lite's"):
        assemble(tmp_path / "other.pth", llama)
    torch.save({"_conv_stem.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "narrow.pth")
    with pytest.raises(ValueError, match="none of EfficientNet-Lite0 to Lite4, whose weights have other shapes"):
        assemble(tmp_path / "narrow.pth", llama)


# Language models


def test_a_sequence_to_sequence_language_model(tower: Path, tmp_path: Path) -> None:
    T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=1, vocab_size=20).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a sequence-to-sequence model \(t5\).*Give a causal language model"):
        assemble(tower, tmp_path)


def test_a_model_that_does_not_write(tower: Path) -> None:
    with pytest.raises(ValueError, match="is a 'vit' model, which `AutoModelForCausalLM` does not know"):
        assemble(tower, tower)


def test_an_architecture_that_transformers_does_not_know(tower: Path, llama: Path, tmp_path: Path) -> None:
    folder = changed(llama, tmp_path / "unknown", model_type="not-a-model")
    with pytest.raises(ValueError, match="(?s)does not know the model '.*unknown'.*`AutoConfig` knows"):
        assemble(tower, folder)


def test_a_language_model_in_few_bits(tower: Path, llama: Path, tmp_path: Path) -> None:
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    folder = changed(llama, tmp_path / "quantized", quantization_config=bits)
    with pytest.raises(ValueError, match="quantized already. Give the model in full precision"):
        assemble(tower, folder)


def test_tokenizers_that_lack_what_is_needed(tower: Path, llama: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(llama, tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(
        ValueError, match="(?s)has no tokenizer that can be loaded.*or pass a `processor` that holds it"
    ):
        assemble(tower, bare)
    tokenizer = text_tokenizer("bpe")
    folder = save_language_model(tmp_path / "endless", "llama", vocab_size=len(tokenizer))
    tokenizer.eos_token = tokenizer.bos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"neither a PAD nor an EOS token.*tokenizer\.pad_token = "):
        assemble(tower, folder)
    tokenizer.pad_token = "!"
    tokenizer.save_pretrained(folder)
    processor = EVCapProcessor.from_encoder_and_language_model_pretrained(tower, folder)
    assert processor.tokenizer.decode(processor.encode_prompt("What?")).startswith("###Human")  # no BOS token to begin
    ends = assemble(tower, folder, processor=processor).generation_config.eos_token_id
    assert {processor.tokenizer.decode([end]) for end in ends} == {".", "\n"}


def test_a_decoder_that_smallcap_does_not_know(tower: Path, llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "granite")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "granite"}))
    with pytest.raises(ValueError, match="is a 'granite' model: .* of the types gpt2, opt, .*assemble an EVCap"):
        assemble_smallcap(tower, folder)


# Widths that cannot meet


def test_widths_that_cannot_meet(
    tower: Path, llama: Path, bert: Path, reference_parts: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"fusion Q-Former would start from '.*bert.*', 48 wide, but the image Q-Former"
    ):
        assemble(tower, llama, fusion_init=str(bert))
    with pytest.raises(ValueError, match=r"reads vision features of 64 numbers, this vision encoder gives 32"):
        assemble(tower, llama, qformer_init=str(reference_parts.blip2))
    with pytest.raises(ValueError, match=r"tie_name_embeddings=True needs fusion_qformer_config\.hidden_size \(48\)"):
        assemble(tower, llama, qformer_config={"hidden_size": 48}, tie_name_embeddings=True)
    make_model().save_pretrained(tmp_path)
    make_processor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"gives a photo 9 tokens, the model 40"):
        assemble(tower, llama, processor=EVCapProcessor.from_pretrained(tmp_path))


# Options


def test_options_that_are_none(tower: Path, llama: Path) -> None:
    with pytest.raises(
        TypeError, match="Unknown option 'num_queries'. Fields of EVCapConfig: .*num_query_tokens.*dtype"
    ):
        assemble(tower, llama, num_queries=3)
    with pytest.raises(TypeError, match="revisions of their own: write them behind the ids, as in 'org"):
        assemble(tower, llama, revision="main")
    with pytest.raises(TypeError, match="Unknown option 'text_config'"):
        assemble(tower, llama, text_config={})
    with pytest.raises(ValueError, match="type 'vit' has no field 'patches'"):
        assemble(tower, llama, vision_config={"patches": 3})
    with pytest.raises(
        ValueError, match="`dtype` must be a floating torch.dtype or its name, such as 'bfloat16'; got 'fast'"
    ):
        assemble(tower, llama, dtype="fast")
    with pytest.raises(ValueError, match="`fusion_init` must be 'random:SEED', or a BERT, a BLIP-2 or an EV"):
        assemble(tower, llama, fusion_init=str(tower))
    with pytest.raises(ValueError, match="this one starts at random. Leave `fusion_init` out"):
        assemble(tower, llama, fusion_init="blip2")
    with pytest.raises(FileNotFoundError, match="'zeros/at/all' is neither a folder nor a Hub repo id"):
        assemble(tower, llama, fusion_init="zeros/at/all")
    with pytest.raises(ValueError, match="fit the retrieval space 'vision'; this model's is 'query'"):
        assemble(tower, llama, retrieval_space="query", vision_space_photos=["photo.jpg"])


def test_a_memory_of_another_encoder(tower: Path, llama: Path, tmp_path: Path) -> None:
    make_model().memory.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="was built by the encoder"):
        assemble(tower, llama, memory=str(tmp_path))


@pytest.mark.parametrize("kind", sorted(set(LANGUAGE_MODELS) - {"llama"}))
def test_sources_that_no_repo_holds_are_named_in_no_config(
    kind: str, tower: Path, language_model_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = assemble(tower, language_model_of(kind))
    model.save_pretrained(tmp_path, frozen="reference")  # nothing can be named: all of it is saved
    text = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert str(tower) not in text and str(language_model_of(kind)) not in text
    state = EVCapForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# The command line


@pytest.fixture(scope="module")
def bad(tower: Path, llama: Path, language_model_of: Callable[[str], Path], tmp_path_factory: Any) -> Any:
    """Folders and files that are no parts, by name; `tower`, `llama` and the like are good ones."""
    root = tmp_path_factory.mktemp("bad")

    def damaged(name: str, source: Path, file: str, content: bytes | None) -> Path:
        folder = shutil.copytree(source, root / name)
        (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
        return folder

    def written(name: str, content: bytes) -> Path:
        (root / name).write_bytes(content)
        return root / name

    (root / "empty").mkdir()
    gpt2 = language_model_of("gpt2")
    return {
        "tower": tower, "llama": llama, "gpt2": gpt2, "empty": root / "empty", "nowhere": root / "nowhere",
        "broken-config": damaged("broken-config", llama, "config.json", b"{"),
        "listed-config": damaged("listed-config", llama, "config.json", b"[1]"),
        "broken-weights": damaged("broken-weights", llama, "model.safetensors", b"abc"),
        "weightless": damaged("weightless", llama, "model.safetensors", None),
        "wordless": damaged("wordless", gpt2, "tokenizer.json", None),
        "broken-words": damaged("broken-words", gpt2, "tokenizer.json", b"{"),
        "weights": llama / "model.safetensors",
        "photo": PHOTOS / "cat.jpg",
        "fake.gguf": written("fake.gguf", b"no GGUF file" * 9),
        "empty.gguf": written("empty.gguf", b""),
        "cut.gguf": written("cut.gguf", b"GGUF" + bytes(36)),
        "no.gguf": root / "no.gguf",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "language_model", "message"),
    [
        ("tower", "tower", "It reads photos: were the encoder and the language model swapped?"),
        ("llama", "gpt2", "It writes text: were the encoder and the language model swapped?"),
        ("empty", "llama", "empty' holds no config.json: give the folder"),
        ("tower", "empty", "empty' holds no config.json: give the folder"),
        ("nowhere", "llama", "nowhere': it is neither a folder nor a Hub repo id such as org/name"),
        ("", "llama", "'': it is neither a folder nor a Hub repo id"),
        ("https://huggingface.co/org/name", "llama", "it is neither a folder nor a Hub repo id such as org/name"),
        ("photo", "llama", "is no weight file of an EfficientNet-Lite"),
        ("weights", "llama", "Other encoders are given by their folder or repo id"),
        ("tower", "weights", "model.safetensors' is a file: give the folder that it lies in"),
        ("tower", "broken-config", "The config.json of"),
        ("tower", "listed-config", "Give a model of an architecture that `AutoConfig` knows"),
        ("tower", "broken-weights", "Get the file anew"),
        ("tower", "weightless", "Give a folder or repo with all of a model's weights"),
        ("tower", "wordless", "Put its tokenizer's files (such as tokenizer.json) beside the weights"),
        ("tower", "broken-words", "has no tokenizer that can be loaded"),
        ("tower", "no.gguf", "There is no GGUF file"),
        ("tower", "fake.gguf", "fake.gguf' is damaged, no GGUF file"),
        ("tower", "empty.gguf", "empty.gguf' is damaged, no GGUF file"),
        ("tower", "cut.gguf", "cut.gguf' is damaged, no GGUF file"),
    ],
)
def test_a_bad_part_gets_one_line(
    bad: dict[str, Path],
    encoder: str,
    language_model: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if language_model.endswith(".gguf") and message.endswith("no GGUF file"):
        pytest.importorskip("gguf", reason="the extra `gguf`, without which no GGUF file is read")
    parts = [str(bad.get(one, one)) for one in (encoder, language_model)]
    command = ["new", "evcap", "--encoder", parts[0], "--language-model", parts[1], "--out", str(tmp_path / "out")]
    assert main(command) == 1
    told = capsys.readouterr().err.strip()
    assert message in told and told.startswith("hf-evcap new: ") and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--qformer-init", "random:x"], "random:SEED such as random:0"),
        (["--fusion-init", "random:"], "random:SEED such as random:0"),
        (["--dtype", "int8"], "there is no precision 'int8'"),
        (["--config", "FIELDS"], "The field 'num_query_tokens' of EVCapConfig is like 32; got 'many'"),
    ],
)
def test_a_bad_option_gets_one_line(
    tower: Path,
    llama: Path,
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "fields.yaml").write_text("num_query_tokens: many", encoding="utf-8")
    command = ["new", "evcap", "--encoder", str(tower), "--language-model", str(llama), "--out", str(tmp_path / "out")]
    command += [str(tmp_path / "fields.yaml") if word == "FIELDS" else word for word in options]
    assert main(command) in (1, 2)
    told = capsys.readouterr().err.strip()
    assert message in told and len(told.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_command_line_says_what_is_wrong(
    tower: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["new", "evcap", "--encoder", str(llama), "--language-model", str(llama), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "hf-evcap new: " in (error := capsys.readouterr().err) and "has no vision tower" in error
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}", encoding="utf-8")
    assert main(command) == 1
    assert "holds a model already. Choose another folder, or give" in capsys.readouterr().err
    (tmp_path / "fields.yaml").write_text("- 1", encoding="utf-8")
    assert main([*command[:-1], str(tmp_path / "new"), "--config", str(tmp_path / "fields.yaml")]) == 1
    assert "must hold a mapping of config fields" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "nowhere"), "--out", str(tmp_path / "whole")]) == 1
    assert "nowhere" in capsys.readouterr().err
