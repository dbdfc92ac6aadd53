"""`hf-evcap push`: publishes a model, a memory, a datastore, a metric or a Space on the Hub, in one commit."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from ..hub.ready_configs import find_config
from . import logs
from .options import existing_file, repo_id
from .sources import check_model, check_store
from .verb_parser import VerbParser


KINDS = ("model", "memory", "datastore", "metric", "space")


def make_parser() -> VerbParser:
    """Makes the verb's parser."""
    parser = VerbParser(
        prog="hf-evcap push",
        description="Publish a whole, working repo on the Hub in one commit: files, code and card. Text that people "
        "wrote around the generated block of the repo's card stays. Of SOURCE only what hf-evcap wrote goes up, with "
        "READMEs and licences; what is left out is listed.",
        examples=[
            "push model out me/my-captioner --dry-run",
            "push memory kitchen me/kitchen --card ABOUT.md --private",
            "push model default me/evcap-tiny",
        ],
        epilog="Log in with `hf auth login` first, or set HF_TOKEN.",
    )
    parser.add_argument("kind", choices=KINDS, metavar="KIND", help=f"what SOURCE is: {', '.join(KINDS)}")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder, a Hub id or a name of `hf-evcap configs`; `default` for the embedded model; a metric's name",
    )
    parser.add_argument("repo", type=repo_id, metavar="REPO", help="where to, such as user/name")
    parser.add_argument(
        "--card",
        type=existing_file,
        metavar="FILE",
        help="Markdown file with words of yours, put in front of the generated card",
    )
    parser.add_argument(
        "--frozen",
        choices=("reference", "copy"),
        help="a model's parts that are as repos on the Hub hold them: only name them, or copy them (default: as they "
        "are in SOURCE)",
    )
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="also upload such files of SOURCE (`notes/*.md`); hidden files, keys, optimizer states and links that "
        "leave the folder never are",
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repo private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to; made if it does not exist")
    parser.add_argument("--commit-message", metavar="TEXT", help="title of the commit (default: Upload KIND)")
    parser.add_argument("--token", help="access token (default: that of `hf auth login`)")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, upload nothing")
    parser.add_common()
    return parser


def check_source(kind: str, source: str) -> None:
    """Refuses a folder that is not of its kind, or one word that names nothing, before anything is loaded."""
    from ..metrics import METRICS

    if (kind == "model" and source == "default") or (kind == "metric" and source in METRICS):
        return
    if kind == "metric" and not os.path.isdir(source):
        raise FileNotFoundError(f"There is no metric {source!r}; there are {', '.join(METRICS)}.")
    folder = find_config(source)
    if not os.path.isdir(folder):
        if kind in ("model", "memory", "datastore"):
            check_model(folder) if kind == "model" else check_store(folder, kind)
        return
    if kind == "model":
        check_model(folder)
    elif kind != "metric" and kind != "space" and not os.path.isfile(os.path.join(folder, "recipe.yaml")):
        check_store(folder, kind)


def main(argv: list[str] | None = None) -> int:
    """Makes the folder ready, and uploads or lists it."""
    arguments = make_parser().parse_args(argv)
    check_source(arguments.kind, arguments.source)
    if arguments.frozen is not None and arguments.kind != "model":
        raise ValueError(f"--frozen is for models; {arguments.source} is to be a {arguments.kind}.")
    import hf_evcap

    from ..hub.ready_repo import prepare_repo
    from ..hub_upload import upload_in_one_commit

    logs.settle()
    source = arguments.source
    if arguments.kind == "model" and source == "default":
        source = hf_evcap.default_model()
    with tempfile.TemporaryDirectory(prefix="hf-evcap-push-") as folder:
        ready = prepare_repo(
            arguments.kind,
            source,
            Path(folder),
            arguments.repo,
            arguments.card and Path(arguments.card),
            frozen=arguments.frozen,
            include=arguments.include,
        )
        for name, reason in ready.left_out.items():
            print(f"left out: {name} ({reason})", file=sys.stderr)
        if arguments.dry_run:
            for name, size in ready.files.items():
                print(f"{format_size(size):>10}  {name}")
            total = format_size(sum(ready.files.values()))
            print(f"{total:>10}  in {len(ready.files)} files would go to the {ready.repo_type} repo {arguments.repo}")
            return 0
        commit = upload_in_one_commit(
            ready.folder,
            arguments.repo,
            repo_type=ready.repo_type,
            commit_message=arguments.commit_message or f"Upload {arguments.kind}",
            private=arguments.private,
            token=arguments.token,
            revision=arguments.revision,
            create_pr=arguments.create_pr,
            stale=ready.stale,
            space_sdk=ready.space_sdk,
        )
    print(f"commit {commit.oid}")
    print(commit.pr_url or commit.repo_url)
    return 0


def format_size(size: float) -> str:
    """Writes a number of bytes as people read it."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
