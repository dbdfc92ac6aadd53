"""Every format of captioned photos, as its files look, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
from caption_files import (
    karpathy_image,
    write,
    write_coco,
    write_karpathy,
    write_lines,
    write_parquet,
    write_whoops,
)
from PIL import Image

from hf_evcap.caption_data import FORMATS, load_caption_data


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """Photos as COCO, NoCaps and Flickr30k name them; each has its own colour."""
    names = [
        "val2014/COCO_val2014_000000000042.jpg",
        "train2014/COCO_train2014_000000000009.jpg",
        "val2014/COCO_val2014_000000000073.jpg",
        "1000092795.jpg",
        "a.png",
        "b.png",
    ]
    for number, name in enumerate(names):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (40 * number, 0, 0)).save(path)
    return tmp_path


def coco_karpathy(folder: Path) -> Path:
    images = [
        karpathy_image(name, split, [f"A cat {number}.", f"Cat {number}"], filepath=place, cocoid=cocoid)
        for number, (name, split, place, cocoid) in enumerate([
            ("COCO_val2014_000000000042.jpg", "test", "val2014", 42),
            ("COCO_train2014_000000000009.jpg", "train", "train2014", 9),
            ("COCO_val2014_000000000073.jpg", "restval", "val2014", 73),
        ])
    ]  # fmt: skip
    return write_karpathy(folder, images)


COCO_PHOTOS = {42: "COCO_val2014_000000000042.jpg", 73: "COCO_val2014_000000000073.jpg"}
COCO_CAPTIONS = [(73, "A sink."), (42, "Shoes."), (42, "A dog on shoes.")]


def coco_captions(folder: Path, captions: list[tuple[int, str]] = COCO_CAPTIONS) -> Path:
    return write_coco(folder, COCO_PHOTOS, captions, coco_url=["http://x.org/val2014/COCO.jpg"] * 2)


def nocaps(folder: Path) -> Path:
    return write_coco(
        folder,
        {0: "a.png", 1: "b.png"},
        [(number % 2, f"caption {number}") for number in range(20)],
        name="nocaps_val_4500_captions.json",
        domain=["out-domain", "in-domain"],
        open_images_id=["0013", "0014"],
    )


def pixels(dataset: Any) -> list[int]:
    return [row["image"].getpixel((0, 0))[0] // 40 for row in dataset]


def test_karpathy_coco(folder: Path) -> None:
    file = coco_karpathy(folder)
    dataset = load_caption_data(file, "test", images=folder / "photos")
    assert dataset.column_names == ["image", "image_id", "captions", "split"]
    assert dataset.features["image"] == datasets.Image()
    assert dataset[0]["image_id"] == "42" and dataset[0]["captions"] == ["A cat 0.", "Cat 0"]
    assert pixels(dataset) == [0]
    both = load_caption_data(file, "train+restval", images=folder / "photos")
    assert both["image_id"][:] == ["9", "73"] and pixels(both) == [1, 2]
    with pytest.raises(ValueError, match=r"dataset_coco.json has no split 'dev'; it has test, train, restval"):
        load_caption_data(file, "dev", images=folder / "photos")


def test_a_benchmark_by_name_finds_its_file_and_its_test_split(folder: Path) -> None:
    coco_karpathy(folder)
    dataset = load_caption_data("coco-karpathy", images=folder / "photos")
    assert dataset["image_id"][:] == ["42"]
    with pytest.raises(
        FileNotFoundError, match=r"Flickr30k \(Karpathy\) needs dataset_flickr30k.json: get it from https"
    ):
        load_caption_data("flickr30k", images=folder / "photos")
    nocaps(folder)
    assert len(load_caption_data("nocaps", "val", annotations=folder, images=folder / "photos")) == 2


def test_a_benchmark_by_name_where_its_photos_lie_in_a_folder_of_that_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "photos").rename(folder / "flickr30k")
    coco_karpathy(folder).rename(folder / "dataset_flickr30k.json")
    monkeypatch.chdir(folder)
    assert load_caption_data("flickr30k", images="flickr30k")["image_id"][:] == ["42"]


def test_coco_2014_names_are_found_among_the_photos_of_2017(folder: Path) -> None:
    file = coco_karpathy(folder)
    (folder / "photos" / "val2017").mkdir()
    (folder / "photos" / "val2014" / "COCO_val2014_000000000042.jpg").rename(
        folder / "photos" / "val2017" / "000000000042.jpg"
    )
    assert pixels(load_caption_data(file, "test", images=folder / "photos")) == [0]


def test_karpathy_flickr30k_has_ids_from_file_names(folder: Path) -> None:
    write_karpathy(folder, [karpathy_image("1000092795.jpg", "test", ["A man."])], name="flickr30k")
    dataset = load_caption_data("flickr30k", images=folder / "photos")
    assert dataset["image_id"][:] == ["1000092795"] and pixels(dataset) == [3]


def test_coco_captions(folder: Path) -> None:
    dataset = load_caption_data(coco_captions(folder), images=folder / "photos")
    assert dataset["image_id"][:] == ["42", "73"]
    assert dataset["captions"][:] == [["Shoes.", "A dog on shoes."], ["A sink."]]
    assert pixels(dataset) == [0, 2]  # in the sub-folder that `coco_url` names
    assert len(load_caption_data(folder / "captions_val2014.json", "val2014", images=folder / "photos")) == 2


def test_nocaps_has_domains(folder: Path) -> None:
    dataset = load_caption_data(nocaps(folder), "validation", images=folder / "photos")
    assert dataset["domain"][:] == ["out-domain", "in-domain"]
    assert [len(captions) for captions in dataset["captions"]] == [10, 10]
    with pytest.raises(ValueError, match="have a `domain`; these have none"):
        load_caption_data(coco_captions(folder), format="nocaps", images=folder / "photos")


def test_whoops_from_its_table_and_from_a_dataset_like_the_hub_s(folder: Path) -> None:
    file = write_whoops(folder, [("a", ["odd, one", "odd two"]), ("b", ["even one", "even two"])])
    file.write_text(file.read_text().replace('"[""even one"", ""even two""]"', "\"['even one', 'even two']\""))
    dataset = load_caption_data("whoops", annotations=file, images=folder / "photos")
    assert dataset["image_id"][:] == ["a", "b"] and pixels(dataset) == [4, 5]
    assert dataset["captions"][:] == [["odd, one", "odd two"], ["even one", "even two"]]
    assert dataset["commonsense_category"][:] == ["Deviation", "Deviation"]

    (folder / "hub").mkdir()
    columns = {
        "image_id": ["a", "b"],
        "selected_caption": ["one", "two"],
        "crowd_captions": [["odd one"], ["even one"]],
    }
    write_parquet(
        folder / "hub" / "test-00000-of-00001.parquet", [folder / "photos" / f"{name}.png" for name in "ab"], **columns
    )
    like_hub = load_caption_data(folder / "hub", "test", format="whoops")
    assert like_hub["captions"][:] == [["odd one"], ["even one"]] and pixels(like_hub) == [4, 5]


def test_jsonl(folder: Path) -> None:
    rows = [
        {"image": "photos/a.png", "captions": ["one", "two"], "source": "x"},
        {"image": "photos/b.png", "captions": ["three"], "source": 3},
    ]
    dataset = load_caption_data(write_lines(folder, rows))
    assert dataset["image_id"][:] == ["photos/a.png", "photos/b.png"]
    assert dataset["captions"][:] == [["one", "two"], ["three"]] and dataset["source"][:] == ["x", "3"]
    (folder / "captions.jsonl").rename(folder / "list.json")
    write(folder / "list.json", rows)  # a JSON list
    assert load_caption_data(folder / "list.json")["captions"][:] == dataset["captions"][:]


def test_captions_in_rows_of_their_own_come_together(folder: Path) -> None:
    text = 'image,caption\na.png,One cat\na.png,"A cat, grey"\nb.png,Two\n'
    dataset = load_caption_data(write(folder / "captions.txt", text), images=folder / "photos")
    assert dataset["captions"][:] == [["One cat", "A cat, grey"], ["Two"]]
    flickr = "image_name| comment_number| comment\na.png| 0| One .\na.png| 1| Two .\n"
    dataset = load_caption_data(write(folder / "results.csv", flickr), images=folder / "photos")
    assert dataset["image_id"][:] == ["a.png"] and dataset["captions"][:] == [["One .", "Two ."]]


@pytest.mark.parametrize("format", [None, "imagefolder"])
def test_image_folder_with_metadata(folder: Path, format: str | None) -> None:
    for split, names in {"train": ["a"], "test": ["b"]}.items():
        (folder / "set" / split).mkdir(parents=True)
        for name in names:
            (folder / "photos" / f"{name}.png").rename(folder / "set" / split / f"{name}.png")
        rows = [{"file_name": f"{name}.png", "caption": f"caption {name}"} for name in names]
        write_lines(folder / "set" / split, rows, "metadata.jsonl")
    dataset = load_caption_data(folder / "set", "test", format=format)
    assert dataset["captions"][:] == [["caption b"]] and pixels(dataset) == [5]


def parquet(folder: Path, name: str = "validation.parquet", **columns: Any) -> Path:
    photos = next(place / "photos" for place in (folder, folder.parent) if (place / "photos").is_dir())
    return write_parquet(folder / name, [photos / "a.png", photos / "b.png"], **columns)


def test_parquet_keeps_photos_and_other_columns(folder: Path) -> None:
    file = parquet(folder, captions=[["x", "y"], ["z"]], image_id=["p", "q"], source=["s", "t"])
    dataset = load_caption_data(file, split="validation")
    assert dataset.column_names == ["image", "source", "image_id", "captions"]
    assert dataset["captions"][:] == [["x", "y"], ["z"]] and pixels(dataset) == [4, 5]
    stream = load_caption_data(file, streaming=True)
    assert isinstance(stream, datasets.IterableDataset)
    assert [(row["image_id"], row["captions"], row["source"]) for row in stream] == [
        ("p", ["x", "y"], "s"),
        ("q", ["z"], "t"),
    ]
    assert pixels(stream) == [4, 5]


def test_columns_of_other_names_and_a_column_of_splits(folder: Path) -> None:
    file = parquet(
        folder, name="data.parquet", title=["x", "y"], key=[1.0, 2.0], split=["train", "test"], kind=["k", "l"]
    )
    dataset = load_caption_data(file, "test", caption_column="title", id_column="key", domain_column="kind")
    assert dataset[0] | {"image": None} == {
        "image": None, "split": "test", "image_id": "2", "captions": ["y"], "domain": "l",
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"no column 'titel' \(`caption_column`\); the columns are image, title"):
        load_caption_data(file, caption_column="titel")


def test_a_dataset_that_was_saved_to_disk(folder: Path) -> None:
    data = load_caption_data(parquet(folder, captions=[["x"], ["y"]], image_id=["p", "q"]))
    datasets.DatasetDict({"test": data}).save_to_disk(folder / "saved")
    loaded = load_caption_data(folder / "saved", "test")
    assert loaded["captions"][:] == [["x"], ["y"]] and pixels(loaded) == [4, 5]


def test_a_test_set_without_references(folder: Path) -> None:
    file = coco_captions(folder, [])
    assert load_caption_data(file, images=folder / "photos")["captions"][:] == [[], []]
    with pytest.raises(ValueError, match="2 of 2 image ids have no captions: 42, 73"):
        load_caption_data(file, images=folder / "photos", require_captions=True)


def test_photos_that_are_missing_are_named_or_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_lines(folder, [{"image": "a.png", "caption": "x"}, {"image": "lost.png", "caption": "y"}])
    with pytest.raises(FileNotFoundError, match=r"captions.jsonl, line 2: there is no photo lost.png in .*photos"):
        load_caption_data(file, images=folder / "photos")
    kept = load_caption_data(file, images=folder / "photos", on_error="skip")
    assert kept["image_id"][:] == ["a.png"]
    table = datasets.Dataset.from_dict({"file_name": ["a.png", "lost.png"], "caption": ["x", "y"]})
    table.to_parquet(folder / "names.parquet")
    with pytest.raises(FileNotFoundError, match=r"names.parquet, row 1: there is no photo lost.png"):
        load_caption_data(folder / "names.parquet", images=folder / "photos")
    kept = load_caption_data(folder / "names.parquet", images=folder / "photos", on_error="skip")
    assert kept["captions"][:] == [["x"]] and pixels(kept) == [4]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image": "a.png", "captions": ["x"]}, {"image": "b.png", "captions": []}], "1 of 2 image ids have no"),
        ([{"image": "a.png", "captions": ["x"]}, {"image": "b.png"}], "1 of 2 image ids have no captions: b.png"),
        ([{"image": "a.png", "captions": ["x", " "]}], r"line 1: captions\[1\] is empty"),
        ([{"image": "a.png", "captions": ["x", float("nan")]}], r"line 1: captions\[1\] is NaN"),
        ([{"image": "a.png", "caption": float("nan")}], "line 1: the caption is NaN"),
        ([{"image": "a.png", "caption": 3}], "line 1: a caption must be text, got 3"),
        ([{"image": "a.png", "image_id": float("nan"), "caption": "x"}], "line 1: the image id is nan"),
        (
            [{"image": f"{n}.png", "image_id": 7, "caption": "x"} for n in "ab"],
            "line 2: the image id '7' stands twice, first at .*line 1",
        ),
        ([{"image": "a.png", "captions": ["x"]}] * 2, "line 2: the image id 'a.png' stands twice"),
        ([{"photograph": "a.png", "caption": "x"}] * 2, "no column that names photos; the columns are photograph"),
        ([{"image": None, "caption": "x"}], "line 1: 'image' must name a photo, got None"),
        ([["a.png", "x"]] * 2, "line 1: expected an object, got list"),
    ],
)  # fmt: skip
def test_bad_rows(folder: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_caption_data(write_lines(folder, rows, "rows.jsonl"), images=folder / "photos")


def test_bad_coco_files(folder: Path) -> None:
    for captions, message in (
        ([(5, "x")], "captions of 1 image ids that `images` does not list, such as 5"),
        ([(42, "x")], "1 of 2 image ids have no captions: 73"),
    ):
        with pytest.raises(ValueError, match=message):
            load_caption_data(coco_captions(folder, captions), images=folder / "photos")
    boxes = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "id": 1, "bbox": [0]}]}
    with pytest.raises(ValueError, match="this is no caption file"):
        load_caption_data(write(folder / "boxes.json", boxes), images=folder / "photos")
    twice = {"images": [{"id": 42, "file_name": "a.png"}] * 2, "annotations": []}
    with pytest.raises(ValueError, match="the image id 42 stands twice"):
        load_caption_data(write(folder / "twice.json", twice), images=folder / "photos")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("just words\n", "in no format that is known"),
        ("", "in no format that is known"),
        ('{"images": ', "not valid JSON"),
        ('{"annotations": []}', "JSON without `images`"),
        ('{"images": []}', "lists no photos"),
        ("image,caption\na.png\n", "line 2: the row has another number of columns"),
    ],
)
def test_unknown_and_broken_files(folder: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_caption_data(write(folder / "data.txt", content), images=folder / "photos")


def test_bad_columns_of_datasets(folder: Path) -> None:
    file = parquet(folder, captions=[["x"], ["y"]], image_id=["p", "p"])
    with pytest.raises(ValueError, match=r"row 1: the image id 'p' stands twice"):
        load_caption_data(file)
    with pytest.raises(ValueError, match=r"row 1: the image id 'p' stands twice"):
        load_caption_data(parquet(folder, name="c.parquet", caption=["x", "y"], image_id=["p", "p"]))
    with pytest.raises(ValueError, match=r"row 0: the image id is nan"):
        load_caption_data(parquet(folder, name="d.parquet", caption=["x", "y"], image_id=[float("nan"), 1.0]))


def test_damaged_parquet_files_are_named_or_left_out(folder: Path) -> None:
    (folder / "shards").mkdir()
    for number in range(3):
        parquet(
            folder / "shards",
            f"train-{number}.parquet",
            captions=[["x"], ["y"]],
            image_id=[f"a{number}", f"b{number}"],
        )
    whole = folder / "shards" / "train-1.parquet"
    whole.write_bytes(whole.read_bytes()[:-200])
    for source in (folder / "shards", whole):
        with pytest.raises(ValueError, match=r"train-1.parquet is damaged or incomplete"):
            load_caption_data(source)
    for streaming in (False, True):
        kept = load_caption_data(folder / "shards", on_error="skip", streaming=streaming)
        assert [row["image_id"] for row in kept] == ["a0", "b0", "a2", "b2"]
    with pytest.raises(ValueError, match=r"train-1.parquet is damaged"):
        load_caption_data(whole, on_error="skip")


def test_bad_arguments(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"Unknown format 'voc'; the formats are {', '.join(FORMATS)}"):
        load_caption_data(folder, format="voc")
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nothing.json"):
        load_caption_data(folder / "nothing.json")
    with pytest.raises(ValueError, match="does not say which split a photo is of; leave out the split 'test'"):
        load_caption_data(write_lines(folder, [{"image": "a.png", "caption": "x"}]), "test", images=folder / "photos")
    with pytest.raises(ValueError, match="`annotations` goes with a benchmark's name"):
        load_caption_data(folder, annotations="x.json")
