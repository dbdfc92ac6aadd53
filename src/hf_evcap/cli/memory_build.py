"""`hf-evcap memory build`: a memory from a collection of named photos."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from ..memory_building import NamedPhotos


DESCRIPTION = """Build a memory from named photos. SOURCE is one of

  a folder        whose sub-folders are named for what their photos show
  a .csv, .tsv or .jsonl file    with columns of the photos' paths or URLs and their names
  a .json file    of LVIS or COCO annotations: crops of boxes, at most --photos-per-name a name (needs --images)
  a .yaml file    a recipe: `source` and any of the options below, by name with _ for -; options given here win
  anything else   a dataset on the Hub, or a folder that `datasets` can load (with --dataset)

A build that was interrupted goes on when the same command is given again. `accelerate launch -m hf_evcap.cli.main
memory build ...` shares the work among processes, with the same result."""


def add_parser(verbs: Any) -> argparse.ArgumentParser:
    """Adds the verb to the parser of `memory`, and returns its own parser."""
    parser = verbs.add_parser(
        "build",
        help="from a folder, a table, a dataset or annotations",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="photos with names")
    parser.add_argument("--model", required=True, help="model folder or Hub id whose encoder makes the keys")
    parser.add_argument("--out", required=True, help="folder for the memory")
    parser.add_argument("--images", help="folder that paths start from (tables, annotations)")
    parser.add_argument("--dataset", action="store_true", help="SOURCE is for `datasets.load_dataset`")
    parser.add_argument("--config", help="configuration of the dataset")
    parser.add_argument("--split", default="train", help="split of the dataset (default: %(default)s)")
    parser.add_argument("--revision", help="revision of the dataset")
    parser.add_argument("--image-column", default="image", help="default: %(default)s")
    parser.add_argument("--name-column", default="name", help="default: %(default)s")
    parser.add_argument("--columns", default="", help="further columns to keep, separated by commas")
    parser.add_argument("--source-name", help="value of the column `source`")
    parser.add_argument("--license", help="licence of the source, for the memory's card")
    parser.add_argument("--photos-per-name", type=int, default=10, help="annotations: default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of photos, and of synthetic ones")
    parser.add_argument("--synthetic", type=int, default=0, metavar="N", help="add N synthetic photos of each name")
    parser.add_argument(
        "--diffusion-model",
        default="stable-diffusion-v1-5/stable-diffusion-v1-5",
        help="diffusers pipeline for --synthetic (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=25, help="denoising steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="photos encoded at once (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=512, help="photos after which progress is kept")
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="photos that cannot be read")
    parser.add_argument("--index", help="FAISS factory string, such as Flat or HNSW32 (default: by size)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the kept keys")
    parser.add_argument("--restart", action="store_true", help="forget an unfinished build")
    parser.set_defaults(run=lambda arguments: run(follow_recipe(arguments, parser)))
    return parser


def follow_recipe(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Takes SOURCE and the options that were not given from a recipe, where SOURCE is one."""
    if Path(arguments.source).suffix.lower() not in (".yaml", ".yml"):
        return arguments
    import yaml

    recipe = yaml.safe_load(Path(arguments.source).read_text(encoding="utf-8"))
    if not isinstance(recipe, dict) or "source" not in recipe:
        raise ValueError(f"The recipe {arguments.source} must be a mapping with `source`.")
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    unknown = sorted(set(recipe) - set(actions))
    if unknown:
        raise ValueError(
            f"The recipe {arguments.source} has unknown entries {unknown}; it may have {sorted(actions)}."
        )
    for name, value in recipe.items():
        given, action = getattr(arguments, name), actions[name]
        if action.choices and value not in action.choices:
            raise ValueError(f"`{name}` in {arguments.source} must be one of {list(action.choices)}; got {value!r}.")
        kind: Any = type(action.default) if action.default is not None else action.type or str
        if not isinstance(value, kind):
            raise ValueError(f"`{name}` in {arguments.source} must be {kind.__name__}; got {value!r}.")
        if given == action.default:
            setattr(arguments, name, value)
    arguments.source = recipe["source"]
    return arguments


def find_photos(arguments: argparse.Namespace) -> NamedPhotos:
    """Opens SOURCE as what it is."""
    from ..memory_building import annotated_boxes, dataset_rows, photo_folder, photo_table

    source = Path(arguments.source)
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
    from accelerate import PartialState

    from ..memory_building import build_memory, joined
    from ..modeling_evcap import EVCapForConditionalGeneration
    from ..processing_evcap import EVCapProcessor

    processes = PartialState()
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
    model = EVCapForConditionalGeneration.from_pretrained(arguments.model, memory=False).to(processes.device).eval()
    processor = EVCapProcessor.from_pretrained(arguments.model)
    sources = {photos[0]["source"]: arguments.license} if arguments.license else {}
    report = build_memory(
        model,
        processor,
        photos,
        arguments.out,
        batch_size=arguments.batch_size,
        shard_size=arguments.shard_size,
        on_error=arguments.on_error,
        restart=arguments.restart,
        index_factory=arguments.index,
        dtype=arguments.dtype,
        licenses=sources,
    )
    if report is not None:
        resumed = f", {report.resumed} of {report.shards} shards from an earlier run" if report.resumed else ""
        print(f"{report.rows} rows from {report.photos} photos written to {arguments.out}{resumed}")
        for number, reason in report.skipped.items():
            print(f"skipped photo {number}: {reason}")
    return 0
