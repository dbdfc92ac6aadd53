"""EfficientNet-Lite: shapes, TensorFlow's padding, the published names of weights, and its image processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel

from hf_evcap.configuration_efficientnet_lite import EfficientNetLiteConfig
from hf_evcap.image_processing_efficientnet_lite import EfficientNetLiteImageProcessor
from hf_evcap.modeling_efficientnet_lite import (
    EfficientNetLiteModel,
    convert_efficientnet_lite_state_dict,
    pad_same,
)


@pytest.fixture(scope="module")
def model() -> EfficientNetLiteModel:
    torch.manual_seed(0)
    return EfficientNetLiteModel(EfficientNetLiteConfig()).eval()


def published_name(name: str) -> str:
    """The name that the published weights give to one of the model's tensors."""
    part, kind = name.split(".")[-3:-1]
    if name.startswith(("stem", "head")):
        stem = name.startswith("stem")
        layer = {"convolution": "_conv_stem" if stem else "_conv_head", "normalization": "_bn0" if stem else "_bn1"}
        return f"{layer[kind]}.{name.split('.')[-1]}"
    layers = {
        "expansion": {"convolution": "_expand_conv", "normalization": "_bn0"},
        "depthwise": {"convolution": "_depthwise_conv", "normalization": "_bn1"},
        "projection": {"convolution": "_project_conv", "normalization": "_bn2"},
    }
    return f"_blocks.{name.split('.')[1]}.{layers[part][kind]}.{name.split('.')[-1]}"


def test_blocks_of_the_variants():
    lite0, lite2 = EfficientNetLiteConfig(), EfficientNetLiteConfig(width_coefficient=1.1, depth_coefficient=1.2)
    assert [block[-1] for block in lite0.blocks] == [16, 24, 24, 40, 40] + [80] * 3 + [112] * 3 + [192] * 4 + [320]
    assert len(lite2.blocks) == 21
    assert sorted({block[-1] for block in lite2.blocks}) == [16, 24, 48, 88, 120, 208, 352]
    assert len(EfficientNetLiteConfig(depth_coefficient=1.1).blocks) == 21
    assert [EfficientNetLiteConfig(image_size=side).grid_size for side in (224, 260, 288)] == [7, 9, 9]


def test_parameters_of_lite0(model):
    assert sum(weight.numel() for weight in model.parameters()) == 3_371_008


def test_output_is_the_grid_and_its_mean(model):
    with torch.no_grad():
        output = model(torch.randn(2, 3, 96, 64))
    assert output.last_hidden_state.shape == (2, 6, 1280)  # 3 rows of 2 cells
    assert torch.allclose(output.pooler_output, output.last_hidden_state.mean(1))
    assert output.last_hidden_state.min() >= 0


def test_cells_run_row_by_row(model):
    grids = []
    hook = model.head.register_forward_hook(lambda module, inputs, output: grids.append(output))
    with torch.no_grad():
        cells = model(torch.randn(1, 3, 96, 128)).last_hidden_state
    hook.remove()
    assert grids[0].shape == (1, 1280, 3, 4)
    assert torch.equal(cells[0, 1 * 4 + 2], grids[0][0, :, 1, 2])


@pytest.mark.parametrize("side, kernel, stride", [(224, 3, 2), (112, 5, 2), (113, 3, 2), (7, 5, 1)])
def test_padding_same_puts_the_surplus_at_the_end(side, kernel, stride):
    padded = pad_same(torch.ones(1, 1, side, side), kernel, stride)
    out = (padded.shape[-1] - kernel) // stride + 1
    assert out == -(-side // stride)
    before = int((padded[0, 0, padded.shape[-1] // 2] == 0).int().argmin())
    after = padded.shape[-1] - side - before
    assert after - before in (0, 1)


def test_published_names_load_strictly(model):
    published = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    published["_fc.weight"] = torch.zeros(1000, 1280)
    converted = convert_efficientnet_lite_state_dict(published)
    assert converted.keys() == model.state_dict().keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="_fancy.weight"):
        convert_efficientnet_lite_state_dict({"_fancy.weight": torch.zeros(1)})


def test_auto_classes_and_round_trip(model, tmp_path):
    import hf_evcap.modeling_evcap  # noqa: F401  registers the tower

    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), EfficientNetLiteConfig)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    photo = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(photo).last_hidden_state, model(photo).last_hidden_state)


def test_batch_changes_nothing(model):
    photos = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together = model(photos).pooler_output
        alone = torch.cat([model(photo[None]).pooler_output for photo in photos])
    assert torch.allclose(together, alone, atol=1e-4)


def test_wrong_channels_are_named(model):
    with pytest.raises(ValueError, match=r"\(1, 1, 64, 64\)"):
        model(torch.zeros(1, 1, 64, 64))


def test_image_processor_maps_pixels_as_the_weights_expect():
    processor = EfficientNetLiteImageProcessor()
    photo = Image.fromarray(np.full((300, 400, 3), 191, dtype=np.uint8))
    pixels = processor([photo, photo.convert("L")], return_tensors="pt").pixel_values
    assert pixels.shape == (2, 3, 224, 224)
    assert torch.allclose(pixels, torch.full_like(pixels, (191 - 127) / 128), atol=1e-5)


def test_image_processor_squashes_when_asked(tmp_path):
    processor = EfficientNetLiteImageProcessor(size={"height": 288, "width": 288}, do_center_crop=False)
    processor.save_pretrained(tmp_path)
    processor = EfficientNetLiteImageProcessor.from_pretrained(tmp_path)
    photo = np.zeros((100, 300, 3), dtype=np.uint8)
    photo[:, 200:] = 255
    pixels = processor(Image.fromarray(photo), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 288, 288)
    assert pixels[..., :150].max() < 0 < pixels[..., 230:].min()
