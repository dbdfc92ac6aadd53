"""`memory_config.json`: what it says of a store's folder, its hashes, and which files belong to the store."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .store_keys import dictionary_codes


MANIFEST_NAME = "memory_config.json"
INDEX_NAME = "index.faiss"
DATA_FOLDER = "data"
LAYERS_FOLDER = "layers"  # of several memories in one folder
LAYERS_FORMAT = "visual-name-memory-layers"
CARD_NAME = "README.md"
FORMAT_VERSION = 1
LAYER_NAME = re.compile(r"\w[\w.-]*")
_DATA_FILE = re.compile(rf"{DATA_FOLDER}/[\w.-]+\.parquet")
_OWN_DATA_FILE = re.compile(r"train-\d{5}-of-\d{5}(-\d+)?\.parquet")
# What decides how a store's rows are used; none of it can be told from the rows.
_SETTINGS = (
    "files",
    "index_factory",
    "index_chosen_by_size",
    "index_sha256",
    "encoder_fingerprint",
    "query_tokens_hash",
    "preprocessing_hash",
    "retrieval",
    "licenses",
    "layers",
)


# Hashes


def hash_rows(texts: Iterable[str], dim: int, keys: Iterable[np.ndarray]) -> str:
    """SHA-256 over ordered names (or captions) and keys as float32; the same rows give the same hash anywhere."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    digest.update(dim.to_bytes(4, "little"))
    for block in keys:
        digest.update(np.ascontiguousarray(block, dtype="<f4").data)
    return digest.hexdigest()


def hash_columns(table: pa.Table) -> str:
    """SHA-256 over the values of columns, whatever their chunks and whichever order the columns stand in."""
    digest = hashlib.sha256()
    for name in sorted(table.column_names):
        column = table[name]
        digest.update(f"{name}:{column.type}".encode())
        if pa.types.is_nested(column.type):
            for chunk in column.iterchunks():
                for value in chunk:
                    digest.update(repr(value.as_py()).encode())
            continue
        encoded = column.combine_chunks().dictionary_encode()
        chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
        for chunk in chunks:
            digest.update(repr(chunk.dictionary.to_pylist()).encode())
            digest.update(dictionary_codes(chunk).astype("<i4").data)
    return digest.hexdigest()


def hash_settings(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over the settings that a manifest names: retrieval, identity of the encoder, index, files."""
    settings = {name: manifest[name] for name in _SETTINGS if name in manifest}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def hash_file(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return (
            hashlib.file_digest(opened, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(opened)
        )


def _digest(opened: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10
    while block := opened.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


# Manifest


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest as it is written, with the hash of its settings."""
    return json.dumps({**manifest, "settings_sha256": hash_settings(manifest)}, indent=2, ensure_ascii=False) + "\n"


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """
    Reads `memory_config.json` and checks it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is not one, of another kind or a later version, or its settings are not those that were saved.
    """
    file = folder / MANIFEST_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no {kind.replace('-', ' ')}: {MANIFEST_NAME} is missing.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{file} must hold a JSON object, it holds {type(manifest).__name__}.")
    if manifest.get("format") != kind:
        raise ValueError(f"{file} describes a {manifest.get('format')!r}, not a {kind!r}.")
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{file} is of format {version}, this hf_evcap reads up to {FORMAT_VERSION}. Upgrade with "
            "`pip install -U hf_evcap`."
        )
    # Folders of earlier versions have no hash of their settings, and name no files and no folders of layers.
    earlier = "files" not in manifest and '"folder"' not in json.dumps(manifest.get("layers"))
    if manifest.get("settings_sha256", hash_settings(manifest) if earlier else None) != hash_settings(manifest):
        raise ValueError(
            f"The settings in {file} (retrieval, encoder, preprocessing, index) are not those that were saved. "
            "Restore the file; to change a setting, change it in Python and save."
        )
    return manifest


def holds_layers(folder: Path) -> bool:
    """Whether a folder holds several memories."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == LAYERS_FORMAT


# Files


def data_files(folder: Path, manifest: Mapping[str, Any]) -> list[Path]:
    """The parquet files of a store, in order: those that the manifest names or, of earlier versions, all in `data`."""
    listed = manifest.get("files")
    if listed is None:
        files = sorted((folder / DATA_FOLDER).glob("*.parquet"))
    elif isinstance(listed, list) and all(isinstance(name, str) and _DATA_FILE.fullmatch(name) for name in listed):
        files = [folder / name for name in listed]
    else:
        raise ValueError(f"{folder / MANIFEST_NAME} must list files such as {DATA_FOLDER}/x.parquet; got {listed!r}.")
    missing = [str(file.relative_to(folder)) for file in files if not file.is_file()]
    if missing or not files:
        raise FileNotFoundError(f"{folder} holds no rows: there is no {missing[0] if missing else 'data/*.parquet'}.")
    return files


def own_files(folder: Path) -> list[str]:
    """
    The files of the store or the layers in a folder, relative to it, its manifest last: what the package wrote there
    and a later save may take away. Empty where there is no manifest to go by.
    """
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(manifest, dict) or "format" not in manifest:
        return []
    names = [CARD_NAME, INDEX_NAME, MANIFEST_NAME]
    if manifest["format"] == LAYERS_FORMAT:
        for _, place in layer_places(manifest):
            names[:0] = [f"{place}/{name}" for name in own_files(folder / place)]
    elif isinstance(manifest.get("files"), list):
        names[:0] = [name for name in manifest["files"] if isinstance(name, str) and _DATA_FILE.fullmatch(name)]
    else:
        files = (folder / DATA_FOLDER).glob("*.parquet")
        names[:0] = sorted(f"{DATA_FOLDER}/{file.name}" for file in files if _OWN_DATA_FILE.fullmatch(file.name))
    return [name for name in names if (folder / name).is_file()]


def layer_places(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and folder of each layer that a manifest lists, but for those that cannot be either."""
    listed = manifest.get("layers")
    layers = [layer for layer in listed if isinstance(layer, dict)] if isinstance(listed, list) else []
    named = [(str(layer.get("name")), str(layer.get("folder", layer.get("name")))) for layer in layers]
    return [
        (name, f"{LAYERS_FOLDER}/{folder}")
        for name, folder in named
        if LAYER_NAME.fullmatch(name) and LAYER_NAME.fullmatch(folder)
    ]


def state_of(folder: Path) -> str | None:
    """Hash that tells one state of a folder from another, or `None` where it holds no store."""
    try:
        return hash_file(folder / MANIFEST_NAME)
    except FileNotFoundError:
        return None


def changed_by_others(what: str, folder: Path) -> str:
    """Says that a save would undo somebody else's."""
    return (
        f"Somebody else has changed the {what} in {folder} since it was loaded or saved here. Load it again and "
        "repeat the edit, or save with `overwrite=True` if that change is to be lost."
    )


def read_settled(folder: Path, read: Callable[[], Any]) -> Any:
    """Reads a folder that other processes may save anew meanwhile: what fails or mixes states then is done again."""
    while True:
        state = state_of(folder)
        try:
            found = read()
        except (FileNotFoundError, ValueError):
            if state == state_of(folder):
                raise
            continue
        if state == state_of(folder):
            return found


__all__ = [
    "MANIFEST_NAME",
    "changed_by_others",
    "data_files",
    "hash_columns",
    "hash_file",
    "hash_rows",
    "hash_settings",
    "holds_layers",
    "layer_places",
    "manifest_text",
    "own_files",
    "read_manifest",
    "read_settled",
    "state_of",
]
