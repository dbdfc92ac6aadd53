"""Options that mean the same for every verb that has them, under one name and with one help text."""

from __future__ import annotations

from typing import Any

from .options import count, device, dtype, output_folder, positive_int


EMBEDDED = "the embedded evcap-tiny"


def add_model(parser: Any, what: str = "", default: str | None = EMBEDDED) -> None:
    """Adds `--model` and `--revision`."""
    said = f" (default: {default})" if default else ""
    parser.add_argument("--model", metavar="MODEL", help=f"{what}folder or Hub id org/name{said}")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a model on the Hub")


def add_memory(parser: Any, text: str) -> None:
    """Adds `--memory`, which may be given several times."""
    parser.add_argument("--memory", action="append", metavar="MEMORY", help=text)
    alias(parser, "--memory", "--datastore")


def add_device(parser: Any) -> None:
    """Adds `--device`."""
    parser.add_argument(
        "--device", type=device, metavar="DEVICE", help="cpu, cuda, cuda:1, ... (default: the first accelerator)"
    )


def add_dtype(parser: Any, default: str = "as saved; float32 for the embedded model") -> None:
    """Adds `--dtype`, the precision of a model."""
    parser.add_argument(
        "--dtype", type=dtype, metavar="DTYPE", help=f"float32, bfloat16 or float16 (default: {default})"
    )


def add_batch_size(parser: Any, default: int, text: str = "photos captioned at once") -> None:
    """Adds `--batch-size`."""
    parser.add_argument("--batch-size", type=positive_int, default=default, metavar="N", help=text)


def add_generation(parser: Any) -> None:
    """Adds the options of the search for a caption."""
    parser.add_argument("--text", help="prompt (default: the model's)")
    parser.add_argument(
        "--num-beams", type=positive_int, metavar="N", help="beams of the search (default: the model's)"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive_int, metavar="N", help="longest caption in tokens (default: the model's)"
    )


def add_dataset_options(parser: Any) -> None:
    """Adds `--dataset-config` and the revision of a dataset on the Hub."""
    parser.add_argument("--dataset-config", metavar="NAME", help="configuration of a dataset on the Hub")
    parser.add_argument("--dataset-revision", metavar="REV", help="branch, tag or commit of a dataset on the Hub")


def add_reading(parser: Any) -> None:
    """Adds what becomes of photos that cannot be read, and whether addresses are fetched."""
    parser.add_argument(
        "--on-error", choices=["raise", "skip"], default="raise", help="photos that cannot be read: stop, or leave out"
    )
    parser.add_argument("--allow-urls", action="store_true", help="fetch photos that the data name by their address")


def add_output(parser: Any, what: str, *, required: bool = True, default: str | None = None) -> None:
    """Adds `--output`; `--out` is its older spelling."""
    said = f" (default: {default})" if default else ""
    parser.add_argument(
        "--output", required=required, type=output_folder, metavar="FOLDER", help=f"folder for {what}{said}"
    )
    alias(parser, "--output", "--out")


def add_overwrite(parser: Any) -> None:
    """Adds `--overwrite`, which every verb has that writes a folder."""
    parser.add_argument("--overwrite", action="store_true", help="replace what the folder holds already")


def add_shards(parser: Any, batch_size: int | None, shard_size: int | None, batch: str, shard: str) -> None:
    """Adds how long work proceeds and goes on."""
    parser.add_argument("--batch-size", type=positive_int, default=batch_size, metavar="N", help=batch)
    parser.add_argument("--shard-size", type=positive_int, default=shard_size, metavar="N", help=shard)


def add_trust(parser: Any) -> None:
    """Adds `--trust-remote-code`."""
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a Hub repo")


def add_seed(parser: Any, what: str) -> None:
    """Adds `--seed`."""
    parser.add_argument("--seed", type=count, default=0, metavar="N", help=f"seed of {what}")


def alias(parser: Any, option: str, *others: str) -> None:
    """Lets an option of a parser or group be given by other spellings, which help does not show."""
    for other in others:
        parser._option_string_actions.setdefault(other, parser._option_string_actions[option])
