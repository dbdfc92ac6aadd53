"""`hf-evcap memory build`: a memory from a collection of named photos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .build_options import RECIPES, add_build_options, add_build_verb, build_options, load_encoder, print_report


if TYPE_CHECKING:
    from ..memory_building import NamedPhotos


DESCRIPTION = f"""Build a memory from named photos. SOURCE is one of

  a folder        whose sub-folders are named for what their photos show
  a .csv, .tsv or .jsonl file    with columns of the photos' paths or URLs and their names
  a .json file    of LVIS or COCO annotations: crops of boxes, at most --photos-per-name a name (needs --images)
{RECIPES.format(example="memories/lvis")}
  anything else   a dataset on the Hub, or a folder that `datasets` can load (with --dataset)"""


def add_parser(verbs: Any) -> argparse.ArgumentParser:
    """Adds the verb to the parser of `memory`, and returns its own parser."""
    parser = add_build_verb(
        verbs, "memory", run, "photos with names", "from a folder, a table, a dataset or annotations", DESCRIPTION
    )
    parser.add_argument("--model", required=True, help="model folder or Hub id whose encoder makes the keys")
    parser.add_argument("--images", help="folder that paths start from (tables, annotations)")
    parser.add_argument("--dataset", action="store_true", help="SOURCE is for `datasets.load_dataset`")
    parser.add_argument("--config", help="configuration of the dataset")
    parser.add_argument("--split", default="train", help="split of the dataset (default: %(default)s)")
    parser.add_argument("--revision", help="revision of the dataset")
    parser.add_argument("--image-column", default="image", help="default: %(default)s")
    parser.add_argument("--name-column", default="name", help="default: %(default)s")
    parser.add_argument(
        "--names-from",
        choices=["names", "captions"],
        default="names",
        help="captions: SOURCE holds captioned photos, as for `hf-evcap train`; the words that their captions share "
        "become rows of kind scene, for models that retrieve by the rule vote (default: %(default)s)",
    )
    parser.add_argument(
        "--feature-cache", help="folder of `hf-evcap cache-features`: photos that are in it are not encoded again"
    )
    parser.add_argument("--columns", default="", help="further columns to keep, separated by commas")
    parser.add_argument("--photos-per-name", type=int, default=10, help="annotations: default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of photos, and of synthetic ones")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="add N synthetic photos of each name")
    parser.add_argument(
        "--diffusion-model",
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        help="diffusers pipeline for --synthetic (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    add_build_options(parser)
    return parser


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
        f"{source} is neither a folder nor a .csv, .tsv, .jsonl or .json file; give --dataset for `datasets` to load "
        "it."
    )


def run(arguments: argparse.Namespace) -> int:
    """Builds."""
    from ..memory_building import build_memory, joined
    from ..processes import process_state

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
    model, processor = load_encoder(arguments.model, processes.device)
    features = None
    if arguments.feature_cache is not None:
        from ..training.feature_cache import VisionFeatureCache

        features = VisionFeatureCache.open(arguments.feature_cache, model, processor)
    report = build_memory(
        model,
        processor,
        photos,
        arguments.out,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        features=features,
        **build_options(arguments, photos[0]["source"], 32, 512),
    )
    return print_report(report, arguments.out)
