"""SmallCap put together from a vision encoder and a decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_smallcap import CAPTIONS
from transformers import AutoModelForCausalLM, CLIPModel

from hf_evcap import CaptionDatastore, SmallCapForConditionalGeneration, SmallCapProcessor
from hf_evcap.cli.main import main
from hf_evcap.clip_encoder import ClipEncoder


def assemble(
    encoder: Path, decoder: Path, **options: object
) -> tuple[SmallCapForConditionalGeneration, SmallCapProcessor]:
    processor = SmallCapProcessor.from_encoder_decoder_pretrained(encoder, decoder)
    model = SmallCapForConditionalGeneration.from_encoder_decoder_pretrained(
        encoder, decoder, processor=processor, **options
    )
    return model, processor


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_clip_and_a_decoder(
    kind: str, tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path], photos: list[Image.Image],
    tmp_path: Path,
) -> None:  # fmt: skip
    clip, decoder = CLIPModel.from_pretrained(tower_of("clip")), language_model_of(kind)
    model, processor = assemble(tower_of("clip"), decoder)
    state = model.state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(decoder).state_dict().items():
        assert torch.equal(state[f"language_model.{name}"], value), name
    for name, value in clip.vision_model.state_dict().items():
        assert torch.equal(state[f"vision_model.{name}"], value), name
    drawn = {name: value for name, value in state.items() if "crossattention" in name or "ln_cross_attn" in name}
    assert model.freeze_for_training("paper") == sum(
        value.numel() for name, value in drawn.items() if "crossattention" in name
    )
    for name, value in drawn.items():
        if "ln_cross_attn" in name:
            assert value.eq(float(name.endswith("weight"))).all()
        elif name.endswith(("c_proj.weight", "out_proj.weight")):
            assert value.eq(0).all()  # the decoder begins as it was
        elif name.endswith("weight"):
            assert 0 < value.std() < 0.3 and value.mean().abs() < 0.02
    other, _ = assemble(tower_of("clip"), decoder, seed=1)
    layer = next(name for name in drawn if name.endswith("q_attn.weight") or name.endswith("q_proj.weight"))
    assert not torch.equal(other.state_dict()[layer], drawn[layer])

    # queries are the CLIP's own, so a datastore of its captions fits
    encoder = ClipEncoder(clip, None, processor.image_processor)
    with torch.no_grad():
        queries = model.get_image_features(processor(images=photos, return_tensors="pt")["pixel_values"])
    torch.testing.assert_close(
        queries.retrieval_queries, torch.from_numpy(encoder.encode_photos(photos)), atol=1e-5, rtol=0
    )
    captions, image_ids = zip(*CAPTIONS[: len(photos)], strict=True)
    store = CaptionDatastore.from_rows(
        list(captions),
        encoder.encode_photos(photos),
        image_id=list(image_ids),
        encoder_fingerprint=encoder.fingerprint,
    )
    model.set_datastore(store)
    model.config.num_retrieved_captions = 1
    inputs = processor(images=photos, return_tensors="pt")
    assert [found[0] for found in model.encode_images(inputs["pixel_values"]).captions.captions] == list(captions)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = SmallCapForConditionalGeneration.from_pretrained(tmp_path)
    assert again.generate(**inputs).tolist() == model.generate(**inputs).tolist()


@pytest.mark.parametrize("kind", ["siglip", "dinov2", "vit", "efficientnet_lite"])
def test_a_tower_without_a_text_side_finds_captions_of_like_photos(
    kind: str, tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path], photos: list[Image.Image]
) -> None:
    model, processor = assemble(tower_of(kind), language_model_of("gpt2"))
    assert model.config.retrieval_space == "vision"
    keys = model.encode_memory_keys(processor, photos)
    captions, image_ids = zip(*CAPTIONS[: len(photos)], strict=True)
    model.set_datastore(CaptionDatastore.from_rows(list(captions), keys, image_id=list(image_ids)))
    model.config.num_retrieved_captions = 1
    pixels = processor(images=photos, return_tensors="pt")["pixel_values"]
    assert [found[0] for found in model.encode_images(pixels).captions.captions] == list(captions)
    shown = [photo.rotate(90 * turn) for photo in photos for turn in range(3)]
    fitted, _ = assemble(tower_of(kind), language_model_of("gpt2"), vision_space_photos=shown)
    assert fitted.memory_key_size == 11
    with pytest.raises(ValueError, match="dimension"):
        fitted.set_datastore(model.datastore)


def test_from_the_command_line(
    tower_of: Callable[[str], Path], language_model_of: Callable[[str], Path], photo_paths: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "fields.json").write_text('{"num_retrieved_captions": 2, "cross_attention_reduce_factor": 8}')
    command = ["new", "smallcap", "--encoder", tower_of("clip"), "--decoder", language_model_of("gpt2")]
    command += ["--config", tmp_path / "fields.json", "--dtype", "bfloat16", "--out", tmp_path / "model"]
    assert main([str(word) for word in command]) == 0
    out = capsys.readouterr().out
    assert "SmallCapForConditionalGeneration of " in out
    assert (
        f"no datastore yet: `hf-evcap datastore build CAPTIONS --model {tmp_path / 'model'} --output DATASTORE`" in out
    )
    model = SmallCapForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.bfloat16
    assert (model.config.num_retrieved_captions, model.config.cross_attention_head_dim) == (2, 2)
    processor = SmallCapProcessor.from_pretrained(tmp_path / "model")
    ids = model.generate(**processor(images=photo_paths[0], return_tensors="pt"), captions=[["a cat"]])
    assert processor.batch_decode(ids)
    assert "gpt2" in (tmp_path / "model" / "README.md").read_text()
