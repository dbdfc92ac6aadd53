"""The metrics as `evaluate` modules: loading, results, and what they say to bad input."""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml

import hf_evcap
from hf_evcap.metrics import METRICS
from hf_evcap.metrics.caption_scores import DocumentFrequency
from hf_evcap.metrics.space_app import card_text, compute_from_json, load_test_cases


JAVA_METRICS = ("meteor", "spice")
PLAIN_METRICS = [name for name in METRICS if name not in JAVA_METRICS]
CAPTION_METRICS = ["cider", "bleu", "rouge_l"]


def assert_plain(value):
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            assert_plain(item)
    else:
        assert type(value) in (float, int, str, bool)


def test_metric_path():
    for name in METRICS:
        assert (Path(hf_evcap.metric_path(name)) / f"{name}.py").is_file()
    with pytest.raises(ValueError, match="no metric 'ciderr'.*bleu, cider"):
        hf_evcap.metric_path("ciderr")


def test_metric_path_is_cheap():
    code = (
        "import sys, hf_evcap; hf_evcap.metric_path('cider'); "
        "sys.exit(' '.join(m for m in ('torch', 'transformers', 'evaluate', 'datasets', 'numpy') if m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""


@pytest.mark.parametrize("name", [name for name in PLAIN_METRICS if name != "clip_score"])
def test_example_cases(load_metric, name):
    metric = load_metric(name)
    cases = load_test_cases(Path(hf_evcap.metric_path(name)))
    assert cases
    for case in cases:
        arguments = {key: value for key, value in case.items() if key != "result"}
        results = metric.compute(**arguments)
        assert_plain(results)
        assert set(results) == set(case["result"])
        for key, expected in case["result"].items():
            if isinstance(expected, float) or (expected and isinstance(expected, list) and type(expected[0]) is float):
                np.testing.assert_allclose(results[key], expected, atol=2e-6)
            else:
                assert json.loads(json.dumps(results[key])) == expected


@pytest.mark.parametrize("name", ["coco", "tricky"])
def test_raw_captions_give_coco_captions_figures(load_metric, coco_caption, name):
    truth = coco_caption[name]
    inputs = {"predictions": truth["predictions"], "references": truth["references"]}
    cider = load_metric("cider").compute(**inputs)
    assert cider["cider"] == pytest.approx(truth["cider"], abs=1e-9)
    np.testing.assert_allclose(cider["cider_per_caption"], truth["cider_per_image"], atol=1e-8)
    bleu = load_metric("bleu").compute(**inputs)
    assert [bleu[f"bleu_{order}"] for order in (1, 2, 3, 4)] == pytest.approx(truth["bleu"], abs=1e-9)
    per_caption = [bleu[f"bleu_{order}_per_caption"] for order in (1, 2, 3, 4)]
    np.testing.assert_allclose(per_caption, truth["bleu_per_image"], atol=1e-8)
    rouge_l = load_metric("rouge_l").compute(**inputs)
    assert rouge_l["rouge_l"] == pytest.approx(truth["rouge_l"], abs=1e-9)
    np.testing.assert_allclose(rouge_l["rouge_l_per_caption"], truth["rouge_l_per_image"], atol=1e-8)


@pytest.mark.parametrize("name", CAPTION_METRICS)
def test_adding_in_pieces_equals_one_call(load_metric, name):
    predictions = ["a cat on a mat", "two dogs run", "a man"]
    references = [["a cat sits on a mat", "cat"], ["dogs running"], ["a man", "the man"]]
    whole = load_metric(name).compute(predictions=predictions, references=references)
    metric = load_metric(name)
    metric.add(prediction=predictions[0], reference=references[0])
    metric.add_batch(predictions=predictions[1:], references=references[1:])
    assert metric.compute() == whole
    assert metric.compute(predictions=predictions, references=references) == whole


def test_arrays_and_columns_are_taken(load_metric):
    import datasets

    table = datasets.Dataset.from_dict({"p": ["a cat", "a dog"], "r": [["a cat"], ["a big dog"]]})
    metric = load_metric("rouge_l")
    expected = metric.compute(predictions=["a cat", "a dog"], references=[["a cat"], ["a big dog"]])
    assert metric.compute(predictions=table["p"], references=table["r"]) == expected
    assert metric.compute(predictions=np.array(["a cat", "a dog"]), references=table["r"][:]) == expected


def test_tokenised_captions_are_left_alone(load_metric):
    metric = load_metric("rouge_l")
    assert metric.compute(predictions=["Dogs!"], references=[["dogs"]])["rouge_l"] == 1.0
    assert metric.compute(predictions=["Dogs!"], references=[["dogs"]], tokenize=False)["rouge_l"] == 0.0


@pytest.mark.parametrize("name", CAPTION_METRICS)
@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        ([], [], ValueError, "no predictions"),
        (["a"], None, ValueError, "`references` is missing"),
        (None, [["a"]], ValueError, "`predictions` is missing"),
        (["a", "b"], [["a"]], ValueError, "2 predictions, 1 references"),
        (["a"], [[]], ValueError, r"references\[0\] is empty"),
        ([math.nan], [["a"]], TypeError, r"predictions\[0\] must be a string, got nan"),
        (["a", None], [["a"], ["b"]], TypeError, r"predictions\[1\] must be a string, got None"),
        ([3], [["a"]], TypeError, r"predictions\[0\] must be a string, got 3"),
        ([["a"]], [["a"]], TypeError, r"predictions\[0\] must be a string, got list"),
        (["a"], ["a"], TypeError, r"references\[0\] must be a list of strings, got str"),
        (["a"], [["a", math.nan]], TypeError, r"references\[0\]\[1\] must be a string, got nan"),
        (["a"], [math.nan], TypeError, r"references\[0\] must be a list of strings, got nan"),
        ("a", [["a"]], TypeError, "`predictions` must be a list"),
    ],
)
def test_bad_input(load_metric, name, predictions, references, error, message):
    metric = load_metric(name)
    with pytest.raises(error, match=message):
        metric.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=["a b", "c"], references=[["a b"], ["c"]])  # usable after the error


def test_bad_input_of_add(load_metric):
    metric = load_metric("cider")
    with pytest.raises(TypeError, match=r"predictions\[0\] must be a string"):
        metric.add(prediction=1.5, reference=["a"])
    with pytest.raises(TypeError, match=r"no input captions"):
        metric.add_batch(predictions=["a"], references=[["a"]], captions=["b"])
    with pytest.raises(ValueError, match="`add` or `add_batch`"):
        metric.compute()


@pytest.mark.parametrize(
    ("image_ids", "message"),
    [
        ([1], "1 image ids for 2 predictions"),
        ([7, 7], "Image id 7 stands twice, at 0 and 1"),
        ([1, None], r"image_ids\[1\] is None"),
        ([math.nan, 2], r"image_ids\[0\] is nan"),
    ],
)
def test_bad_image_ids(load_metric, image_ids, message):
    metric = load_metric("cider")
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=["a", "b"], references=[["a"], ["b"]], image_ids=image_ids)
    assert "cider" in metric.compute(predictions=["a", "b"], references=[["a"], ["b"]], image_ids=[1, 2])


def test_an_error_leaves_no_files_or_locks(load_metric):
    metric = load_metric("cider")
    metric.add_batch(predictions=["a", "b"], references=[["a"], ["b"]])
    with pytest.raises(ValueError, match="stands twice"):
        metric.compute(image_ids=[1, 1])
    assert list(Path(metric.data_dir).glob("*.arrow")) == []
    other = load_metric("cider")
    other.add(prediction="a", reference=["a"])
    assert Path(other.cache_file_name).name == "default_experiment-1-0.arrow"  # the first name is free again
    other.compute()


def test_unknown_arguments_are_refused(load_metric):
    with pytest.raises(TypeError, match="sigmaa"):
        load_metric("cider").compute(predictions=["a"], references=[["a"]], sigmaa=3)


def test_document_frequency_arguments(load_metric, tmp_path):
    cider = load_metric("cider")
    inputs = {"predictions": ["a b c d", "x"], "references": [["a b c d"], ["x y"]]}
    frequency = DocumentFrequency.from_references([["a b c d"], ["x y"]])
    path = tmp_path / "frequency.json"
    path.write_text(json.dumps(frequency.to_dict()))
    expected = cider.compute(**inputs)
    for source in (frequency, frequency.to_dict(), path, str(path)):
        assert cider.compute(**inputs, document_frequency=source) == expected
    alone = cider.compute(predictions=["a b c d"], references=[["a b c d"]])
    assert alone["cider"] == 0.0
    assert cider.compute(predictions=["a b c d"], references=[["a b c d"]], document_frequency=path)["cider"] > 9
    with pytest.raises(FileNotFoundError, match="missing.json"):
        cider.compute(**inputs, document_frequency=tmp_path / "missing.json")
    path.write_text("not json")
    with pytest.raises(ValueError, match="is not JSON"):
        cider.compute(**inputs, document_frequency=path)
    with pytest.raises(TypeError, match="must be a dict"):
        cider.compute(**inputs, document_frequency=3)


def test_an_edited_script_is_loaded_anew(tmp_path):
    folder = tmp_path / "cider"
    shutil.copytree(hf_evcap.metric_path("cider"), folder)
    inputs = {"predictions": ["a b", "c"], "references": [["a b"], ["d"]]}
    before = evaluate.load(str(folder)).compute(**inputs)
    script = folder / "cider.py"
    script.write_text(script.read_text().replace("sum(scores) / len(scores)", "100 * sum(scores) / len(scores)"))
    after = evaluate.load(str(folder)).compute(**inputs)
    assert after["cider"] == pytest.approx(100 * before["cider"])
    assert after["cider"] > 0


def test_loading_needs_no_network(monkeypatch, load_metric):
    def refuse(*arguments, **options):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in PLAIN_METRICS:
        assert load_metric(name).name == name


@pytest.mark.parametrize("name", METRICS)
def test_cards(name):
    folder = Path(hf_evcap.metric_path(name))
    _, header, card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    header = yaml.safe_load(header)
    assert {"title", "emoji", "colorFrom", "colorTo", "sdk_version", "description"} <= set(header)
    assert header["sdk"] == "gradio" and header["app_file"] == "app.py"
    assert {"evaluate", "metric"} <= set(header["tags"])
    assert {header["colorFrom"], header["colorTo"]} <= {
        "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"
    }  # fmt: skip
    assert card_text(folder) == card
    for section in ("## What it measures", "## How to use", "### Inputs", "### Output", "## Limitations"):
        assert section in card
    assert (folder / "requirements.txt").read_text().startswith("hf_evcap[")
    assert f'"{name}"' in (folder / "app.py").read_text()


def test_a_spaces_page_computes_from_json(load_metric):
    cases = load_test_cases(Path(hf_evcap.metric_path("rouge_l")))
    arguments = {key: value for key, value in cases[0].items() if key != "result"}
    result = compute_from_json(load_metric("rouge_l"), json.dumps(arguments))
    assert result["rouge_l"] == pytest.approx(cases[0]["result"]["rouge_l"], abs=1e-6)
    with pytest.raises(ValueError, match="not JSON"):
        compute_from_json(load_metric("rouge_l"), "{")
    with pytest.raises(ValueError, match="must be a JSON object"):
        compute_from_json(load_metric("rouge_l"), "[]")
