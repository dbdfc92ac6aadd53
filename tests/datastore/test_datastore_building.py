"""Building datastores: every source, the limit of tokens, interruption, and the command line."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import tiny_smallcap
from tiny_clip import CAPTIONS, write_clip

from hf_evcap import CaptionDatastore, ClipEncoder
from hf_evcap.cli import datastore as datastore_verb
from hf_evcap.cli.main import main
from hf_evcap.datastore_building import CaptionList, build_datastore, captions_within, open_captions


TEXTS = [caption for caption, _ in CAPTIONS]
COCO = {
    "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 9, "file_name": "9.jpg"}],
    "annotations": [
        {"image_id": 7, "caption": TEXTS[0]},
        {"image_id": 9, "caption": TEXTS[2]},
        {"image_id": 7, "caption": TEXTS[1]},
    ],
}
ACTIONS = sorted(
    action
    for group in datastore_verb.make_parser()._subparsers._group_actions  # type: ignore[union-attr]
    for action in group.choices  # type: ignore[union-attr]
)


def run(*words: object) -> int:
    return main(["datastore", *map(str, words)])


def load(folder: Path) -> CaptionDatastore:
    return CaptionDatastore.from_pretrained(folder)


def test_sources(tmp_path: Path, datastore: CaptionDatastore) -> None:
    text = tmp_path / "captions.txt"
    text.write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    with gzip.open(tmp_path / "captions.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(TEXTS))
    for name in ("captions.txt", "captions.txt.gz"):
        found = open_captions(tmp_path / name)
        assert (found.captions, found.image_ids, found.source) == (TEXTS, [None] * 6, name)
    (tmp_path / "list.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    assert open_captions(tmp_path / "list.json", source_name="mine").source == "mine"
    (tmp_path / "coco.json").write_text(json.dumps(COCO), encoding="utf-8")
    found = open_captions(tmp_path / "coco.json")
    assert (found.captions, found.image_ids) == ([TEXTS[0], TEXTS[1], TEXTS[2]], ["7", "7", "9"])
    karpathy = [
        {"filename": "7.jpg", "cocoid": 7, "split": split, "sentences": [{"raw": TEXTS[place]}]}
        for place, split in enumerate(("train", "val", "restval"))
    ]
    (tmp_path / "karpathy.json").write_text(json.dumps({"images": karpathy}), encoding="utf-8")
    assert open_captions(tmp_path / "karpathy.json", split="train+restval").captions == [TEXTS[0], TEXTS[2]]
    lines = [{"caption": caption, "image_id": image_id} for caption, image_id in CAPTIONS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    rows = open_captions(tmp_path / "rows.jsonl")
    assert (rows.captions, rows.image_ids) == (TEXTS, [image_id for _, image_id in CAPTIONS])
    table = {"pic": [b"not opened"] * 2, "said": [TEXTS[:2], TEXTS[2:3]], "photo": [4, 5]}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "photos.parquet")
    found = open_captions(tmp_path / "photos.parquet", caption_column="said", id_column="photo")
    assert (found.captions, found.image_ids) == (TEXTS[:3], ["4", "4", "5"])
    datastore.save_pretrained(tmp_path / "store")
    again = open_captions(tmp_path / "store")
    assert (again.captions, again.image_ids) == (datastore.captions, datastore.image_ids)


def test_what_holds_no_captions_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file or folder nowhere.json"):
        open_captions("nowhere.json")
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no captions"):
        open_captions(tmp_path / "empty.txt")
    (tmp_path / "rows.jsonl").write_text('{"image": "1.jpg", "words": "a"}', encoding="utf-8")
    with pytest.raises(ValueError, match="has no captions; its columns are image, words"):
        open_captions(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"image_id": 1, "caption": " "}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: captions\[0\] is empty"):
        open_captions(tmp_path / "rows.jsonl")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        open_captions(tmp_path / "binary.txt")


def test_each_caption_is_measured_by_itself(clip_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(clip_dir)  # a token a letter
    captions = CaptionList(["aa", "a" * 25, "a" * 26, "b" * 40, "a b c"], ["1", "2", "3", "4", "5"], "tests")
    kept = captions_within(captions, tokenizer, 25)
    assert (kept.captions, kept.image_ids) == (["aa", "a" * 25, "a b c"], ["1", "2", "5"])
    with pytest.raises(ValueError, match="No caption has at most 1 tokens"):
        captions_within(captions, tokenizer, 1)


class Interrupted(ClipEncoder):
    """Fails after some batches."""

    batches = 3

    def encode_captions(self, captions: Any) -> np.ndarray:
        self.batches -= 1
        if self.batches < 0:
            raise KeyboardInterrupt
        return super().encode_captions(captions)


def test_an_interrupted_build_goes_on_to_the_same_datastore(encoder: ClipEncoder, tmp_path: Path) -> None:
    captions = CaptionList([f"{text} {word}" for word in "abcde" for text in TEXTS], [None] * 30, "tests")
    sizes = {"batch_size": 4, "shard_size": 8}
    whole = build_datastore(encoder, captions, tmp_path / "whole", **sizes)
    assert whole is not None and (whole.rows, whole.shards, whole.resumed) == (30, 4, 0)
    with pytest.raises(KeyboardInterrupt):
        build_datastore(Interrupted(encoder.model, encoder.tokenizer), captions, tmp_path / "parts", **sizes)
    assert not (tmp_path / "parts").exists()
    other = CaptionList(captions.captions[::-1], captions.image_ids, "tests")
    with pytest.raises(ValueError, match="holds an unfinished build that differs in listing"):
        build_datastore(encoder, other, tmp_path / "parts", **sizes)
    report = build_datastore(encoder, captions, tmp_path / "parts", **sizes)
    assert report is not None and report.resumed == 1
    assert load(tmp_path / "parts").fingerprint == load(tmp_path / "whole").fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]
    direct = CaptionDatastore.from_captions(encoder, captions.captions, source="tests", batch_size=4)
    assert load(tmp_path / "whole").captions == direct.captions
    np.testing.assert_allclose(load(tmp_path / "whole").keys, direct.keys, atol=1e-5)


# The command line


def test_the_actions() -> None:
    assert ACTIONS == [
        "add", "build", "convert", "diff", "info", "merge", "pull", "push", "remove", "search", "subset", "verify",
    ]  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
def test_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(action, "--help")
    assert stop.value.code == 0
    assert f"hf-evcap datastore {action}" in capsys.readouterr().out


def test_build_edit_and_search(
    clip_dir: Path, tmp_path: Path, photo_paths: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "coco.json").write_text(json.dumps(COCO), encoding="utf-8")
    store = tmp_path / "store"
    options = ["--clip", clip_dir, "--tokenizer", clip_dir, "--license", "CC BY 4.0", "--out", store]
    assert run("build", tmp_path / "coco.json", "--max-tokens", 19, *options) == 0
    printed = capsys.readouterr().out
    assert "left out 1 of 3 captions, of more than 19 tokens" in printed and "2 rows from 2 captions" in printed
    built = load(store)
    assert built.captions == [TEXTS[0], TEXTS[1]] and built.licenses == {"coco.json": "CC BY 4.0"}
    assert built.retrieval == {} and str(tmp_path) not in (store / "memory_config.json").read_text()
    assert run("build", store, "--max-tokens", 0, "--clip", clip_dir, "--out", tmp_path / "again") == 0
    assert load(tmp_path / "again").image_ids == ["7", "7"]
    assert run("add", store, "a bus", "--clip", clip_dir, "--image-id", "11") == 0
    assert run("add", store, "--file", tmp_path / "coco.json", "--clip", clip_dir, "--out", tmp_path / "more") == 0
    assert (len(load(store)), len(load(tmp_path / "more"))) == (3, 6)
    assert load(store).image_ids[-1] == "11" and load(store).columns["source"].to_pylist()[-1] == "added"
    capsys.readouterr()
    assert run("search", store, "--text", "a bus", "--clip", clip_dir, "-k", 1) == 0
    assert capsys.readouterr().out == "1.0000  row 2        a bus\n"
    assert run("search", store, "--photo", photo_paths[0], "--clip", clip_dir, "-k", 2) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert run("search", store, "--text", "a bus") == 1
    assert "Give --clip, the CLIP model that built the datastore" in capsys.readouterr().err
    assert run("add", store) == 1 and "Give captions, or --file" in capsys.readouterr().err


def test_subset_merge_diff_info(datastore: CaptionDatastore, tmp_path: Path, capsys: Any) -> None:
    store, buses, rest = tmp_path / "store", tmp_path / "buses", tmp_path / "rest"
    datastore.save_pretrained(store)
    assert run("subset", store, "--match", "bus", "--out", buses) == 0
    assert run("remove", store, "a bus in the rain", "a red bus", "--out", rest) == 0
    assert run("merge", rest, buses) == 0
    capsys.readouterr()
    assert run("diff", store, rest) == 0
    assert capsys.readouterr().out == "0 rows added, 0 removed\n"
    assert run("diff", store, buses, "--json") == 0
    assert json.loads(capsys.readouterr().out)["removed_rows"] == 4
    assert run("info", store, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["captions"], facts["images"]) == (6, 6, 3)
    assert run("info", store) == 0 and datastore.fingerprint in capsys.readouterr().out
    assert run("verify", store) == 0
    manifest = json.loads((store / "memory_config.json").read_text())
    (store / "memory_config.json").write_text(json.dumps({**manifest, "captions": 9}), encoding="utf-8")
    assert run("verify", store) == 1
    assert "The manifest says 9 captions; the rows have 6." in capsys.readouterr().out
    assert run("convert", store, "--dtype", "float16", "--index", "HNSW8", "--out", tmp_path / "small") == 0
    assert (load(tmp_path / "small").dtype, load(tmp_path / "small").index_factory) == ("float16", "HNSW8")
    assert run("pull", store, "--out", tmp_path / "pulled") == 0
    capsys.readouterr()
    assert run("push", store, "me/captions", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "memory_config.json" in printed and "the dataset repo me/captions" in printed
    shutil.copytree(store, tmp_path / "memory")
    assert main(["memory", "info", str(tmp_path / "memory")]) == 1
    assert "describes a 'caption-datastore', not a 'visual-name-memory'" in capsys.readouterr().err


def test_keys_of_photos(tiny_dir: Path, tmp_path: Path, photo_paths: list[str], capsys: Any) -> None:
    rows = [
        {"image": photo_paths[0], "image_id": "a", "captions": ["an astronaut", "a woman in a suit"]},
        {"image": photo_paths[1], "image_id": "b", "captions": ["a cat " + "very " * 30 + "old", "a cat"]},
    ]
    file = tmp_path / "photos.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert run("build", file, "--model", tiny_dir, "--out", tmp_path / "store", "--license", "CC0") == 0
    assert "3 rows from 2 photos" in capsys.readouterr().out
    made = load(tmp_path / "store")
    assert made.captions == ["an astronaut", "a woman in a suit", "a cat"] and made.image_ids == ["a", "a", "b"]
    assert (made.keys[0] == made.keys[1]).all() and made.licenses == {"photos.jsonl": "CC0"}
    assert made.encoder_fingerprint is not None
    assert run("build", file, "--out", tmp_path / "x") == 1
    assert "Give either --clip, for keys of the captions, or --model" in capsys.readouterr().err


def test_a_model_without_keys_of_photos(tmp_path: Path, photo_paths: list[str], capsys: Any) -> None:
    model = tiny_smallcap.make_model(datastore=False, retrieval_space="external")
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "photos.jsonl"
    file.write_text(json.dumps({"image": photo_paths[0], "image_id": "a", "captions": ["a cat"]}), encoding="utf-8")
    assert run("build", file, "--model", tmp_path / "model", "--out", tmp_path / "store") == 1
    assert "is a SmallCapForConditionalGeneration that makes no keys of photos" in capsys.readouterr().err


def test_another_clip_is_told(clip_dir: Path, datastore: CaptionDatastore, tmp_path: Path, capsys: Any) -> None:
    datastore.save_pretrained(tmp_path / "store")
    other = write_clip(tmp_path / "wide", projection_dim=8)
    assert run("add", tmp_path / "store", "a cow", "--clip", other) == 1
    assert "Use the encoder that built it" in capsys.readouterr().err
    words = ["build", tmp_path / "store", "--max-tokens", 0, "--clip", tmp_path / "store", "--out", tmp_path / "x"]
    assert run(*words) == 1 and not (tmp_path / "x").exists()
