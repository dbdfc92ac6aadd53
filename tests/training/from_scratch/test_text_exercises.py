"""Text of the tiny recipe: normalised captions, scene words, simulated lists, exercises and batches."""

from __future__ import annotations

import random

import pytest
import torch

from hf_evcap.caption_data.caption_words import content_words, normalize_caption, shared_words
from hf_evcap.training.fine_tuning.name_lists import join_names
from hf_evcap.training.from_scratch.caption_text import SceneTextSimulator, vote_scene_words
from hf_evcap.training.from_scratch.caption_tokenizer import train_caption_tokenizer
from hf_evcap.training.from_scratch.data_collator import CaptionCollator, NamesAsTextCollator
from hf_evcap.training.from_scratch.name_exercises import NamedCaptionExercises, NameSource, replace_word
from hf_evcap.training.from_scratch.packed_captions import PackedCaptions


CORPUS = [
    "a brown dog runs through the green grass",
    "a man in a red shirt is riding a horse",
    "two women are sitting on a bench in the park",
    "a black dog catches a frisbee in the air",
    "a child is playing with an orange ball on the beach",
] * 4
NAMES = ["red panda", "unicycle", "armadillo", "fire engine"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_caption_tokenizer(CORPUS, NAMES, vocab_size=420, name_weight=3)


@pytest.fixture(scope="module")
def source(tokenizer):
    return NameSource(NAMES, ["dog", "horse", "bench"], tokenizer)


def test_normalize_caption():
    assert normalize_caption("A Man 's dog , tail-up , RUNS !! ") == "a man's dog, tail-up, runs"
    assert normalize_caption(" .") == ""


def test_scene_words_are_those_captions_agree_on():
    captions = ["a dog on the grass", "the brown dog runs", "two dogs run on grass"]
    assert content_words(captions[0]) == ["dog", "grass"]
    assert shared_words(captions) == ["dog", "grass"]
    assert shared_words(["a single caption"]) == ["single", "caption"]


def test_votes_favour_near_photos_and_rare_words():
    membership = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    scores = vote_scene_words(torch.tensor([[0.9, 0.1]]), membership, temperature=0.2, offset=0.02, exponent=0.35)
    weights = torch.softmax(torch.tensor([4.5, 0.5]), 0)
    expected = torch.stack([torch.ones(()) / 1.02**0.35, weights[0] / 0.52**0.35, weights[1] / 0.52**0.35])
    assert torch.allclose(scores[0], expected)
    assert scores[0].argsort(descending=True).tolist() == [1, 0, 2]


def test_simulator_finds_the_photo_that_says_the_same():
    photos = [["a dog on the grass", "a dog runs on grass"], ["a man rides a horse", "the man on a horse"]]
    simulator = SceneTextSimulator(photos, CORPUS + [caption for photo in photos for caption in photo])
    lists, nearest, closeness = simulator.simulate(["a horse with a man", "a dog in grass"], (0.0, 0.01), num_words=2)
    assert nearest.tolist() == [1, 0]
    assert (closeness > 0.5).all()
    assert {simulator.words[i] for i in lists[0, 0]} == {"man", "horse"}
    assert lists.shape == (2, 2, 2)


def test_tokenizer_round_trip(tokenizer):
    text = "a brown zyx-dog's ärmel"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids).strip() == text
    assert len(tokenizer) <= 420
    assert tokenizer("Dog", add_special_tokens=False) == tokenizer("dog", add_special_tokens=False)


def test_replaced_word_brings_its_article(tokenizer, source):
    ids = replace_word("a brown dog eats a dog biscuit", "brown", source.encode("armadillo"), source)
    assert tokenizer.decode(ids).strip() == "an armadillo dog eats a dog biscuit"
    assert replace_word("a brown dog", "cat", source.encode("armadillo"), source) is None


def test_exercises_repeat_by_item_and_hold_their_name(tokenizer, source):
    simulator = SceneTextSimulator([CORPUS[:2], CORPUS[2:4]], CORPUS)
    simulator.words = simulator.words or ["dog"]
    lists = torch.zeros(len(CORPUS), 2, 10, dtype=torch.long).numpy()

    def exercises(**settings):
        words = [*(simulator.words or []), *["grass"] * 10]
        return NamedCaptionExercises(CORPUS, lists, words, {"dog", "horse", "bench", "ball"}, source, 50, **settings)

    assert [exercises(seed=1)[i] for i in range(20)] == [exercises(seed=1)[i] for i in range(20)]
    assert [exercises(seed=1)[i] for i in range(20)] != [exercises(seed=2)[i] for i in range(20)]
    assert all(exercises(weights=(1, 0, 0, 0, 0))[i]["names"] == [] for i in range(5))
    for item in range(20):
        template = exercises(weights=(0, 0, 0, 0, 1))[item]
        name = tokenizer.decode(template["names"][0])
        assert name in tokenizer.decode(template["caption"])
        replaced = exercises(weights=(0, 0, 0, 1, 0))[item]
        text = tokenizer.decode(replaced["caption"])
        assert any(tokenizer.decode(name) in text for name in replaced["names"]) or "women" in text


def test_random_names_are_words_of_the_tokenizer(tokenizer, source):
    rng = random.Random(0)
    names = [source(rng) for _ in range(200)]
    assert all(name and not set(name) & set(tokenizer.all_special_ids) for name in names)
    assert all(tokenizer.convert_ids_to_tokens(name[0]).startswith("Ġ") for name in names)


def test_join_names_cuts_and_ends_with_the_separator():
    assert join_names([[5, 6], [7]], 3, 10) == [5, 6, 3, 7, 3]
    assert join_names([], 3, 10) == [3]
    assert join_names([[5, 6], [7, 8]], 3, 4) == [5, 6, 3, 3]


def test_names_as_text_batch(tokenizer):
    collator = NamesAsTextCollator(tokenizer, max_name_length=3, max_caption_length=2, photo_ids=[4, 4])
    batch = collator([{"names": [[10]], "caption": [20, 21, 22]}, {"names": [], "caption": [30]}])
    sep, bos, eos, pad = (getattr(tokenizer, f"{name}_token_id") for name in ("sep", "bos", "eos", "pad"))
    rows = [[4, 4, 10, sep, sep, bos, 20, 21, eos], [4, 4, sep, sep, sep, bos, 30, eos, pad]]
    assert batch["input_ids"].tolist() == rows
    assert batch["labels"].tolist() == [[-100, 20, 21, eos], [-100, 30, eos, -100]]
    assert batch["logits_to_keep"] == 4


def test_caption_batch(tokenizer):
    features = torch.randn(2, 4, 8)
    collator = CaptionCollator(tokenizer, 4, 3, 8, 5, lambda examples: features, [1])
    batch = collator([{"names": [[10]], "caption": [20, 21]}, {"names": [], "caption": [30]}])
    sep, eos, pad = tokenizer.sep_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert batch["input_ids"].tolist() == [[4, 4, 4, 1, 20, 21, eos], [4, 4, 4, 1, 30, eos, pad]]
    assert batch["labels"].tolist() == [[-100, 20, 21, eos], [-100, 30, eos, -100]]
    assert batch["name_input_ids"].tolist() == [[10, sep], [sep, sep]]
    assert batch["name_attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["vision_hidden_states"] is features


def test_packed_captions_cover_every_epoch_once():
    captions = [[1, number, 2] for number in range(10, 20)]
    blocks = PackedCaptions(captions, length=6, num_blocks=9, seed=3)
    first = torch.cat([blocks[i][:-1] for i in range(5)]).view(-1, 3)
    assert sorted(first[:, 1].tolist()) == list(range(10, 20))
    assert all(torch.equal(blocks[i][-1], blocks[i + 1][0]) for i in range(8))
    assert len(blocks) == 9
