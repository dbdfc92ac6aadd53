"""Tables, listings and folders as people and attackers leave them: every row is read or named, nothing is fetched."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photo_server import bad_server
from tiny_models import PHOTOS

from hf_evcap import VisualNameMemory
from hf_evcap.caption_data import load_caption_data
from hf_evcap.caption_data.text_files import read_table, read_text
from hf_evcap.cli.caption import find_photos
from hf_evcap.cli.main import main
from hf_evcap.datastore_building import open_captions
from hf_evcap.memory_building import annotated_boxes, build_memory, dataset_rows, photo_folder, photo_table


NAMES = ("astronaut", "cat", "coffee")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos."""
    for name in NAMES:
        (tmp_path / f"{name}.jpg").write_bytes((PHOTOS / f"{name}.jpg").read_bytes())
    return tmp_path


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


# Quotation marks

ROWS = ["astronaut.jpg", "cat.jpg", "coffee.jpg"]


@pytest.mark.parametrize(
    "names",
    [
        ['"big cat', "dog", "fox"], ["cat", '5" pipe', "fox"], ["cat", "dog", '"'], ['"a', '"b', '"c'],
        ['"a" b', "dog", "fox"], ['a "b"', "dog", "fox"], ['"a', 'b"', "fox"], ['"', '"', '"'],
        ['"a""', "dog", "fox"], ["''", "'", "fox"], ['cat"', '"dog', "fox"], ['""a', "dog", "fox"],
    ],
)  # fmt: skip
def test_lone_quotation_marks_in_tsv_swallow_no_row(folder: Path, names: list[str]) -> None:
    text = "image\tname\n" + "".join(f"{image}\t{name}\n" for image, name in zip(ROWS, names, strict=True))
    photos = photo_table(write(folder / "list.tsv", text))
    assert [Path(photos[number]["image"]).name for number in range(len(photos))] == ROWS
    for number, name in enumerate(names):
        assert photos[number]["names"][0].replace('"', "") == name.replace('"', "")
    captions = write(folder / "captions.tsv", text.replace("name", "caption", 1))
    assert len(load_caption_data(captions)) == 3


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (['astronaut.jpg,"big cat', "cat.jpg,dog", "coffee.jpg,fox"], 2),
        (['astronaut.jpg,"big cat', "cat.jpg,dog", 'coffee.jpg,"fox"'], 2),
        (["astronaut.jpg,a", 'cat.jpg,"dog', 'coffee.jpg,5"'], 3),
        (["astronaut.jpg,a", "cat.jpg,b", 'coffee.jpg,"c'], 4),
        (['"astronaut.jpg,a', 'cat.jpg,b"', "coffee.jpg,c"], 2),
        (["astronaut.jpg,a", "", 'cat.jpg,"b', "coffee.jpg,c"], 4),
    ],
)
def test_lone_quotation_marks_in_csv_are_named(folder: Path, rows: list[str], line: int) -> None:
    for header, read in (("image,name", photo_table), ("image,caption", load_caption_data)):
        file = write(folder / "list.csv", "\n".join([header, *rows]) + "\n")
        with pytest.raises(ValueError, match=rf"list\.csv, line {line}: .*quotation mark is not closed"):
            read(file)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_good_tables_are_read_as_before(folder: Path, end: str, delimiter: str) -> None:
    two_lines = f"Two{end}lines of it"
    fields = ["A cat.", 'It said "meow".', f"Here{delimiter} there", two_lines, "", " spaced ", "é ü 猫", "'"]
    quoted = [f'"{field.replace(chr(34), chr(34) * 2)}"' for field in fields]
    rows = [f"{number}.jpg{delimiter}{text}" for number, text in enumerate(quoted)]
    text = f"\ufeffimage{delimiter} caption{end}" + end.join(rows) + end + end
    table = read_table(write(folder / "list.csv", text), delimiter)
    assert [row["image"] for _, row in table] == [f"{number}.jpg" for number in range(8)]
    assert [row["caption"] for _, row in table] == [field.strip() for field in fields]
    assert [line for line, _ in table] == [2, 3, 4, 5, 7, 8, 9, 10]


def test_random_quotation_marks_never_lose_a_row(folder: Path) -> None:
    """500 tables of random quotation marks: every row is there, or the table is refused."""
    generator = random.Random(0)
    for number in range(500):
        delimiter = generator.choice("\t,")
        count = generator.randrange(2, 12)
        names = ["".join(generator.choices('ab" ', k=generator.randrange(1, 6))).strip() or "x" for _ in range(count)]
        rows = [f"{row}.jpg{delimiter}{name}" for row, name in enumerate(names)]
        file = write(folder / f"{number}.csv", f"image{delimiter}name\n" + "\n".join(rows))
        try:
            table = read_table(file, delimiter)
        except ValueError as error:
            assert delimiter == "," and f"{number}.csv, line " in str(error)
            continue
        assert [row["image"] for _, row in table] == [f"{row}.jpg" for row in range(count)], names


# What is no text


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "txt"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (b"caf\xe9", "not text in UTF-8"), (b"\xff\xfe", "not text in UTF-8"), (b"\x80", "not text in UTF-8"),
        (b"a\0b", "NUL character"), (b"\xed\xa0\x80", "not text in UTF-8"), (b"\xc3", "not text in UTF-8"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_text_are_named_with_their_line(
    folder: Path, suffix: str, damage: bytes, reason: str
) -> None:
    delimiter = b"\t" if suffix == "tsv" else b","
    if suffix in ("jsonl", "json"):
        content = b'{"image": "cat.jpg", "name": "a", "caption": "a"}\n' * 2
        content += b'{"image": "cat.jpg", "name": "' + damage + b'", "caption": "b"}\n'
    else:
        content = delimiter.join([b"image", b"name", b"caption"]) + b"\n" + delimiter.join([b"cat.jpg", b"a", b"b"])
        content += b"\n" + delimiter.join([b"coffee.jpg", damage, b"c"]) + b"\n"
    file = write(folder / f"list.{suffix}", content)
    readers = [load_caption_data, open_captions] + ([photo_table] if suffix != "txt" else [])
    for read in readers:
        with pytest.raises(ValueError, match=rf"list\.{suffix}.*line 3: .*{reason}"):
            read(file)


def test_utf_16_is_named(folder: Path) -> None:
    for name in ("list.csv", "list.tsv", "list.jsonl", "captions.txt"):
        text = '{"image": "cat.jpg", "name": "x"}' if name.endswith("l") else "image,caption\ncat.jpg,x\n"
        for read in (load_caption_data, open_captions):
            with pytest.raises(ValueError, match=rf"{name}, line 1: .*UTF-16"):
                read(write(folder / name, text.encode("utf-16")))


def test_fields_of_any_length_are_read_or_named(folder: Path) -> None:
    long = "x" * 200_000
    for name, delimiter in (("list.csv", ","), ("list.tsv", "\t")):
        text = f"image{delimiter}name\ncat.jpg{delimiter}a\ncoffee.jpg{delimiter}{long}\n"
        for content in (text, text.replace(long, f'"{long}"')):
            with pytest.raises(ValueError, match=rf"{name}, line 3: a field has more than 131,072 characters"):
                photo_table(write(folder / name, content))
            with pytest.raises(ValueError, match=rf"{name}, line 3: a field has more than 131,072 characters"):
                load_caption_data(write(folder / name, content.replace("name", "caption", 1)))
    quote = 'image\tname\ncat.jpg\t"a\n' + "coffee.jpg\tb\n" * 50_000
    assert len(photo_table(write(folder / "list.tsv", quote))) == 50_001


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("image,name\ncat.jpg\n", "line 2: .*another number of columns"),
        ("image,name\ncat.jpg,a,b\n", "line 2: .*another number of columns"),
        ("image,name,name\ncat.jpg,a,b\n", "line 1: the header has name twice"),
        ("image,name\n", "lists no photos"),
        ("", "lists no photos"),
        ("\n\n", "lists no photos"),
        ("image;name\ncat.jpg;a\n", "no 'image'"),
        ("image,name\ncat.jpg,\n", "line 2: there is no 'name'"),
        ("image,name\n,a\n", "line 2: there is no 'image'"),
    ],
)
def test_tables_of_another_shape(folder: Path, content: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)list\.csv.*{reason}"):
        photo_table(write(folder / "list.csv", content))


def test_columns_that_spreadsheets_add_do_not_matter(folder: Path) -> None:
    photos = photo_table(write(folder / "list.csv", ",image,name,,\n0,cat.jpg,cat,,\n,,,,\n1,coffee.jpg,cup,,,,\n"))
    assert [photos[number]["names"] for number in range(len(photos))] == [["cat"], ["cup"]]


# Values of the wrong kind


@pytest.mark.parametrize("value", [3, 3.5, None, True, {}, {"a": 1}, [], [None], [3], [["a"]], ["a", None], "", " ",
                                   float("nan"), [""], 10**400, float("inf")])  # fmt: skip
def test_names_that_are_no_text(folder: Path, value: Any) -> None:
    file = write(folder / "list.jsonl", json.dumps({"image": "cat.jpg", "name": value}) + "\n")
    with pytest.raises(ValueError, match=r"list\.jsonl, line 1: "):
        photo_table(file)


@pytest.mark.parametrize("value", [3, None, True, {}, [], ["cat.jpg"], ""])
def test_images_that_are_no_names(folder: Path, value: Any) -> None:
    file = write(folder / "list.jsonl", json.dumps({"image": value, "name": "a"}) + "\n")
    with pytest.raises(ValueError, match=r"list\.jsonl, line 1: "):
        photo_table(file)


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        ([0, -1, None], datasets.ClassLabel(names=["owl", "fox"])),
        (["owl", "", None], datasets.Value("string")),
        ([1, 2, 3], datasets.Value("int64")),
        ([["owl"], [""], [None]], datasets.List(datasets.Value("string"))),
        ([1.5, 2.5, float("nan")], datasets.Value("float32")),
    ],
)
def test_names_of_datasets_that_are_none(
    folder: Path, tiny_model: Any, processor: Any, values: list[Any], feature: Any, tmp_path: Path
) -> None:
    """A label of -1, as test sets have it, is not the last class."""
    data = datasets.Dataset.from_dict(
        {"image": [str(folder / image) for image in ROWS], "name": values},
        features=datasets.Features({"image": datasets.Image(), "name": feature}),
    )
    photos = dataset_rows(data)
    with pytest.raises(ValueError, match=r"Photo \d cannot be used: .*(label|text)"):
        build_memory(tiny_model, processor, photos, tmp_path / "memory")
    good = not isinstance(values[0], (int, float)) or hasattr(feature, "names")
    report = build_memory(tiny_model, processor, photos, tmp_path / "memory", on_error="skip", restart=True)
    assert report.rows == good and list(report.skipped) == ([1, 2] if good else [0, 1, 2])


JSON = {
    "empty": "", "cut": '{"image": "a', "another thing": "3", "text": '"a"', "list of text": '["a"]',
    "list of numbers": "[1, 2]", "deep": "[" * 100_000, "deep objects": '{"a":' * 100_000, "null": "null",
    "a huge number": '{"image": ' + "1" * 5000 + "}", "lines of lists": "[1]\n[2]\n", "single quotes": "{'image': 1}",
    "no values": "{}", "a comment": '// x\n{"image": "a"}', "two on a line": '{"image": "a"} {"image": "b"}',
}  # fmt: skip


@pytest.mark.parametrize("what", JSON)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_that_is_none_of_ours(folder: Path, what: str, suffix: str) -> None:
    file = write(folder / f"list.{suffix}", JSON[what])
    for read in (load_caption_data, photo_table, lambda file: annotated_boxes(file, folder), open_captions):
        if read is open_captions and what == "list of text":
            continue  # a list of captions
        with pytest.raises((ValueError, FileNotFoundError), match=rf"list\.{suffix}"):
            read(file)


@pytest.mark.parametrize(
    "change",
    [
        {"images": None}, {"images": [3]}, {"images": [{}]}, {"categories": [{"id": 1, "name": None}]},
        {"categories": [{"id": 1, "name": 5}]}, {"categories": [{"id": 2, "name": "owl"}]}, {"annotations": [{}]},
        {"annotations": [{"id": 1, "image_id": 9, "category_id": 1, "bbox": [0, 0, 9, 9]}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9]}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": "0009"}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, None, 9]}]}, {"annotations": []},
    ],
)  # fmt: skip
def test_annotations_that_do_not_fit_together(folder: Path, change: dict[str, Any]) -> None:
    content = {
        "images": [{"id": 1, "file_name": "cat.jpg"}],
        "categories": [{"id": 1, "name": "owl"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    assert len(annotated_boxes(write(folder / "boxes.json", json.dumps(content)), folder)) == 1
    with pytest.raises(ValueError, match=r"boxes\.json"):
        annotated_boxes(write(folder / "boxes.json", json.dumps({**content, **change})), folder)


def test_compressed_captions(folder: Path) -> None:
    whole = gzip.compress(b"A cat.\nA dog.\n")
    assert open_captions(write(folder / "captions.txt.gz", whole)).captions == ["A cat.", "A dog."]
    for content in (whole[:-9], b"A cat.\n", whole[:12], b"", whole[:10] + b"\xff" * 20):
        if content:
            with pytest.raises(ValueError, match=r"captions\.txt\.gz"):
                open_captions(write(folder / "captions.txt.gz", content))
    with pytest.raises(ValueError, match=r"line 2: .*not text in UTF-8"):
        read_text(write(folder / "captions.txt.gz", gzip.compress(b"a\n\xe9\n")))


# What systems put beside photos


def test_companions_are_neither_photos_nor_names(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / ".hidden" / "collection"  # that the whole lies in a hidden folder says nothing
    for name in ("cat/1.jpg", "cat/._1.jpg", "cat/.trash/2.jpg", "cat/sub/3.jpg", "__MACOSX/cat/._1.jpg",
                 "._cat/1.jpg", ".ipynb_checkpoints/1.jpg", "cat/__MACOSX/1.jpg", ".DS_Store",
                 "dog/.hidden.jpg"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((folder / "cat.jpg").read_bytes() if "._" not in name else b"\0\5\x16\7")
    (root / "cat" / "folder.jpg").mkdir()
    (root / "cat" / "broken.jpg").symlink_to("nowhere.jpg")
    photos = photo_folder(root)
    assert [photos[number]["image"] for number in range(len(photos))] == [
        str(root / "cat/1.jpg"),
        str(root / "cat/sub/3.jpg"),
    ]
    assert {name for number in range(len(photos)) for name in photos[number]["names"]} == {"cat"}
    assert find_photos([str(root)]) == [str(root / "cat/1.jpg"), str(root / "cat/sub/3.jpg")]
    with pytest.raises(FileNotFoundError, match="No photos"):
        find_photos([str(root / "dog")])
    with pytest.raises(FileNotFoundError, match="no photos in sub-folders"):
        photo_folder(root / "dog")


def test_companions_of_data_files(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "__MACOSX").mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"image": [str(folder / "cat.jpg")], "caption": ["A cat."]})
    rows.cast_column("image", datasets.Image()).to_parquet(str(data / "train.parquet"))
    for name in ("._train.parquet", "__MACOSX/._train.parquet"):
        (data / name).write_bytes(b"\0\5\x16\7")
    assert load_caption_data(data)["captions"][:] == [["A cat."]]


# Addresses


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    with bad_server((PHOTOS / "cat.jpg").read_bytes()) as found:
        yield found


def sources(folder: Path, address: str) -> dict[str, Path]:
    """An address in every kind of data, beside two files."""
    images = [str(folder / "astronaut.jpg"), address, str(folder / "coffee.jpg")]
    rows = [
        {"image": image, "image_id": str(number), "caption": f"Photo {number}.", "name": f"thing {number}"}
        for number, image in enumerate(images)
    ]
    found = {
        "jsonl": write(folder / "list.jsonl", "".join(json.dumps(row) + "\n" for row in rows)),
        "csv": write(folder / "list.csv", "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])),
    }
    struct = pa.array([{"bytes": None, "path": image} for image in images])
    texts = {name: [row[name] for row in rows] for name in rows[0] if name != "image"}
    features = datasets.Features({"image": datasets.Image(), **dict.fromkeys(texts, datasets.Value("string"))})
    for name, column, metadata in (
        ("parquet of images", struct, features.arrow_schema.metadata),
        ("parquet of names", pa.array(images), None),
    ):
        found[name] = folder / name / "train.parquet"
        found[name].parent.mkdir()
        table = pa.table({"image": column, **texts}).replace_schema_metadata(metadata)
        pq.write_table(table, found[name])
    coco = {
        "images": [{"id": number, "file_name": image} for number, image in enumerate(images)],
        "annotations": [{"id": n, "image_id": n, "caption": f"Photo {n}."} for n in range(3)],
    }
    found["coco"] = write(folder / "coco.json", json.dumps(coco))
    return found


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet of images", "parquet of names", "coco"])
def test_addresses_are_fetched_only_when_that_is_allowed(
    folder: Path, server: tuple[str, list[str]], kind: str, tiny_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    address, asked = server
    source = sources(folder, f"{address}/photo.jpg")[kind]
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"(?s)photo\.jpg.*--allow-urls"):
            list(load_caption_data(source, streaming=streaming))
    runs = {
        "evaluation": ["evaluate", "--dataset", str(source), "--output", str(tmp_path / "evaluation"),
                       "--no-memory-effect", "--report-photos", "0"],
        "features": ["cache-features", "--dataset", str(source), "--output", str(tmp_path / "features")],
        "training": ["train", "--dataset", str(source), "--output_dir", str(tmp_path / "trained"), "--max_steps", "1",
                     "--report_to", "none", "--save_strategy", "no", "--leave_one_out", "false"],
    }  # fmt: skip
    if kind != "coco":
        given = [str(source.parent), "--dataset"] if kind.startswith("parquet") else [str(source)]
        runs["memory"] = ["memory", "build", *given, "--out", str(tmp_path / "memory")]
    for name, words in runs.items():
        words = [*words, "--model", str(tiny_dir)]
        assert main(words) == 1, name
        message = capsys.readouterr().err
        assert "photo.jpg" in message and "--allow-urls" in message, message
        assert asked == [], name
        if name == "memory":
            assert main([*words, "--on-error", "skip", "--restart"]) == 0 and asked == []
            assert VisualNameMemory.from_pretrained(tmp_path / "memory").names == ["thing 0", "thing 2"]
            words = [*words[:-3], str(tmp_path / "whole"), *words[-2:]]
        assert main([*words, "--allow-urls", *(["--restart"] if name not in ("training", "memory") else [])]) == 0, (
            name
        )
        assert asked != [], name
        asked.clear()
    if kind != "coco":
        assert VisualNameMemory.from_pretrained(tmp_path / "whole").names == ["thing 0", "thing 1", "thing 2"]


@pytest.mark.parametrize(
    "address", ["HTTP://127.0.0.1:1/x.jpg", " http://127.0.0.1:1/x.jpg", "ftp://127.0.0.1:1/x", "hf://datasets/a/b/x.jpg",
                "zip://x.jpg::http://127.0.0.1:1/x.zip", "s3://bucket/x.jpg", "file:///etc/passwd", "https://[::1]/x"],
)  # fmt: skip
def test_addresses_in_disguise(folder: Path, tiny_model: Any, processor: Any, address: str, tmp_path: Path) -> None:
    for kind, source in sources(folder, address).items():
        for streaming in (False, True):
            if streaming and kind == "parquet of images" and address.startswith("hf://"):
                continue  # so a stream of the Hub names its own photos
            with pytest.raises((ValueError, FileNotFoundError), match="--allow-urls"):
                list(load_caption_data(source, streaming=streaming))
    photos = photo_table(folder / "list.jsonl")
    with pytest.raises(ValueError, match=r"Photo 1 cannot be used.*--allow-urls"):
        build_memory(tiny_model, processor, photos, tmp_path / "memory")


def test_a_recipe_does_not_allow_itself_anything(folder: Path, tiny_dir: Path, capsys: Any) -> None:
    write(folder / "list.csv", "image,name\ncat.jpg,cat\n")
    for name in ("allow_urls", "overwrite"):
        write(folder / "recipe.yaml", f"source: {folder / 'list.csv'}\n{name}: true\n")
        words = ["memory", "build", str(folder / "recipe.yaml"), "--model", str(tiny_dir), "--out", str(folder / "m")]
        assert main(words) == 1
        assert name in capsys.readouterr().err


def test_an_address_that_the_user_gives_is_fetched(server: tuple[str, list[str]], tiny_dir: Path, capsys: Any) -> None:
    from transformers import pipeline

    address, asked = server
    pipe = pipeline("image-to-text", model=str(tiny_dir))
    assert pipe(f"{address}/photo.jpg") == pipe(str(PHOTOS / "cat.jpg"))
    assert main(["caption", f"{address}/photo.jpg", "--model", str(tiny_dir)]) == 0
    assert len(asked) == 2


def test_photos_in_tables_as_data(folder: Path) -> None:
    import base64

    code = "data:image/jpeg;base64," + base64.b64encode((folder / "cat.jpg").read_bytes()).decode()
    photos = photo_table(write(folder / "list.jsonl", json.dumps({"image": code, "name": "cat"})))
    assert photos[0]["image"] == code


def test_captions_with_line_separators_are_evaluated(folder: Path, tiny_dir: Path, tmp_path: Path) -> None:
    """U+2028 stands in JSON as it is, and is not the end of a line there."""
    rows = [{"image": "cat.jpg", "image_id": "a\u2028b\x85c", "captions": ["One\u2028two."]}]
    source = write(folder / "list.jsonl", json.dumps(rows[0], ensure_ascii=False) + "\n")
    words = ["evaluate", "--dataset", str(source), "--output", str(tmp_path / "out"), "--model", str(tiny_dir)]
    assert main([*words, "--metrics", "bleu"]) == 0
    assert main([*words, "--metrics", "bleu"]) == 0  # reads what the first run wrote
