"""`hf-evcap merge`: a model whose repo names frozen parts, or whose adapters lie apart, into one whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..output_folders import check_output
from . import logs
from .common_options import add_output, add_overwrite
from .options import dtype_or_auto, size_of_file
from .sources import check_model
from .verb_parser import VerbParser


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap merge",
        description="Write a model as one whole folder: with the frozen parts that its repo only names, and with LoRA "
        "adapters merged into the weights.",
        examples=["merge out --output whole", "merge me/evcap-13b --revision v1 --dtype bfloat16 --output evcap-13b"],
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id org/name of a model, or of adapters")
    add_output(parser, "the whole model")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a model on the Hub")
    parser.add_argument(
        "--dtype",
        type=dtype_or_auto,
        default="auto",
        metavar="DTYPE",
        help="float32, bfloat16 or float16 (default: as it is)",
    )
    parser.add_argument(
        "--max-shard-size", type=size_of_file, metavar="SIZE", default="50GB", help="size of a weight file at most"
    )
    add_overwrite(parser)
    parser.add_common()
    return parser


def main(argv: list[str] | None = None) -> int:
    """Loads, merges and saves."""
    arguments = make_parser().parse_args(argv)
    output = Path(arguments.output)
    check_output(output, arguments.overwrite)
    check_model(arguments.model, arguments.revision, adapters=True)
    from transformers import AutoProcessor

    from ..hub.model_card import write_model_card

    logs.settle()
    model, source, revision = _load(arguments.model, arguments.revision, arguments.dtype)
    model.save_pretrained(output, frozen="copy", max_shard_size=arguments.max_shard_size)
    AutoProcessor.from_pretrained(source, revision=revision).save_pretrained(output)
    write_model_card(output, repo_id=output.name, memory=model.memory)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} of {total:,} parameters written to {output}")
    return 0


def _load(source: str, revision: str | None, dtype: str) -> tuple[Any, str, str | None]:
    """The model, and where its processor lies."""
    from transformers import AutoModelForImageTextToText
    from transformers.utils import cached_file

    adapters = cached_file(
        source,
        "adapter_config.json",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if adapters is None:
        model = AutoModelForImageTextToText.from_pretrained(source, revision=revision, dtype=dtype)
        return model, source, revision
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise ImportError('LoRA adapters need peft: pip install "hf_evcap[train]"') from None
    base = PeftConfig.from_pretrained(source, revision=revision).base_model_name_or_path
    model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, source, revision=revision).merge_and_unload(), base, None
