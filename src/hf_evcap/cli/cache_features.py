"""`hf-evcap cache-features`: the frozen vision encoder's output for every photo, computed once."""

from __future__ import annotations

from ..caption_data import FORMATS, KNOWN_DATASETS
from . import logs
from .common_options import (
    add_dataset_options,
    add_device,
    add_model,
    add_output,
    add_overwrite,
    add_reading,
    add_shards,
    alias,
)
from .options import existing_folder, existing_path
from .sources import check_dataset, check_model
from .verb_parser import VerbParser
from .yaml_config import add_config, parse_with_config


DESCRIPTION = """Run a model's frozen vision encoder over every photo of a dataset and keep its hidden states, so that
training reads them instead of running the encoder in every epoch. The cache is a folder that `datasets.load_from_disk`
opens. Training refuses the cache of another encoder or of another preprocessing of photos. Interrupted, the command
goes on when it is given again. `accelerate launch -m hf_evcap.cli.main cache-features ...` shares the work among
processes, with the same result."""


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap cache-features",
        usage="hf-evcap cache-features --dataset DATASET --output FOLDER [options]",
        description=DESCRIPTION,
        examples=[
            "cache-features --model MODEL --dataset coco-karpathy --split train --images coco --output features",
            "train --model MODEL --dataset ... --feature-cache features --output out",
        ],
    )
    add_model(parser, "model whose vision encoder is used: ")
    parser.add_argument(
        "--dataset",
        metavar="DATASET",
        help=f"photos, with captions or without: {', '.join(KNOWN_DATASETS)}, a file, a folder or a Hub dataset "
        "(required)",
    )
    add_output(parser, "the cache (required)", required=False)
    parser.add_argument(
        "--split", metavar="SPLIT", help="split, or several as train+restval (default: as `hf-evcap train`)"
    )
    parser.add_argument(
        "--images", type=existing_folder, metavar="FOLDER", help="folder of the photos (default: the listing file's)"
    )
    parser.add_argument("--annotations", type=existing_path, metavar="FILE", help="a benchmark's listing file")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        metavar="FORMAT",
        help=f"format of the dataset: {', '.join(FORMATS)} (default: found from its content)",
    )
    add_dataset_options(parser)
    alias(parser, "--dataset-config", "--config-name")
    parser.add_argument("--image-column", metavar="NAME", help="column of the photos (default: found by its name)")
    parser.add_argument("--id-column", metavar="NAME", help="column of the photos' ids (default: found by its name)")
    parser.add_argument(
        "--feature-dtype",
        dest="dtype",
        choices=["float16", "float32"],
        default="float16",
        help="precision on disk; float32 trains to the same losses as without the cache",
    )
    alias(parser, "--feature-dtype", "--dtype")
    parser.add_argument(
        "--encoder-dtype",
        choices=["auto", "float32", "float16", "bfloat16"],
        help="precision of the encoder (default: as in `hf-evcap train`, float32 on a CPU, else that of its weights)",
    )
    add_device(parser)
    add_shards(parser, 32, 512, "photos encoded at once", "photos after which progress is kept")
    add_reading(parser)
    add_overwrite(parser)
    parser.add_argument("--restart", action="store_true", help="forget what an earlier run made")
    add_config(parser)
    parser.add_common()
    return parser


def main(argv: list[str] | None = None) -> int:
    """Makes a cache."""
    parser = make_parser()
    arguments = parse_with_config(parser, argv)
    missing = [f"--{name}" for name in ("dataset", "output") if not getattr(arguments, name)]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    check_model(arguments.model, arguments.revision)
    check_dataset(arguments.dataset, KNOWN_DATASETS, arguments.dataset_revision)

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import hf_evcap

    from ..caption_data import load_caption_data
    from ..pipeline_loading import check_device
    from ..processes import process_state
    from ..training.feature_cache import build_feature_cache

    logs.settle()
    processes = process_state()
    check_device(arguments.device)
    device = torch.device(arguments.device or processes.device)
    photos = load_caption_data(
        arguments.dataset,
        arguments.split,
        images=arguments.images,
        annotations=arguments.annotations,
        format=arguments.format,
        config_name=arguments.dataset_config,
        image_column=arguments.image_column,
        id_column=arguments.id_column,
        require_captions=False,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        revision=arguments.dataset_revision,
    )
    source = arguments.model or hf_evcap.default_model()
    dtype = arguments.encoder_dtype or ("float32" if device.type == "cpu" else "auto")
    model = AutoModelForImageTextToText.from_pretrained(source, revision=arguments.revision, memory=False, dtype=dtype)
    if not hasattr(model, "get_vision_hidden_states"):
        raise ValueError(f"{source} is {type(model).__name__}; features are cached for EVCap and SmallCap.")
    # The language model stays where it is. Convolutions of an encoder run up to three times faster channels last.
    model.vision_model.to(device, memory_format=torch.channels_last)
    processor = AutoProcessor.from_pretrained(source, revision=arguments.revision)
    report = build_feature_cache(
        model,
        processor,
        photos,
        arguments.output,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        shard_size=arguments.shard_size,
        on_error=arguments.on_error,
        restart=arguments.restart,
        overwrite=arguments.overwrite,
    )
    if report is not None:
        patches, width = report.shape
        resumed = f", {report.resumed} of {report.shards} shards from an earlier run" if report.resumed else ""
        print(
            f"features of {report.photos} photos ({patches} x {width}, {arguments.dtype}, {report.bytes / 1e6:.1f} "
            f"MB) written to {arguments.output}{resumed}"
        )
        for image_id, reason in report.skipped.items():
            print(f"skipped photo {image_id}: {reason}")
    return 0
