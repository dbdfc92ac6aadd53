"""
Whether what a verb is to read is there: models, memories, datasets. Asked before PyTorch is imported, with one request
for what is on the Hub, so that a wrong name costs a second and not the retries of everything that would load it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..weight_files import check_weight_file


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ONE_WORD = re.compile(rf"{_HUB_ID.pattern}|[A-Za-z0-9][\w.-]*")  # some old models have no org
_TIMEOUT = 10  # seconds
_TABLES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".ndjson")
STORE_FILE = "memory_config.json"
_WORDS = {"model": "model", "dataset": "dataset", "space": "Space"}


def check_model(name: str | None, revision: str | None = None, *, adapters: bool = False) -> None:
    """
    Refuses a model that is not there.

    Args:
        name (`str`, *optional*): Folder or Hub id; the embedded model when absent.
        revision (`str`, *optional*): What `--revision` says.
        adapters (`bool`, *optional*, defaults to `False`): Whether a folder of LoRA adapters will do.

    Raises:
        FileNotFoundError, ValueError, ConnectionError: It is not there, or the revision is not, or the Hub cannot say.
    """
    if name is None:
        if revision is not None:
            raise ValueError(
                f"--revision {revision}: the embedded model has no revisions; name a Hub repo with --model."
            )
        return
    if os.path.isdir(name):
        if revision is not None:
            raise ValueError(
                f"--revision {revision} is for a repo on the Hub, and {name!r} is a folder; leave it out."
            )
        if os.path.isfile(os.path.join(name, "config.json")):
            for file in sorted(Path(name).glob("*.safetensors")):
                check_weight_file(file)
            return
        if os.path.isfile(os.path.join(name, "adapter_config.json")):
            if adapters:
                return
            raise ValueError(f"{name!r} holds adapters alone; `hf-evcap merge {name} --output WHOLE` makes a model.")
        hint = f"it is a memory or datastore: --memory {name}" if _is_store(name) else "give the folder of a model"
        raise FileNotFoundError(f"{name!r} is no model: config.json is missing; {hint}.")
    _check_hub(name, "model", revision, ("config.json", *(["adapter_config.json"] if adapters else [])))


def check_part(name: str, gguf_file: str | None = None) -> None:
    """Refuses a pretrained part of a model that is not there: a file, a folder, `org/name` or `org/name@revision`."""
    if os.path.isfile(name):
        return
    if os.path.isdir(name):
        wanted = gguf_file or "config.json"
        if not os.path.isfile(os.path.join(name, wanted)):
            raise FileNotFoundError(f"{name!r} holds no {wanted}: give the folder of a whole model.")
        return
    repo, _, revision = name.partition("@")
    _check_hub(repo, "model", revision or None, (gguf_file or "config.json",), given=name, one_word=True)


def check_store(name: str | None, word: str = "memory") -> None:
    """
    Refuses a memory or datastore that is not there.

    Args:
        name (`str`, *optional*): Folder, or Hub id with or without `@revision`; nothing is checked when absent.
        word (`str`, *optional*, defaults to `"memory"`): What it is called.
    """
    if name is None:
        return
    if os.path.isdir(name):
        if _is_store(name):
            return
        inside = next((kind for kind in ("memory", "datastore") if _is_store(os.path.join(name, kind))), None)
        if os.path.isfile(os.path.join(name, "config.json")):
            hint = f"it is a model, whose own {inside} is {os.path.join(name, inside)}" if inside else "it is a model"
        else:
            hint = f"`hf-evcap {word} build SOURCE --output {name}` makes one"
        raise FileNotFoundError(f"{name!r} is no {word}: {STORE_FILE} is missing; {hint}.")
    repo, _, revision = name.partition("@")
    _check_hub(repo, "dataset", revision or None, (STORE_FILE, f"layers/{STORE_FILE}"), word, name)


def check_stores(names: Iterable[str] | str | None, word: str = "memory") -> None:
    """The same for what `--memory` takes: one or several, or `none`."""
    for name in [names] if isinstance(names, str) else names or ():
        if name != "none":
            check_store(name, word)


def check_dataset(name: str | None, known: Iterable[str] = (), revision: str | None = None) -> None:
    """Refuses captioned photos that are not there: a benchmark of `known`, a file, a folder or a Hub dataset."""
    if name is None or name in known:
        return
    if os.path.exists(name):
        if revision is not None:
            raise ValueError(f"A revision is of a dataset on the Hub, and {name!r} is on this machine; leave it out.")
        return
    if Path(name).suffix.lower() in _TABLES or os.path.isabs(name) or name.count("/") > 1:
        raise FileNotFoundError(f"There is no file or folder {name!r}.")
    if "/" not in name:
        benchmarks = f", nor a benchmark ({', '.join(known)})" if known else ""
        raise FileNotFoundError(
            f"There is no file or folder {name!r}{benchmarks}; a dataset on the Hub is named org/name."
        )
    _check_hub(name, "dataset", revision, (), "dataset")


def _is_store(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, STORE_FILE)) or os.path.isdir(os.path.join(folder, "layers"))


def _check_hub(
    repo: str,
    kind: str,
    revision: str | None,
    files: tuple[str, ...],
    word: str | None = None,
    given: str | None = None,
    one_word: bool = False,
) -> None:
    """Asks the Hub for one of some files of a repo, or for the repo alone."""
    given, word = given or repo, word or kind
    if os.path.isfile(given):
        raise FileNotFoundError(f"{given!r} is a file; give the folder of a {word}.")
    if given.endswith(".gguf"):
        raise FileNotFoundError(f"There is no GGUF file {given!r}.")
    if (_ONE_WORD if one_word else _HUB_ID).fullmatch(repo) is None:
        revised = kind == "model" and "@" in given and not one_word
        hint = f"; a revision is given with --revision {given.partition('@')[2]}" if revised else ""
        raise FileNotFoundError(
            f"There is no {word} {given!r}: it is neither a folder nor a Hub repo id such as org/name{hint}."
        )
    from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.file_download import get_hf_file_metadata
    from huggingface_hub.utils import build_hf_headers

    what = f"{_WORDS[kind]} repo {repo!r}" if word == kind else f"{word} {repo!r} (a {kind} repo)"

    def ask() -> None:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        if not files:
            HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=_TIMEOUT)
            return
        from huggingface_hub.errors import EntryNotFoundError

        for file in files:
            url = hf_hub_url(repo, file, repo_type=kind, revision=revision)
            try:
                found = get_hf_file_metadata(url, timeout=_TIMEOUT, headers=build_hf_headers())
            except EntryNotFoundError:
                continue
            if found.commit_hash is None:
                raise _NotTheHub(constants.ENDPOINT)
            return
        raise FileNotFoundError(f"The {what} holds no {files[0]}, so it is no {word}.")

    def cached() -> bool:
        paths = [try_to_load_from_cache(repo, file, repo_type=kind, revision=revision) for file in files]
        return any(isinstance(path, str) for path in paths) or (not files and _in_cache(repo, kind, constants))

    _explained(ask, cached, what, given, kind, repo, revision, constants)


class _NotTheHub(Exception):
    """Something answered, and it was not the Hub."""


def _explained(
    ask: Any, cached: Any, what: str, given: str, kind: str, repo: str, revision: str | None, constants: Any
) -> None:
    """Says in one line what the Hub's refusals mean; takes the cached copy where the Hub is not reached."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"{constants.ENDPOINT}/{'' if kind == 'model' else f'{kind}s/'}{repo}"
    try:
        return ask()
    except GatedRepoError:
        raise PermissionError(
            f"The {what} is gated: ask for access on {page}, then log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"There is no folder {given!r} and no {what} on the Hub; if it is private, log in with `hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise FileNotFoundError(f"The {what} has no revision {revision!r}; see {page}/tree/main.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"The Hub did not let this token read the {what} ({status}): log in with `hf auth login`."
            ) from None
        reason = f"answered with status {status}"
    except _NotTheHub:
        reason = "was answered by something else: a network's login page, a proxy, or a wrong HF_ENDPOINT"
    except FileNotFoundError:
        raise
    except (HTTPError, OSError, ValueError) as error:
        found = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        reason = f"could not be reached: {found}"
        if type(error) is OSError and "HF_HUB_OFFLINE" in found:
            reason = "may not be asked (HF_HUB_OFFLINE is set)"
        elif isinstance(error, ValueError):  # JSON was expected
            reason = "was answered by something else: a network's login page, a proxy, or a wrong HF_ENDPOINT"
    if cached():
        constants.HF_HUB_OFFLINE = True  # else every file is asked for again, with retries
        return None
    raise ConnectionError(f"There is no folder {given!r}, and for the {what} the Hub ({constants.ENDPOINT}) {reason}.")


def _in_cache(repo: str, kind: str, constants: Any) -> bool:
    return (Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo.replace('/', '--')}" / "snapshots").is_dir()


__all__ = ["check_dataset", "check_model", "check_part", "check_store", "check_stores"]
