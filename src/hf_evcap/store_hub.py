"""Saving, loading and publishing retrieval stores as Hub dataset repos."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import logging
from typing_extensions import Self

from .hub_upload import explained_hub_errors, push_saved
from .store_files import read_columns, read_keys, row_batches, write_rows
from .store_folder import write_folder
from .store_index import read_index, write_flat_index
from .store_keys import check_keys
from .store_manifest import (
    CARD_NAME,
    DATA_FOLDER,
    FORMAT_VERSION,
    INDEX_NAME,
    LAYERS_FOLDER,
    MANIFEST_NAME,
    changed_by_others,
    data_files,
    hash_columns,
    hash_file,
    manifest_text,
    read_manifest,
    read_settled,
    state_of,
)
from .store_snapshot import PublishedState, SavedState, StoreSnapshot


logger = logging.get_logger(__name__)


class HubStore:
    """Files and Hub repos of a [`RetrievalStore`], which this is a part of."""

    def save_pretrained(
        self: Any, save_directory: str | os.PathLike, write_index: bool = True, overwrite: bool = False
    ) -> None:
        """
        Writes a dataset folder: `data/*.parquet` (the truth), `index.faiss` (a cache of it), `memory_config.json`
        (what it is and its hash) and `README.md` (its card, in which text that people wrote stays).

        At every moment the folder holds the old state or the new one, and loads; whoever is killed meanwhile has saved
        or has not. Files that the package did not write stay as and where they are.

        Args:
            save_directory (`str` or `os.PathLike`): The folder. Other processes that edit it are waited for.
            write_index (`bool`, *optional*, defaults to `True`):
                Whether to write `index.faiss`. Leave it out where size counts: it is rebuilt when needed.
            overwrite (`bool`, *optional*, defaults to `False`):
                Also over a folder that somebody else has changed since this store was loaded from it or saved to it.

        Raises:
            ValueError: The folder was changed since by somebody else, whose edit would be lost.
            OSError: It cannot be written. What it held is unchanged.
        """
        saved: Any = None

        def check(folder: Path) -> None:
            nonlocal saved
            saved = self.copy()  # edits from now on are not in the save
            if not overwrite:
                saved.check_unchanged(folder)

        write_folder(
            save_directory,
            lambda folder, present: saved.write_files(folder, present, write_index),
            check,
            lambda folder, state: self.note_saved(SavedState(str(folder), state)),
        )

    def check_unchanged(self: Any, folder: Path) -> None:
        """Raises `ValueError` if a folder that this store comes from holds something else by now."""
        known, now = self.snapshot.saved, state_of(folder)
        if known is not None and known.folder == os.path.realpath(folder) and now not in (None, known.state):
            raise ValueError(changed_by_others(self.store_word, folder))

    def note_saved(self: Any, saved: SavedState) -> None:
        """Notes that a folder holds a state of this store."""
        self.edit(lambda now: replace(now, saved=saved))

    def write_files(self: Any, folder: Path, present: Path, write_index: bool, repo_id: str | None = None) -> None:
        """Writes the files of a store that nobody edits meanwhile; see [`~store_folder.write_folder`]."""
        rows = self.snapshot
        batches = row_batches(rows.columns, rows.keys, self.text_column)
        files = write_rows(folder, batches, len(rows), rows.dim, present)
        index_hash = None
        if write_index:
            index = None if rows.exact else rows.row_index()
            if index is not None:
                index.write(folder / INDEX_NAME, rows.keys)
                index_hash = hash_file(folder / INDEX_NAME)
            elif rows.exact:
                write_flat_index(folder / INDEX_NAME, rows.keys)
        manifest = self.manifest(files, index_hash)
        (folder / MANIFEST_NAME).write_text(manifest_text(manifest), encoding="utf-8")
        (folder / CARD_NAME).write_text(self.card(manifest, repo_id), encoding="utf-8")

    def manifest(self: Any, files: list[str] | None = None, index_sha256: str | None = None) -> dict[str, Any]:
        """
        What `memory_config.json` says of the store.

        Args:
            files (`list[str]`, *optional*): The files of the rows, relative to the folder.
            index_sha256 (`str`, *optional*): SHA-256 of the file of an approximate index.
        """
        rows = self.snapshot
        settings = rows.settings.to_dict()
        return {
            "format": self.format_name,
            "format_version": FORMAT_VERSION,
            "rows": len(rows),
            f"{self.text_word}s": len(set(rows.texts)),
            "dim": rows.dim,
            "dtype": rows.keys.dtype.name,
            "metric": "inner product of L2-normalised keys",
            "index_factory": rows.index_factory,
            "index_chosen_by_size": settings.pop("index_factory") is None,
            **({} if index_sha256 is None else {"index_sha256": index_sha256}),
            **({} if files is None else {"files": files}),
            "sha256": rows.fingerprint,
            "columns_sha256": hash_columns(rows.columns.select(rows.further_columns)),
            **settings,
            "package_version": _package_version(),
        }

    def card(self: Any, manifest: Mapping[str, Any], repo_id: str | None = None) -> str:
        """The dataset card; subclasses write one."""
        return f"# {self.format_name}\n\n{manifest['rows']:,} rows.\n"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_memory_name_or_path: str | os.PathLike,
        *,
        revision: str | None = None,
        subfolder: str = "",
        repo_type: str = "dataset",
        token: str | bool | None = None,
        cache_dir: str | None = None,
        local_files_only: bool = False,
        memory_map: bool = False,
    ) -> Self:
        """
        Loads a store from a folder or from a dataset repo on the Hub, and checks it.

        Args:
            pretrained_memory_name_or_path (`str` or `os.PathLike`):
                A folder, or a repo id such as `"org/name"` or `"org/name@revision"`.
            revision (`str`, *optional*): Branch, tag or commit of the repo.
            subfolder (`str`, *optional*): Folder inside, `"memory"` for a memory that a model repo carries.
            repo_type (`str`, *optional*, defaults to `"dataset"`): `"model"` for a memory that a model repo carries.
            memory_map (`bool`, *optional*, defaults to `False`): Leave a large index on disk and read what a search
                needs. Inverted-list indexes (`IVF...`) gain from it. The rows are read as always: their hash is
                checked, and the nearest are compared again exactly.

        Raises:
            FileNotFoundError: There is none there.
            ValueError: The rows are not those that the manifest was written for.
        """
        source = str(pretrained_memory_name_or_path)
        if os.path.isdir(source):
            return cls._read_files(Path(source) / subfolder, memory_map)
        repo_id, _, suffix = source.partition("@")
        if repo_id.count("/") != 1 or source.startswith((".", "/", "~")):
            raise FileNotFoundError(
                f"{source!r} is neither a folder nor a Hub repo id of the form 'org/name' or 'org/name@revision'."
            )
        inside = f"{subfolder}/" if subfolder else ""
        revision = revision or suffix or None
        with explained_hub_errors(repo_id, repo_type, revision):
            downloaded = snapshot_download(
                repo_id,
                repo_type=repo_type,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=[
                    f"{inside}{DATA_FOLDER}/*.parquet",
                    f"{inside}{MANIFEST_NAME}",
                    f"{inside}{INDEX_NAME}",
                    f"{inside}{LAYERS_FOLDER}/*",
                ],
            )
        snapshot = Path(downloaded)
        store: Any = cls._read_files(snapshot / subfolder, memory_map)
        if repo_type == "dataset" and isinstance(store, cls):
            store._set_published(repo_id, snapshot.name)  # the commit that the revision stood for
        return store

    @classmethod
    def _read_files(cls: Any, folder: Path, memory_map: bool) -> Any:
        """Loads a folder; one that is saved anew meanwhile is read again."""
        return read_settled(folder, lambda: cls._read_state(folder, memory_map))

    @classmethod
    def _read_state(cls: Any, folder: Path, memory_map: bool) -> Any:
        state = state_of(folder)
        manifest = read_manifest(folder, cls.format_name)
        files = data_files(folder, manifest)
        columns = read_columns(files, cls.text_column)
        for row, text in enumerate(columns[cls.text_column].to_pylist()):
            if cls._check_text(text, f"row {row} of {folder}") != text:
                raise ValueError(f"Row {row} of {folder} has spare white space in its {cls.text_word}: {text[:80]!r}.")
        keys = read_keys(files)
        check_keys(keys.array, len(columns), None, keys.dtype)
        factory = manifest.get("index_factory")
        chosen = None if manifest.get("index_chosen_by_size") else factory
        store = cls.assemble(
            columns,
            keys,
            encoder_fingerprint=manifest.get("encoder_fingerprint"),
            query_tokens_hash=manifest.get("query_tokens_hash"),
            preprocessing_hash=manifest.get("preprocessing_hash"),
            retrieval=manifest.get("retrieval"),
            licenses=manifest.get("licenses"),
            index_factory=chosen,
        )
        hashes = {"sha256": store.fingerprint}
        if "columns_sha256" in manifest:
            hashes["columns_sha256"] = hash_columns(store.columns.select(store.snapshot.further_columns))
        for name, value in hashes.items():
            if value != manifest.get(name):
                raise ValueError(
                    f"The rows in {folder / DATA_FOLDER} are not those that {MANIFEST_NAME} was written for ({name} "
                    f"differs). Restore the files, or load the parquet files yourself and make a {cls.store_word} "
                    f"with `{cls.__name__}.from_rows` if the change is meant."
                )
        if factory and not store.exact:  # the exact index costs no more to make than to read
            index = read_index(folder / INDEX_NAME, factory, store.key_rows, memory_map, manifest.get("index_sha256"))
            store.key_rows.buffer.index = index
        store.note_saved(SavedState(os.path.realpath(folder), str(state)))
        return store

    @property
    def repo_id(self: Any) -> str | None:
        """`str` or `None`: The repo on the Hub that the rows came from or were pushed to; `None` after an edit."""
        published = self.snapshot.published
        return None if published is None else published.repo_id

    @property
    def revision(self: Any) -> str | None:
        """`str` or `None`: The commit of that repo that holds them."""
        published = self.snapshot.published
        return None if published is None else published.revision

    def _set_published(self: Any, repo_id: str, revision: str, pushed: StoreSnapshot | None = None) -> None:
        """Notes where on the Hub the present rows lie, or those of a snapshot, unless they were edited since."""
        published = pushed or self.snapshot
        state = PublishedState(repo_id, revision, published.settings)
        self.edit(
            lambda now: (
                replace(now, published=state) if now.parts is published.parts and now.keys is published.keys else now
            )
        )

    @property
    def hub_reference(self: Any) -> dict[str, str] | None:
        """`dict` or `None`: `repo_id` and `revision` on the Hub that hold just this; `None` after a change."""
        now = self.snapshot
        if now.published is None or now.settings != now.published.settings:
            return None
        return {"repo_id": now.published.repo_id, "revision": now.published.revision}

    def push_to_hub(
        self: Any,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
    ) -> str:
        """
        Uploads the store as a dataset repo in one commit. A model that is saved afterwards names the repo and the
        commit instead of carrying a copy.

        Args:
            repo_id (`str`): Such as `"user/name"`.
            private (`bool`, *optional*): Whether a new repo is private.
            revision (`str`, *optional*): Branch to commit to; made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.

        Returns:
            `str`: The commit, to pin as a revision.
        """
        pushed = self.copy()  # edits from now on are not in the commit
        commit = push_saved(
            lambda folder: pushed.write_files(folder, folder, True, repo_id),
            repo_id,
            repo_type="dataset",
            commit_message=commit_message or f"Upload {self.store_word}",
            commit_description=commit_description,
            private=private,
            revision=revision,
            token=token,
            create_pr=create_pr,
            stale=[f"{DATA_FOLDER}/*", INDEX_NAME],
        )
        if not create_pr:
            self._set_published(commit.repo_url.repo_id, commit.oid, pushed.snapshot)
        return commit.oid


def _package_version() -> str | None:
    try:
        return importlib.metadata.version("hf_evcap")
    except importlib.metadata.PackageNotFoundError:  # the code was copied into a model's repo
        return None


__all__ = ["HubStore"]
