"""`hf-evcap memory build`: a memory from a collection of named photos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import logs
from .build_options import (
    RECIPES,
    add_build_options,
    add_build_verb,
    build_options,
    check_target,
    load_encoder,
    print_report,
)
from .common_options import add_seed, alias
from .options import columns, count, existing_folder, positive_int
from .sources import check_dataset, check_model


if TYPE_CHECKING:
    from ..memory_building import NamedPhotos


DESCRIPTION = f"""Build a memory from named photos. SOURCE is one of

  a folder                     whose sub-folders are named for what their photos show
  a .csv, .tsv or .jsonl       with columns of the photos' paths or URLs and their names
  a .json                      of LVIS or COCO annotations: crops of boxes (needs --images)
{RECIPES.format(example="memories/lvis")}
  anything else                a dataset on the Hub, or what `datasets` loads (--as-dataset)"""


def add_parser(verbs: Any) -> argparse.ArgumentParser:
    """Adds the verb to the parser of `memory`, and returns its own parser."""
    parser = add_build_verb(
        verbs,
        "memory",
        run,
        "photos with names",
        "build a memory from a folder, a table, a dataset or annotations",
        DESCRIPTION,
        [
            "memory build photos/ --output kitchen",
            "memory build objects.csv --images photos/ --license CC0 --output kitchen",
            "memory build lvis_v1_train.json --images train2017/ --model MODEL --output lvis",
        ],
    )
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="model whose encoder makes the keys: folder or Hub id org/name (default: the embedded evcap-tiny)",
    )
    parser.add_argument(
        "--images", type=existing_folder, metavar="FOLDER", help="folder that paths start from (tables, annotations)"
    )
    parser.add_argument("--as-dataset", dest="dataset", action="store_true", help="let `datasets` load SOURCE")
    alias(parser, "--as-dataset", "--dataset")
    parser.add_argument(
        "--dataset-config", dest="config", metavar="NAME", help="configuration of a dataset on the Hub"
    )
    alias(parser, "--dataset-config", "--config")
    parser.add_argument("--split", metavar="SPLIT", default="train", help="split of the dataset")
    parser.add_argument(
        "--dataset-revision", dest="revision", metavar="REV", help="branch, tag or commit of a dataset on the Hub"
    )
    alias(parser, "--dataset-revision", "--revision")
    parser.add_argument("--image-column", metavar="NAME", default="image", help="column of the photos")
    parser.add_argument("--name-column", metavar="NAME", default="name", help="column of the names")
    parser.add_argument(
        "--names-from",
        choices=["names", "captions"],
        default="names",
        help="captions: SOURCE holds captioned photos, as for `hf-evcap train`; the words that their captions share "
        "become rows of kind scene, for models that retrieve by the rule vote",
    )
    parser.add_argument(
        "--feature-cache",
        type=existing_folder,
        metavar="FOLDER",
        help="folder of `hf-evcap cache-features`: photos that are in it are not encoded again",
    )
    parser.add_argument(
        "--columns", type=columns, metavar="NAMES", default="", help="further columns to keep, separated by commas"
    )
    parser.add_argument(
        "--photos-per-name", type=positive_int, metavar="N", default=10, help="annotations: photos of a name at most"
    )
    add_seed(parser, "the draw of photos, and of synthetic ones")
    parser.add_argument(
        "--synthetic", type=count, default=0, metavar="N", help="add N synthetic photos of each name (default: none)"
    )
    parser.add_argument(
        "--diffusion-model",
        metavar="MODEL",
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        help="diffusers pipeline for --synthetic",
    )
    parser.add_argument("--steps", type=positive_int, metavar="N", default=25, help="denoising steps of --synthetic")
    add_build_options(parser)
    parser.add_common()
    return parser


def check_source(arguments: argparse.Namespace) -> None:
    """Refuses a SOURCE that is nowhere, before anything is loaded."""
    source = Path(arguments.source)
    if arguments.names_from == "captions" or arguments.dataset or not source.exists():
        check_dataset(arguments.source)
    elif source.suffix.lower() == ".json" and arguments.images is None:
        raise ValueError("Annotations need --images, the folder of the photos.")


def find_photos(arguments: argparse.Namespace) -> NamedPhotos:
    """Opens SOURCE as what it is."""
    from ..memory_building import annotated_boxes, captioned_scenes, dataset_rows, photo_folder, photo_table

    source = Path(arguments.source)
    if arguments.names_from == "captions":
        from ..caption_data import load_caption_data

        split = arguments.split if arguments.dataset else None
        captioned = load_caption_data(
            arguments.source, split, images=arguments.images, require_captions=True, revision=arguments.revision
        )
        return captioned_scenes(captioned, arguments.source_name or source.stem)
    columns = [column for column in arguments.columns.split(",") if column]
    named = {"image_column": arguments.image_column, "name_column": arguments.name_column, "columns": columns}
    if arguments.dataset or not source.exists():
        from datasets import load_dataset

        dataset = load_dataset(arguments.source, arguments.config, split=arguments.split, revision=arguments.revision)
        return dataset_rows(dataset, **named, source=arguments.source_name or arguments.source)
    if source.is_dir():
        return photo_folder(source, arguments.source_name)
    if source.suffix.lower() == ".json":
        if arguments.images is None:
            raise ValueError("Annotations need --images, the folder of the photos.")
        return annotated_boxes(
            source, arguments.images, arguments.photos_per_name, arguments.seed, arguments.source_name
        )
    if source.suffix.lower() in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return photo_table(source, **named, images=arguments.images, source=arguments.source_name)
    raise ValueError(
        f"{source} is neither a folder nor a .csv, .tsv, .jsonl or .json file; give --as-dataset for `datasets` to "
        "load it."
    )


def run(arguments: argparse.Namespace) -> int:
    """Builds."""
    check_source(arguments)
    check_model(arguments.model)
    check_target(arguments)
    from ..memory_building import build_memory, joined
    from ..processes import process_state

    logs.settle()
    processes = process_state()
    photos = find_photos(arguments)
    if arguments.synthetic:
        from ..memory_building.synthetic_photos import load_diffusion_pipeline, synthetic_photos

        names = sorted({name for number in range(len(photos)) for name in photos[number]["names"]})
        made = synthetic_photos(
            names,
            arguments.synthetic,
            load_diffusion_pipeline(arguments.diffusion_model),
            arguments.diffusion_model,
            arguments.seed,
            num_inference_steps=arguments.steps,
        )
        photos = joined([photos, made])
    model, processor = load_encoder(arguments.model, arguments.device or processes.device)
    features = None
    if arguments.feature_cache is not None:
        from ..training.feature_cache import VisionFeatureCache

        features = VisionFeatureCache.open(arguments.feature_cache, model, processor)
    report = build_memory(
        model,
        processor,
        photos,
        arguments.output,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        features=features,
        **build_options(arguments, photos[0]["source"], 32, 512),
    )
    return print_report(report, arguments.output)
