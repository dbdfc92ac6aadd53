"""Name matching, and the three metrics that rest on it."""

from __future__ import annotations

import pytest

from hf_evcap.metrics.name_matching import NameMatcher, lemma, name_lemmas


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        line.split()
        for line in """
        dogs dog|buses bus|boxes box|churches church|dishes dish|dresses dress|houses house|horses horse|vases vase
        tomatoes tomato|shoes shoe|horseshoes horseshoe|canoes canoe|toes toe|axes axe|mustaches mustache
        puppies puppy|movies movie|pies pie|neckties necktie|cookies cookie|berries berry
        knives knife|bookshelves bookshelf|gloves glove|olives olive|sleeves sleeve|wolves wolf
        women woman|firemen fireman|grandchildren grandchild|people person|mice mouse|geese goose|feet foot
        sheep sheep|series series|glass glass|bus bus|cactus cactus|cacti cactus|tennis tennis|skis ski|taxis taxi
        gas gas|lens lens|lenses lens|walruses walrus|hippopotamuses hippopotamus|irises iris|oasis oasis|quizzes quiz
        tvs tv|man's man|dogs' dog|children's child|scissors scissor|specimen specimen|dog dog
        """.replace("\n", "|").split("|")
        if line.strip()
    ],
)
def test_lemma(plural, singular):
    assert lemma(plural) == singular
    assert lemma(singular) == singular


def test_name_lemmas():
    assert name_lemmas("bow_(decorative_ribbons)") == ("bow",)
    assert name_lemmas("Fire-Hydrants") == ("fire", "hydrant")
    assert name_lemmas("(x)") == ("x",)
    with pytest.raises(ValueError, match="holds no word"):
        name_lemmas("_-_")


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("Two hot dogs and a dog.", ["hot_dog", "dog"]),
        ("hot-dogs", ["hot_dog"]),
        ("hotdogs", ["hot_dog"]),
        ("a surf board", ["surfboard"]),
        ("the dog's bowl", ["dog"]),
        ("a hydrant, a fireplug", ["fire hydrant", "fire hydrant"]),
        ("there is land", []),
        ("a dogfish", []),
        ("", []),
    ],
)
def test_mentions(caption, objects):
    matcher = NameMatcher(
        ["hot_dog", "dog", "surfboard", "fire hydrant", "island"], {"Fire_Hydrant": ["hydrant", "fireplug"]}
    )
    assert [name for mention in matcher.find(caption) for name in mention.objects] == objects


def test_a_spelling_of_two_objects_mentions_both():
    matcher = NameMatcher(["bat_(animal)", "bat_(sports)"])
    assert matcher.mentioned("a wooden bat") == {"bat_(animal)", "bat_(sports)"}
    assert matcher.objects("Bats") == {"bat_(animal)", "bat_(sports)"}
    assert matcher.objects("cat") == frozenset()


def test_the_longest_name_counts():
    matcher = NameMatcher(["fire", "fire hydrant", "hydrant"])
    assert [(mention.start, mention.end, *mention.objects) for mention in matcher.find("a fire hydrant on fire")] == [
        (1, 3, "fire hydrant"),
        (4, 5, "fire"),
    ]


def test_synonyms_must_be_lists():
    with pytest.raises(TypeError, match="synonyms of 'sofa' must be a list"):
        NameMatcher(["sofa"], {"sofa": "couch"})


def test_novel_object_recall(load_metric):
    result = load_metric("novel_object_recall").compute(
        predictions=["three hedgehogs", "an animal", "a hot-dog", "a couch with a hedgehog", "a dog on a sofa"],
        references=["hedgehog", "hedgehog", "dog", ["sofa", "hedgehog"], ["sofa"]],
        synonyms={"sofa": ["couch"]},
        vocabulary=["hot dog"],
    )
    assert result["novel_object_recall"] == pytest.approx(3 / 5)
    assert result["per_object"] == [
        {"name": "dog", "images": 1, "named": 0, "recall": 0.0},
        {"name": "hedgehog", "images": 3, "named": 2, "recall": pytest.approx(2 / 3)},
        {"name": "sofa", "images": 2, "named": 2, "recall": 1.0},
    ]
    assert result["mean_object_recall"] == pytest.approx((0 + 2 / 3 + 1) / 3)
    assert result["named_per_caption"] == [["hedgehog"], [], [], ["sofa", "hedgehog"], ["sofa"]]


def test_name_hallucination(load_metric):
    metric = load_metric("name_hallucination")
    result = metric.compute(
        predictions=["a dog and two cats and a cat", "a zebra on a couch", "nothing here"],
        references=[["A dog on a rug"], ["an animal"], ["x"]],
        annotations=[[], ["zebras"], []],
        retrieved_names=[["dog", "cat"], ["zebra"], []],
        memory_names=["sofa"],
        synonyms={"sofa": ["couch"]},
    )
    assert (result["mentions"], result["hallucinated_mentions"], result["hallucinated_captions"]) == (5, 3, 2)
    assert result["hallucination_per_mention"] == pytest.approx(3 / 5)
    assert result["hallucination_per_caption"] == pytest.approx(2 / 3)
    assert result["hallucinated_per_caption"] == [["cat", "cat"], ["sofa"], []]
    assert result["per_name"] == [
        {"name": "cat", "mentions": 2, "hallucinated": 2},
        {"name": "sofa", "mentions": 1, "hallucinated": 1},
        {"name": "dog", "mentions": 1, "hallucinated": 0},
        {"name": "zebra", "mentions": 1, "hallucinated": 0},
    ]


def test_only_the_image_s_own_retrieved_names_count(load_metric):
    result = load_metric("name_hallucination").compute(
        predictions=["a dog", "a dog"], references=[["a cat"], ["a cat"]], retrieved_names=[["dog"], ["cat"]]
    )
    assert result["hallucinated_per_caption"] == [["dog"], []]


def test_name_hallucination_without_mentions(load_metric):
    result = load_metric("name_hallucination").compute(predictions=["x"], references=[["y"]], memory_names=["dog"])
    assert result["hallucination_per_mention"] == 0.0
    assert result["hallucination_per_caption"] == 0.0


def test_name_hallucination_adds_in_pieces(load_metric):
    metric = load_metric("name_hallucination")
    metric.add(prediction="a dog", annotations=["cat"], retrieved_names=["dog"])
    metric.add_batch(predictions=["a dog"], references=[["a dog"]])
    assert metric.compute(memory_names=["dog"])["hallucinated_per_caption"] == [["dog"], []]


def test_retrieval_recall(load_metric):
    metric = load_metric("retrieval_recall")
    result = metric.compute(
        predictions=[["Dogs", "cat", "hot-dog"], [], ["couch"]],
        references=[["cat", "hot_dog"], "dog", ["sofa"]],
        k=[1, 2, 3],
        synonyms={"sofa": ["couch"]},
    )
    assert result["ranks_per_image"] == [[2, 3], [0], [1]]
    assert [result[f"recall_at_{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 0.5, 2 / 3])
    assert [result[f"hit_at_{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert result["mean_reciprocal_rank"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert set(metric.compute(predictions=[["a"]], references=["a"])) >= {"recall_at_1", "recall_at_5", "recall_at_10"}


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("novel_object_recall", {"predictions": ["a"], "references": [[]]}, ValueError, r"references\[0\] is empty"),
        ("novel_object_recall", {"predictions": ["a"], "references": ["--"]}, ValueError, "holds no word"),
        ("novel_object_recall", {"predictions": ["a"], "references": [float("nan")]}, TypeError, "list of strings"),
        (
            "novel_object_recall",
            {"predictions": ["a"], "references": ["b"], "synonyms": [["c"]]},
            TypeError,
            "`synonyms` must map",
        ),
        (
            "novel_object_recall",
            {"predictions": ["a"], "references": ["b"], "vocabulary": [3]},
            TypeError,
            "vocabulary",
        ),
        ("name_hallucination", {"predictions": ["a"], "references": [["b"]]}, ValueError, "memory_names"),
        ("name_hallucination", {"predictions": ["a"], "memory_names": ["b"]}, ValueError, "Image 0 has neither"),
        (
            "name_hallucination",
            {"predictions": ["a"], "references": [["b"]], "retrieved_names": [["c"], ["d"]]},
            ValueError,
            "1 predictions, 1 references, 2 retrieved_names",
        ),
        ("retrieval_recall", {"predictions": [["a"]], "references": [["a"]], "k": 0}, ValueError, "positive integers"),
        (
            "retrieval_recall",
            {"predictions": [["a"]], "references": [["a"]], "k": []},
            ValueError,
            "positive integers",
        ),
        ("retrieval_recall", {"predictions": [[3]], "references": [["a"]]}, TypeError, r"predictions\[0\]\[0\]"),
    ],
)
def test_bad_input(load_metric, name, arguments, error, message):
    with pytest.raises(error, match=message):
        load_metric(name).compute(**arguments)
