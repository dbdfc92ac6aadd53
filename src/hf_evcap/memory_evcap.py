"""The external visual-name memory: rows of a key and an object's name, kept as a Hub dataset with a FAISS index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, snapshot_download
from transformers.utils import logging


logger = logging.get_logger(__name__)

MANIFEST_NAME = "memory_config.json"
INDEX_NAME = "index.faiss"
DATA_FILE = "data/train-00000-of-00001.parquet"
CARD_NAME = "README.md"
FORMAT_VERSION = 1
MAX_NAME_CHARACTERS = 1000


def check_name(name: Any, place: str) -> str:
    """Returns the name with its white space folded, or says why it cannot be one."""
    if not isinstance(name, str):
        raise TypeError(f"A name must be a string; {place} is {type(name).__name__}.")
    folded = " ".join(name.split())
    if not folded:
        raise ValueError(f"A name must not be empty; {place} is {name!r}.")
    if len(folded) > MAX_NAME_CHARACTERS:
        raise ValueError(
            f"A name may have at most {MAX_NAME_CHARACTERS} characters; {place} has {len(folded)} "
            f"({folded[:40]!r}...). Shorten it: captions use names, not descriptions."
        )
    return folded


def check_keys(keys: Any, rows: int, dim: int | None) -> np.ndarray:
    """Returns keys as a float32 array of shape `(rows, dim)`, or says what is wrong with them."""
    if hasattr(keys, "detach"):  # a torch tensor, on any device and in any precision
        keys = keys.detach().float().cpu().numpy()
    keys = np.ascontiguousarray(keys, dtype=np.float32)
    if keys.ndim != 2 or keys.shape[0] != rows:
        raise ValueError(f"Expected keys of shape ({rows}, dim), one row a name; got {keys.shape}.")
    if dim is not None and keys.shape[1] != dim:
        raise ValueError(
            f"These keys have dimension {keys.shape[1]}, the memory's have {dim}: they come from different encoders. "
            "Make keys with `model.get_memory_keys(pixel_values)` of the model that built the memory."
        )
    bad = ~np.isfinite(keys).all(axis=1)
    if bad.any():
        raise ValueError(f"Keys must be finite; row {int(bad.argmax())} holds NaN or infinity.")
    zero = ~keys.any(axis=1)
    if zero.any():
        raise ValueError(
            f"Keys must not be zero vectors (they have no direction to compare); row {int(zero.argmax())} is."
        )
    return keys


def normalize_keys(keys: np.ndarray) -> np.ndarray:
    """Scales keys to unit length, as the cosine search needs them."""
    return keys / np.linalg.norm(keys, axis=1, keepdims=True)


class VisualNameMemory:
    r"""
    Rows of `(key, name)`: what the encoder saw of an object, and what people call it (EVCap, section 3.2).

    Rows live in an Arrow table, so that adding is cheap and every further column (`source`, `synthetic`, a thumbnail,
    a name in another language) travels along. On disk and on the Hub a memory is an ordinary dataset; see
    [`~VisualNameMemory.save_pretrained`].

    Args:
        table (`pyarrow.Table`): Columns `name` (string) and `key` (fixed-size list of float32), and any others.
        encoder_fingerprint (`str`, *optional*):
            What [`EVCapForConditionalGeneration.encoder_fingerprint`] gives for the model that made the keys. A model
            refuses a memory of another encoder. `None` means unknown and is accepted.
        query_tokens_hash (`str`, *optional*): Hash of the image queries when the keys were made; shown, not enforced.
        retrieval (`dict`, *optional*): Retrieval defaults that suit this memory, for its card.
        licenses (`dict[str, str]`, *optional*): Licence of each source, for its card.
        index_factory (`str`, *optional*, defaults to `"Flat"`): FAISS index factory string. `Flat` is exact.

    Example:
    ```python
    >>> memory = VisualNameMemory.from_rows(["cat", "dog"], keys)
    >>> memory.add(["axolotl"], new_keys)
    >>> memory.save_pretrained("my-memory")
    ```
    """

    def __init__(
        self,
        table: pa.Table,
        *,
        encoder_fingerprint: str | None = None,
        query_tokens_hash: str | None = None,
        retrieval: dict[str, Any] | None = None,
        licenses: dict[str, str] | None = None,
        index_factory: str = "Flat",
    ) -> None:
        missing = {"name", "key"} - set(table.column_names)
        if missing:
            raise ValueError(f"A memory needs the columns name and key; {', '.join(sorted(missing))} is missing.")
        if not pa.types.is_fixed_size_list(table.schema.field("key").type):
            raise ValueError("The column key must hold fixed-size lists of float32, one vector a row.")
        self.table = table
        self.encoder_fingerprint = encoder_fingerprint
        self.query_tokens_hash = query_tokens_hash
        self.retrieval = dict(retrieval or {})
        self.licenses = dict(licenses or {})
        self.index_factory = index_factory
        self.repo_id: str | None = None  # set by `from_pretrained` when the rows come unchanged from the Hub
        self.revision: str | None = None
        self._forget_derived()

    def _forget_derived(self) -> None:
        self._keys: np.ndarray | None = None
        self._index: Any = None

    # Making one

    @classmethod
    def from_rows(
        cls,
        names: Sequence[str],
        keys: Any,
        *,
        encoder_fingerprint: str | None = None,
        query_tokens_hash: str | None = None,
        retrieval: dict[str, Any] | None = None,
        licenses: dict[str, str] | None = None,
        index_factory: str = "Flat",
        **columns: Any,
    ) -> VisualNameMemory:
        """
        Makes a memory from names and their keys.

        Args:
            names (`Sequence[str]`): One name a row; a name may stand in many rows.
            keys (array or tensor of shape `(rows, dim)`): What `model.get_memory_keys` gives for each photo.
            **columns: Further columns, one value a row, or one string, number or boolean for all rows.

        Raises:
            ValueError: Empty or overlong names, keys that are not finite or are zero, lengths that differ.
        """
        table = cls._make_table(names, keys, None, columns)
        return cls(
            table,
            encoder_fingerprint=encoder_fingerprint,
            query_tokens_hash=query_tokens_hash,
            retrieval=retrieval,
            licenses=licenses,
            index_factory=index_factory,
        )

    @classmethod
    def empty(cls, dim: int, **settings: Any) -> VisualNameMemory:
        """Makes a memory without rows, for keys of dimension `dim`."""
        return cls.from_rows([], np.zeros((0, dim), dtype=np.float32), **settings)

    @classmethod
    def from_images(
        cls,
        model: Any,
        processor: Any,
        dataset: Iterable[Mapping[str, Any]],
        *,
        image_column: str = "image",
        name_column: str = "name",
        batch_size: int = 32,
        columns: Sequence[str] = (),
    ) -> VisualNameMemory:
        """
        Encodes photos of named objects into a memory for `model`.

        Args:
            model ([`EVCapForConditionalGeneration`]): Its encoder makes the keys.
            processor ([`EVCapProcessor`]): Its image processor prepares the photos.
            dataset (`Iterable[dict]`): Rows with a photo and a name; a `datasets.Dataset`, a list, a generator.
            image_column (`str`, *optional*, defaults to `"image"`): Column of the photos (PIL image, path or URL).
            name_column (`str`, *optional*, defaults to `"name"`): Column of the names.
            batch_size (`int`, *optional*, defaults to 32): Photos encoded at once.
            columns (`Sequence[str]`, *optional*): Further columns of the dataset that the memory keeps.
        """
        memory = cls.empty(
            model.memory_key_size,
            encoder_fingerprint=model.encoder_fingerprint,
            query_tokens_hash=model.query_tokens_hash,
        )
        tables = []
        for batch in _batched(dataset, batch_size):
            kept = {column: [row[column] for row in batch] for column in columns}
            keys = model.encode_memory_keys(processor, [row[image_column] for row in batch])
            tables.append(cls._make_table([row[name_column] for row in batch], keys, memory.dim, kept))
        if tables:
            memory.table = pa.concat_tables(tables).combine_chunks()
        return memory

    @staticmethod
    def _make_table(names: Sequence[str], keys: Any, dim: int | None, columns: Mapping[str, Any]) -> pa.Table:
        if isinstance(names, str):
            raise TypeError(f"Expected a list of names, got the string {names!r}; write [{names!r}].")
        names = [check_name(name, f"row {row}") for row, name in enumerate(names)]
        keys = check_keys(keys, len(names), dim)
        key_column = pa.FixedSizeListArray.from_arrays(pa.array(keys.reshape(-1)), keys.shape[1])
        arrays = {"name": pa.array(names, pa.string()), "key": key_column}
        for column, values in columns.items():
            if values is None or isinstance(values, (str, bool, int, float)):
                values = [values] * len(names)
            if len(values) != len(names):
                raise ValueError(f"Column {column!r} has {len(values)} values for {len(names)} rows.")
            arrays[column] = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(list(values))
        return pa.table(arrays)

    # Reading it

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows, {len(set(self.names))} names, dim {self.dim})"

    @property
    def dim(self) -> int:
        """`int`: Dimension of the keys."""
        return self.table.schema.field("key").type.list_size

    @property
    def names(self) -> list[str]:
        """`list[str]`: The name of each row."""
        return self.table["name"].to_pylist()

    @property
    def keys(self) -> np.ndarray:
        """`np.ndarray` of shape `(rows, dim)`: The key of each row as it was given, not normalised."""
        if self._keys is None:
            column = self.table["key"].combine_chunks()
            chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
            flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
            self._keys = np.concatenate([*flat, np.zeros(0, np.float32)]).astype(np.float32).reshape(-1, self.dim)
        return self._keys

    @property
    def fingerprint(self) -> str:
        """`str`: SHA-256 over the ordered names and keys; the same rows give the same fingerprint anywhere."""
        digest = hashlib.sha256()
        for name in self.names:
            encoded = name.encode()
            digest.update(len(encoded).to_bytes(4, "little"))
            digest.update(encoded)
        digest.update(self.dim.to_bytes(4, "little"))
        digest.update(np.ascontiguousarray(self.keys, dtype="<f4").data)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Says in numbers what the memory holds: rows, names, rows a name, sources, and who built it."""
        rows_per_name = Counter(self.names)
        sources: Counter[str] = Counter()
        if "source" in self.table.column_names:
            sources = Counter(str(source) for source in self.table["source"].to_pylist())
        return {
            "rows": len(self),
            "names": len(rows_per_name),
            "dim": self.dim,
            "rows_per_name": {
                "min": min(rows_per_name.values(), default=0),
                "mean": len(self) / max(len(rows_per_name), 1),
                "max": max(rows_per_name.values(), default=0),
            },
            "sources": dict(sources.most_common()),
            "columns": self.table.column_names,
            "encoder_fingerprint": self.encoder_fingerprint,
            "query_tokens_hash": self.query_tokens_hash,
            "index_factory": self.index_factory,
        }

    # Editing it

    def _replace_rows(self, table: pa.Table) -> VisualNameMemory:
        self.table = table
        self.repo_id = self.revision = None
        self._forget_derived()
        return self

    def add(self, names: Sequence[str], keys: Any, **columns: Any) -> VisualNameMemory:
        """
        Adds rows. Columns that the memory has and the call does not name are left empty for the new rows.

        Args:
            names (`Sequence[str]`): One name a row.
            keys (array or tensor of shape `(rows, dim)`): Keys of the same encoder as the memory's.
            **columns: Values of further columns, a value a row or one for all.

        Returns:
            The memory itself. Models that hold it see the change at their next caption.
        """
        new = self._make_table(names, keys, self.dim, columns)
        return self._replace_rows(pa.concat_tables([self.table, new], promote_options="default"))

    def add_images(
        self, model: Any, processor: Any, images: Sequence[Any], names: Sequence[str] | str, **columns: Any
    ) -> VisualNameMemory:
        """Encodes photos with `model` and adds them; one name for all photos, or one a photo."""
        model.check_memory(self)
        names = [names] * len(images) if isinstance(names, str) else names
        if len(names) != len(images):
            raise ValueError(
                f"Got {len(images)} photos and {len(names)} names; give one name a photo, or one for all."
            )
        return self.add(names, model.encode_memory_keys(processor, images), **columns)

    def subset(self, names: Iterable[str] | Callable[[str], bool]) -> VisualNameMemory:
        """Returns a new memory with the rows of these names, or of the names for which a function is true."""
        if callable(names):
            keep = {name for name in set(self.names) if names(name)}
        else:
            keep = {names} if isinstance(names, str) else set(names)
            self._check_known(keep)
        return self._copy(self.table.filter(pa.array([name in keep for name in self.names], pa.bool_())))

    def remove(self, names: Iterable[str]) -> VisualNameMemory:
        """Removes every row of these names from the memory. Unknown names are an error, and nothing is removed."""
        drop = {names} if isinstance(names, str) else set(names)
        self._check_known(drop)
        return self._replace_rows(self.table.filter(pa.array([name not in drop for name in self.names], pa.bool_())))

    def rename(self, names: Mapping[str, str]) -> VisualNameMemory:
        """Gives names another wording, `{old: new}`; rows of an old name join those of the new one."""
        self._check_known(set(names))
        names = {old: check_name(new, f"the new name of {old!r}") for old, new in names.items()}
        column = pa.array([names.get(name, name) for name in self.names], pa.string())
        return self._replace_rows(self.table.set_column(self.table.column_names.index("name"), "name", column))

    def copy(self) -> VisualNameMemory:
        """Returns a memory with the same rows, to edit without touching this one. Rows are shared until then."""
        return self._copy(self.table)

    def _copy(self, table: pa.Table) -> VisualNameMemory:
        return type(self)(
            table,
            encoder_fingerprint=self.encoder_fingerprint,
            query_tokens_hash=self.query_tokens_hash,
            retrieval=self.retrieval,
            licenses=self.licenses,
            index_factory=self.index_factory,
        )

    def _check_known(self, names: set[str]) -> None:
        unknown = sorted(names - set(self.names))
        if unknown:
            raise KeyError(f"The memory has no name {', '.join(map(repr, unknown[:5]))}; see `memory.names`.")

    # Searching it

    @property
    def index(self) -> Any:
        """`faiss.Index`: Inner-product index over the normalised keys, built when first needed."""
        if self._index is None:
            import faiss

            self._index = faiss.index_factory(self.dim, self.index_factory, faiss.METRIC_INNER_PRODUCT)
            keys = normalize_keys(self.keys)
            if not self._index.is_trained:
                self._index.train(keys)
            self._index.add(keys)
        return self._index

    def search(self, queries: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Finds the rows nearest in cosine similarity.

        Args:
            queries (array or tensor of shape `(num_queries, dim)`): Normalised here; need not be before.
            k (`int`): Rows wanted for each query; fewer come back when the memory holds fewer.

        Returns:
            `scores` and `row_ids`, both of shape `(num_queries, min(k, rows))`, best first.
        """
        queries = check_keys(queries, len(queries), self.dim)
        k = min(k, len(self))
        if k == 0:
            return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
        return self.index.search(normalize_keys(queries), k)

    # Keeping it

    def save_pretrained(self, save_directory: str | os.PathLike, write_index: bool = True) -> None:
        """
        Writes the memory as a dataset folder: `data/*.parquet` (the truth), `index.faiss` (a cache of it),
        `memory_config.json` (what it is and its hash) and `README.md` (its card).

        The folder is written under another name first and takes the place of an earlier one only when complete.

        Args:
            save_directory (`str` or `os.PathLike`): Folder of the memory.
            write_index (`bool`, *optional*, defaults to `True`):
                Whether to write `index.faiss`. Leave it out where size counts: it is rebuilt when needed.
        """
        target = Path(save_directory)
        if target.is_file():
            raise NotADirectoryError(f"{target} is a file; give a folder to save the memory in.")
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            self._write_files(staging, write_index)
            staging.chmod(0o755)
            if target.exists():
                for kept in target.iterdir():  # what others put there stays: .git, .gitattributes, plots
                    if kept.name not in {"data", MANIFEST_NAME, INDEX_NAME, CARD_NAME}:
                        shutil.move(str(kept), staging / kept.name)
                replaced = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
                os.replace(target, replaced)
                os.replace(staging, target)
                shutil.rmtree(replaced)
            else:
                os.replace(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _write_files(self, folder: Path, write_index: bool) -> None:
        import faiss

        (folder / "data").mkdir()
        pq.write_table(self.table, folder / DATA_FILE, compression="zstd")
        if write_index:
            faiss.write_index(self.index, str(folder / INDEX_NAME))
        manifest = self._manifest()
        (folder / MANIFEST_NAME).write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / CARD_NAME).write_text(memory_card(self, manifest), encoding="utf-8")

    def _manifest(self) -> dict[str, Any]:
        return {
            "format": "visual-name-memory",
            "format_version": FORMAT_VERSION,
            "rows": len(self),
            "names": len(set(self.names)),
            "dim": self.dim,
            "metric": "inner product of L2-normalised keys",
            "index_factory": self.index_factory,
            "sha256": self.fingerprint,
            "encoder_fingerprint": self.encoder_fingerprint,
            "query_tokens_hash": self.query_tokens_hash,
            "retrieval": self.retrieval,
            "licenses": self.licenses,
        }

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
    ) -> VisualNameMemory:
        """
        Loads a memory from a folder or from a dataset repo on the Hub, and checks it.

        Args:
            pretrained_memory_name_or_path (`str` or `os.PathLike`):
                A folder, or a repo id such as `"org/name"` or `"org/name@revision"`.
            revision (`str`, *optional*): Branch, tag or commit of the repo.
            subfolder (`str`, *optional*): Folder inside, `"memory"` for a memory that a model repo carries.
            repo_type (`str`, *optional*, defaults to `"dataset"`): `"model"` for a memory that a model repo carries.

        Raises:
            FileNotFoundError: There is no memory there.
            ValueError: The rows are not those that the manifest was written for.
        """
        source = str(pretrained_memory_name_or_path)
        if os.path.isdir(source):
            folder, repo_id = Path(source) / subfolder, None
        else:
            repo_id, _, suffix = source.partition("@")
            if source.count("/") != 1 or source.startswith((".", "/", "~")):
                raise FileNotFoundError(
                    f"{source!r} is neither a folder nor a Hub repo id of the form 'org/name' or 'org/name@revision'."
                )
            pattern = f"{subfolder}/*" if subfolder else None
            folder = Path(
                snapshot_download(
                    repo_id,
                    repo_type=repo_type,
                    revision=revision or suffix or None,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=pattern,
                )
            )
            revision = folder.name  # the commit that the revision stood for
            folder = folder / subfolder
        memory = cls._read_files(folder)
        if repo_id is not None and repo_type == "dataset":
            memory.repo_id, memory.revision = repo_id, revision
        return memory

    @classmethod
    def _read_files(cls, folder: Path) -> VisualNameMemory:
        manifest_file = folder / MANIFEST_NAME
        if not manifest_file.is_file():
            raise FileNotFoundError(f"{folder} holds no memory: {MANIFEST_NAME} is missing.")
        try:
            manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{manifest_file} is not valid JSON: {error}.") from error
        if manifest.get("format_version", 0) > FORMAT_VERSION:
            raise ValueError(
                f"{manifest_file} is of format {manifest['format_version']}, this hf_evcap reads up to "
                f"{FORMAT_VERSION}. Upgrade with `pip install -U hf_evcap`."
            )
        files = sorted((folder / "data").glob("*.parquet"))
        if not files:
            raise FileNotFoundError(f"{folder} holds no memory: there is no data/*.parquet.")
        try:
            table = pa.concat_tables([pq.read_table(file) for file in files])
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"The rows in {folder / 'data'} cannot be read ({error}). Restore or rebuild them."
            ) from error
        memory = cls(
            table,
            encoder_fingerprint=manifest.get("encoder_fingerprint"),
            query_tokens_hash=manifest.get("query_tokens_hash"),
            retrieval=manifest.get("retrieval"),
            licenses=manifest.get("licenses"),
            index_factory=manifest.get("index_factory", "Flat"),
        )
        if memory.fingerprint != manifest.get("sha256"):
            raise ValueError(
                f"The rows in {folder / 'data'} are not those that {MANIFEST_NAME} was written for (SHA-256 differs). "
                "Restore the files, or load the parquet files yourself and make a memory with "
                "`VisualNameMemory.from_rows` if the change is meant."
            )
        if memory.index_factory != "Flat":  # the exact index costs no more to make than to read
            memory._index = _read_index(folder / INDEX_NAME, memory)
        return memory

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload memory",
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
    ) -> str:
        """
        Uploads the memory as a dataset repo in one commit.

        Returns:
            `str`: The commit, to pin as a revision.
        """
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "memory")
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=Path(folder) / "memory",
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                delete_patterns=["data/*"],
            )
        return commit.oid


def _batched(rows: Iterable[Mapping[str, Any]], size: int) -> Iterable[list[Mapping[str, Any]]]:
    batch: list[Mapping[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _read_index(file: Path, memory: VisualNameMemory) -> Any:
    """Reads the stored index if it is of these rows; otherwise returns `None`, so that it is built again."""
    import faiss

    if not file.is_file():
        logger.warning(f"{file} is missing; the index will be rebuilt from the rows.")
        return None
    try:
        index = faiss.read_index(str(file))
    except RuntimeError:
        logger.warning(f"{file} cannot be read; the index will be rebuilt from the rows.")
        return None
    if index.ntotal != len(memory) or index.d != memory.dim:
        logger.warning(f"{file} is stale: {index.ntotal} rows, not {len(memory)}; it will be rebuilt from the rows.")
        return None
    probe = np.linspace(0, len(memory) - 1, num=min(len(memory), 16), dtype=int)
    found = index.search(normalize_keys(memory.keys[probe]), 1)[1][:, 0]
    if len(probe) and np.mean((memory.keys[found] == memory.keys[probe]).all(axis=1)) < 0.5:
        logger.warning(f"{file} does not find the memory's own rows; it will be rebuilt from them.")
        return None
    return index


def memory_card(memory: VisualNameMemory, manifest: Mapping[str, Any]) -> str:
    """Writes the dataset card: metadata that the Hub reads, counts, sources, licences and how to use it."""
    facts = memory.describe()
    names = sorted(Counter(memory.names).items(), key=lambda item: (-item[1], item[0]))
    preview = "\n".join(f"| {name.replace('|', ' ')} | {rows} |" for name, rows in names[:20])
    sources = "\n".join(f"| {source} | {rows} |" for source, rows in facts["sources"].items())
    licenses = "\n".join(f"- {source}: {license}" for source, license in memory.licenses.items())
    sections = [
        "---",
        "tags:\n- evcap\n- visual-name-memory\n- image-captioning",
        'configs:\n- config_name: default\n  data_files: "data/*.parquet"',
        "---",
        "# Visual-name memory",
        f"{facts['rows']:,} rows of a key and a name, {facts['names']:,} names, keys of dimension {facts['dim']}, for "
        "[EVCap](https://arxiv.org/abs/2311.15879) models of `hf_evcap`.",
        "```python\nimport hf_evcap\nfrom hf_evcap import VisualNameMemory\n\n"
        'memory = VisualNameMemory.from_pretrained("this/repo")\nmodel.set_memory(memory)\n```',
        "| what | value |\n| --- | --- |\n"
        + "\n".join(
            f"| {what} | `{manifest[what]}` |"
            for what in ("sha256", "encoder_fingerprint", "query_tokens_hash", "metric", "index_factory")
        ),
        f"A model whose encoder fingerprint differs refuses this memory. Rows a name: {facts['rows_per_name']['min']} "
        f"to {facts['rows_per_name']['max']}, {facts['rows_per_name']['mean']:.1f} on average.",
        f"## Sources\n\n| source | rows |\n| --- | --- |\n{sources}" if sources else "",
        f"## Licences\n\n{licenses}" if licenses else "",
        f"## Names with the most rows\n\n| name | rows |\n| --- | --- |\n{preview}" if preview else "",
    ]
    header = "\n".join(sections[:4])
    return header + "\n\n" + "\n\n".join(section for section in sections[4:] if section) + "\n"


__all__ = ["VisualNameMemory"]
