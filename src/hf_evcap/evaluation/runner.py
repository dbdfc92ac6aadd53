"""`evaluate_captioner`: captions a dataset, scores the captions and writes everything down."""

from __future__ import annotations

import datetime
import importlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from ..caption_data import KNOWN_DATASETS, load_caption_data
from ..output_folders import check_output
from ..processes import process_state
from ..whole_files import write_json, write_text
from .ablation_plot import plot_ablation
from .arguments import EvaluationArguments
from .captioner import caption_variant, describe_model, evaluated_pipeline, hash_dataset
from .card import check_model_folder, update_card
from .given_predictions import read_predictions
from .memory_overlap import photos_in_memory
from .published import published_results
from .report import write_report
from .scoring import CaptionedPhotos, check_metrics, choose_metrics, score
from .tables import markdown_report
from .variants import Variant, base_values, other_variants


_WORK = ("memory_overlap", "predictions")  # folders of what is done so far
_WRITTEN = (
    "predictions.json", "photos.jsonl", "results.json", "results.md", "report.html", "ablation.png",
)  # fmt: skip
_PACKAGES = ("hf_evcap", "torch", "transformers", "datasets", "evaluate", "accelerate", "faiss")
BASE = "as it is"


def evaluate_captioner(arguments: EvaluationArguments) -> dict[str, Any] | None:
    """
    Evaluates a captioner, or captions that are given.

    Under `accelerate launch` every process captions a part; results are the same for any number of processes. The
    folder `output` then holds `predictions.json` (COCO format), `photos.jsonl` (every photo's caption, references,
    names and score), `results.json`, `results.md`, `report.html` and, with an ablation, `ablation.png`.

    Args:
        arguments ([`EvaluationArguments`]): What to evaluate, and on what.

    Returns:
        `dict` or `None`: What `results.json` holds; `None` on all processes but the main one.

    Raises:
        ImportError, RuntimeError: What a metric needs is not installed.
        ValueError: Bad data (see [`load_caption_data`]), unknown metrics, predictions that do not fit the photos, or
            an output folder with predictions under other settings.
    """
    state = process_state()
    output = Path(arguments.output)
    with state.local_main_process_first():  # one process fills the cache of `datasets`
        data = load_data(arguments)
    if arguments.update_card:
        check_model_folder(str(arguments.model))
    check_metrics(arguments.metrics, all(map(len, data["captions"])), arguments.object_column is not None)
    plan: dict[str, Any] = {
        "dataset": {"fingerprint": hash_dataset(data), "photos": len(data)},
        "batch_size": arguments.batch_size,
    }
    seen: list[int] = []
    runs: list[tuple[Variant, list[dict[str, Any]], dict[str, Any]]]
    if arguments.predictions is not None:
        model: dict[str, Any] = {"name": Path(arguments.predictions).name, "type": None}
        runs = [(Variant(BASE), read_predictions(arguments.predictions, data["image_id"]), {})]
        values: dict[str, Any] = {}
    else:
        pipe = evaluated_pipeline(arguments)
        model = describe_model(pipe, arguments)
        values = base_values(pipe.model, arguments)
        plan["model"] = {name: model[name] for name in ("type", "dtype", "weights_fingerprint")}
        seen = photos_in_memory(pipe, data, output / "memory_overlap", plan, arguments)
        if arguments.leave_out_memory_photos and seen:
            data, seen = data.select(sorted(set(range(len(data))) - set(seen))), []
            if not len(data):
                raise ValueError("Every photo is in the model's memory, so `leave_out_memory_photos` leaves none.")
            plan["dataset"] = {"fingerprint": hash_dataset(data), "photos": len(data)}
        variants = [Variant(BASE), *other_variants(pipe.model, arguments)]
        runs = [(one, *caption_variant(pipe, data, one, output, plan, arguments)) for one in variants]
    if not state.is_main_process:
        return None
    results = {**_results(arguments, data, model, values, runs), "processes": state.num_processes}
    results["dataset"]["in_memory"] = [data["image_id"][row] for row in seen]
    _write(output, arguments, data, results, runs)
    return results


def check_results_folder(arguments: EvaluationArguments) -> None:
    """
    Refuses a folder that holds something else, or scores of given captions.

    What was captioned there is gone on with; [`evaluate_captioner`] does so under the same settings only.

    Raises:
        OutputExistsError: Neither is it so, nor may the folder be overwritten.
    """
    output = Path(arguments.output)
    resumes = arguments.predictions is None and any((output / name).is_dir() for name in _WORK)
    check_output(output, arguments.overwrite, own=(*_WORK, *_WRITTEN) if resumes else ())


def load_data(arguments: EvaluationArguments) -> datasets.Dataset:
    """The photos to caption, with their references."""
    data = load_caption_data(
        arguments.dataset,
        arguments.split,
        images=arguments.images,
        annotations=arguments.annotations,
        format=arguments.format,
        config_name=arguments.config_name,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        id_column=arguments.id_column,
        domain_column=arguments.domain_column,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        revision=arguments.dataset_revision,
    )
    if arguments.object_column is not None and arguments.object_column not in data.column_names:
        raise ValueError(f"There is no column {arguments.object_column!r}; there are {', '.join(data.column_names)}.")
    if arguments.group_by != "domain" and arguments.group_by not in data.column_names:
        raise ValueError(f"There is no column {arguments.group_by!r}; there are {', '.join(data.column_names)}.")
    return data.select(range(min(arguments.limit or len(data), len(data))))


def captioned_photos(
    arguments: EvaluationArguments, data: datasets.Dataset, predictions: Sequence[Mapping[str, Any]]
) -> CaptionedPhotos:
    """Brings predictions and references together; photos that could not be read are left out."""
    rows = [row for row, prediction in enumerate(predictions) if prediction["caption"] is not None]
    if not rows:
        raise ValueError("No photo could be read, so there is nothing to score.")
    table = data.select(rows)
    chosen = [predictions[row] for row in rows]
    groups = objects = None
    if arguments.group_by in table.column_names:
        groups = [str(group) for group in table[arguments.group_by]]
    if arguments.object_column is not None:
        objects = [[name] if isinstance(name, str) else list(name) for name in table[arguments.object_column]]
    return CaptionedPhotos(
        image_ids=list(table["image_id"]),
        captions=[prediction["caption"] for prediction in chosen],
        references=list(table["captions"]),
        retrieved=[prediction["retrieved"] for prediction in chosen],
        groups=groups,
        objects=objects,
        images=table["image"] if "clip_score" in arguments.metrics else [],
    )


def _results(
    arguments: EvaluationArguments,
    data: datasets.Dataset,
    model: dict[str, Any],
    values: dict[str, Any],
    runs: Sequence[tuple[Variant, list[dict[str, Any]], dict[str, Any]]],
) -> dict[str, Any]:
    known = KNOWN_DATASETS.get(arguments.dataset)
    variants = []
    for variant, predictions, settings in runs:
        photos = captioned_photos(arguments, data, predictions)
        scored = score(photos, choose_metrics(arguments.metrics, photos), arguments.clip_model)
        variants.append({
            "name": variant.name,
            "group": variant.group,
            "value": variant.value,
            "metrics": {group: figures for group, figures in scored.by_group.items() if figures},
            "photos": scored.photos,
            "cider_per_photo": scored.cider_per_photo,
            "details": scored.details,
            "settings": settings,
        })  # fmt: skip
    return {
        "format_version": 1,
        "model": model,
        "dataset": {
            "name": arguments.dataset,
            "title": known.title if known else Path(arguments.dataset).name,
            "hub_id": known.hub_id if known else None,
            "split": arguments.split or (known.split if known else None),
            "photos": len(data),
            "captions": sum(map(len, data["captions"])),
            "fingerprint": hash_dataset(data),
            "left_out": [row["image_id"] for row in runs[0][1] if row["caption"] is None],
        },
        "group_by": arguments.group_by,
        "base_values": values,
        "variants": variants,
        "published": published_results(arguments.dataset) if known else [],
        "versions": {
            "python": platform.python_version(),
            **{name: str(importlib.import_module(name).__version__) for name in _PACKAGES},
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _write(
    output: Path,
    arguments: EvaluationArguments,
    data: datasets.Dataset,
    results: dict[str, Any],
    runs: Sequence[tuple[Variant, list[dict[str, Any]], dict[str, Any]]],
) -> None:
    """Writes the files of an evaluation."""
    output.mkdir(parents=True, exist_ok=True)
    predictions = [row for row in runs[0][1] if row["caption"] is not None]
    numbers = all(row["image_id"].isdigit() and str(int(row["image_id"])) == row["image_id"] for row in predictions)
    write_json(
        output / "predictions.json",
        [
            {"image_id": int(row["image_id"]) if numbers else row["image_id"], "caption": row["caption"]}
            for row in predictions
        ],
    )
    rows = photo_rows(data, results, runs)
    write_text(output / "photos.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    slim = [{name: value for name, value in one.items() if name != "cider_per_photo"} for one in results["variants"]]
    write_json(output / "results.json", {**results, "variants": slim})
    write_text(output / "results.md", markdown_report(results))
    plot = output / "ablation.png"
    if arguments.ablate and results["variants"][0]["metrics"]:
        plot_ablation(results, plot)
    if arguments.report_photos:
        shown = plot if arguments.ablate and plot.is_file() else None
        write_report(output / "report.html", data, results, rows, arguments.report_photos, shown)
    if arguments.update_card:
        update_card(str(arguments.model), results)


def photo_rows(
    data: datasets.Dataset,
    results: dict[str, Any],
    runs: Sequence[tuple[Variant, list[dict[str, Any]], dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Everything about each photo that could be read, also what was made of it without the memory."""
    references, rows = data["captions"], []
    readable = [row for row, prediction in enumerate(runs[0][1]) if prediction["caption"] is not None]
    for place, row in enumerate(readable):
        prediction = runs[0][1][row]
        entry = {
            "row": row,
            "image_id": prediction["image_id"],
            "caption": prediction["caption"],
            "references": references[row],
            "retrieved": prediction["retrieved"],
        }
        for (variant, predictions, _), scored in zip(runs, results["variants"], strict=True):
            cider = scored["cider_per_photo"]
            if variant.group == "base" and cider:
                entry["cider"] = cider[place]
            elif variant.group == "memory effect":
                entry["caption_without_memory"] = predictions[row]["caption"]
                if cider:
                    entry["cider_without_memory"] = cider[place]
        rows.append(entry)
    return rows
