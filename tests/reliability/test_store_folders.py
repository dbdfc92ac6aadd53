"""Folders of stores: what is the user's stays, processes do not undo each other, what claims too much is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_evcap import CaptionDatastore, MemoryLayers, VisualNameMemory
from hf_evcap.cli.main import main
from hf_evcap.store_folder import delete_store
from hf_evcap.store_lock import locked_folder


STORES = [VisualNameMemory, CaptionDatastore]


def make(rows: int = 60, seed: int = 0, store_class: Any = VisualNameMemory, **options: Any) -> Any:
    keys = np.random.default_rng(seed).standard_normal((rows, 8))
    return store_class.from_rows([f"thing {row % 30}" for row in range(rows)], keys, source="shipped", **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


# What is the user's


@pytest.mark.parametrize("after", ["memory", "layers"])
@pytest.mark.parametrize("before", ["memory", "layers", "earlier version"])
def test_only_own_files_are_replaced(before: str, after: str, tmp_path: Path) -> None:
    users = {".git/HEAD": "ref", "notes.txt": "n", "data/mine.parquet": "m", "layers/mine.txt": "l", "x/y/z": "z"}
    stores = {"memory": make(), "layers": MemoryLayers({"one": make(20), "two": make(30)}), "earlier version": make()}
    folder = tmp_path / "store"
    stores[before].save_pretrained(folder)
    if before == "earlier version":
        manifest = json.loads((folder / "memory_config.json").read_text(encoding="utf-8"))
        kept = {name: value for name, value in manifest.items() if name not in ("files", "settings_sha256")}
        (folder / "memory_config.json").write_text(json.dumps(kept), encoding="utf-8")
    put(folder, users)
    new = make(40, 1) if after == "memory" else MemoryLayers({"one": make(50, 2), "three": make(10, 3)})
    for _ in range(3):  # names of files go to and fro
        new.save_pretrained(folder)
        for name, text in users.items():
            assert (folder / name).read_text(encoding="utf-8") == text
        loaded = VisualNameMemory.from_pretrained(folder)
        assert len(loaded) == len(new)
        own = set(files_of(folder)) - set(users)
        new.save_pretrained(tmp_path / "fresh", overwrite=True)
        plain = {name.replace("-2.", ".").replace("-2/", "/") for name in own}
        assert plain == {name.replace("-2.", ".").replace("-2/", "/") for name in files_of(tmp_path / "fresh")}
    delete_store(folder)
    assert {name: text.decode() for name, text in files_of(folder).items()} == users


@pytest.mark.parametrize("store_class", STORES)
def test_what_people_write_into_the_card_stays(store_class: Any, tmp_path: Path) -> None:
    store = make(store_class=store_class)
    store.save_pretrained(tmp_path / "store")
    card = tmp_path / "store" / "README.md"
    fresh = card.read_text(encoding="utf-8")
    store.save_pretrained(tmp_path / "store")
    assert card.read_text(encoding="utf-8") == fresh
    card.write_text(f"{fresh}\n## My notes\n\nMine.\n", encoding="utf-8")
    store.remove(["thing 1"]).save_pretrained(tmp_path / "store")
    text = card.read_text(encoding="utf-8")
    assert "## My notes\n\nMine." in text and "58 rows" in text and "60 rows" not in text
    assert "data_files: data/*.parquet" in text


def test_somebody_elses_index_is_not_replaced(tmp_path: Path) -> None:
    put(tmp_path / "theirs", {"index.faiss": "theirs", "README.md": "# Theirs\n"})
    with pytest.raises(FileExistsError, match="not of this package"):
        make().save_pretrained(tmp_path / "theirs")
    assert {name: text.decode() for name, text in files_of(tmp_path / "theirs").items()} == {
        "index.faiss": "theirs", "README.md": "# Theirs\n"
    }  # fmt: skip


def test_plain_datasets_reads_a_folder_that_was_saved_again(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "store")
    store = make(50, 1)
    store.save_pretrained(tmp_path / "store")
    assert [file.name for file in (tmp_path / "store" / "data").iterdir()] == ["train-00000-of-00001-2.parquet"]
    read = datasets.load_dataset(str(tmp_path / "store"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read["name"][:] == store.names
    store.save_pretrained(tmp_path / "store")
    assert [file.name for file in (tmp_path / "store" / "data").iterdir()] == ["train-00000-of-00001.parquet"]


@pytest.mark.parametrize("store_class", STORES)
def test_through_a_link_and_from_inside(store_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link, kind = (
        tmp_path / "real",
        tmp_path / "link",
        "memory" if store_class is VisualNameMemory else "datastore",
    )
    make(store_class=store_class).save_pretrained(real)
    put(real, {"notes.txt": "mine"})
    link.symlink_to(real)
    assert main([kind, "remove", str(link), "thing 1"]) == 0
    assert link.is_symlink() and len(store_class.from_pretrained(real)) == 58
    monkeypatch.chdir(real)
    assert main([kind, "remove", ".", "thing 2"]) == 0
    assert main([kind, "remove", "../link", "thing 3"]) == 0
    assert len(store_class.from_pretrained(real)) == 54 and (real / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    make(store_class=store_class).save_pretrained(tmp_path / "dangling")
    assert (tmp_path / "dangling").is_symlink() and len(store_class.from_pretrained(tmp_path / "later")) == 60


# Several editors

EDITS = {
    "memory": [
        ("remove", "{}", "thing 1"), ("remove", "{}", "thing 2", "--source", "shipped"),
        ("rename", "{}", "thing 3=thing three"), ("convert", "{}", "--dtype", "float16"),
        ("merge", "{}", "{}-other"), ("calibrate", "{}", "--off"),
    ],
    "datastore": [
        ("remove", "{}", "thing 1"), ("remove", "{}", "--source", "shipped", "--rows", "50-52"),
        ("merge", "{}", "{}-other"), ("convert", "{}", "--dtype", "float16"),
    ],
}  # fmt: skip
RUN_EACH = """
import sys, threading
from hf_evcap.cli.main import main
folder, words = sys.argv[1], sys.argv[2:]
print("ready", flush=True)
sys.stdin.readline()
sys.exit(main([word.format(folder) if "{}" in word else word for word in words]))
"""


@pytest.mark.parametrize("kind", EDITS)
def test_processes_that_edit_one_folder_lose_no_edit(kind: str, tmp_path: Path) -> None:
    """All verbs at the same moment: the result holds every edit."""
    store_class = VisualNameMemory if kind == "memory" else CaptionDatastore
    folder = tmp_path / "store"
    make(store_class=store_class).save_pretrained(folder)
    make(5, 7, store_class).save_pretrained(f"{folder}-other")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RUN_EACH, str(folder), kind, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for words in EDITS[kind]
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.communicate()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [(process.communicate(timeout=300), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0] * len(ended), ended
    store = store_class.from_pretrained(folder)
    assert store.dtype == "float16"
    assert store.texts.count("thing 1") <= 1 and len(store) in range(55, 64)  # those of `other` may have come after
    shipped_first = store.texts[:2]
    assert shipped_first[0] == "thing 0" and "thing 1" not in shipped_first
    if kind == "memory":
        assert store.names.count("thing three") >= 2


def test_a_waiting_editor_says_so(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path / "store")
    command = [sys.executable, "-m", "hf_evcap.cli.main", "memory", "remove", str(tmp_path / "store"), "thing 1"]
    with locked_folder(tmp_path / "store"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        line = process.stderr.readline()
        assert "Another process edits" in line and "waiting" in line
        assert len(VisualNameMemory.from_pretrained(tmp_path / "store")) == 60  # readers do not wait
    assert process.wait(120) == 0
    assert len(VisualNameMemory.from_pretrained(tmp_path / "store")) == 58


@pytest.mark.parametrize("store_class", STORES)
def test_a_folder_that_somebody_else_changed_is_not_overwritten(store_class: Any, tmp_path: Path) -> None:
    make(store_class=store_class).save_pretrained(tmp_path / "store")
    first, second = (store_class.from_pretrained(tmp_path / "store") for _ in range(2))
    first.remove(["thing 1"]).save_pretrained(tmp_path / "store")
    first.remove(["thing 2"]).save_pretrained(tmp_path / "store")  # its own save is no change by others
    for edited in (second.remove(["thing 3"]), second.copy(), second.subset(["thing 4"])):
        with pytest.raises(ValueError, match="Somebody else has changed the .* Load it again"):
            edited.save_pretrained(tmp_path / "store")
    assert len(store_class.from_pretrained(tmp_path / "store")) == 56
    second.save_pretrained(tmp_path / "elsewhere")
    second.save_pretrained(tmp_path / "store", overwrite=True)
    assert len(store_class.from_pretrained(tmp_path / "store")) == 58
    make(10, store_class=store_class).save_pretrained(tmp_path / "store")  # one that never came from there


def test_layers_that_somebody_else_changed_are_not_overwritten(tmp_path: Path) -> None:
    MemoryLayers({"one": make(20), "two": make(30)}).save_pretrained(tmp_path / "store")
    first, second, third = (VisualNameMemory.from_pretrained(tmp_path / "store") for _ in range(3))
    first["one"].remove(["thing 1"]).save_pretrained(tmp_path / "store" / "layers" / "one")  # one layer alone
    with pytest.raises(ValueError, match="Somebody else has changed"):
        second.save_pretrained(tmp_path / "store")
    first.save_pretrained(tmp_path / "store")
    with pytest.raises(ValueError, match="Somebody else has changed the layers"):
        third.save_pretrained(tmp_path / "store")
    loaded = VisualNameMemory.from_pretrained(tmp_path / "store")
    assert len(loaded["one"]) == 19
    third.save_pretrained(tmp_path / "store", overwrite=True)


def test_threads_that_save_one_store_to_one_folder(tmp_path: Path) -> None:
    store = make()
    failures: list[BaseException] = []

    def edit(thread: int) -> None:
        try:
            for number in range(5):
                store.add([f"thread {thread}"], np.ones((1, 8)) * (thread + number + 1))
                store.save_pretrained(tmp_path / "store")
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=edit, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert VisualNameMemory.from_pretrained(tmp_path / "store").fingerprint == store.fingerprint


def test_a_reader_during_saves_reads_a_state(tmp_path: Path) -> None:
    folder, done = tmp_path / "store", threading.Event()
    states = [make(40 + number, number, index_factory="IVF2,SQ8") for number in range(3)]
    states[0].save_pretrained(folder)
    prints = {state.fingerprint for state in states}

    def save() -> None:
        for number in range(30):
            states[number % 3].save_pretrained(folder, overwrite=True)
        done.set()

    thread = threading.Thread(target=save)
    thread.start()
    read = 0
    while not done.is_set():
        assert VisualNameMemory.from_pretrained(folder).fingerprint in prints
        read += 1
    thread.join()
    assert read > 2


# What a folder says


def damage(folder: Path, change: Any) -> None:
    file = folder / "memory_config.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["retrieval"].pop("min_similarity"),
        lambda manifest: manifest.update(retrievam=manifest.pop("retrieval")),
        lambda manifest: manifest["retrieval"].update(min_similarity=0.26),
        lambda manifest: manifest.update(encoder_fingerprint=None),
        lambda manifest: manifest.update(encoder_fingerprint="f" * 64),
        lambda manifest: manifest.pop("encoder_fingerprint"),
        lambda manifest: manifest.update(preprocessing_hash=None),
        lambda manifest: manifest.update(query_tokens_hash="other"),
        lambda manifest: manifest.update(licenses={}),
        lambda manifest: manifest.update(index_factory="SQ8"),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.pop("files"),
        lambda manifest: manifest.pop("settings_sha256"),
    ],
)
def test_settings_that_were_not_saved_are_refused(change: Any, tmp_path: Path) -> None:
    make(
        retrieval={"min_similarity": 0.25}, encoder_fingerprint="e" * 64, preprocessing_hash="p", licenses={"a": "b"}
    ).save_pretrained(tmp_path / "store")
    damage(tmp_path / "store", change)
    with pytest.raises(ValueError, match="are not those that were saved"):
        VisualNameMemory.from_pretrained(tmp_path / "store")


def test_no_bit_of_the_settings_can_flip(tmp_path: Path) -> None:
    """Whatever a flipped bit gives: an error, or the very settings that were saved."""
    store = make(
        rows=12, retrieval={"min_similarity": 0.25}, encoder_fingerprint="e" * 64, preprocessing_hash="p" * 64
    )
    store.save_pretrained(tmp_path / "store")
    file = tmp_path / "store" / "memory_config.json"
    whole, rng, errors = file.read_bytes(), np.random.default_rng(0), 0
    for place, bit in zip(rng.integers(0, len(whole), 150), rng.integers(0, 8, 150), strict=True):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        file.write_bytes(flipped)
        try:
            loaded = VisualNameMemory.from_pretrained(tmp_path / "store")
        except (ValueError, FileNotFoundError):
            errors += 1
        else:
            assert loaded.settings == store.settings and loaded.fingerprint == store.fingerprint
    assert errors > 100


def test_weights_of_layers_are_hashed(tmp_path: Path) -> None:
    MemoryLayers({"one": make(20), "two": make(30)}, weights={"two": 1.5}).save_pretrained(tmp_path / "store")
    damage(tmp_path / "store", lambda manifest: manifest["layers"][1].update(weight=1.6))
    with pytest.raises(ValueError, match="are not those that were saved"):
        VisualNameMemory.from_pretrained(tmp_path / "store")
    damage(tmp_path / "store", lambda manifest: manifest.pop("settings_sha256"))
    with pytest.raises(ValueError, match="are not those that were saved"):
        VisualNameMemory.from_pretrained(tmp_path / "store")


@pytest.mark.parametrize("name", ["../outside.parquet", "/etc/passwd", "data/../../x.parquet", "data/a/b.parquet", 3])
def test_a_manifest_names_files_of_its_folder_only(name: Any, tmp_path: Path) -> None:
    from hf_evcap.store_manifest import manifest_text

    make().save_pretrained(tmp_path / "store")
    (tmp_path / "outside.parquet").write_bytes(b"mine")
    file = tmp_path / "store" / "memory_config.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(manifest_text({**manifest, "files": [name]}), encoding="utf-8")
    with pytest.raises(ValueError, match="must list files such as"):
        VisualNameMemory.from_pretrained(tmp_path / "store")
    make(5).save_pretrained(tmp_path / "store")
    assert (tmp_path / "outside.parquet").read_bytes() == b"mine"


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("dim", [2**31 - 1, 10**6])
def test_keys_that_claim_too_much_take_no_room(rows: int, dim: int, tmp_path: Path) -> None:
    """An empty parquet file may name any dimension."""
    make(4).save_pretrained(tmp_path / "store")
    [file] = (tmp_path / "store" / "data").iterdir()
    kind = pa.list_(pa.float32(), dim if rows == 0 else 8)
    keys = pa.array([[0.5] * 8] * rows, kind)
    table = pa.table({"name": pa.array(["x"] * rows, pa.string()), "key": keys, "source": pa.array(["s"] * rows)})
    pq.write_table(table, file)
    before = peak_memory()
    message = "must lie between 1 and" if rows == 0 else "are not those"
    with pytest.raises(ValueError, match=message):
        VisualNameMemory.from_pretrained(tmp_path / "store")
    assert peak_memory() - before < 200 << 20


def test_rows_that_fold_too_well_are_refused(tmp_path: Path) -> None:
    """A million times the same key, in a file of kilobytes."""
    make(4).save_pretrained(tmp_path / "store")
    [file] = (tmp_path / "store" / "data").iterdir()
    values = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(2**20, np.float32)), 64)
    with pq.ParquetWriter(file, pa.schema({"name": pa.string(), "key": values.type}), compression="zstd") as writer:
        for _ in range(80):
            writer.write_table(pa.table({"name": pa.array(["x"] * len(values)), "key": values}))
    assert file.stat().st_size < 500_000
    with pytest.raises(ValueError, match="says that it holds 1,310,720 keys of 64 numbers: it cannot"):
        VisualNameMemory.from_pretrained(tmp_path / "store")


def peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_what_a_dead_run_left_is_cleared(tmp_path: Path) -> None:
    """Hidden folders of runs that were killed go at the next save, others stay."""
    make().save_pretrained(tmp_path / "store")
    put(tmp_path / "store", {".hf_evcap-save-abc/data/x.parquet": "half", ".hf_evcap-notes": "mine"})
    make(20).save_pretrained(tmp_path / "store")
    assert not (tmp_path / "store" / ".hf_evcap-save-abc").exists()
    assert (tmp_path / "store" / ".hf_evcap-notes").exists()
    assert not [name for name in os.listdir(tmp_path / "store") if name.startswith(".hf_evcap-save")]
