"""Captions of known words and retrieved names only."""

from __future__ import annotations

import pytest
import torch

from hf_evcap import EVCapConfig, EVCapForConditionalGeneration
from hf_evcap.spelling_evcap import EVCapSpelling
from hf_evcap.training.from_scratch.caption_tokenizer import train_caption_tokenizer


CORPUS = ["a brown dog runs in the snow, a man's dog", "a man in a t-shirt rides a horse", "a child plays a ball"] * 9


@pytest.fixture(scope="module")
def tokenizer():
    return train_caption_tokenizer(CORPUS, ["hedge"], vocab_size=330)


@pytest.fixture(scope="module")
def model(tokenizer) -> EVCapForConditionalGeneration:
    qformer = {
        "model_type": "blip_2_qformer",
        "vocab_size": 1,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 24,
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
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        num_query_tokens=4,
        num_name_query_tokens=4,
        max_name_length=24,
        tie_name_embeddings=True,
        known_words_only=True,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    model = EVCapForConditionalGeneration(config).eval()
    model.name_tokenizer = tokenizer
    model.spelling.fit(tokenizer, CORPUS)
    return model


def allowed_texts(spelling: EVCapSpelling, tokenizer, names: list[str], begun: str) -> set[str]:
    separator = tokenizer.sep_token_id
    joined = [token for name in names for token in (*tokenizer(name)["input_ids"], separator)]
    processor = spelling.processor([joined], separator, 99)
    ids = torch.tensor([tokenizer(begun)["input_ids"]], dtype=torch.long).reshape(1, -1)
    scores = processor(ids, torch.zeros(1, len(tokenizer)))
    tokens = tokenizer.convert_ids_to_tokens((scores[0] == 0).nonzero()[:, 0].tolist())
    return {token.replace("Ġ", " ") for token in tokens}


def test_words_are_learned_from_text(model, tokenizer):
    words = {t for t, i in tokenizer.get_vocab().items() if model.spelling.is_word[i]}
    assert {"Ġdog", "Ġsnow", ",", "'s", "-", "</s>"} <= words
    assert not {"Ġhedge", "Ġd", "og", "r"} & words  # a name, and parts of words


def test_a_name_is_spelled_to_its_end(model, tokenizer):
    word = tokenizer.tokenize("hedgehog")
    assert len(word) > 2
    texts = allowed_texts(model.spelling, tokenizer, ["hedgehog"], "a")
    assert " dog" in texts and word[0].replace("Ġ", " ") in texts
    assert word[0].replace("Ġ", " ") not in allowed_texts(model.spelling, tokenizer, [], "a")
    separator = tokenizer.sep_token_id
    processor = model.spelling.processor([[*tokenizer("hedgehog")["input_ids"], separator]], separator, 99)
    ids = tokenizer("hedgehog")["input_ids"]
    for place in range(1, len(ids)):
        scores = processor(torch.tensor([ids[:place]]), torch.zeros(1, len(tokenizer)))
        assert (scores[0] == 0).nonzero()[:, 0].tolist() == [ids[place]]
    after = allowed_texts(model.spelling, tokenizer, ["hedgehog"], "hedgehog")
    assert {" dog", ",", "</s>"} <= after
    assert not any(text[0].isalnum() for text in after - {"</s>", "<s>", "<pad>", "<sep>", "<image>"})


def test_a_name_cut_in_the_list_is_not_used(model, tokenizer):
    ids, separator = tokenizer("dog hedgehog")["input_ids"], tokenizer.sep_token_id
    cut = [*ids[:-1], separator]
    assert model.spelling.processor([cut], separator, len(cut)).words == [{tuple(tokenizer("dog")["input_ids"])}]
    assert len(model.spelling.processor([cut], separator, 99).words[0]) == 2


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 4}])
def test_every_word_is_known_or_retrieved(model, tokenizer, options):
    names = [["hedgehog", "snow"], [], ["ostrich egg"]]
    prompt = torch.tensor([[model.config.image_token_id] * 8 + [tokenizer.bos_token_id]] * 3)
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    known = {word for caption in CORPUS for word in tokenizer.decode(tokenizer(caption)["input_ids"]).split()}
    for max_new_tokens in (2, 12):
        ids = model.generate(
            prompt, pixels, names=names, max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, **options
        )
        copies = len(ids) // 3
        for row, caption in enumerate(ids.tolist()):
            words = tokenizer.decode(caption, skip_special_tokens=True).replace(",", " ").replace("-", " ").split()
            own = {word for name in names[row // copies] for word in name.split()}
            finished = words if tokenizer.eos_token_id in caption else words[:-1]  # the cut may fall into a word
            parts = {part for word in known for part in word.replace(",", " ").replace("-", " ").split()}
            assert all(word.removesuffix("'s") in parts | own | {"'s", "man", ""} for word in finished), words


def test_saved_with_the_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = EVCapForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.spelling.is_word, model.spelling.is_word)
    assert torch.equal(again.spelling.ends_inside, model.spelling.ends_inside)


def test_needs_names_in_the_language_models_tokens():
    with pytest.raises(ValueError, match="tie_name_embeddings"):
        EVCapConfig(known_words_only=True)
