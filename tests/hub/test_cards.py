"""Cards: their whole text, their metadata, and what people write around them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard
from transformers import AutoConfig, AutoModelForImageTextToText

import hf_evcap
from hf_evcap import CaptionDatastore, VisualNameMemory
from hf_evcap.hub.card_facts import read_card_facts
from hf_evcap.hub.model_card import main, make_model_card, write_model_card
from hf_evcap.hub_card import make_card, merge_cards
from hf_evcap.memory_evcap import MemoryLayers


HERE = Path(__file__).parent
RESULTS = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
ROOT = HERE.parents[1]
MODEL_CARD = (HERE / "model_card.regex").read_text(encoding="utf-8")
MEMORY_CARD = (HERE / "memory_card.regex").read_text(encoding="utf-8")
SMALLCAP_CARD = (HERE / "smallcap_card.regex").read_text(encoding="utf-8")
DATASTORE_CARD = (HERE / "datastore_card.regex").read_text(encoding="utf-8")


@pytest.fixture
def model_dir(tiny_dir: Path, tmp_path: Path) -> Path:
    """Folder of a model with results, without weights: cards do not need them."""
    folder = tmp_path / "kitchen"
    shutil.copytree(tiny_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    return folder


def assert_matches(pattern: str, text: str) -> None:
    """Compares line by line first, so that a failure shows the line."""
    if re.fullmatch(pattern, text) is None:
        plain = [line for line in pattern.splitlines() if "{1," not in line]
        missing = [line for line in plain if not any(re.fullmatch(line, given) for given in text.splitlines())]
        raise AssertionError(f"the card lacks {missing}:\n{text}")


def test_whole_model_card(model_dir: Path) -> None:
    card = make_model_card(model_dir, repo_id="alice/kitchen", tags=["kitchen"])
    assert_matches(MODEL_CARD, card)
    data = ModelCard(card).data
    assert data.model_name == "Kitchen captioner"
    assert [(result.metric_type, result.metric_value) for result in data.eval_results] == [
        ("cider", 50.25),
        ("bleu-4", 20),
    ]


def test_whole_memory_card() -> None:
    names = ["kettle", "mug <!--", "mug <!--"]
    keys = np.eye(3, 8, dtype=np.float32)
    memory = VisualNameMemory.from_rows(
        names, keys, source="my | photos", licenses={"my | photos": "CC BY 4.0"}, encoder_fingerprint="abc"
    )
    card = memory.card(memory.manifest(), "alice/mugs")
    assert_matches(MEMORY_CARD, card)
    data = DatasetCard(card).data
    assert (data.license, data.size_categories) == ("cc-by-4.0", ["n<1K"])
    assert merge_cards(card, card) == card


def test_whole_smallcap_card(smallcap_dir: Path) -> None:
    card = make_model_card(smallcap_dir, repo_id="alice/small")
    assert_matches(SMALLCAP_CARD, card)
    assert ModelCard(card).data.tags[0] == "smallcap"


def test_card_of_a_model_that_is_searched_with_another_encoder(smallcap_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(smallcap_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", "datastore"))
    file = tmp_path / "model" / "config.json"
    changes = {"retrieval_space": "external", "retrieval_encoder": "RN50x64", "encoder_fingerprint": None}
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    card = make_model_card(tmp_path / "model", repo_id="alice/small")
    assert (
        'load_retrieval_encoder("open_clip:RN50x64/openai").encode_photos' in card and "visual_projection" not in card
    )
    assert "Retrieval: space `external` of `RN50x64`, 4 captions." in card
    assert "This repo brings no datastore; give one with `from_pretrained(..., datastore=" in card


def test_whole_datastore_card() -> None:
    captions = ["a kettle | <!-- boils", "two mugs", "two mugs"]
    datastore = CaptionDatastore.from_rows(
        captions,
        np.eye(3, 8, dtype=np.float32),
        image_id=[1, 2, None],
        source="coco",
        licenses={"coco": "CC BY 4.0"},
        encoder_fingerprint="abc",
        retrieval={"encoder": "openai/clip-vit-base-patch32"},
    )
    card = datastore.card(datastore.manifest(), "alice/captions")
    assert_matches(DATASTORE_CARD, card)
    assert (DatasetCard(card).data.license, DatasetCard(card).data.tags[1]) == ("cc-by-4.0", "caption-datastore")


def test_card_without_results_claims_nothing(tiny_dir: Path) -> None:
    card = make_model_card(tiny_dir, repo_id="alice/bare")
    assert "# bare\n" in card and "## Results" not in card and "model-index" not in card
    assert "trainable as in the paper" in card and "licence is not stated" in card
    assert ModelCard(card).data.eval_results is None


@pytest.mark.parametrize(
    ("untrained", "policy", "told"),
    [
        (["fusion_qformer"], "trainable as in the paper", "Not trained yet: fusion_qformer.\n\n"),
        (
            ["fusion_qformer", "qformer"],
            "trainable by the policy `qformers`",
            "(`hf-evcap train --policy qformers`). `paper` and `fusion` leave the image Q-Former as it is,\n",
        ),
    ],
)
def test_card_of_a_model_with_untrained_parts_names_the_policy(
    untrained: list[str], policy: str, told: str, tiny_dir: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny_dir / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "untrained_parts": untrained}), encoding="utf-8")
    card = make_model_card(tmp_path, repo_id="alice/new")
    assert policy in card and told in card
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))
    allowed = model.policies_for(model.config)
    counts = [model.freeze_for_training(name) for name in allowed]
    assert f"{counts[0]:,} |" in card and (f"{counts[0]:,} of them" in card or counts[0] >= 100_000)
    for name in set(model.trainable_parts) - set(allowed):
        with pytest.raises(ValueError, match=f"The policy '{name}' leaves the image Q-Former frozen"):
            AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path)).freeze_for_training(name)


def test_card_of_a_model_that_refers_to_a_memory(tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", "memory"))
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "memory_reference": {"repo_id": "org/names", "revision": "abc"}}))
    card = make_model_card(tmp_path / "model")
    assert "| repo | `org/names` |\n| revision | `abc` |" in card
    file.write_text(json.dumps({**config, "memory_reference": {"repo_id": "/home/me/names"}}))
    with pytest.raises(ValueError, match="/home/me/names"):
        make_model_card(tmp_path / "model")


def test_card_of_a_model_with_layers(tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_dir, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors", "memory"))
    memory = VisualNameMemory.from_pretrained(tiny_dir / "memory")
    MemoryLayers({"base": memory, "owls": memory.subset(["owl"])}).save_pretrained(tmp_path / "model" / "memory")
    card = make_model_card(tmp_path / "model")
    assert "| rows of layer base | 14 of 32 numbers |" in card and "| names of layer owls | 1 |" in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, r"unknown keys \['titel'\]"),
        ({"license": 5}, r"results.json.license must be str; got 5"),
        ({"tables": [{"title": "x", "rows": [{"dataset": "y"}]}]}, r"tables\[0\].rows\[0\] lacks \['metrics'\]"),
        ({"tables": [{"title": "x", "rows": [{"dataset": "y", "metrics": {"a": "b"}}]}]}, "must be float; got 'b'"),
        ({"training": {"trained_parts": ["brain"]}}, r"trained parts \['brain'\]"),
        ({"format_version": 2}, "format 2"),
    ],
)
def test_mistakes_in_results_are_named(model_dir: Path, change: dict[str, Any], message: str) -> None:
    (model_dir / "results.json").write_text(json.dumps({**RESULTS, **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        make_model_card(model_dir)


def test_copy_of_a_card_links_into_the_folder(model_dir: Path, tmp_path: Path) -> None:
    main([str(model_dir), "--copy", str(tmp_path / "MODEL_CARD.md")])
    card, copy = (model_dir / "README.md").read_text(), (tmp_path / "MODEL_CARD.md").read_text()
    assert "](sheet.jpg)" in card and card.replace("](sheet.jpg)", "](kitchen/sheet.jpg)") == copy
    assert "hf_evcap.default_model()" in card


def test_people_keep_their_words_and_their_metadata() -> None:
    first = make_card({"license": "mit", "tags": ["a"], "size": 1}, "old body")
    edited = first.replace("license: mit", "license: gpl-3.0\nauthor: me").replace("- a\n", "- a\n- mine\n")
    edited = edited.replace("old body", "old body, edited").replace(
        "<!-- hf_evcap: generated f", "Before.\n\n<!-- hf_evcap: generated f"
    )
    edited += "\nAfter.\n"
    merged = merge_cards(make_card({"license": "apache-2.0", "tags": ["b"], "size": 2}, "new body"), edited)
    card = ModelCard(merged)
    assert card.data.to_dict() == {"license": "gpl-3.0", "author": "me", "tags": ["b", "a", "mine"], "size": 2}
    assert re.search(r"^Before\.\n\n<!-- .*-->\nnew body\n<!-- .* -->\n\nAfter\.$", card.text.strip())
    # what was not edited follows: the next licence is taken over as soon as theirs is the generated one again
    untouched = merge_cards(make_card({"license": "apache-2.0"}, "new body"), first)
    assert ModelCard(untouched).data.to_dict() == {"license": "apache-2.0"}


def test_card_that_only_a_person_wrote_stays_in_front() -> None:
    merged = merge_cards(make_card({"license": "mit"}, "body"), "---\nlicense: gpl-3.0\n---\n# Mine\n\nAll mine.\n")
    assert ModelCard(merged).data.license == "gpl-3.0"
    assert ModelCard(merged).text.strip().startswith("# Mine\n\nAll mine.\n\n<!-- hf_evcap")
    again = merge_cards(make_card({"license": "mit"}, "body 2"), merged)
    assert again.count("All mine.") == 1 and "body 2" in again and ModelCard(again).data.license == "gpl-3.0"


def test_card_without_marks_becomes_the_block() -> None:
    merged = merge_cards("---\nlicense: mit\n---\n# Hand-written\n", None)
    assert "generated from here" in merged and "# Hand-written" in merged
    later = merge_cards("---\nlicense: mit\n---\n# Rewritten\n", merged.rstrip("\n") + "\n\nA note.\n")
    assert "# Rewritten" in later and "# Hand-written" not in later and "A note." in later


def test_broken_metadata_is_an_error_not_a_loss() -> None:
    with pytest.raises(ValueError, match="The metadata of the card on the Hub cannot be read"):
        merge_cards(make_card({"license": "mit"}, "body"), "---\nlicense: [mit\n---\ntext\n")


def test_card_of_the_embedded_default_is_up_to_date(tmp_path: Path) -> None:
    folder = Path(hf_evcap.default_model())
    expected = tmp_path / "MODEL_CARD.md"
    expected.write_text(make_model_card(folder, link=f"{folder.relative_to(ROOT).as_posix()}/"), encoding="utf-8")
    advice = "run `python -m hf_evcap.hub.model_card src/hf_evcap/assets/evcap-tiny --copy MODEL_CARD.md`"
    assert (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8") == expected.read_text(encoding="utf-8"), advice
    present = (folder / "README.md").read_text(encoding="utf-8")
    assert merge_cards(make_model_card(folder), present) == present, advice
    facts = read_card_facts(folder / "results.json")
    assert facts.tables and facts.limits and facts.failures
    assert facts.contact_sheet is None or (folder / facts.contact_sheet).is_file()


def test_write_model_card_keeps_text_of_the_folder(model_dir: Path) -> None:
    write_model_card(model_dir)
    with (model_dir / "README.md").open("a", encoding="utf-8") as file:
        file.write("\nSeen in our kitchen.\n")
    write_model_card(model_dir)
    assert (model_dir / "README.md").read_text().endswith("is kept. -->\n\nSeen in our kitchen.\n")
