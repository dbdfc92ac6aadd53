"""The datastore of SmallCap's release: a flat index and a JSON list, and encoders for its keys."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from hf_evcap import CaptionDatastore
from hf_evcap.cli.main import main
from hf_evcap.conversion import load_smallcap_datastore
from hf_evcap.datastore_building import load_retrieval_encoder


CAPTIONS = ["A man rides a wave.", "Two dogs  on a bed", "A man rides a wave.", "a bus", "un café à Paris"]


@pytest.fixture
def files(tmp_path: Path) -> SimpleNamespace:
    """Files as the reference writes them: normalised 1,024-d keys in an IndexFlatIP, captions beside it."""
    keys = np.random.default_rng(0).standard_normal((len(CAPTIONS), 1024)).astype(np.float32)
    faiss.normalize_L2(keys)
    index = faiss.IndexFlatIP(1024)
    index.add(keys)
    faiss.write_index(index, str(tmp_path / "coco_index"))
    (tmp_path / "coco_index_captions.json").write_text(json.dumps(CAPTIONS), encoding="utf-8")
    return SimpleNamespace(
        index=tmp_path / "coco_index", captions=tmp_path / "coco_index_captions.json", keys=keys, folder=tmp_path
    )


def test_captions_and_keys_are_taken_over(files: SimpleNamespace) -> None:
    made = load_smallcap_datastore(files.index, files.captions, licenses={"SmallCap reference": "CC BY 4.0"})
    assert made.captions == ["A man rides a wave.", "Two dogs on a bed", *CAPTIONS[2:]]  # white space is folded
    np.testing.assert_array_equal(made.keys, files.keys)
    assert made.image_ids == [None] * 5 and made.encoder_fingerprint is None
    assert made.retrieval == {"encoder": "open_clip:RN50x64/openai"}
    reference = faiss.read_index(str(files.index))
    queries = np.random.default_rng(1).standard_normal((3, 1024)).astype(np.float32)
    faiss.normalize_L2(queries)
    scores, rows = reference.search(queries, 4)
    ours = made.search(queries, 4)
    assert ours[1].tolist() == rows.tolist()
    np.testing.assert_allclose(ours[0], scores, atol=1e-6)


def test_command_line_reads_it(files: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    out = files.folder / "datastore"
    words = ["datastore", "convert", str(files.index), "--captions", str(files.captions)]
    assert main(words) == 1
    assert "Say with --out" in capsys.readouterr().err
    assert main([*words, "--out", str(out), "--dtype", "float16"]) == 0
    loaded = CaptionDatastore.from_pretrained(out)
    assert loaded.dtype == "float16" and len(loaded) == 5
    assert main(["datastore", "verify", str(out)]) == 0
    again = files.folder / "again"
    assert main(["convert", "datastore", str(files.index), str(files.captions), "--out", str(again)]) == 0
    assert CaptionDatastore.from_pretrained(again).captions == loaded.captions


def test_what_is_not_such_a_datastore_is_refused(files: SimpleNamespace) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_smallcap_datastore(files.folder / "nothing", files.captions)
    with pytest.raises(ValueError, match="is not a FAISS index"):
        load_smallcap_datastore(files.captions, files.captions)
    files.captions.write_text(json.dumps(CAPTIONS[:4]), encoding="utf-8")
    with pytest.raises(ValueError, match="holds 5 vectors and .* 4 captions"):
        load_smallcap_datastore(files.index, files.captions)
    files.captions.write_text(json.dumps({"a": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match="must hold a list of captions"):
        load_smallcap_datastore(files.index, files.captions)
    files.captions.write_text("[", encoding="utf-8")
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_smallcap_datastore(files.index, files.captions)
    files.captions.write_text(json.dumps(CAPTIONS), encoding="utf-8")
    graph = faiss.index_factory(1024, "SQ8")
    graph.train(files.keys)
    graph.add(files.keys)
    faiss.write_index(graph, str(files.index))
    with pytest.raises(ValueError, match="IndexScalarQuantizer, which does not keep vectors"):
        load_smallcap_datastore(files.index, files.captions)


class FakeOpenClip(torch.nn.Module):
    """Stands for open_clip's RN50x64, which needs torchvision and a download."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.visual = torch.nn.Linear(3, 1024)
        self.text = torch.nn.EmbeddingBag(256, 1024)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.text(tokens)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels.mean(dim=(2, 3)))


def fake_open_clip(loaded: list[Any]) -> SimpleNamespace:
    def create(model_name: str, pretrained: str | None = None, device: Any = "cpu") -> tuple[Any, Any]:
        if model_name != "RN50x64":
            raise RuntimeError(f"Model config for {model_name} not found.")
        loaded.append((model_name, pretrained))
        transform = lambda photo: torch.from_numpy(np.asarray(photo.resize((8, 8))).copy()).permute(2, 0, 1) / 255  # noqa: E731
        return FakeOpenClip(), transform

    def get_tokenizer(model_name: str) -> Any:
        return lambda texts: torch.tensor([[ord(letter) % 256 for letter in text.ljust(20)[:20]] for text in texts])

    return SimpleNamespace(create_model_from_pretrained=create, get_tokenizer=get_tokenizer)


def test_open_clip_makes_queries_and_keys(
    files: SimpleNamespace, photo_paths: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded: list[Any] = []
    monkeypatch.setitem(sys.modules, "open_clip", fake_open_clip(loaded))
    encoder = load_retrieval_encoder("open_clip:RN50x64/openai")
    assert loaded == [("RN50x64", "openai")] and encoder.key_size == 1024
    assert encoder.encode_photos(photo_paths[:2]).shape == (2, 1024)
    assert encoder.fingerprint == load_retrieval_encoder("open_clip:RN50x64/openai").fingerprint
    with pytest.raises(ValueError, match="open_clip cannot load 'RN5/x'"):
        load_retrieval_encoder("open_clip:RN5/x")
    made = load_smallcap_datastore(files.index, files.captions)
    made.add_captions(encoder, ["a boat"])
    assert made.captions[-1] == "a boat"
    made.save_pretrained(files.folder / "store")
    capsys.readouterr()
    words = ["datastore", "search", str(files.folder / "store"), "--photo", photo_paths[0], "-k", "2"]
    assert main(words) == 0  # the encoder is the one that the datastore names
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_without_open_clip_the_message_tells_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_evcap\[open_clip\]'.*hf-evcap datastore build DATASTORE"):
        load_retrieval_encoder("open_clip:RN50x64/openai")
