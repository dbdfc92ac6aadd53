"""METEOR and SPICE: the real programs where they are installed, and clear errors where they are not."""

from __future__ import annotations

import shutil
import sys
import types

import numpy as np
import pytest

from hf_evcap.metrics import java_scorers


def _unavailable(metric):
    try:
        java_scorers.require_java(metric)
    except (ImportError, RuntimeError, FileNotFoundError) as error:
        return str(error)
    return ""


NO_METEOR, NO_SPICE = _unavailable("meteor"), _unavailable("spice")


@pytest.mark.skipif(bool(NO_METEOR), reason=NO_METEOR)
def test_meteor_equals_coco_caption(load_metric, coco_caption):
    predictions, references, per_image = [], [], []
    for name in ("coco",):
        truth = coco_caption[name]
        predictions, references = truth["predictions"], truth["references"]
        per_image = truth["meteor_per_image"]
    result = load_metric("meteor").compute(predictions=predictions, references=references)
    assert result["meteor"] == pytest.approx(coco_caption["coco"]["meteor"], abs=1e-9)
    np.testing.assert_allclose(result["meteor_per_caption"], per_image, atol=1e-8)


@pytest.mark.skipif(bool(NO_SPICE), reason=NO_SPICE)
def test_spice_runs(load_metric):
    result = load_metric("spice").compute(predictions=["a cat on a mat"], references=[["a cat on a mat"]])
    assert result["spice"] == pytest.approx(1.0)
    assert result["spice_per_caption"] == [result["spice"]]


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A stand-in for an installed pycocoevalcap."""
    folder = tmp_path / "pycocoevalcap"
    for metric in ("meteor", "spice"):
        (folder / metric / "lib").mkdir(parents=True)
        (folder / metric / f"{metric}.py").write_text("")
    for name in [name for name in sys.modules if name.split(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    package = types.ModuleType("pycocoevalcap")
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, "pycocoevalcap", package)
    return folder


@pytest.mark.parametrize("metric", ["meteor", "spice"])
def test_without_pycocoevalcap(monkeypatch, load_metric, metric):
    monkeypatch.setattr(java_scorers, "_scorer_folder", lambda metric: None)
    with pytest.raises(ImportError, match=rf'{metric.upper()}.*pip install "hf_evcap\[coco\]".*Java runtime'):
        load_metric(metric)


@pytest.mark.parametrize("metric", ["meteor", "spice"])
def test_without_java(monkeypatch, load_metric, installed, metric):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(RuntimeError, match=rf"{metric.upper()}.*no `java`.*Java runtime.*hf_evcap\[coco\]"):
        load_metric(metric)


def test_spice_without_models(monkeypatch, load_metric, installed):
    monkeypatch.setattr(shutil, "which", lambda program: "/bin/java")
    with pytest.raises(FileNotFoundError, match=r"corenlp-3.6.0.jar and .*models.*python -m pycocoevalcap.spice"):
        load_metric("spice")
    for jar in java_scorers._SPICE_JARS:
        (installed / "spice" / "lib" / jar).touch()
    load_metric("spice")


def test_what_java_said_is_passed_on(monkeypatch, load_metric, installed):
    monkeypatch.setattr(shutil, "which", lambda program: "/bin/java")
    (installed / "meteor" / "meteor.py").write_text(
        "import subprocess, sys, threading\n"
        "class Meteor:\n"
        "    def __init__(self):\n"
        "        code = 'import sys; sys.exit(\"Could not reserve enough space\")'\n"
        "        self.meteor_p = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE)\n"
        "        self.lock = threading.Lock()\n"
        "    def compute_score(self, references, predictions):\n"
        "        self.lock.acquire()\n"
        "        return float('')\n"
        "    def __del__(self):\n"
        "        self.lock.acquire()\n"
    )
    metric = load_metric("meteor")
    with pytest.raises(RuntimeError, match="METEOR failed.*Java said: Could not reserve enough space"):
        metric.compute(predictions=["a"], references=[["a"]])


def test_meteor_scores_the_tokenised_captions(monkeypatch, load_metric, installed):
    monkeypatch.setattr(shutil, "which", lambda program: "/bin/java")
    (installed / "meteor" / "meteor.py").write_text(
        "class Meteor:\n"
        "    def compute_score(self, references, predictions):\n"
        "        assert references == {0: ['a man \\'s dog'], 1: ['two cats', 'cats']}, references\n"
        "        assert predictions == {0: ['the dog'], 1: ['']}, predictions\n"
        "        return 0.25, [0.5, 0.0]\n"
    )
    result = load_metric("meteor").compute(
        predictions=["The dog.", "..."], references=[["A man's dog"], ["Two cats!", "cats"]]
    )
    assert result == {"meteor": 0.25, "meteor_per_caption": [0.5, 0.0]}


def test_spice_results(monkeypatch, load_metric, installed):
    monkeypatch.setattr(shutil, "which", lambda program: "/bin/java")
    for jar in java_scorers._SPICE_JARS:
        (installed / "spice" / "lib" / jar).touch()
    (installed / "spice" / "spice.py").write_text(
        "nan = float('nan')\n"
        "class Spice:\n"
        "    def compute_score(self, references, predictions):\n"
        "        return 0.4, [{'All': {'f': 0.6}, 'Color': {'f': nan}}, {'All': {'f': 0.2}, 'Color': {'f': 0.5}}]\n"
    )
    result = load_metric("spice").compute(predictions=["a", "b"], references=[["a"], ["b"]])
    assert result == {"spice": 0.4, "spice_per_caption": [0.6, 0.2], "spice_by_category": {"Color": 0.5}}
