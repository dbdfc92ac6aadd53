"""Tests of names that are retrieved once for training, and replaced in list and captions alike."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

import hf_evcap
from hf_evcap import EVCapForConditionalGeneration
from hf_evcap.cli.main import main
from hf_evcap.training.fine_tuning.prepared_names import PreparedNames, replace_name
from hf_evcap.training.fine_tuning.retrieval_in_training import TrainingRetrieval


PHOTOS = sorted((Path(hf_evcap.__file__).parent / "assets" / "photos").glob("*.jpg"))


@pytest.mark.parametrize(
    ("caption", "old", "new", "expected"),
    [
        ("A dog and a dogged man", "dog", "owl", "An owl and a dogged man"),
        ("An owl sits", "owl", "red panda", "A red panda sits"),
        ("Dogs chase the dog.", "dog", "emu", "Dogs chase the emu."),
        ("Dog in a hot dog", "dog", "x", "X in a hot x"),
        ("a t-shirt", "shirt", "hat", "a t-hat"),
    ],
)
def test_replace_name(caption, old, new, expected):
    assert replace_name(caption, old, new) == expected


def prepared(share=1.0, **retrieval):
    model = type("Model", (), {"training_retrieval": None})()
    candidates = {0: ["dog", "run", "grass"], 1: ["run", "blue"]}
    return PreparedNames(candidates, TrainingRetrieval(model, **retrieval), 3, ["dog", "grass", "owl", "emu"], share)


def test_a_name_is_replaced_in_list_and_captions():
    captions = ["a dog can run on grass", "dogs run"]
    seen = set()
    for epoch in range(30):
        names, texts = prepared()(0, captions, epoch)
        assert prepared()(0, captions, epoch) == (names, texts)  # the same after resuming
        changed = [place for place, name in enumerate(names) if name != ["dog", "run", "grass"][place]]
        assert changed in ([], [0], [2]) and texts[1] == "dogs run"
        if changed:
            seen.add(names[changed[0]])
            assert names[changed[0]] in texts[0] and ["dog", "run", "grass"][changed[0]] not in texts[0].split()
    assert seen == {"owl", "emu", "dog", "grass"} - {"dog", "grass"} and len(seen) == 2


def test_nothing_is_replaced_that_is_not_a_name_or_not_said():
    assert prepared()(1, ["they run in blue"], 0) == (["run", "blue"], ["they run in blue"])
    assert prepared()(0, ["people run"], 0) == (["dog", "run", "grass"], ["people run"])
    assert prepared(share=0.0)(0, ["a dog"], 0) == (["dog", "run", "grass"], ["a dog"])


def test_names_are_withheld():
    assert prepared(photo_dropout=1.0)(0, ["a dog"], 0) == ([], ["a dog"])
    kept = np.mean([len(prepared(share=0.0, name_dropout=0.5)(0, ["a dog"], epoch)[0]) for epoch in range(200)])
    assert 1.3 < kept < 1.7


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """The sample photos as a dataset, their features, and names."""
    folder = tmp_path_factory.mktemp("captioned")
    captions = [[f"a photo of a {path.stem}", f"a {path.stem} is seen"] for path in PHOTOS]
    rows = {"image": list(map(str, PHOTOS)), "image_id": [path.stem for path in PHOTOS], "captions": captions}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(folder / "photos.parquet")
    assert not main(["cache-features", "--dataset", str(folder / "photos.parquet"), "--output", str(folder / "cache")])
    (folder / "names.json").write_text(json.dumps(["cat", "rocket", "coffee", "flower", "raccoon", "zebu"]))
    return folder


def train(captioned, output, *flags):
    common = ["train", "--dataset", f"{captioned}/photos.parquet", "--output_dir", str(output), "--max_steps", "2"]
    common += ["--captions_per_photo", "together", "--per_device_train_batch_size", "4", "--report_to", "none"]
    return main([*common, *flags])


def test_training_with_shared_prompts_and_replaced_names(captioned, tmp_path):
    flags = ["--feature_cache", f"{captioned}/cache", "--replaced_names", "0.5", "--name_dropout", "0.1"]
    flags += ["--replacement_names", f"{captioned}/names.json", "--policy", "qformers", "--bf16", "true"]
    assert not train(captioned, tmp_path / "out", *flags, "--dtype", "bfloat16", "--attn_implementation", "eager")
    before = dict(EVCapForConditionalGeneration.from_pretrained(hf_evcap.default_model()).named_parameters())
    trained = EVCapForConditionalGeneration.from_pretrained(tmp_path / "out")
    after = dict(trained.named_parameters())
    moved = {name.split(".")[0] for name in before if not before[name].bfloat16().equal(after[name].bfloat16())}
    assert moved == {"query_tokens", "qformer", "name_query_tokens", "fusion_qformer", "language_projection"}
    assert trained.memory is not None  # keys are of the vision encoder, which stayed


def test_what_is_missing_is_told(captioned, tmp_path, capsys):
    replaced = ["--replaced_names", "0.5", "--replacement_names", f"{captioned}/names.json"]
    cases = [
        (replaced, "--feature_cache"),
        (replaced[:2], "`replacement_names`, the JSON file"),
        ([*replaced, "--captions_per_photo", "one"], "captions_per_photo=together"),
        (["--label_smoothing_factor", "0.1"], "without `label_smoothing_factor`"),
    ]
    for number, (flags, message) in enumerate(cases):
        assert train(captioned, tmp_path / str(number), *flags) == 1
        assert message in capsys.readouterr().err


def test_names_are_aligned_before_training(captioned, tmp_path, capsys):
    flags = ["--align_names", "30", "--replacement_names", f"{captioned}/names.json", "--policy", "qformers"]
    assert not train(captioned, tmp_path / "out", *flags)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Names aligned")]
    assert float(line.split(": ")[1].split(" %")[0]) < 20  # a random start misses all of it
    # Going on from a checkpoint keeps what was learned.
    flags += ["--save_strategy", "steps", "--save_steps", "1", "--max_steps", "1"]
    assert not train(captioned, tmp_path / "again", *flags)
    capsys.readouterr()
    assert not train(captioned, tmp_path / "again", *flags[:-2], "--resume_from_checkpoint", "true")
    assert "Names aligned" not in capsys.readouterr().out


def test_adapters_after_the_frozen_run(captioned, tmp_path):
    flags = ["--feature_cache", f"{captioned}/cache", "--replaced_names", "0.3", "--policy", "lora"]
    flags += ["--replacement_names", f"{captioned}/names.json", "--lora_beside", "qformers", "--lora_rank", "4"]
    assert not train(captioned, tmp_path / "out", *flags, "--merge_adapters", "true", "--learning_rate", "1e-2")
    before = dict(EVCapForConditionalGeneration.from_pretrained(hf_evcap.default_model()).named_parameters())
    trained = EVCapForConditionalGeneration.from_pretrained(tmp_path / "out")
    moved = {name.split(".")[0] for name, weight in trained.named_parameters() if not weight.equal(before[name])}
    assert moved == {"qformer", "fusion_qformer", "language_projection", "language_model"}
    assert trained.memory is not None
