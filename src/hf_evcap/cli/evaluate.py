"""`hf-evcap evaluate`: captions a dataset, scores the captions, writes tables and a report."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser."""
    from ..caption_data import FORMATS, KNOWN_DATASETS
    from ..evaluation.scoring import METRICS
    from ..evaluation.variants import ABLATIONS

    parser = argparse.ArgumentParser(
        prog="hf-evcap evaluate",
        description="Caption the photos of a dataset, score the captions, and write tables and a report. Interrupted, "
        "the same command goes on. Many processes: accelerate launch -m hf_evcap.cli.main evaluate ...",
    )
    what = parser.add_argument_group("what to evaluate")
    what.add_argument("--model", help="model folder or Hub id (default: the embedded evcap-tiny)")
    what.add_argument("--revision", help="branch, tag or commit of the model")
    what.add_argument(
        "--memory", help="memory or datastore instead of the model's own, a folder or Hub id; none: none"
    )
    what.add_argument("--predictions", metavar="FILE", help="score captions in COCO's result format, caption nothing")
    what.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first accelerator)")
    what.add_argument("--dtype", help="float32, bfloat16 or float16 (default: as saved; float32 for the embedded)")
    what.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a Hub repo")

    data = parser.add_argument_group("on which photos")
    data.add_argument("--dataset", help=f"{', '.join(KNOWN_DATASETS)}, a file, a folder or a Hub dataset (required)")
    data.add_argument("--split", help="split, or several as train+restval (default: the benchmark's test split)")
    data.add_argument("--images", metavar="FOLDER", help="folder of the photos (default: the file's)")
    data.add_argument(
        "--annotations", metavar="FILE", help="a benchmark's file (default: found in or beside --images)"
    )
    data.add_argument("--format", choices=FORMATS, help="format of the dataset (default: found from the content)")
    data.add_argument("--config-name", help="configuration of a Hub dataset")
    data.add_argument("--dataset-revision", help="branch, tag or commit of a Hub dataset")
    for name in ("image", "caption", "id", "domain"):
        data.add_argument(f"--{name}-column", metavar="NAME", help=f"column of the {name}, if it has an unusual name")
    data.add_argument("--object-column", metavar="NAME", help="column with what a photo shows: adds recall of names")
    data.add_argument("--group-by", default="domain", metavar="COLUMN", help="tell results apart by this column")
    data.add_argument("--limit", type=int, help="only so many photos, the first")
    data.add_argument("--allow-urls", action="store_true", help="fetch photos that the dataset names by their address")
    data.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do about unreadable photos"
    )
    data.add_argument(
        "--leave-out-memory-photos", action="store_true", help="leave out photos that are in the model's memory"
    )

    how = parser.add_argument_group("how")
    how.add_argument("--text", help="prompt (default: the model's)")
    how.add_argument("--num-beams", type=int, help="beams of the search (default: the model's)")
    how.add_argument("--max-new-tokens", type=int, help="longest caption in tokens (default: the model's)")
    how.add_argument("--batch-size", type=int, default=16, help="photos captioned at once (default: 16)")
    how.add_argument("--num-workers", type=int, default=0, help="processes that read photos ahead (default: 0)")
    how.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=[], metavar="METRIC",
        help=f"of {', '.join(METRICS)} (default: cider bleu rouge_l name_hallucination)",
    )  # fmt: skip
    how.add_argument("--clip-model", help="CLIP model of clip_score")
    how.add_argument(
        "--no-memory-effect", dest="memory_effect", action="store_false", help="do not caption without memory, too"
    )

    ablation = parser.add_argument_group("ablation")
    ablation.add_argument(
        "--ablate", nargs="+", choices=(*ABLATIONS, "all"), default=[], metavar="WHAT",
        help=f"vary {', '.join(ABLATIONS)}, or all; writes ablation.png",
    )  # fmt: skip
    ablation.add_argument("--ablate-names", nargs="+", type=int, default=[], metavar="K", help="numbers of names")
    ablation.add_argument("--ablate-beams", nargs="+", type=int, default=[], metavar="N", help="numbers of beams")
    ablation.add_argument("--other-memory", nargs="+", default=[], metavar="MEMORY", help="further memories to try")
    ablation.add_argument("--min-similarity", type=float, help="threshold of the rejection to try")

    results = parser.add_argument_group("results")
    results.add_argument("--output", metavar="FOLDER", help="folder of the results (required)")
    results.add_argument("--report-photos", type=int, default=12, help="photos a part of report.html; 0: no report")
    results.add_argument("--update-card", action="store_true", help="put the figures into the model folder's card")
    results.add_argument("--overwrite", action="store_true", help="replace what the folder holds already")
    results.add_argument("--restart", action="store_true", help="forget what an earlier run in the folder captioned")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Evaluates and prints the tables."""
    import datasets
    import transformers

    from ..evaluation import EvaluationArguments, evaluate_captioner
    from ..evaluation.runner import check_results_folder
    from .yaml_config import parse_with_config

    parser = make_parser()
    options = vars(parse_with_config(parser, argv))
    options.pop("config")
    for name in ("dataset", "output"):  # may come from --config
        if not options[name]:
            parser.error(f"--{name} is required")
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("hf_evcap.modeling_evcap").setLevel(logging.ERROR)  # that there is no memory is meant so
    given = EvaluationArguments(**options)
    check_results_folder(given)
    results = evaluate_captioner(given)
    if results is not None:
        output = Path(options["output"])
        print((output / "results.md").read_text(encoding="utf-8"))
        written = [name for name in ("report.html", "ablation.png") if (output / name).is_file()]
        print(f"In {output}: results.json, predictions.json, photos.jsonl{''.join(f', {name}' for name in written)}")
    return 0
