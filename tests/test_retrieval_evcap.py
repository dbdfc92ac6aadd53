"""Retrieval in tensors against the same rules written out slowly, one photo and one row at a time."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections import defaultdict

import numpy as np
import pytest
import torch

from hf_evcap import VisualNameMemory
from hf_evcap.configuration_evcap import VOTE_OPTIONS
from hf_evcap.configuration_retrieval import VISION_SPACE_OPTIONS
from hf_evcap.retrieval_evcap import NameRetriever, NameTokens, normalize_name
from hf_evcap.vision_space_evcap import EVCapVisionSpace


DIM = 12
WORDS = ["red fox", "Teapot", "fire_hydrant", "ladder", "owl", "wine glass", "dog", "DOG", "'cat', etc.", "cat etc"]


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.name_tokenizer


def random_memory(seed, rows=60, words=WORDS, **columns):
    generator = np.random.default_rng(seed)
    names = [words[index] for index in generator.integers(len(words), size=rows)]
    return VisualNameMemory.from_rows(names, generator.normal(size=(rows, DIM)), **columns)


def random_queries(seed, photos=5, queries=7):
    return torch.from_numpy(np.random.default_rng(1000 + seed).normal(size=(photos, queries, DIM))).float()


# The rules, written from the paper's and the release's descriptions


def clean(name):
    for character in "_!,'\"()*#:;~":
        name = name.replace(character, " ")
    return " ".join(name.lower().split())


def cosine(left, right):
    dot = sum(float(a) * float(b) for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(sum(float(a) ** 2 for a in left)) / math.sqrt(sum(float(b) ** 2 for b in right))


def slow_nearest_rule(memory, queries, per_query, candidates, k, excluded=()):
    found = []
    for query in queries.tolist():
        rows = [(cosine(query, key), row) for row, key in enumerate(memory.keys.tolist()) if row not in excluded]
        found += sorted(rows, reverse=True)[:per_query]
    found.sort(reverse=True)
    names, scores, rows = [], [], []
    for score, row in found[:candidates]:
        name = clean(memory.names[row])
        if name not in names and len(names) < k:
            names.append(name)
            scores.append(score)
            rows.append(row)
    return names, scores, rows


def check(result, index, names, scores, rows):
    assert result.names[index] == names
    count = len(names)
    assert result.row_ids[index, :count].tolist() == rows
    torch.testing.assert_close(result.scores[index, :count], torch.tensor(scores), atol=1e-5, rtol=1e-5)
    assert (result.row_ids[index, count:] == -1).all() and (result.scores[index, count:] == 0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 4, 10, 50])
@pytest.mark.parametrize("rule", ["release", "paper"])
def test_nearest_rules(config_of, tokenizer, rule, k, seed):
    memory, queries = random_memory(seed), random_queries(seed)
    config = config_of(retrieval_rule=rule, num_retrieved_names=k)
    result = NameRetriever(memory, tokenizer, 128)(queries, config)
    for index, photo in enumerate(queries):
        per_query, candidates = (5, 32) if rule == "release" else (1, 10**6)
        check(result, index, *slow_nearest_rule(memory, photo, per_query, candidates, k))


def test_numbers_of_the_release_rule(config_of, tokenizer):
    memory, queries = random_memory(9), random_queries(9)
    retriever = NameRetriever(memory, tokenizer, 128)
    for per_query, candidates in ((1, 32), (3, 4), (20, 100)):
        config = config_of(num_neighbors_per_query=per_query, max_candidates=candidates, num_retrieved_names=6)
        result = retriever(queries, config)
        for index, photo in enumerate(queries):
            check(result, index, *slow_nearest_rule(memory, photo, per_query, candidates, 6))


def test_scale_of_queries_and_keys_does_not_matter(config_of, tokenizer):
    memory, queries = random_memory(2), random_queries(2)
    scaled = VisualNameMemory.from_rows(memory.names, memory.keys * np.linspace(0.01, 50, len(memory))[:, None])
    config = config_of()
    expected = NameRetriever(memory, tokenizer, 128)(queries, config)
    for other, factor in ((memory, 100.0), (scaled, 1.0)):
        result = NameRetriever(other, tokenizer, 128)(queries * factor, config)
        assert result.names == expected.names
        torch.testing.assert_close(result.scores, expected.scores, atol=1e-5, rtol=0)


def test_a_batch_equals_its_photos(config_of, tokenizer):
    retriever, queries = NameRetriever(random_memory(3), tokenizer, 128), random_queries(3)
    config = config_of()
    together = retriever(queries, config)
    for index in range(len(queries)):
        alone = retriever(queries[index : index + 1], config)
        assert alone.names[0] == together.names[index]
        assert alone.row_ids.tolist()[0] == together.row_ids[index].tolist()


@pytest.mark.parametrize("rule", ["release", "paper", "vote"])
def test_fewer_names_and_rows_than_wanted(config_of, tokenizer, rule):
    for rows, words in ((1, ["owl"]), (3, ["owl", "Owl!", "dog"])):
        keys = np.random.default_rng(0).normal(size=(rows, DIM))
        memory = VisualNameMemory.from_rows(words, keys)
        options = {"object_threshold": -9.0} if rule == "vote" else {}
        config = config_of(retrieval_rule=rule, num_retrieved_names=10, retrieval_options=options)
        result = NameRetriever(memory, tokenizer, 128)(random_queries(0), config)
        for names in result.names:
            assert len(names) == len(set(names)) and set(names) <= {"owl", "dog"}
        assert max(map(len, result.names)) == len({clean(word) for word in words})


@pytest.mark.parametrize("rule", ["release", "paper"])
def test_excluded_rows(config_of, tokenizer, rule):
    memory, queries = random_memory(5, rows=12), random_queries(5)
    excluded = torch.tensor([[0, 1, 2], [-1, -1, -1], [11, -1, 3], list(range(3)), [5, 5, 5]])
    config = config_of(retrieval_rule=rule)
    result = NameRetriever(memory, tokenizer, 128)(queries, config, excluded)
    for index, photo in enumerate(queries):
        per_query, candidates = (5, 32) if rule == "release" else (1, 10**6)
        expected = slow_nearest_rule(memory, photo, per_query, candidates, 4, set(excluded[index].tolist()))
        check(result, index, *expected)


@pytest.mark.parametrize("rule", ["release", "paper", "vote"])
def test_every_row_excluded(config_of, tokenizer, rule):
    memory = random_memory(5, rows=4)
    config = config_of(retrieval_rule=rule)
    result = NameRetriever(memory, tokenizer, 128)(random_queries(5), config, torch.arange(4).expand(5, -1))
    assert result.names == [[]] * 5
    assert result.attention_mask.sum(1).tolist() == [2] * 5


# Vote


def slow_vote_rule(memory, queries, options, k, excluded=()):
    kinds = memory.table["kind"].to_pylist()
    photos = memory.table["photo"].to_pylist()
    names = [clean(name) for name in memory.names]
    allowed = [row for row in range(len(memory)) if row not in excluded]
    keys = memory.keys.tolist()
    queries = queries.tolist()
    # objects: the best rows by similarity to any query
    objects = [(max(cosine(q, keys[row]) for q in queries), row) for row in allowed if kinds[row] in ("object", None)]
    objects = sorted(objects, reverse=True)[: options["vote_rows"]]
    exemplars = defaultdict(list)
    for score, row in objects:
        exemplars[names[row]].append((score, row))
    # what the nearest scenes speak against them, rows of one photo counted once
    nearest = [(cosine(queries[0], keys[row]), row) for row in allowed if kinds[row] == "scene"]
    nearest = sorted(nearest, reverse=True)[: options["vote_rows"]]
    once = [
        score
        for place, (score, row) in enumerate(nearest)
        if not place or photos[row] != photos[nearest[place - 1][1]]
    ]
    against = sum(w * s for w, s in zip(options["exemplar_weights"], once, strict=False)) * options["scene_evidence"]
    ranking = []
    for name, found in exemplars.items():
        evidence = sum(w * s for w, (s, _) in zip(options["exemplar_weights"], found, strict=False))
        if evidence >= options["object_threshold"] + against:
            ranking.append((evidence, name, found[0][1]))
    chosen = sorted(ranking, reverse=True)[: options["object_slots"]]
    # scenes: soft votes of the photos nearest to the whole photo
    scene_rows = [row for row in range(len(memory)) if kinds[row] == "scene"]
    scene_photos = len({photos[row] for row in scene_rows})
    total = sum(math.exp(score / options["vote_temperature"]) for score, _ in nearest)
    votes, first = defaultdict(float), {}
    for score, row in nearest:
        votes[names[row]] += math.exp(score / options["vote_temperature"]) / total
        first.setdefault(names[row], row)
    if nearest and options["ridge_penalty"] is not None:
        votes = slow_scene_fits(memory, names, queries[0], options["ridge_penalty"], votes, excluded)
    ranking = []
    for name, vote in votes.items():
        frequency = sum(names[row] == name for row in scene_rows) / scene_photos
        ranking.append((vote / (frequency + options["df_offset"]) ** options["df_exponent"], name, first[name]))
    chosen += sorted(ranking, reverse=True)[: options["scene_slots"]]
    kept = {}
    for score, name, row in chosen:
        kept.setdefault(name, (score, row))
    items = list(kept.items())[:k]
    return [name for name, _ in items], [s for _, (s, _) in items], [row for _, (_, row) in items]


def slow_scene_fits(memory, names, query, penalty, candidates, excluded):
    """Least squares with a penalty over the scene photos of which no row is excluded, for the candidate names."""
    keys, photos = memory.keys.astype("float64"), memory.table["photo"].to_pylist()
    scene_rows = [row for row, kind in enumerate(memory.table["kind"].to_pylist()) if kind == "scene"]
    first, said = {}, defaultdict(set)
    for row in scene_rows:
        first.setdefault(photos[row], row)
        said[photos[row]].add(names[row])
    vocabulary = sorted(candidates)
    targets = np.array([[name in said[photo] for name in vocabulary] for photo in first], dtype="float64")
    shares = targets.mean(0)
    x = np.array([keys[row] / np.linalg.norm(keys[row]) for row in first.values()])
    without = {photos[row] for row in scene_rows if row in excluded}
    kept = [place for place, photo in enumerate(first) if photo not in without]
    gram = x[kept].T @ x[kept] + penalty * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[kept].T @ (targets[kept] - shares))
    fits = np.array(query) / np.linalg.norm(query) @ weights + shares
    return dict(zip(vocabulary, fits.tolist(), strict=True))


def vote_memory(seed, rows=80):
    generator = np.random.default_rng(seed)
    kinds = [("object", "scene", "scene", None)[index] for index in generator.integers(4, size=rows)]
    photos = [f"photo {index}" for index in generator.integers(25, size=rows)]
    return random_memory(seed, rows, kind=kinds, photo=photos)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("changed", [
    {},
    {"vote_rows": 9},
    {"scene_evidence": 1.0, "object_threshold": -0.2},
    {"scene_evidence": 0.5, "object_threshold": 0.0, "vote_rows": 5},
    {"object_threshold": -5.0, "object_slots": 5},
    {"exemplar_weights": [1.0], "object_threshold": 0.3},
    {"exemplar_weights": [0.5, 0.25, 0.125, 0.1], "scene_slots": 2},
    {"vote_temperature": 0.02, "df_exponent": 0.0},
    {"df_offset": 0.5, "df_exponent": 1.0, "object_slots": 1},
    {"ridge_penalty": 0.3},
    {"ridge_penalty": 2.0, "vote_rows": 20, "df_exponent": 0.0},
])  # fmt: skip
def test_vote_rule(config_of, tokenizer, changed, seed):
    options = {**VOTE_OPTIONS, **changed}
    memory, queries = vote_memory(seed), random_queries(seed)
    config = config_of(retrieval_rule="vote", retrieval_options=changed, num_retrieved_names=6)
    result = NameRetriever(memory, tokenizer, 128)(queries, config)
    for index, photo in enumerate(queries):
        check(result, index, *slow_vote_rule(memory, photo, options, 6))


@pytest.mark.parametrize("penalty", [None, 0.5])
def test_vote_rule_with_excluded_rows(config_of, tokenizer, penalty):
    memory, queries = vote_memory(7), random_queries(7)
    excluded = torch.from_numpy(np.random.default_rng(7).integers(-1, len(memory), size=(5, 12)))
    changed = {"object_threshold": 0.2, "ridge_penalty": penalty}
    config = config_of(retrieval_rule="vote", retrieval_options=changed, num_retrieved_names=8)
    result = NameRetriever(memory, tokenizer, 128)(queries, config, excluded)
    options = {**VOTE_OPTIONS, **changed}
    for index, photo in enumerate(queries):
        check(result, index, *slow_vote_rule(memory, photo, options, 8, set(excluded[index].tolist())))


@pytest.mark.parametrize("penalty", [None, 0.5])
@pytest.mark.parametrize("kind", ["object", "scene", None])
def test_vote_rule_with_rows_of_one_kind(config_of, tokenizer, kind, penalty):
    columns = {"kind": [kind] * 30, "photo": [str(row // 2) for row in range(30)]}
    memory, queries = random_memory(9, 30, **columns), random_queries(9)
    changed = {"object_threshold": -5.0, "ridge_penalty": penalty}
    config = config_of(retrieval_rule="vote", retrieval_options=changed, num_retrieved_names=6)
    result = NameRetriever(memory, tokenizer, 128)(queries, config)
    options = {**VOTE_OPTIONS, **changed}
    for index, photo in enumerate(queries):
        check(result, index, *slow_vote_rule(memory, photo, options, 6))
    bare = VisualNameMemory.from_rows(memory.names, memory.keys)  # no column `kind`: objects
    plain = NameRetriever(bare, tokenizer, 128)(queries, config)
    if kind != "scene":
        assert plain.names == result.names


def test_regression_follows_edits_of_the_memory(config_of, tokenizer):
    memory, queries = vote_memory(11), random_queries(11)
    config = config_of(retrieval_rule="vote", retrieval_options={"ridge_penalty": 1.0}, num_retrieved_names=8)
    retriever = NameRetriever(memory, tokenizer, 128)
    before = retriever(queries, config)
    memory.add(["kite"] * 3, queries[:3, 0].numpy(), kind=["scene"] * 3, photo=["a", "b", "c"])
    after = retriever(queries, config)
    assert [("kite" in names) for names in after.names[:3]] == [True] * 3 and "kite" not in sum(before.names, [])
    for index, photo in enumerate(queries):
        check(after, index, *slow_vote_rule(memory, photo, {**VOTE_OPTIONS, "ridge_penalty": 1.0}, 8))


# Names


def test_normalisation_is_the_releases():
    for name in [*WORDS, "a_b!c,d'e\"f(g)h*i#j:k;l~m", "  Many   spaces ", "Ünïcode 猫", "semi;colon"]:
        assert normalize_name(name) == clean(name)
    assert normalize_name("***") == "***"  # dropping everything would leave no name


NASTY = [
    "[SEP]",
    "dog [SEP] cat",
    "[PAD][CLS] owl [MASK]",
    "a \"quoted\" 'name'",
    "line\nbreak\tand tab",
    "猫",
    "собака",
    "كلب",
    "👩‍👩‍👧",
    "a" * 400,
    "owl, " * 60,
    "\u200b",
]


def test_names_of_any_script_and_special_tokens(config_of, tokenizer):
    keys = np.eye(len(NASTY), DIM) + 0.01
    memory = VisualNameMemory.from_rows(NASTY, keys)
    config = config_of(num_retrieved_names=len(NASTY), num_neighbors_per_query=1)
    queries = torch.from_numpy(keys).float()[None]
    result = NameRetriever(memory, tokenizer, 512)(queries, config)
    assert sorted(result.names[0]) == sorted(normalize_name(" ".join(name.split())) for name in NASTY)
    ids = result.input_ids[0]
    # one separator a name, none from inside a name
    assert (ids == tokenizer.sep_token_id).sum() == len(NASTY)
    assert (ids == tokenizer.cls_token_id).sum() == 1
    assert not (ids == tokenizer.mask_token_id).any()


def test_a_name_with_a_separator_stays_one_name(tiny_model, processor, photos, inputs):
    model = copy.deepcopy(tiny_model)
    keys = tiny_model.get_memory_keys(inputs["pixel_values"]).detach()
    model.set_memory(VisualNameMemory.from_rows(["dog [SEP]\ncat"] * 4, keys))
    names = model.encode_images(inputs["pixel_values"]).names
    assert names.names == [["dog [sep] cat"]] * 4
    assert (names.input_ids == model.name_tokenizer.sep_token_id).sum(1).tolist() == [1] * 4


@pytest.mark.parametrize("max_length", [2, 5, 12, 128])
def test_joined_names_equal_the_tokenizers_own_encoding(tokenizer, max_length):
    generator = np.random.default_rng(4)
    names = [normalize_name(word) for word in WORDS[:7]] + ["apple banana cake carrot", "猫 dog", "zebra"]
    tokens = NameTokens(names, tokenizer, max_length)
    rows = [generator.permutation(len(names))[: generator.integers(1, len(names) + 1)].tolist() for _ in range(20)]
    width = max(map(len, rows))
    name_ids = torch.tensor([row + [-1] * (width - len(row)) for row in rows])
    input_ids, attention_mask = tokens.join(name_ids)
    joined = [" [SEP] ".join(names[index] for index in row) for row in rows]
    expected = tokenizer(joined, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    assert torch.equal(input_ids, expected["input_ids"])
    assert torch.equal(attention_mask, expected["attention_mask"])


def test_join_without_names(tokenizer):
    tokens = NameTokens(["dog"], tokenizer, 128)
    input_ids, mask = tokens.join(torch.tensor([[0], [-1]]))
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    dog = tokenizer.convert_tokens_to_ids("dog")
    assert input_ids.tolist() == [[cls, dog, sep], [cls, sep, pad]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    input_ids, mask = tokens.join(torch.zeros(2, 0, dtype=torch.long))
    assert input_ids.tolist() == [[cls, sep]] * 2 and mask.tolist() == [[1, 1]] * 2
    empty, mask = NameTokens([], tokenizer, 128).join(torch.zeros(2, 0, dtype=torch.long))
    assert torch.equal(empty, input_ids)


def test_name_tokenizer_without_a_cls_token(processor):
    """Language-model tokenizers read names where `tie_name_embeddings` is set."""
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.add_special_tokens({"sep_token": "</s>"})
    tokens = NameTokens(["a dog", "tree"], tokenizer, 128)
    input_ids, mask = tokens.join(torch.tensor([[0, 1], [1, -1]]))
    first, second = (tokenizer(name, add_special_tokens=False)["input_ids"] for name in ("a dog", "tree"))
    assert input_ids[0].tolist() == [*first, tokenizer.sep_token_id, *second, tokenizer.sep_token_id]
    assert input_ids[1][mask[1].bool()].tolist() == [*second, tokenizer.sep_token_id]
    assert NameTokens([], tokenizer, 128).join(torch.zeros(1, 0, dtype=torch.long))[0].tolist() == [[2]]


def test_name_tokenizer_without_a_separator(processor):
    with pytest.raises(ValueError, match="sep_token"):
        NameTokens(["dog"], processor.tokenizer, 128)


# Approximate search


@pytest.mark.parametrize("factory", ["HNSW32", "IVF8,Flat"])
@pytest.mark.parametrize("rule, options", [
    ("release", {}), ("paper", {}), ("vote", {}), ("vote", {"ridge_penalty": 1.0}),
])  # fmt: skip
def test_faiss_is_close_to_exact(config_of, tokenizer, factory, rule, options):
    rows = 600
    kinds = {"kind": ["object", "scene"] * (rows // 2), "photo": [str(row // 6) for row in range(rows)]}
    words = [f"name {number}" for number in range(40)]
    exact = random_memory(11, rows, words, **kinds)
    approximate = random_memory(11, rows, words, index_factory=factory, **kinds)
    assert exact.fingerprint == approximate.fingerprint
    queries = random_queries(11, photos=8, queries=5)
    config = config_of(retrieval_rule=rule, num_retrieved_names=5, retrieval_options=options)
    expected = NameRetriever(exact, tokenizer, 128)(queries, config)
    retriever = NameRetriever(approximate, tokenizer, 128)
    assert retriever.keys is None  # not searched by multiplication
    if factory.startswith("IVF"):
        import faiss

        faiss.extract_index_ivf(approximate.index).nprobe = 8
    found = retriever(queries, config)
    shared = [len(set(a) & set(b)) / len(a) for a, b in zip(expected.names, found.names, strict=True) if a]
    assert np.mean(shared) > 0.85
    if factory.startswith("IVF") and rule != "vote":  # all cells probed: nothing is approximate
        assert found.names == expected.names
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    excluded = expected.row_ids[:, :1]
    for rows_left, row in zip(
        retriever(queries, config, excluded).row_ids.tolist(), excluded[:, 0].tolist(), strict=True
    ):
        assert row == -1 or row not in rows_left


def test_approximate_index_that_finds_fewer_rows(config_of, tokenizer):
    """A probed cell may hold fewer rows than asked for; FAISS then answers -1."""
    memory = random_memory(12, 40, index_factory="IVF20,Flat")
    result = NameRetriever(memory, tokenizer, 128)(random_queries(12), config_of(num_neighbors_per_query=30))
    assert (result.row_ids >= -1).all()
    for names, rows in zip(result.names, result.row_ids.tolist(), strict=True):
        assert names == [clean(memory.names[row]) for row in rows if row >= 0]


# The memory on the model


def test_edits_are_seen_at_the_next_caption(tiny_model, inputs):
    model = copy.deepcopy(tiny_model)
    memory = tiny_model.memory.copy()
    model.set_memory(memory)
    pixels = inputs["pixel_values"]
    keys = model.get_memory_keys(pixels).detach()
    memory.add(["axolotl"], keys[:1])
    assert "axolotl" in model.encode_images(pixels).names.names[0]
    memory.rename({"axolotl": "Sea_Dragon"})
    names = model.encode_images(pixels).names.names[0]
    assert "sea dragon" in names and "axolotl" not in names
    memory.remove(["Sea_Dragon"])
    assert model.encode_images(pixels).names.names == tiny_model.encode_images(pixels).names.names


@pytest.mark.parametrize("memory", ["empty", "none", "k is 0"])
def test_without_names_it_warns_once_and_captions(tiny_model, inputs, caplog, memory):
    from transformers.utils import logging as transformers_logging

    model = copy.deepcopy(tiny_model)
    if memory == "k is 0":
        model.config.num_retrieved_names = 0
    else:
        model.set_memory(VisualNameMemory.empty(32) if memory == "empty" else None)
    logging.Logger.warning_once.cache_clear()
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING):
            first = model.generate(**inputs)
            second = model.generate(**inputs)
    finally:
        transformers_logging.disable_propagation()
    messages = [record.message for record in caplog.records if "without retrieved names" in record.message]
    assert len(messages) == (memory != "k is 0")
    assert torch.equal(first, second) and first.shape[0] == 4
    names = model.encode_images(inputs["pixel_values"]).names
    assert names.names == [[]] * 4
    assert torch.equal(first, model.generate(**inputs, names=[[]] * 4))


def test_refusals_say_what_to_do(tiny_model):
    with pytest.raises(ValueError, match=re.compile("dimension 7.*32.*from_images", re.DOTALL)):
        tiny_model.check_memory(VisualNameMemory.empty(7))
    with pytest.raises(ValueError, match="from_images"):
        tiny_model.check_memory(VisualNameMemory.empty(32, encoder_fingerprint="0" * 64))


def test_whitening_power():
    """0 keeps the variances of the principal components, 1 makes all of them 1, a half takes their square root."""
    torch.manual_seed(0)
    features = torch.randn(50, 12) @ torch.randn(12, 12)
    variances = {}
    for power in (0.0, 0.5, 1.0):
        space = EVCapVisionSpace({**VISION_SPACE_OPTIONS, "key_size": 6, "whitening_power": power}, 12)
        space.fit(features)
        covariance = torch.cov(((features - space.mean) @ space.whitening).T)
        variances[power] = covariance.diagonal()
        torch.testing.assert_close(covariance, torch.diag(variances[power]), atol=1e-3, rtol=0)
    torch.testing.assert_close(variances[1.0], torch.ones(6))
    torch.testing.assert_close(variances[0.5], variances[0.0].sqrt())
    torch.testing.assert_close(variances[0.0], torch.linalg.eigvalsh(torch.cov(features.T)).flip(0)[:6])


def test_vision_space(model_of, inputs, tmp_path):
    """Pooled and whitened vision features instead of query outputs."""
    options = {"key_size": 16, "window_size": 2, "window_stride": 1, "power": 0.5}
    model = model_of(memory=False, retrieval_space="vision", retrieval_options=options)
    hidden = model.get_image_features(torch.randn(40, 3, 56, 56)).vision_hidden_states
    with torch.no_grad():
        model.vision_space.fit(model.vision_space.pool(hidden)[:, 0])
        white = (model.vision_space.pool(hidden)[:, 0] - model.vision_space.mean) @ model.vision_space.whitening
        features = model.get_image_features(inputs["pixel_values"])
        keys = model.get_memory_keys(inputs["pixel_values"])
    torch.testing.assert_close(torch.cov(white.T), torch.eye(16), atol=1e-3, rtol=0)
    queries = features.retrieval_queries
    assert queries.shape == (4, 1 + 9, 16)  # a 4 x 4 grid without its class token has 3 x 3 windows
    torch.testing.assert_close(queries.norm(dim=-1), torch.ones(4, 10))
    assert torch.equal(keys, queries[:, 0])
    patches = features.vision_hidden_states[0, 1:].reshape(4, 4, 32)
    window = patches[1:3, 2:4].reshape(4, 32).mean(0)
    window = (window.sign() * window.abs().sqrt() - model.vision_space.mean) @ model.vision_space.whitening
    torch.testing.assert_close(queries[0, 1 + 3 + 2], window / window.norm(), atol=1e-4, rtol=0)
    model.set_memory(
        VisualNameMemory.from_rows(["a", "b", "c", "d"], keys, encoder_fingerprint=model.encoder_fingerprint)
    )
    names = model.encode_images(inputs["pixel_values"]).names
    assert [photo[0] for photo in names.names] == ["a", "b", "c", "d"]
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(loaded.get_memory_keys(inputs["pixel_values"]).detach(), keys)
    assert loaded.memory.names == ["a", "b", "c", "d"]
