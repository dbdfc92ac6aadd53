"""`hf-evcap evaluate` end to end with a random model: formats, files, scores, reports, cards, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import evaluate
import pytest
import tiny_smallcap
import yaml
from caption_files import (
    karpathy_image,
    write,
    write_coco,
    write_karpathy,
    write_lines,
    write_parquet,
    write_whoops,
)
from tiny_models import PHOTOS

import hf_evcap
from hf_evcap.cli.main import main
from hf_evcap.evaluation import EvaluationArguments, evaluate_captioner
from hf_evcap.evaluation.published import published_results
from hf_evcap.evaluation.report import histogram
from hf_evcap.evaluation.scoring import CaptionedPhotos, score


SHARED = Path(__file__).parents[3] / "shared" / "data" / "captions" / "validation.parquet"


def run(model: Path, dataset: Path | str, output: Path, **options: Any) -> dict[str, Any]:
    settings = {"batch_size": 2, "report_photos": 0, **options}
    results = evaluate_captioner(EvaluationArguments(str(dataset), str(output), model=str(model), **settings))
    assert results is not None
    return results


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def evaluated(tiny_dir: Path, captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an evaluation with everything in it."""
    output = tmp_path_factory.mktemp("evaluated")
    run(tiny_dir, captioned, output, report_photos=2, object_column="shown")
    return output


def test_files_of_an_evaluation(evaluated: Path, tiny_dir: Path, captioned: Path) -> None:
    predictions = read(evaluated / "predictions.json")
    assert [row["image_id"] for row in predictions] == [0, 1, 2, 3, 4]
    pipe = hf_evcap_pipeline(tiny_dir)
    answers = pipe([str(captioned.parent / f"{name}.jpg") for name in ("astronaut", "cat")], batch_size=2)
    photos = [json.loads(line) for line in (evaluated / "photos.jsonl").read_text().splitlines()]
    for answer, prediction, photo in zip(answers, predictions, photos, strict=False):
        assert answer[0]["generated_text"] == prediction["caption"] == photo["caption"]
        assert answer[0]["retrieved_names"] == photo["retrieved"]
    assert photos[1]["references"] == ["A cat in a photo.", "There is a cat, it seems."]
    assert {"cider", "caption_without_memory", "cider_without_memory"} <= set(photos[0])

    results = read(evaluated / "results.json")
    assert [variant["name"] for variant in results["variants"]] == ["as it is", "without the memory"]
    base = results["variants"][0]
    assert list(base["metrics"]) == ["all", "in-domain", "out-domain"]
    assert base["photos"] == {"all": 5, "in-domain": 2, "out-domain": 3}
    assert {"CIDEr", "BLEU-4", "ROUGE-L", "objects named", "retrieval hit@1"} <= set(base["metrics"]["all"])
    assert len(results["model"]["weights_fingerprint"]) == 64 and len(base["settings"]["memory"]["fingerprint"]) == 64
    assert results["variants"][1]["settings"]["retrieval"]["num_retrieved_names"] == 0
    assert results["versions"]["transformers"] and base["settings"]["retrieval"]["num_retrieved_names"] == 4


def hf_evcap_pipeline(folder: Path) -> Any:
    from transformers import pipeline

    return pipeline("image-to-text", model=str(folder))


def test_figures_are_those_of_the_metric_modules(evaluated: Path) -> None:
    photos = [json.loads(line) for line in (evaluated / "photos.jsonl").read_text().splitlines()]
    figures = read(evaluated / "results.json")["variants"][0]["metrics"]
    for group, rows in (("all", photos), ("in-domain", photos[1::2]), ("out-domain", photos[::2])):
        inputs = {
            "predictions": [row["caption"] for row in rows],
            "references": [row["references"] for row in rows],
        }
        cider = evaluate.load(hf_evcap.metric_path("cider")).compute(**inputs)
        bleu = evaluate.load(hf_evcap.metric_path("bleu")).compute(**inputs)
        assert figures[group]["CIDEr"] == pytest.approx(100 * cider["cider"])
        assert figures[group]["BLEU-4"] == pytest.approx(100 * bleu["bleu_4"])
        if group == "all":
            assert [row["cider"] for row in photos] == pytest.approx([100 * x for x in cider["cider_per_caption"]])


def test_known_scores() -> None:
    photos = CaptionedPhotos(
        image_ids=["1", "2", "3"],
        captions=["a cat on a mat", "two dogs", "a red bus"],
        references=[["a cat on a mat"], ["two dogs"], ["a boat"]],
        retrieved=[[{"name": "cat", "score": 1.0}], [{"name": "dog", "score": 1.0}], [{"name": "bus", "score": 1.0}]],
        groups=["a", "a", "b"],
    )
    scored = score(photos, ["rouge_l", "name_hallucination"])
    assert scored.by_group["a"] == {"ROUGE-L": pytest.approx(100), "unsupported names": 0}
    assert scored.by_group["b"]["unsupported names"] == 100
    assert scored.by_group["all"]["unsupported names"] == pytest.approx(100 / 3)


def test_markdown_table(evaluated: Path) -> None:
    text = (evaluated / "results.md").read_text()
    header, _, everything, inside, outside = text.split("By domain:\n\n")[1].splitlines()[:5]
    assert header.startswith("|  | photos | CIDEr | BLEU-4 | ROUGE-L |")
    figures = read(evaluated / "results.json")["variants"][0]["metrics"]
    for line, group, count in ((everything, "all", 5), (inside, "in-domain", 2), (outside, "out-domain", 3)):
        assert line.startswith(f"| {group} | {count} | {figures[group]['CIDEr']:.1f} |")
    assert "| without the memory |" in text


def test_report_is_one_file_with_its_photos(evaluated: Path) -> None:
    text = (evaluated / "report.html").read_text(encoding="utf-8")
    for heading in ("By domain", "Effect of the memory", "Photos by their CIDEr", "Best captions", "Worst captions"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("data:image/jpeg;base64,") == text.count("<img ") >= 4
    assert 'src="http' not in text and "<script" not in text and "<link" not in text
    first = json.loads((evaluated / "photos.jsonl").read_text().splitlines()[0])
    assert first["retrieved"][0]["name"] in text and first["references"][0] in text


def test_report_escapes_what_others_wrote(captioned: Path, tmp_path: Path) -> None:
    captions = [{"image_id": number, "caption": f"<script>alert({number})</script>"} for number in range(5)]
    file = write(tmp_path / "captions.json", captions)
    evaluate_captioner(EvaluationArguments(str(captioned), str(tmp_path / "out"), predictions=str(file)))
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in text and "&lt;script&gt;alert(3)" in text


def test_histogram_counts_every_photo_once() -> None:
    rows = [{"cider": value} for value in (0.0, 4.9, 5.0, 1000.0)]
    counted = histogram(rows)
    assert sum(counted["counts"]) == 4 and counted["counts"][-1] == 1 and counted["counts"][0] >= 2


def format_files(folder: Path) -> dict[str, tuple[Path | str, dict[str, Any], list[Any]]]:
    """For each real format a dataset of the photos of a cat and a coffee, options, and ids of its predictions."""
    captions = {"cat": ["A cat looks.", "A cat's face."], "coffee": ["A cup of coffee.", "Coffee."]}
    for name in ("cat", "coffee"):
        shutil.copy(PHOTOS / f"{name}.jpg", folder)
    images = [
        karpathy_image("cat.jpg", "test", captions["cat"], filepath=".", cocoid=11),
        karpathy_image("coffee.jpg", "train", captions["coffee"], filepath=".", cocoid=12),
    ]
    write_karpathy(folder, images)
    flickr = [karpathy_image(f"{name}.jpg", "test", captions[name]) for name in captions]
    write_karpathy(folder, flickr, name="flickr30k")
    pairs = [(number, caption) for number, name in enumerate(captions, 4) for caption in captions[name]]
    photos = {4: "cat.jpg", 5: "coffee.jpg"}
    write_coco(folder, photos, pairs)
    write_coco(folder, photos, pairs, name="nocaps_val_4500_captions.json", domain=["in-domain", "out-domain"])
    write_whoops(folder, list(captions.items()))
    rows = [{"file_name": f"{name}.jpg", "captions": captions[name]} for name in captions]
    (folder / "set").mkdir()
    for name in captions:
        shutil.copy(PHOTOS / f"{name}.jpg", folder / "set")
    write_lines(folder / "set", rows, "metadata.jsonl")
    files = [folder / f"{name}.jpg" for name in captions]
    write_parquet(folder / "data.parquet", files, captions=list(captions.values()), image_id=["p", "q"])
    here = {"images": str(folder)}
    return {
        "coco-karpathy": ("coco-karpathy", here, [11]),
        "coco-karpathy-train": ("coco-karpathy", {**here, "split": "train"}, [12]),
        "flickr30k": ("flickr30k", here, ["cat", "coffee"]),
        "coco": (folder / "captions_val2014.json", {}, [4, 5]),
        "nocaps": ("nocaps", here, [4, 5]),
        "whoops": ("whoops", here, ["cat", "coffee"]),
        "imagefolder": (folder / "set", {}, ["cat.jpg", "coffee.jpg"]),
        "parquet": (folder / "data.parquet", {}, ["p", "q"]),
    }


def test_every_format_end_to_end(tiny_dir: Path, tmp_path: Path) -> None:
    by_photo: dict[str, str] = {}
    for name, (dataset, options, ids) in format_files(tmp_path).items():
        results = run(tiny_dir, dataset, tmp_path / "out" / name, memory_effect=False, metrics=["rouge_l"], **options)
        predictions = read(tmp_path / "out" / name / "predictions.json")
        assert [row["image_id"] for row in predictions] == ids
        groups = ["all", "in-domain", "out-domain"] if name == "nocaps" else ["all"]
        assert list(results["variants"][0]["metrics"]) == groups
        published = {row["metrics"]["CIDEr"] for row in results["published"]}
        assert published == {"coco-karpathy": {140.1, 119.7, 119.52}, "flickr30k": {84.4}}.get(str(dataset), set())
        for row in json_lines(tmp_path / "out" / name / "photos.jsonl"):
            photo = "cat" if "cat" in row["references"][0].lower() else "coffee"
            assert by_photo.setdefault(photo, row["caption"]) == row["caption"]  # the same photo in every format
    assert len(set(by_photo.values())) == 2


def json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_shared_validation_photos_with_the_embedded_default(tmp_path: Path) -> None:
    if not SHARED.is_file():
        pytest.skip("the development data ../shared/data/captions/validation.parquet is not here")
    arguments = EvaluationArguments(str(SHARED), str(tmp_path), limit=6, memory_effect=False, report_photos=2)
    results = evaluate_captioner(arguments)
    assert results is not None and results["variants"][0]["metrics"]["all"]["CIDEr"] > 5
    assert results["model"]["name"] == "evcap-tiny (embedded)" and (tmp_path / "report.html").is_file()


def test_smallcap(captioned: Path, tmp_path: Path) -> None:
    model = tiny_smallcap.make_model()
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path / "model")
    tiny_smallcap.make_processor().save_pretrained(tmp_path / "model")
    results = run(
        tmp_path / "model", captioned, tmp_path / "out", ablate=["names"], ablate_names=[1, 4], report_photos=2
    )
    assert [variant["name"] for variant in results["variants"]] == ["as it is", "without the memory", "1 caption"]
    photos = json_lines(tmp_path / "out" / "photos.jsonl")
    assert [len(photo["retrieved"]) for photo in photos] == [4] * 5
    assert photos[0]["retrieved"][0]["caption"] in (tmp_path / "out" / "report.html").read_text()
    assert (
        results["model"]["type"] == "smallcap" and "unsupported names" not in results["variants"][0]["metrics"]["all"]
    )
    without = run(tmp_path / "model", captioned, tmp_path / "none", memory="none")
    assert [variant["name"] for variant in without["variants"]] == ["as it is"]
    assert [photo["caption"] for photo in json_lines(tmp_path / "none" / "photos.jsonl")] == [
        photo["caption_without_memory"] for photo in photos
    ]


def test_a_test_set_without_references(tiny_dir: Path, tmp_path: Path) -> None:
    shutil.copy(PHOTOS / "cat.jpg", tmp_path)
    file = write_lines(tmp_path, [{"image": "cat.jpg"}], "photos.jsonl")
    results = run(tiny_dir, file, tmp_path / "out", report_photos=3)
    assert results["variants"][0]["metrics"] == {}
    assert "no references: nothing was scored" in (tmp_path / "out" / "results.md").read_text()
    assert "nothing was scored" in (tmp_path / "out" / "report.html").read_text()
    for metric, needs in (("cider", "reference captions"), ("novel_object_recall", "`object_column`")):
        with pytest.raises(ValueError, match=f"The metric {metric} needs {needs}"):
            run(tiny_dir, file, tmp_path / "new", metrics=[metric])
    assert not (tmp_path / "new").exists()  # said before anything is captioned


def test_an_unreadable_photo_is_named_or_left_out(tiny_dir: Path, tmp_path: Path) -> None:
    for name in ("cat", "coffee"):
        shutil.copy(PHOTOS / f"{name}.jpg", tmp_path)
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "cat.jpg").read_bytes()[:500])
    rows = [{"image": f"{name}.jpg", "caption": f"a {name}"} for name in ("cat", "broken", "coffee")]
    file = write_lines(tmp_path, rows)
    with pytest.raises(ValueError, match="The photo 'broken.jpg' cannot be read"):
        run(tiny_dir, file, tmp_path / "raise", memory_effect=False)
    results = run(tiny_dir, file, tmp_path / "skip", on_error="skip")
    assert results["dataset"]["left_out"] == ["broken.jpg"] and results["variants"][0]["photos"]["all"] == 2
    assert [row["image_id"] for row in read(tmp_path / "skip" / "predictions.json")] == ["cat.jpg", "coffee.jpg"]


def test_command_line_with_a_config_file(
    tiny_dir: Path, captioned: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options = {"model": str(tiny_dir), "dataset": str(captioned), "batch-size": 5, "limit": 2, "metrics": ["bleu"]}
    config = tmp_path / "evaluation.yaml"
    config.write_text(yaml.safe_dump(options))
    arguments = ["evaluate", "--config", str(config), "--limit", "3", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--report-photos", "0", "--no-memory-effect"]) == 0
    printed = capsys.readouterr().out
    assert "3 photos, 6 reference captions" in printed and "| as it is |" in printed and "CIDEr" not in printed
    assert len(read(tmp_path / "out" / "predictions.json")) == 3


def test_other_settings_in_the_same_folder_are_refused(tiny_dir: Path, captioned: Path, tmp_path: Path) -> None:
    options = {"limit": 2, "memory_effect": False}
    run(tiny_dir, captioned, tmp_path, **options)
    with pytest.raises(ValueError, match="differs in generation.*--restart"):
        run(tiny_dir, captioned, tmp_path, num_beams=2, **options)
    with pytest.raises(ValueError, match="differs in dataset"):
        run(tiny_dir, captioned, tmp_path, **{**options, "limit": 3})
    results = run(tiny_dir, captioned, tmp_path, num_beams=2, restart=True, **options)
    assert results["variants"][0]["settings"]["generation"]["num_beams"] == 2


def test_card_of_the_model_gets_the_figures(tiny_dir: Path, captioned: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dir, model)
    for _ in range(2):  # a second time replaces the rows
        results = run(model, captioned, tmp_path / "out", update_card=True)
    facts = read(model / "results.json")
    (table,) = facts["tables"]
    assert [row["setting"] for row in table["rows"]] == [
        "as it is", "as it is, in-domain", "as it is, out-domain", "without the memory",
    ]  # fmt: skip
    rouge = round(results["variants"][0]["metrics"]["all"]["ROUGE-L"], 1)
    metadata = yaml.safe_load((model / "README.md").read_text().split("---\n")[1])
    entries = metadata["model-index"][0]["results"]
    figures = {metric["name"]: metric["value"] for entry in entries for metric in entry["metrics"]}
    assert figures["ROUGE-L (as it is)"] == rouge and "ROUGE-L (without the memory)" not in figures
    assert f"| {rouge} |" in (model / "README.md").read_text()
    with pytest.raises(ValueError, match="org/model is no model's folder"):
        run(Path("org/model"), captioned, tmp_path / "new", update_card=True)


def test_published_results_have_sources() -> None:
    rows = published_results()
    assert all(row["source"] and row["metrics"] for row in rows)
    (flickr,) = published_results("flickr30k")
    assert flickr["metrics"] == {"CIDEr": 84.4} and flickr["url"] == "https://arxiv.org/abs/2311.15879"
    smallcap = published_results("coco-karpathy", "smallcap")
    assert smallcap[0]["metrics"] == {"CIDEr": 119.7, "BLEU-4": 37.0, "METEOR": 27.9, "SPICE": 21.3}
    assert smallcap[1]["metrics"] == {"CIDEr": 119.52, "BLEU-4": 36.7, "METEOR": 27.9, "SPICE": 21.26}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "holds no predictions"),
        ({"image_id": 0}, "must hold a list of .*got dict"),
        ([{"image_id": 0}], "must have `image_id` and `caption`"),
        ([{"image_id": 0, "caption": float("nan")}], "the caption must be text, got nan"),
        ([{"image_id": float("nan"), "caption": "x"}], "the image id is nan"),
        ([{"image_id": 0, "caption": "x"}] * 2, "the image id '0' stands twice"),
        ([{"image_id": 77, "caption": "x"}], "the dataset has no image id '77'; its ids are 0, 1, 2, 3, 4"),
        ([{"image_id": 0, "caption": "x"}], "no captions for 4 of 5 photos: 1, 2, 3, 4"),
        ("[", "not valid JSON"),
    ],
)
def test_bad_predictions(captioned: Path, tmp_path: Path, content: Any, message: str) -> None:
    file = write(tmp_path / "captions.json", content)
    with pytest.raises(ValueError, match=message):
        evaluate_captioner(EvaluationArguments(str(captioned), str(tmp_path / "out"), predictions=str(file)))
    assert not (tmp_path / "out").exists()


def test_given_predictions_are_scored(captioned: Path, tmp_path: Path) -> None:
    captions = [{"image_id": row["image_id"], "caption": row["captions"][0]} for row in json_lines(captioned)]
    file = write(tmp_path / "captions.json", captions[::-1])
    results = evaluate_captioner(EvaluationArguments(str(captioned), str(tmp_path / "out"), predictions=str(file)))
    assert results is not None and results["variants"][0]["metrics"]["all"]["ROUGE-L"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"metrics": ["ciderr"]}, "`metrics` has no ciderr; there are cider, bleu"),
        ({"ablate": ["colour"]}, "`ablate` has no colour; there are memory, names, rule, rejection, beams, all"),
        ({"predictions": "x.json", "ablate": ["names"]}, "`ablate` and `update_card` need a model"),
        ({"update_card": True}, "name it with `model`"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationArguments("x", "y", **options)


def test_columns_that_are_not_there(tiny_dir: Path, captioned: Path, tmp_path: Path) -> None:
    for option in ("object_column", "group_by"):
        with pytest.raises(ValueError, match="There is no column 'zone'; there are image, image_id, captions"):
            run(tiny_dir, captioned, tmp_path, **{option: "zone"})
