"""Stages of the tiny recipe: copying names, learning rates by part, resuming, averages and the feature cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from hf_evcap import EVCapConfig, EVCapForConditionalGeneration
from hf_evcap.configuration_efficientnet_lite import EfficientNetLiteConfig
from hf_evcap.image_processing_efficientnet_lite import EfficientNetLiteImageProcessor
from hf_evcap.modeling_efficientnet_lite import EfficientNetLiteModel
from hf_evcap.training.feature_cache import cache_vision_features, random_view
from hf_evcap.training.fine_tuning.name_copying import (
    align_names_with_words,
    initialize_name_copying,
    initialize_word_copying,
)
from hf_evcap.training.from_scratch.caption_mixture import CachedFeatures, CaptionedPhotos, CaptionMixture, NamedPhotos
from hf_evcap.training.from_scratch.caption_tokenizer import train_caption_tokenizer
from hf_evcap.training.from_scratch.data_collator import CaptionCollator
from hf_evcap.training.from_scratch.name_exercises import NamedCaptionExercises, NameSource
from hf_evcap.training.from_scratch.stage_trainer import AverageWeights, StageSettings, part_rate, run_stage


CORPUS = ["a brown dog runs", "a man rides a horse", "a child plays with a ball"] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_caption_tokenizer(CORPUS, ["zebra", "axolotl"], vocab_size=320)


def make_model(tokenizer, seed: int = 0) -> EVCapForConditionalGeneration:
    qformer = {
        "model_type": "blip_2_qformer",
        "vocab_size": 1,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 8,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    config = EVCapConfig(
        vision_config={
            "model_type": "blip_2_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
        },
        qformer_config=qformer,
        fusion_qformer_config=qformer,
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "tie_word_embeddings": True,
        },
        num_query_tokens=4,
        num_name_query_tokens=8,
        max_name_length=8,
        tie_name_embeddings=True,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model = EVCapForConditionalGeneration(config)
    model.name_tokenizer = tokenizer
    return model


def test_names_pass_through_the_fusion_to_their_embeddings(tokenizer):
    model = make_model(tokenizer)
    lists = [[10 + i, 20 + i, tokenizer.sep_token_id] for i in range(40)] + [[tokenizer.sep_token_id]]
    initialize_name_copying(model)
    errors = []
    last = align_names_with_words(model, lists, 120, 16, 3e-3, log=lambda step, error: errors.append(error))
    assert errors[0] < 0.3  # the start is near the identity already
    assert last < 0.5 * errors[0]
    words = model.get_input_embeddings().weight
    ids = torch.tensor([lists[3]])
    query_output = torch.nn.functional.layer_norm(torch.randn(1, 4, 32), (32,))
    with torch.no_grad():
        fused = model.fuse_names(query_output, ids, torch.ones_like(ids))
        projected = model.project(query_output, fused)[0, 4:]
        nearest = torch.cdist(projected[:3], words).argmin(-1)
    assert nearest.tolist() == lists[3]


def test_attending_to_a_token_is_a_start_at_writing_it():
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=500, tie_word_embeddings=True, **sizes))
    prompts = torch.randperm(500)[:24].view(8, 3)

    def places() -> torch.Tensor:
        with torch.no_grad():
            order = model(prompts).logits[:, -1].argsort(descending=True)
        return (order[:, None, :] == prompts[:, :2, None]).nonzero()[:, 2].float()  # of the tokens before the last

    before = places().mean()
    initialize_word_copying(model, gain=0.6)
    assert places().mean() < 25 < before  # of 500
    assert model(prompts).logits.std() < 2.5


def test_copying_needs_room_for_the_codes(tokenizer):
    model = make_model(tokenizer)
    model.config.num_name_query_tokens = 17
    with pytest.raises(ValueError, match="17 queries"):
        initialize_name_copying(model)


def test_longest_part_sets_the_rate():
    rates = {"language_model": 0.2, "language_model.model.embed_tokens": 0.0}
    assert part_rate("language_model.model.layers.0.weight", rates) == 0.2
    assert part_rate("language_model.model.embed_tokens.weight", rates) == 0.0
    assert part_rate("qformer.weight", rates) == 1.0


def mixture(tokenizer, num_items: int = 64) -> CaptionMixture:
    source = NameSource(["zebra"], ["dog", "horse"], tokenizer)
    lists = np.zeros((len(CORPUS), 2, 10), dtype=np.int16)
    exercises = NamedCaptionExercises(CORPUS, lists, ["dog"] * 12, {"dog"}, source, 100)
    states = np.random.default_rng(0).standard_normal((3, 2, 5, 32)).astype(np.float16)
    names = [[["dog", "grass"]] * 2] * 3
    return CaptionMixture(
        CaptionedPhotos(states, [[caption] for caption in CORPUS[:3]], names, [0, 1], [[1.0]] * 3),
        [(0, "a dog in the snow")],
        NamedPhotos(states, ["zebra"] * 3, [[["zebra", "dog"]] * 2] * 3, [[1, 1]] * 3, [2]),
        exercises,
        source,
        num_items,
        seed=5,
    )


def train(model, tokenizer, folder, steps: int, **settings) -> None:
    collator = CaptionCollator(
        tokenizer, model.config.image_token_id, 12, 8, 12, CachedFeatures(5, 32), [tokenizer.bos_token_id]
    )
    numbers = {"batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "save_steps": 3, "bf16": False, **settings}
    run_stage(model, mixture(tokenizer), collator, StageSettings(steps=steps, **numbers), folder)


def test_stage_trains_what_it_should(tokenizer, tmp_path):
    model = make_model(tokenizer)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    train(model, tokenizer, tmp_path, 3, part_rates={"vision_model": 0.0, "language_model": 0.0})
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved
    assert {name.split(".")[0] for name in moved} <= {
        "query_tokens",
        "name_query_tokens",
        "qformer",
        "fusion_qformer",
        "language_projection",
    }
    assert all(weight.requires_grad for weight in model.parameters())


def test_average_forgets_the_start():
    model, average, expected = torch.nn.Linear(1, 1, bias=False), AverageWeights(0.5), 0.0
    for step, value in enumerate([1.0, 3.0, 7.0] + [9.0] * 20, start=1):
        torch.nn.init.constant_(model.weight, value)
        average.on_step_end(None, None, None, model)
        decay = min(0.5, step / (step + 10))
        expected = value if step == 1 else decay * expected + (1 - decay) * value
        if step == 3:
            assert 3.0 < expected < 7.0 and float(average.average["weight"]) == pytest.approx(expected)
    torch.nn.init.zeros_(model.weight)
    average.on_train_end(None, None, None, model)
    assert float(model.weight.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("average", [None, 0.9])
def test_stage_goes_on_where_it_stopped(tokenizer, tmp_path, average):
    straight, resumed = make_model(tokenizer), make_model(tokenizer)
    train(straight, tokenizer, tmp_path / "straight", 6, average=average)

    class Stopped(Exception):
        pass

    # Killed in its fifth step, with a checkpoint of the third.
    calls = []
    original = resumed.language_model.forward

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise Stopped
        return original(*args, **kwargs)

    resumed.language_model.forward = interrupted
    with pytest.raises(Stopped):
        train(resumed, tokenizer, tmp_path / "resumed", 6, average=average)
    fresh = make_model(tokenizer, seed=1)
    train(fresh, tokenizer, tmp_path / "resumed", 6, average=average)
    for (name, weight), other in zip(straight.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(weight, other), name


def test_mixture_repeats_by_item_and_puts_the_name_in_the_list(tokenizer):
    one, two = mixture(tokenizer), mixture(tokenizer)
    for item in range(40):
        first, second = one[item], two[item]
        assert all(first[field] == second[field] for field in ("names", "caption", "seed"))
    objects = mixture(tokenizer)
    objects.weights, objects.name_dropout = (0, 0, 1, 0), 0.0
    for item in range(30):
        example = objects[item]
        text = tokenizer.decode(example["caption"])
        assert any(tokenizer.decode(name) in text for name in example["names"])


def test_dropped_cells_are_zero_and_text_has_no_photo():
    features = CachedFeatures(10, 4, cell_dropout=0.3)
    states = np.ones((10, 4), dtype=np.float16)
    batch = features([{"features": states, "seed": number} for number in range(20)] + [{"features": None, "seed": 0}])
    dropped = (batch[:20] == 0).all(-1).float().mean()
    assert 0.2 < dropped < 0.4
    assert not batch[20].any()


def test_feature_cache_goes_on_where_it_stopped(tmp_path):
    torch.manual_seed(0)
    vision = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=64)).eval()
    processor = EfficientNetLiteImageProcessor()
    pixels = np.random.default_rng(0).integers(0, 255, (5, 40, 60, 3), dtype=np.uint8)
    photos = [Image.fromarray(photo) for photo in pixels]
    arguments = {"views": 2, "side": 64, "batch_size": 2}
    whole = cache_vision_features(vision, processor, photos, lambda photo: photo, tmp_path / "whole.npy", **arguments)
    assert whole.shape == (5, 2, 4, 1280)
    opened = []

    def failing(photo):
        opened.append(photo)
        if len(opened) == 6:
            raise OSError("the disk went away")
        return photo

    with pytest.raises(OSError, match="disk"):
        cache_vision_features(vision, processor, photos, failing, tmp_path / "parts.npy", **arguments)
    read = []
    parts = cache_vision_features(
        vision, processor, photos, lambda photo: read.append(1) or photo, tmp_path / "parts.npy", **arguments
    )
    assert len(read) == 6  # the four of the two finished batches are not read again
    assert np.array_equal(parts, whole)


def test_first_view_is_the_whole_photo():
    photo = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8)[None, :, None], (30, 1, 3)))
    assert np.asarray(random_view(photo, 30, None))[0, [0, -1], 0].tolist() == pytest.approx([1, 88], abs=1)
