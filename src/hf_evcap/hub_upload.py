"""Publishing on the Hub: everything in one commit, or nothing."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import filter_repo_objects

from .hub_card import merge_cards


CARD_NAME = "README.md"
_HUB_ARGUMENTS = (
    "repo_id",
    "commit_message",
    "commit_description",
    "private",
    "token",
    "revision",
    "create_pr",
)


def take_hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Removes from `kwargs` what `push_to_hub` takes, and returns it."""
    return {name: kwargs.pop(name) for name in _HUB_ARGUMENTS if name in kwargs}


def files_of(folder: Path) -> dict[str, Path]:
    """Files of a folder by their path in the repo."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def explained_hub_errors(repo_id: str, repo_type: str, revision: str | None = None) -> Iterator[None]:
    """Puts in front of the Hub's own error messages what they mean for the user and what to do."""
    repo = f"{repo_type} repo {repo_id!r}"
    try:
        yield
    except GatedRepoError as error:
        raise _explain(
            error,
            f"The {repo} is gated: ask for access on https://huggingface.co/{repo_id} and log in (`hf auth login`).",
        ) from error
    except RepositoryNotFoundError as error:
        others = [kind for kind in ("model", "dataset", "space") if kind != repo_type and _exists(repo_id, kind)]
        hint = f"; there is a {others[0]} repo of this name" if others else ""
        raise _explain(error, f"There is no {repo}{hint}, or it is private and the token does not open it.") from error
    except RevisionNotFoundError as error:
        raise _explain(error, f"The {repo} has no revision {revision!r}.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        reasons = {
            401: "The Hub did not accept the token. Log in with `hf auth login`, or give a valid `token`.",
            403: f"The token may not write to the {repo}. Use another token or namespace, or `create_pr=True`.",
            412: f"The {repo} changed during the upload. Nothing was committed; push again.",
        }
        if status not in reasons:
            raise
        raise _explain(error, reasons[status]) from error
    except RuntimeError as error:  # how the client reports that a large file did not go through
        if not isinstance(error.__cause__, (HTTPError, OSError)):
            raise
        reason = str(error.__cause__).strip().splitlines()[0]
        raise ConnectionError(
            f"{error} {reason} Nothing was committed to the {repo}; push again, what is there is not sent twice."
        ) from error
    except HTTPError as error:  # no answer at all
        raise ConnectionError(
            f"The Hub ({HfApi().endpoint}) could not be reached for the {repo} ({type(error).__name__}: {error}). "
            "Try again."
        ) from error


def _explain(error: HfHubHTTPError, reason: str) -> HfHubHTTPError:
    explained = type(error)(f"{reason}\n\n{error}", response=error.response, server_message=error.server_message)
    return explained


def _exists(repo_id: str, repo_type: str) -> bool:
    try:
        return HfApi().repo_exists(repo_id, repo_type=repo_type)
    except (HTTPError, OSError):
        return False


def upload_in_one_commit(
    folder: Path,
    repo_id: str,
    *,
    repo_type: str = "model",
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    stale: Sequence[str] = (),
    space_sdk: str | None = None,
) -> CommitInfo:
    """
    Uploads a folder with its subfolders; the repo is made if it does not exist.

    `huggingface_hub`'s `upload_folder` may split a folder over several commits, and transformers' `push_to_hub` takes
    one level of subfolders only.

    Args:
        folder (`Path`): Made for the upload: it holds nothing else, see [`push_saved`] and `hub.repo_files`. Its card
            is merged with the repo's, see [`merge_cards`].
        repo_id (`str`): Such as `"user/name"`; `"name"` is put into the token's own namespace.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"`, `"dataset"` or `"space"`.
        private (`bool`, *optional*): Whether a new repo is private.
        revision (`str`, *optional*): Branch to commit to; made from the main one if it does not exist.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead of committing.
        stale (`Sequence[str]`): Patterns of files that are deleted from the repo where the folder lacks them.
        space_sdk (`str`, *optional*): What a new Space runs.

    Returns:
        [`~huggingface_hub.CommitInfo`]: With `oid`, the commit to pin as a revision, and `pr_url`.

    Raises:
        HfHubHTTPError: The Hub refused; the message says why. The repo is as it was before.
        ConnectionError: The Hub did not answer.
    """
    api = HfApi(token=token, library_name="hf_evcap")
    with explained_hub_errors(repo_id, repo_type, revision):
        made = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=space_sdk)
        repo_id = made.repo_id
        if revision is not None and not revision.startswith("refs/") and not create_pr:
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
        present = [entry.rfilename for entry in getattr(head, "siblings", None) or []]
        files = files_of(folder)
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for name, path in files.items():
            content: str | bytes = str(path)
            if name == CARD_NAME and name in present:
                content = _merged_card(api, path, repo_id, repo_type, head.sha).encode()
            operations.append(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content))
        for name in filter_repo_objects(present, allow_patterns=list(stale)) if stale else ():
            if name not in files:
                operations.append(CommitOperationDelete(path_in_repo=name))
        with warnings.catch_warnings():
            # A model's repo may carry its memory, which is a small dataset.
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            return api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message,
                commit_description=commit_description,
                repo_type=repo_type,
                revision=revision,
                create_pr=create_pr,
                parent_commit=head.sha,
            )


def _merged_card(api: HfApi, path: Path, repo_id: str, repo_type: str, revision: str | None) -> str:
    new = path.read_text(encoding="utf-8")
    try:
        present = api.hf_hub_download(repo_id, CARD_NAME, repo_type=repo_type, revision=revision)
    except EntryNotFoundError:
        return new
    return merge_cards(new, Path(present).read_text(encoding="utf-8"))


def push_saved(save: Callable[[Path], Any], repo_id: str, **options: Any) -> CommitInfo:
    """
    Uploads what `save` writes into the folder that it is given; see [`upload_in_one_commit`] for the options.

    Nothing reaches the Hub before everything is written.
    """
    with tempfile.TemporaryDirectory(prefix="hf-evcap-push-") as folder:
        save(Path(folder))
        return upload_in_one_commit(Path(folder), repo_id, **options)


__all__ = [
    "explained_hub_errors",
    "files_of",
    "push_saved",
    "take_hub_arguments",
    "upload_in_one_commit",
]
