"""`hf-evcap push`: publishes a model, a memory, a datastore, a metric or a Space on the Hub, in one commit."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Makes the verb's parser."""
    parser = argparse.ArgumentParser(
        prog="hf-evcap push",
        description="Publish a whole, working repo on the Hub in one commit: files, code and card. Text that people "
        "wrote around the generated block of the repo's card stays. Of SOURCE only what hf-evcap wrote goes up, with "
        "READMEs and licences; what is left out is listed.",
        epilog="Log in with `hf auth login` first, or set HF_TOKEN.",
    )
    parser.add_argument("kind", choices=("model", "memory", "datastore", "metric", "space"), help="what SOURCE is")
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder, a Hub id or a name of `hf-evcap configs`; 'default' for the embedded model; a metric's name",
    )
    parser.add_argument("repo", metavar="REPO", help="where to, such as user/name")
    parser.add_argument(
        "--card", type=Path, help="Markdown file with words of yours, put in front of the generated card"
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
        help="also upload such files of SOURCE ('notes/*.md'); hidden files, keys, optimizer states and links that "
        "leave the folder never are",
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repo private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--revision", help="branch to commit to; made if it does not exist")
    parser.add_argument("--commit-message", help="title of the commit")
    parser.add_argument("--token", help="access token (default: that of `hf auth login`)")
    parser.add_argument("--dry-run", action="store_true", help="list files and sizes, upload nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Makes the folder ready, and uploads or lists it."""
    arguments = make_parser().parse_args(argv)
    import hf_evcap

    from ..hub.ready_repo import prepare_repo
    from ..hub_upload import upload_in_one_commit

    source = arguments.source
    if arguments.kind == "model" and source == "default":
        source = hf_evcap.default_model()
    with tempfile.TemporaryDirectory(prefix="hf-evcap-push-") as folder:
        ready = prepare_repo(
            arguments.kind,
            source,
            Path(folder),
            arguments.repo,
            arguments.card,
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
