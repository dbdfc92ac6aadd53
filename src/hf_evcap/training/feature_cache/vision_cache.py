"""
Vision hidden states of photos on disk: the encoder is frozen, so a photo's are the same in every epoch.

A photo has the one view that captioning sees, and the cache says whose features they are.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers.utils import logging

from ...photo_loading import hash_photo, load_photo
from ...weight_fingerprint import hash_tensors


logger = logging.get_logger(__name__)

CACHE_MANIFEST = "feature_cache.json"
CACHE_FORMAT = "vision-feature-cache"
CACHE_VERSION = 1
FEATURES = "vision_hidden_states"
FEATURE_DTYPES = ("float16", "float32")

# What names a class, a file or the machine's choice of kernel, and changes no feature.
_IGNORED_SETTINGS = {"_name_or_path", "_attn_implementation", "architectures", "auto_map", "dtype", "processor_class"}
_IGNORED_SETTINGS |= {"transformers_version", "torch_dtype", "_processor_class", "return_dict", "id2label", "label2id"}


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    return json.loads(
        json.dumps({k: v for k, v in values.items() if k not in _IGNORED_SETTINGS}, sort_keys=True, default=str)
    )


def vision_fingerprint(model: Any) -> str:
    """
    Identity of a model's vision encoder: its weights, seen in bfloat16 so that loading them in it changes nothing,
    and its configuration.

    Args:
        model ([`RetrievalPreTrainedModel`]): EVCap, SmallCap, ...
    """
    weights = {name: weight.detach().bfloat16() for name, weight in model.vision_model.state_dict().items()}
    if any(getattr(weight, "ds_id", None) is not None and not weight.numel() for weight in model.parameters()):
        raise ValueError(
            "DeepSpeed has spread the model's weights over the processes, so they cannot be compared with those that "
            "made the feature cache. Load it whole: `zero3_init_flag: false`, as hub_configs/accelerate has it."
        )
    settings = {
        **_settings(model.vision_model.config.to_dict()),
        "vision_layer_norm_eps": getattr(model.config, "vision_layer_norm_eps", None),
    }
    described = hash_tensors(weights) + json.dumps(settings, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()


def image_settings(processor: Any) -> dict[str, Any]:
    """What the image processor does to a photo: its class and numbers."""
    image_processor = processor.image_processor
    return {**_settings(image_processor.to_dict()), "image_processor_type": type(image_processor).__name__}


class VisionFeatureCache:
    """
    Vision hidden states of photos, made by `hf-evcap cache-features`: a folder that `datasets.load_from_disk` opens,
    memory-mapped, with a manifest that says whose features they are.

    Args:
        folder (`Path`): The folder.
        manifest (`dict`): Content of its `feature_cache.json`.
        dataset (`datasets.Dataset`): Columns `image_id`, `photo_hash`, `vision_hidden_states` and `crc32`.

    Example:
    ```python
    >>> cache = VisionFeatureCache.open("features", model, processor)
    >>> dataset = cache.attach(load_caption_data("coco-karpathy", "train", images="coco"))
    >>> dataset[0]["vision_hidden_states"].shape
    (257, 1408)
    ```
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], dataset: datasets.Dataset) -> None:
        self.folder = folder
        self.manifest = manifest
        self.dataset = dataset
        self._arrow = dataset.with_format("arrow")
        self.image_ids: list[str] = dataset.data.column("image_id").to_pylist()
        self.row_of: dict[str, int] = {image_id: row for row, image_id in enumerate(self.image_ids)}

    @classmethod
    def open(cls, folder: str | Path, model: Any = None, processor: Any = None) -> VisionFeatureCache:
        """
        Opens a cache, and checks that it was made by this encoder and this preprocessing.

        Args:
            folder (`str` or `Path`): What `hf-evcap cache-features` wrote.
            model ([`RetrievalPreTrainedModel`], *optional*): Its vision encoder must be the cache's.
            processor (*optional*): Its image processor must be the cache's.

        Raises:
            FileNotFoundError: There is no cache, or it is unfinished, or a shard is missing.
            ValueError: Another encoder or preprocessing, or a damaged shard.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        parts = []
        for shard in manifest["shards"]:
            file = folder / shard["file"]
            if not file.is_file():
                raise FileNotFoundError(f"The feature cache {folder} lacks its shard {shard['file']}. {_remake()}")
            if file.stat().st_size != shard["bytes"]:
                raise ValueError(
                    f"Shard {shard['file']} of the feature cache {folder} has {file.stat().st_size:,} bytes instead "
                    f"of {shard['bytes']:,}: it is damaged or incomplete. {_remake()}"
                )
            try:
                parts.append(datasets.Dataset.from_file(str(file)))
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"Shard {shard['file']} of the feature cache {folder} cannot be read ({error}). {_remake()}"
                ) from error
        cache = cls(folder, manifest, datasets.concatenate_datasets(parts))
        if model is not None:
            cache.check_model(model)
        if processor is not None:
            cache.check_processor(processor)
        return cache

    def check_model(self, model: Any) -> None:
        """Raises `ValueError` if another vision encoder made the features."""
        mine, theirs = self.manifest["vision_fingerprint"], vision_fingerprint(model)
        if mine != theirs:
            raise ValueError(
                f"The feature cache {self.folder} was made by the vision encoder {mine[:12]}, this model's is "
                f"{theirs[:12]}. Train the model that made it, or make another cache with `hf-evcap cache-features`."
            )

    def check_processor(self, processor: Any) -> None:
        """Raises `ValueError` if photos were prepared in another way."""
        mine, theirs = self.manifest["image_processor"], image_settings(processor)
        other = sorted(name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name))
        if other:
            listed = "; ".join(f"{name}: {mine.get(name)!r}, here {theirs.get(name)!r}" for name in other)
            raise ValueError(
                f"The feature cache {self.folder} was made with another preprocessing of photos ({listed}). Use the "
                "processor that made it, or make another cache with `hf-evcap cache-features`."
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        patches, width = self.shape
        return f"{type(self).__name__}({len(self)} photos, {patches} x {width}, {self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """`tuple[int, int]`: Patches of a photo and width of each."""
        return tuple(self.manifest["shape"])

    @property
    def dtype(self) -> str:
        """`str`: Precision on disk, float16 or float32."""
        return self.manifest["dtype"]

    @property
    def skipped(self) -> dict[str, str]:
        """`dict[str, str]`: Image ids of photos that could not be read when the cache was made, and why."""
        return self.manifest["skipped"]

    def __getitem__(self, row: int) -> dict[str, Any]:
        """
        A photo's `image_id`, `photo_hash` and `vision_hidden_states`, `np.ndarray` `(num_patches, hidden_size)`.

        Raises:
            ValueError: The row's bytes are not those that were written; the message names the shard.
        """
        table = self._arrow[row]
        stored = table[FEATURES].chunk(0).flatten().flatten().to_numpy(zero_copy_only=True)
        if zlib.crc32(stored) != table["crc32"][0].as_py():
            raise ValueError(
                f"Shard {self._shard_of(row)} of the feature cache {self.folder} is damaged: the features of photo "
                f"{self.image_ids[row]!r} (row {row}) are not those that were written. {_remake()}"
            )
        return {
            "image_id": self.image_ids[row],
            "photo_hash": table["photo_hash"][0].as_py(),
            FEATURES: stored.reshape(self.shape).copy(),  # torch wants memory that it may write to
        }

    def _shard_of(self, row: int) -> str:
        for shard in self.manifest["shards"]:
            if row < shard["rows"]:
                return shard["file"]
            row -= shard["rows"]
        raise IndexError(f"The feature cache {self.folder} has {len(self)} rows.")

    def __call__(self, image_ids: Sequence[str]) -> torch.Tensor:
        """Features of some photos: `torch.FloatTensor` of shape `(len(image_ids), num_patches, hidden_size)`."""
        features = np.stack([self[self.row_of[image_id]][FEATURES] for image_id in image_ids])
        return torch.from_numpy(features).float()

    @cached_property
    def _row_of_hash(self) -> dict[str, int]:
        hashes = self.dataset.data.column("photo_hash").to_pylist()
        return {photo_hash: row for row, photo_hash in enumerate(hashes)}

    def holds(self, photo_hashes: Sequence[str]) -> bool:
        """Whether all of these photos are in the cache, known by their pixels ([`~photo_loading.hash_photo`])."""
        return all(photo_hash in self._row_of_hash for photo_hash in photo_hashes)

    def of_photos(self, photo_hashes: Sequence[str]) -> torch.Tensor:
        """Their features: `torch.FloatTensor` of shape `(len(photo_hashes), num_patches, hidden_size)`."""
        rows = [self[self._row_of_hash[photo_hash]][FEATURES] for photo_hash in photo_hashes]
        return torch.from_numpy(np.stack(rows)).float()

    def attach(self, dataset: Any) -> Any:
        """
        Puts features in the place of a dataset's photos, found by `image_id`.

        Photos that were skipped when the cache was made are left out, with their count in the log.

        Args:
            dataset (`datasets.Dataset` or `datasets.IterableDataset`): With a column `image_id`.

        Returns:
            [`PhotosWithFeatures`], or an `IterableDataset` for a streamed one: rows without `image`, with
            `vision_hidden_states` and `photo_hash`.

        Raises:
            ValueError: A photo is not in the cache, or its photo is another one than here.
        """
        if isinstance(dataset, datasets.IterableDataset):
            if isinstance((dataset.features or {}).get("image"), datasets.Image):
                dataset = dataset.cast_column("image", datasets.Image(decode=False))  # never looked at
            known = dataset.filter(lambda row: str(row["image_id"]) not in self.skipped)
            columns = [column for column in ("image",) if column in (dataset.column_names or ["image"])]
            return known.map(self._with_features, remove_columns=columns)
        if "image_id" not in dataset.column_names:
            raise ValueError(
                f"The dataset has no column `image_id` to find cached features by; it has {dataset.column_names}."
            )
        image_ids = [str(image_id) for image_id in dataset.select_columns(["image_id"])[:]["image_id"]]
        self._check_ids(image_ids)
        kept = [row for row, image_id in enumerate(image_ids) if image_id in self.row_of]
        if len(kept) < len(image_ids):
            logger.warning(
                f"Left out {len(image_ids) - len(kept)} photos that were skipped when {self.folder} was made."
            )
            dataset = dataset.select(kept)
        rows = [self.row_of[image_ids[row]] for row in kept]
        self._check_photos(dataset, rows)
        return PhotosWithFeatures(dataset, self, rows)

    def _with_features(self, row: dict[str, Any]) -> dict[str, Any]:
        self._check_ids([str(row["image_id"])])
        found = self[self.row_of[str(row["image_id"])]]
        return {FEATURES: found[FEATURES], "photo_hash": found["photo_hash"]}

    def _check_ids(self, image_ids: Sequence[str]) -> None:
        unknown = [image_id for image_id in image_ids if image_id not in self.row_of and image_id not in self.skipped]
        if unknown:
            more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
            raise ValueError(
                f"The feature cache {self.folder} has no photo {', '.join(map(repr, unknown[:3]))}{more}. Make it of "
                "the data that you train on: `hf-evcap cache-features` with the same --dataset and --split."
            )

    def _check_photos(self, dataset: Any, rows: Sequence[int], count: int = 3) -> None:
        """Compares a few photos with those that were cached; ids alone may name other photos in another dataset."""
        if "image" not in dataset.column_names:
            return
        undecoded = dataset.select_columns(["image"])
        if isinstance((dataset.features or {}).get("image"), datasets.Image):
            undecoded = undecoded.cast_column("image", datasets.Image(decode=False))
        for place in sorted({int(place) for place in np.linspace(0, len(rows) - 1, num=min(count, len(rows)))}):
            try:
                found = hash_photo(load_photo(undecoded[place]["image"]))
            except (OSError, ValueError, TypeError):
                continue  # training from a cache needs no photos
            if found != self._arrow[rows[place]]["photo_hash"][0].as_py():
                raise ValueError(
                    f"Photo {self.image_ids[rows[place]]!r} of the dataset is not the one of that id in the feature "
                    f"cache {self.folder}: the cache was made of other photos. {_remake()}"
                )


class PhotosWithFeatures(torch.utils.data.Dataset):
    """
    A dataset whose photos are replaced by cached features; made by [`VisionFeatureCache.attach`].

    Args:
        dataset (`datasets.Dataset`): Its column `image` is dropped.
        cache ([`VisionFeatureCache`]): The features.
        rows (`Sequence[int]`): Row of the cache for each row of the dataset.
    """

    def __init__(self, dataset: datasets.Dataset, cache: VisionFeatureCache, rows: Sequence[int]) -> None:
        self.dataset = dataset.remove_columns([name for name in ("image",) if name in dataset.column_names])
        self.cache = cache
        self.rows = np.asarray(rows, dtype=np.int64)

    @property
    def column_names(self) -> list[str]:
        """`list[str]`: Columns of a row."""
        return [*self.dataset.column_names, FEATURES, "photo_hash"]

    @property
    def features(self) -> datasets.Features:
        """`datasets.Features`: Types of the columns that are kept in the dataset itself."""
        return self.dataset.features

    def select_columns(self, column_names: str | list[str]) -> datasets.Dataset:
        """The dataset with only these of its own columns."""
        return self.dataset.select_columns(column_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        found = self.cache[int(self.rows[row])]
        return {**self.dataset[row], FEATURES: found[FEATURES], "photo_hash": found["photo_hash"]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a cache's manifest, or says why there is none."""
    file = folder / CACHE_MANIFEST
    if not file.is_file():
        unfinished = Path(f"{folder}.building")
        if unfinished.is_dir():
            raise FileNotFoundError(
                f"The feature cache {folder} is unfinished. Give the same `hf-evcap cache-features` command again: it "
                "goes on where it stopped."
            )
        raise FileNotFoundError(
            f"There is no feature cache in {folder} (no {CACHE_MANIFEST}). Make one with `hf-evcap cache-features`."
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged ({error}). {_remake()}") from error
    if manifest.get("format") != CACHE_FORMAT or manifest.get("version") != CACHE_VERSION:
        raise ValueError(
            f"{file} is of {manifest.get('format')!r}, version {manifest.get('version')!r}; this hf_evcap reads "
            f"{CACHE_FORMAT!r}, version {CACHE_VERSION}."
        )
    return manifest


def _remake() -> str:
    return "Make the cache again with `hf-evcap cache-features ... --restart`."


__all__ = ["PhotosWithFeatures", "VisionFeatureCache", "image_settings", "vision_fingerprint"]
