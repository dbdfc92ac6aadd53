"""`hf-evcap evaluate`: captions a dataset, scores the captions, writes tables and a report."""

from __future__ import annotations

import logging
from pathlib import Path

from ..caption_data import FORMATS, KNOWN_DATASETS
from ..evaluation.arguments import ABLATIONS, METRICS, EvaluationArguments
from . import logs
from .common_options import (
    add_batch_size,
    add_dataset_options,
    add_device,
    add_dtype,
    add_generation,
    add_memory,
    add_model,
    add_output,
    add_overwrite,
    add_reading,
    add_trust,
    alias,
)
from .options import count, existing_file, existing_folder, existing_path, positive_int, similarity
from .sources import check_dataset, check_model, check_stores
from .verb_parser import VerbParser
from .yaml_config import add_config, parse_with_config


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap evaluate",
        usage="hf-evcap evaluate --dataset DATASET --output FOLDER [options]",
        description="Caption the photos of a dataset, score the captions, and write tables and a report. Interrupted, "
        "the same command goes on.\nMany processes: accelerate launch -m hf_evcap.cli.main evaluate ...",
        examples=[
            "evaluate --dataset photos/ --output out",
            "evaluate --model MODEL --dataset nocaps --images nocaps/ --metrics cider bleu --output out",
            "evaluate --predictions captions.json --dataset coco-karpathy --images coco/ --output out",
        ],
    )
    what = parser.add_argument_group("what to evaluate")
    add_model(what)
    add_memory(
        what, "memory or datastore instead of the model's own: folder or Hub id, or none; several times: layers"
    )
    what.add_argument(
        "--predictions", type=existing_file, metavar="FILE", help="score captions in COCO's format, caption nothing"
    )
    add_device(what)
    add_dtype(what)
    add_trust(what)

    data = parser.add_argument_group("on which photos")
    data.add_argument(
        "--dataset",
        metavar="DATASET",
        help=f"{', '.join(KNOWN_DATASETS)}, a file, a folder or a Hub dataset (required)",
    )
    data.add_argument(
        "--split", metavar="SPLIT", help="split, or several as train+restval (default: a benchmark's test split)"
    )
    data.add_argument(
        "--images", type=existing_folder, metavar="FOLDER", help="folder of the photos (default: the file's)"
    )
    data.add_argument(
        "--annotations",
        type=existing_path,
        metavar="FILE",
        help="a benchmark's file (default: found in or beside --images)",
    )
    data.add_argument("--format", choices=FORMATS, metavar="FORMAT", help=_format_help())
    add_dataset_options(data)
    alias(data, "--dataset-config", "--config-name")
    for name in ("image", "caption", "id", "domain"):
        data.add_argument(f"--{name}-column", metavar="NAME", help=f"column of the {name}, if it has an unusual name")
    data.add_argument("--object-column", metavar="NAME", help="column with what a photo shows: adds recall of names")
    data.add_argument("--group-by", default="domain", metavar="COLUMN", help="tell results apart by this column")
    data.add_argument("--limit", type=positive_int, metavar="N", help="only so many photos, the first")
    add_reading(data)
    data.add_argument(
        "--leave-out-memory-photos", action="store_true", help="leave out photos that are in the model's memory"
    )

    how = parser.add_argument_group("how")
    add_generation(how)
    add_batch_size(how, 16)
    how.add_argument("--num-workers", type=count, default=0, metavar="N", help="processes that read photos ahead")
    how.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=[], metavar="METRIC",
        help=f"of {', '.join(METRICS)} (default: cider bleu rouge_l name_hallucination)",
    )  # fmt: skip
    how.add_argument("--clip-model", metavar="MODEL", help="CLIP model of clip_score (default: the metric's)")
    how.add_argument(
        "--no-memory-effect", dest="memory_effect", action="store_false", help="do not caption without memory, too"
    )

    ablation = parser.add_argument_group("ablation")
    ablation.add_argument(
        "--ablate", nargs="+", choices=(*ABLATIONS, "all"), default=[], metavar="WHAT",
        help=f"vary {', '.join(ABLATIONS)}, or all; writes ablation.png",
    )  # fmt: skip
    ablation.add_argument(
        "--ablate-names",
        nargs="+",
        type=count,
        default=[],
        metavar="K",
        help="numbers of names to try (default: 1 2 3 5 10 15 20)",
    )
    ablation.add_argument(
        "--ablate-beams",
        nargs="+",
        type=positive_int,
        default=[],
        metavar="N",
        help="numbers of beams to try (default: 1 3 5)",
    )
    ablation.add_argument("--other-memory", nargs="+", default=[], metavar="MEMORY", help="further memories to try")
    ablation.add_argument("--min-similarity", type=similarity, metavar="X", help="threshold of the rejection to try")

    results = parser.add_argument_group("results")
    add_output(results, "the results (required)", required=False)
    results.add_argument(
        "--report-photos", type=count, default=12, metavar="N", help="photos in each part of report.html; 0: no report"
    )
    results.add_argument("--update-card", action="store_true", help="put the figures into the model folder's card")
    add_overwrite(results)
    results.add_argument("--restart", action="store_true", help="forget what an earlier run in the folder captioned")
    add_config(parser)
    parser.add_common()
    return parser


def _format_help() -> str:
    return f"format of the dataset: {', '.join(FORMATS)} (default: found from the content)"


def main(argv: list[str] | None = None) -> int:
    """Evaluates and prints the tables."""
    parser = make_parser()
    options = vars(parse_with_config(parser, argv))
    options.pop("config")
    options["config_name"] = options.pop("dataset_config")
    missing = [f"--{name}" for name in ("dataset", "output") if not options[name]]  # may come from --config
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    if options["memory"] is not None and len(options["memory"]) == 1:
        [options["memory"]] = options["memory"]
    try:
        given = EvaluationArguments(**options)
    except ValueError as error:
        parser.error(str(error))
    if given.predictions is None:
        check_model(given.model, given.revision)
        check_stores(given.memory)
        check_stores(given.other_memory)
    check_dataset(given.dataset, KNOWN_DATASETS, given.dataset_revision)

    from ..evaluation import evaluate_captioner
    from ..evaluation.runner import check_results_folder

    logs.settle(hushed=True)
    logging.getLogger("hf_evcap.modeling_evcap").setLevel(logging.ERROR)  # that there is no memory is meant so
    check_results_folder(given)
    results = evaluate_captioner(given)
    if results is not None:
        output = Path(given.output)
        print((output / "results.md").read_text(encoding="utf-8"))
        written = [name for name in ("report.html", "ablation.png") if (output / name).is_file()]
        print(f"In {output}: results.json, predictions.json, photos.jsonl{''.join(f', {name}' for name in written)}")
    return 0
