"""`hf-evcap cache-features`: the frozen vision encoder's output for every photo, computed once."""

from __future__ import annotations

import argparse

from .build_options import add_overwrite


DESCRIPTION = """Run a model's frozen vision encoder over every photo of a dataset and keep its hidden states, so that
training reads them instead of running the encoder in every epoch:

  hf-evcap cache-features --model MODEL --dataset coco-karpathy --split train --images coco --output features
  hf-evcap train ... --feature-cache features

The cache is a folder that `datasets.load_from_disk` opens. Training refuses the cache of another encoder or of another
preprocessing of photos. Interrupted, the command goes on when it is given again. `accelerate launch -m
hf_evcap.cli.main cache-features ...` shares the work among processes, with the same result."""


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap cache-features", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", help="model folder or Hub id whose vision encoder is used (default: the embedded model)"
    )
    parser.add_argument("--dataset", required=True, help="benchmark, file, folder or Hub id of captioned photos")
    parser.add_argument("--output", required=True, help="folder for the cache")
    parser.add_argument("--split", help="split, or several as train+restval (default: as `hf-evcap train`)")
    parser.add_argument("--images", help="folder of the photos (default: the listing file's)")
    parser.add_argument("--annotations", help="a benchmark's listing file")
    parser.add_argument("--format", help="format of the dataset (default: found from its content)")
    parser.add_argument("--config-name", help="configuration of a Hub dataset")
    parser.add_argument("--image-column", help="column of the photos (default: found by its name)")
    parser.add_argument("--id-column", help="column of the photos' ids (default: found by its name)")
    parser.add_argument("--dataset-revision", help="revision of a Hub dataset")
    parser.add_argument("--revision", help="revision of the model")
    parser.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="precision on disk (default: %(default)s); float32 trains to the same losses as without the cache",
    )
    parser.add_argument(
        "--encoder-dtype",
        choices=["auto", "float32", "float16", "bfloat16"],
        help="precision of the encoder (default: as in `hf-evcap train`, float32 on a CPU, else that of its weights)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="photos encoded at once (default: %(default)s)")
    parser.add_argument(
        "--shard-size", type=int, default=512, help="photos after which progress is kept (default: %(default)s)"
    )
    parser.add_argument("--on-error", choices=["raise", "skip"], default="raise", help="photos that cannot be read")
    parser.add_argument(
        "--allow-urls", action="store_true", help="fetch photos that the dataset names by their address"
    )
    add_overwrite(parser)
    parser.add_argument("--restart", action="store_true", help="forget what an earlier run made")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Makes a cache."""
    arguments = make_parser().parse_args(argv)

    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import hf_evcap

    from ..caption_data import load_caption_data
    from ..processes import process_state
    from ..training.feature_cache import build_feature_cache

    processes = process_state()
    photos = load_caption_data(
        arguments.dataset,
        arguments.split,
        images=arguments.images,
        annotations=arguments.annotations,
        format=arguments.format,
        config_name=arguments.config_name,
        image_column=arguments.image_column,
        id_column=arguments.id_column,
        require_captions=False,
        on_error=arguments.on_error,
        allow_urls=arguments.allow_urls,
        revision=arguments.dataset_revision,
    )
    source = arguments.model or hf_evcap.default_model()
    dtype = arguments.encoder_dtype or ("float32" if processes.device.type == "cpu" else "auto")
    model = AutoModelForImageTextToText.from_pretrained(source, revision=arguments.revision, memory=False, dtype=dtype)
    if not hasattr(model, "get_vision_hidden_states"):
        raise ValueError(f"{source} is {type(model).__name__}; features are cached for EVCap and SmallCap.")
    # The language model stays where it is. Convolutions of an encoder run up to three times faster channels last.
    model.vision_model.to(processes.device, memory_format=torch.channels_last)
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
