"""`hf-evcap merge`: a model whose repo names frozen parts, or whose adapters lie apart, into one whole folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..output_folders import check_output
from .build_options import add_overwrite


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap merge",
        description="Write a model as one whole folder: with the frozen parts that its repo only names, and with LoRA "
        "adapters merged into the weights.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a model, or of adapters")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the whole model")
    parser.add_argument("--revision", help="branch, tag or commit of the repo")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (default: as it is)")
    parser.add_argument(
        "--max-shard-size", default="50GB", help="size of a weight file at most (default: %(default)s)"
    )
    add_overwrite(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Loads, merges and saves."""
    arguments = make_parser().parse_args(argv)
    from transformers import AutoProcessor

    from ..hub.model_card import write_model_card

    check_output(arguments.out, arguments.overwrite)
    model, source, revision = _load(arguments.model, arguments.revision, arguments.dtype)
    model.save_pretrained(arguments.out, frozen="copy", max_shard_size=arguments.max_shard_size)
    AutoProcessor.from_pretrained(source, revision=revision).save_pretrained(arguments.out)
    write_model_card(arguments.out, repo_id=arguments.out.name, memory=model.memory)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"{type(model).__name__} of {total:,} parameters written to {arguments.out}")
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
