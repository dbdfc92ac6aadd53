"""What a memory folder survives: round trips, damage, tampering, full disks."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_evcap import VisualNameMemory, store_files


DATA = "data/train-00000-of-00001.parquet"
UNUSUAL = [
    "고양이",
    "Ñandú",
    "قطة",
    "ख़रगोश",
    "zero\u200dwidth",
    "🦊 emoji",
    "a|b",
    "x" * 1000,
    "[SEP]",
    "'; DROP TABLE",
]


def make_memory(rows: int = 40, dim: int = 8, **options: object) -> VisualNameMemory:
    keys = np.random.default_rng(0).standard_normal((rows, dim))
    return VisualNameMemory.from_rows([f"thing {row % 9}" for row in range(rows)], keys, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    memory = make_memory(
        encoder_fingerprint="e" * 64,
        query_tokens_hash="q" * 64,
        preprocessing_hash="p" * 64,
        retrieval={"min_similarity": 0.25},
        licenses={"lvis": "CC BY 4.0"},
        index_factory="IVF4,SQ8",
        source="lvis",
        kind=["object", "scene"] * 20,
    )
    memory.save_pretrained(tmp_path / "memory")
    return tmp_path / "memory"


def rewrite(folder: Path, **columns: object) -> None:
    """Changes columns of the parquet file and nothing else."""
    table = pq.read_table(folder / DATA)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, folder / DATA)


def test_round_trip(folder: Path) -> None:
    loaded = VisualNameMemory.from_pretrained(folder)
    original = make_memory()
    assert loaded.names == original.names
    np.testing.assert_array_equal(loaded.keys, original.keys)
    assert loaded.fingerprint == original.fingerprint
    assert loaded.settings == {
        "encoder_fingerprint": "e" * 64,
        "query_tokens_hash": "q" * 64,
        "preprocessing_hash": "p" * 64,
        "retrieval": {"min_similarity": 0.25},
        "licenses": {"lvis": "CC BY 4.0"},
        "index_factory": "IVF4,SQ8",
    }
    assert loaded.columns["kind"].to_pylist() == ["object", "scene"] * 20
    manifest = json.loads((folder / "memory_config.json").read_text(encoding="utf-8"))
    assert (manifest["rows"], manifest["names"], manifest["dim"]) == (40, 9, 8)
    loaded.save_pretrained(folder.parent / "again")
    for file in ("memory_config.json", "README.md", DATA, "index.faiss"):
        assert (folder / file).read_bytes() == (folder.parent / "again" / file).read_bytes(), file


def test_plain_datasets_reads_it(folder: Path) -> None:
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent))
    memory = VisualNameMemory.from_pretrained(folder)
    assert loaded["name"][:] == memory.names
    np.testing.assert_array_equal(np.array(loaded["key"][:], np.float32), memory.keys)
    loaded.load_faiss_index("key", str(folder / "index.faiss"))
    key = memory.keys[5] / np.linalg.norm(memory.keys[5])
    scores, found = loaded.get_nearest_examples("key", key, 1)
    assert found["name"] == [memory.names[5]]
    assert scores[0] == pytest.approx(1, abs=0.02)  # of 8-bit codes


def test_pictures_are_pictures_to_datasets(tmp_path: Path, photo_paths: list[str]) -> None:
    pictures = [{"bytes": Path(path).read_bytes(), "path": None} for path in photo_paths]
    make_memory(4, thumbnail=pictures).save_pretrained(tmp_path / "memory")
    loaded = datasets.load_dataset(str(tmp_path / "memory"), split="train", cache_dir=str(tmp_path))
    assert isinstance(loaded.features["thumbnail"], datasets.Image)
    assert loaded[1]["thumbnail"].size == Image.open(photo_paths[1]).size
    again = VisualNameMemory.from_pretrained(tmp_path / "memory")
    assert again.columns["thumbnail"].to_pylist() == pictures


def test_half_precision_keys(tmp_path: Path) -> None:
    memory = make_memory(dtype="float16", index_factory="Flat")
    memory.save_pretrained(tmp_path / "memory")
    loaded = VisualNameMemory.from_pretrained(tmp_path / "memory")
    assert loaded.dtype == "float16" and loaded.keys.dtype == np.float16
    assert (
        loaded.fingerprint == memory.fingerprint == memory.astype("float32").fingerprint != make_memory().fingerprint
    )
    assert loaded.search(loaded.keys[:5], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert datasets.load_dataset(str(tmp_path / "memory"), split="train", cache_dir=str(tmp_path)).num_rows == 40
    with pytest.raises(ValueError, match="row 0 holds NaN or infinity, or a number too large for float16"):
        make_memory().astype("float16").add(["big"], np.full((1, 8), 1e5))


def test_many_files_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_files, "FILE_BYTES", 1000 * 8 * 4)
    monkeypatch.setattr(store_files, "BLOCK_ROWS", 300)
    memory = make_memory(3500)
    memory.remove(["thing 3"])
    memory.save_pretrained(tmp_path / "memory")
    files = sorted(path.name for path in (tmp_path / "memory" / "data").iterdir())
    assert files == [f"train-{number:05d}-of-00004.parquet" for number in range(4)]
    loaded = VisualNameMemory.from_pretrained(tmp_path / "memory")
    assert loaded.names == memory.names
    np.testing.assert_array_equal(loaded.keys, memory.keys)


def test_an_empty_memory_is_kept(tmp_path: Path) -> None:
    VisualNameMemory.empty(16).save_pretrained(tmp_path / "memory")
    loaded = VisualNameMemory.from_pretrained(tmp_path / "memory")
    assert (len(loaded), loaded.dim) == (0, 16)
    loaded.add(["owl"], np.ones((1, 16)))
    assert loaded.search(np.ones((1, 16)), 3)[1].tolist() == [[0]]


@pytest.mark.parametrize(
    "change",
    [
        lambda table: {"name": ["impostor", *table["name"].to_pylist()[1:]]},
        lambda table: {"key": [[0.5] * 8, *table["key"].to_pylist()[1:]]},
        lambda table: {"name": table["name"].to_pylist()[::-1]},
        lambda table: {"kind": ["scene"] * len(table)},
        lambda table: {"source": [None, *table["source"].to_pylist()[1:]]},
    ],
    ids=["name", "key", "order", "kind", "source"],
)
def test_tampered_rows_are_refused(folder: Path, change: object) -> None:
    rewrite(folder, **change(pq.read_table(folder / DATA)))  # type: ignore[operator]
    with pytest.raises(ValueError, match="are not those that memory_config.json was written for"):
        VisualNameMemory.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("name", None, "must hold a string in every row"),
        ("key", None, "missing numbers|cannot be read"),  # older pyarrow does not read them
        ("key", [0.0] * 8, "must not be zero vectors.*row 0"),
        ("key", [float("nan")] * 8, "must be finite; row 0"),
        ("name", "x" * 100_000, "at most 1,000 characters; row 0 .* has 100,000"),
        ("name", " \t", "must not be empty; row 0"),
    ],
)
def test_rows_that_cannot_be_are_refused(folder: Path, name: str, value: object, message: str) -> None:
    rewrite(folder, **{name: [value, *pq.read_table(folder / DATA)[name].to_pylist()[1:]]})
    with pytest.raises(ValueError, match=message):
        VisualNameMemory.from_pretrained(folder)


def test_damaged_rows_are_refused(folder: Path) -> None:
    whole = (folder / DATA).read_bytes()
    bomb = pickle.dumps(Bomb(str(folder / "exploded")))
    for damaged in (whole[:-20], b"", bomb, whole[:400] + b"\0" * 60 + whole[460:]):
        (folder / DATA).write_bytes(damaged)
        with pytest.raises(
            ValueError, match="cannot be read|not those|missing|zero|finite|Unicode|column|largest number"
        ):
            VisualNameMemory.from_pretrained(folder)
    assert not (folder / "exploded").exists()


class Bomb:
    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.file,)


def test_nothing_is_unpickled(folder: Path) -> None:
    bomb = pickle.dumps(Bomb(str(folder / "exploded")))
    (folder / "data" / "train-00001-of-00002.pkl").write_bytes(bomb)
    (folder / "index.faiss").write_bytes(bomb)
    assert len(VisualNameMemory.from_pretrained(folder)) == 40
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "other rows", "other dimension", "fewer rows", "garbage"])
def test_a_useless_index_is_rebuilt(folder: Path, damage: str) -> None:
    index = folder / "index.faiss"
    whole = index.read_bytes()
    if damage == "missing":
        index.unlink()
    elif damage in ("truncated", "garbage"):
        index.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else os.urandom(500))
    else:
        rows, dim = {"other rows": (40, 8), "other dimension": (40, 4), "fewer rows": (30, 8)}[damage]
        other = VisualNameMemory.from_rows(
            ["x"] * rows, np.random.default_rng(7).standard_normal((rows, dim)), index_factory="IVF4,SQ8"
        )
        faiss.write_index(other.index, str(index))
    memory = VisualNameMemory.from_pretrained(folder)
    assert memory.key_rows.buffer.index is None  # not taken over
    assert memory.search(memory.keys[:6], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_memory_mapped_index(folder: Path) -> None:
    memory = VisualNameMemory.from_pretrained(folder, memory_map=True)
    assert memory.key_rows.buffer.index.file == folder / "index.faiss"
    assert memory.search(memory.keys[:6], 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    memory.add(["new"], -memory.keys[:1])
    assert memory.search(-memory.keys[:1], 1)[1].tolist() == [[40]]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, FileNotFoundError, "memory_config.json is missing"),
        ("{", ValueError, "not valid JSON"),
        ("[]", ValueError, "must hold a JSON object"),
        ('{"format": "caption-datastore"}', ValueError, "'caption-datastore', not a 'visual-name-memory'"),
        ('{"format": "visual-name-memory", "format_version": 99}', ValueError, "pip install -U hf_evcap"),
    ],
)
def test_broken_manifests(folder: Path, text: str | None, error: type, message: str) -> None:
    file = folder / "memory_config.json"
    if text is None:
        file.unlink()
    else:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        VisualNameMemory.from_pretrained(folder)


def test_places_without_a_memory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repo id"):
        VisualNameMemory.from_pretrained(tmp_path / "nowhere")
    shutil.copytree(Path(__file__).parent, tmp_path / "sources")
    with pytest.raises(FileNotFoundError, match="holds no visual name memory"):
        VisualNameMemory.from_pretrained(tmp_path / "sources")


def test_unusual_names(tmp_path: Path) -> None:
    keys = np.random.default_rng(1).standard_normal((len(UNUSUAL), 8))
    memory = VisualNameMemory.from_rows(UNUSUAL, keys)
    memory.save_pretrained(tmp_path / "memory")
    assert VisualNameMemory.from_pretrained(tmp_path / "memory").names == UNUSUAL
    with pytest.raises(ValueError, match="at most 1,000 characters; row 1 has 100,000"):
        memory.add(["fine", "x" * 100_000], keys[:2])
    with pytest.raises(ValueError, match="valid Unicode; row 0"):
        memory.add(["\ud800"], keys[:1])
    with pytest.raises(TypeError, match="must be a string; row 0 is int"):
        memory.add([3], keys[:1])
    assert memory.names == UNUSUAL


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (np.full((1, 8), np.nan), "finite; row 0"),
        (np.full((1, 8), np.inf), "finite; row 0"),
        (np.zeros((1, 8)), "zero vectors.*row 0"),
        (np.full((1, 8), 1e30), "between 1e-15 and 1e"),
        (np.full((1, 8), 1e-30), "between 1e-15 and 1e"),
        (np.ones((1, 9)), "dimension 9, the memory's have 8"),
        (np.ones(8), r"shape \(1, dim\)"),
        (np.ones((2, 8)), r"shape \(1, dim\)"),
        ([["a"] * 8], "must be numbers"),
    ],
)
def test_hostile_keys_change_nothing(keys: object, message: str) -> None:
    memory = make_memory()
    before = memory.fingerprint
    with pytest.raises(ValueError, match=message):
        memory.add(["owl"], keys)
    assert memory.fingerprint == before


def test_duplicate_rows_are_rows() -> None:
    memory = VisualNameMemory.from_rows(["owl", "owl", "fox"], np.ones((3, 8)))
    assert (len(memory), memory.describe()["names"]) == (3, 2)
    assert sorted(memory.search(np.ones((1, 8)), 3)[1][0].tolist()) == [0, 1, 2]
    memory.remove(["owl"])
    assert memory.names == ["fox"]


def test_columns_must_fit() -> None:
    memory = make_memory(source="lvis")
    before = memory.table
    for columns, message in [
        ({"source": 3}, "another type"),
        ({"source": ["a", "b"]}, "2 values for 1 rows"),
        ({"key": 1}, "cannot be further columns"),
        ({"extra": [object()]}, "values of one type"),
    ]:
        with pytest.raises(ValueError, match=message):
            memory.add(["owl"], np.ones((1, 8)), **columns)
    assert memory.table.equals(before)


def test_what_others_put_into_the_folder_stays(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref", encoding="utf-8")
    memory = VisualNameMemory.from_pretrained(folder)
    memory.remove(["thing 1"]).save_pretrained(folder, write_index=False)
    assert (folder / ".git" / "HEAD").read_text(encoding="utf-8") == "ref"
    assert VisualNameMemory.from_pretrained(folder).fingerprint == memory.fingerprint
    assert not (folder / "index.faiss").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["memory"]


UNWRITABLE = """
import os, resource, sys
from pathlib import Path
import numpy as np
from hf_evcap import VisualNameMemory
parent = Path(sys.argv[1])
big = VisualNameMemory.from_rows(["x"] * 4000, np.random.default_rng(0).standard_normal((4000, 8)))
big.index  # what is needed is loaded before the limits come
def attempt():
    try:
        big.save_pretrained(parent / "memory")
    except OSError as error:
        print(type(error).__name__, error)
for limit in (30_000, 120_000):  # full while writing the rows, and while writing the index
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    attempt()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
parent.chmod(0o555)
if os.getuid() == 0:
    os.setuid(65534)
attempt()
"""


def test_a_full_disk_or_read_only_folder_leaves_the_old_memory() -> None:
    parent = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        old = make_memory()
        old.save_pretrained(parent / "memory")
        parent.chmod(0o755)
        command = [sys.executable, "-c", UNWRITABLE, str(parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        errors = done.stdout.splitlines()
        assert len(errors) == 3, done.stdout + done.stderr
        assert all("Cannot write" in error and "is unchanged" in error for error in errors), errors
        assert "Permission denied" in errors[2]
        assert VisualNameMemory.from_pretrained(parent / "memory").fingerprint == old.fingerprint
        assert [path.name for path in parent.iterdir()] == ["memory"]
    finally:
        parent.chmod(0o755)
        shutil.rmtree(parent)
