"""CLIPScore on a tiny random CLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchFeature, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={
                **small,
                "vocab_size": len(words),
                "max_position_embeddings": 24,
                "bos_token_id": len(words) - 2,
                "eos_token_id": len(words) - 1,
                "initializer_range": 0.5,
            },
            vision_config={**small, "image_size": 32, "patch_size": 16, "initializer_range": 0.5},
            projection_dim=8,
        )
    )
    model.save_pretrained(folder)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(4)]


CAPTIONS = ["a cat on a mat", "two dogs", "", "a very long caption " * 20]


def expected_cosines(folder, images, captions):
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    cosines = []
    with torch.no_grad():
        for image, caption in zip(images, captions, strict=True):
            inputs = processor(
                text=["A photo depicts " + caption], images=[image], truncation=True, return_tensors="pt"
            )
            output = model(**inputs)
            cosines.append((output.image_embeds @ output.text_embeds.T).item())
    return np.array(cosines)


def test_equals_the_model_run_one_by_one(load_metric, clip_folder, images):
    result = load_metric("clip_score").compute(
        predictions=CAPTIONS, images=images, model=clip_folder, batch_size=3, device="cpu"
    )
    cosines = expected_cosines(clip_folder, images, CAPTIONS)
    assert len(set(np.round(cosines, 4))) == 4
    np.testing.assert_allclose(result["clip_score_per_caption"], 2.5 * cosines.clip(min=0), atol=1e-5)
    assert result["clip_score"] == pytest.approx(np.mean(result["clip_score_per_caption"]), abs=1e-6)
    assert type(result["clip_score"]) is float and set(result) == {"clip_score", "clip_score_per_caption"}


def test_references_give_ref_clip_score(load_metric, clip_folder, images):
    metric = load_metric("clip_score")
    model = CLIPModel.from_pretrained(clip_folder)
    processor = CLIPProcessor.from_pretrained(clip_folder)
    inputs = {"predictions": ["two dogs", "a cat"], "images": images[:2], "model": model, "processor": processor}
    same = metric.compute(**inputs, references=[["xyz", "two dogs"], ["a cat"]])
    scores = np.array(same["clip_score_per_caption"])
    # The best reference is the caption itself: cosine 1.
    np.testing.assert_allclose(same["ref_clip_score_per_caption"], 2 * scores / (scores + 1), atol=1e-5)
    assert metric.compute(**inputs)["clip_score"] == pytest.approx(same["clip_score"])


class FixedVectors(torch.nn.Module):
    """Images look along the first axis; a text's vector is written in it."""

    config = CLIPConfig()
    device = torch.device("cpu")

    def get_image_features(self, pixels):
        return torch.tensor([[2.0, 0.0]]).expand(len(pixels), -1)

    def get_text_features(self, vectors):
        return vectors


def fixed_processor(images=None, text=None, **options):
    key, rows = ("pixels", images) if text is None else ("vectors", [list(map(float, row.split())) for row in text])
    return BatchFeature({key: torch.zeros(len(rows)) if text is None else torch.tensor(rows)})


def test_scores_by_hand(load_metric, images):
    result = load_metric("clip_score").compute(
        predictions=["3 0", "-1 0", "0 1", "3 4"],
        images=images,
        references=[["1 0"], ["0 1"], ["1 0", "-1 0"], ["-3 -4", "4 3"]],
        model=FixedVectors(),
        processor=fixed_processor,
        prefix="",
    )
    assert result["clip_score_per_caption"] == pytest.approx([2.5, 0.0, 0.0, 1.5])  # never below 0
    assert result["clip_score"] == pytest.approx(1.0)
    best = 24 / 25
    assert result["ref_clip_score_per_caption"] == pytest.approx([5 / 3.5, 0.0, 0.0, 2 * 1.5 * best / (1.5 + best)])


def test_paths_and_arrays(load_metric, clip_folder, images, tmp_path):
    metric = load_metric("clip_score")
    images[0].save(tmp_path / "a.png")
    inputs = {"predictions": ["two dogs"], "model": clip_folder}
    expected = metric.compute(**inputs, images=[images[0]])
    assert metric.compute(**inputs, images=[tmp_path / "a.png"]) == expected
    assert metric.compute(**inputs, images=[str(tmp_path / "a.png")]) == expected
    assert metric.compute(**inputs, images=[np.array(images[0])]) == expected
    grey = metric.compute(**inputs, images=[images[0].convert("L")])
    assert grey != expected


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": [3.0]}, TypeError, r"images\[0\] must be a PIL image"),
        ({"images": None}, ValueError, "`images` is missing"),
        ({"images": []}, ValueError, "1 predictions, 0 images"),
        ({"images": ["missing.png"]}, FileNotFoundError, "missing.png"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be"),
        ({"predictions": [None]}, TypeError, r"predictions\[0\] must be a string"),
    ],
)
def test_bad_input(load_metric, clip_folder, images, changes, error, message):
    arguments = {"predictions": ["a"], "images": images[:1], "model": clip_folder, **changes}
    with pytest.raises(error, match=message):
        load_metric("clip_score").compute(**arguments)


def test_references_for_some_images_only(load_metric, clip_folder, images):
    with pytest.raises(ValueError, match=r"references\[1\] is empty"):
        load_metric("clip_score").compute(
            predictions=["a", "b"], images=images[:2], references=[["a"], []], model=clip_folder
        )


def test_device_of_a_loaded_model_is_refused(load_metric, images, clip_folder):
    with pytest.raises(ValueError, match="`device` is for a model that is loaded here"):
        load_metric("clip_score").compute(
            predictions=["a"], images=images[:1], model=CLIPModel.from_pretrained(clip_folder), device="cpu"
        )


def test_a_model_without_text_is_refused(load_metric, images, clip_folder):
    class VisionOnly(torch.nn.Module):
        config = CLIPConfig()

    with pytest.raises(TypeError, match="VisionOnly has no get_image_features and no get_text_features"):
        load_metric("clip_score").compute(
            predictions=["a"], images=images[:1], model=VisionOnly(), processor=clip_folder
        )
