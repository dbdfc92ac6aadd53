"""A visual-name memory made ready for retrieval: names tokenised, rows split by kind, scenes fitted (EVCap)."""

from __future__ import annotations

import threading
from typing import Any

import torch
from typing_extensions import Self

from .memory_evcap import names_in
from .name_tokens_evcap import EVCapRetrievedNames, NameTokens, normalize_name
from .retrieval_rows import SearchableRows
from .scene_regression_evcap import SceneRegression
from .store_keys import dictionary_codes
from .store_snapshot import StoreSnapshot


class SearchableNames(SearchableRows):
    """
    One snapshot of a memory, ready for retrieval on one device; nothing of it changes.

    Args:
        snapshot ([`StoreSnapshot`]): The memory's rows.
        name_tokenizer: Tokenizer of the fusion Q-Former.
        max_name_length (`int`): Tokens at which joined names are cut.
        name_column (`str`, *optional*, defaults to `"name"`):
            Column of the memory that words the names, for example `name_ko`; rows that lack it keep their `name`.
        earlier ([`SearchableNames`], *optional*):
            Those of an earlier snapshot, on the CPU; names that it knows are not tokenised again.
    """

    def __init__(
        self,
        snapshot: StoreSnapshot,
        name_tokenizer: Any,
        max_name_length: int,
        name_column: str = "name",
        earlier: Self | None = None,
    ) -> None:
        super().__init__(snapshot, earlier)
        self.names: list[str] = []
        self._name_ids: dict[str, int] = {}
        self.tokens = NameTokens([], name_tokenizer, max_name_length)
        self.row_names = torch.zeros(0, dtype=torch.long)
        if earlier is not None and snapshot.extends(earlier.snapshot):
            self.names, self._name_ids = earlier.names, earlier._name_ids
            self.tokens, self.row_names = earlier.tokens, earlier.row_names
        self._take_up(names_in(snapshot.columns.slice(len(self.row_names)), name_column), name_tokenizer)
        self._read_kinds()

    def _take_up(self, names: Any, name_tokenizer: Any) -> None:
        """Tokenises names that are new, and notes the name of each further row."""
        encoded = names.dictionary_encode()
        normalized = [normalize_name(name) for name in encoded.dictionary.to_pylist()]
        unseen = [name for name in dict.fromkeys(normalized) if name not in self._name_ids]
        if unseen:
            numbers = {name: len(self.names) + place for place, name in enumerate(unseen)}
            self.names, self._name_ids = self.names + unseen, {**self._name_ids, **numbers}
            self.tokens = self.tokens.followed_by(unseen, name_tokenizer)
        of_distinct = torch.tensor([self._name_ids[name] for name in normalized], dtype=torch.long)
        of_rows = of_distinct[torch.from_numpy(dictionary_codes(encoded).astype("int64"))]
        self.row_names = torch.cat([self.row_names, of_rows])

    def _read_kinds(self) -> None:
        """Splits rows by the column `kind`: exemplars of objects, and photos of scenes with the words said of them."""
        columns, kinds = self.snapshot.columns, ["object"]
        if "kind" in columns.column_names:
            column = columns["kind"].combine_chunks().cast("string")
            encoded = (column.fill_null("object") if column.null_count else column).dictionary_encode()
            kinds = [kind or "object" for kind in encoded.dictionary.to_pylist()] or kinds
        distinct = sorted(set(kinds))
        self.pools = {kind: None for kind in distinct}  # None: all rows
        if len(distinct) > 1:
            number = torch.tensor([distinct.index(kind) for kind in kinds])
            row_kinds = number[torch.from_numpy(dictionary_codes(encoded).astype("int64"))]
            self.pools = {kind: (row_kinds == place).nonzero()[:, 0] for place, kind in enumerate(distinct)}
        scenes = self.pools["scene"] if "scene" in self.pools else torch.arange(0)
        scene_names = self.row_names if scenes is None else self.row_names[scenes]
        self.row_photos = torch.arange(self.rows)
        known = [name for name in ("photo", "photo_hash", "image_id") if name in columns.column_names]
        if known and len(scene_names):
            photos = dictionary_codes(columns[known[0]].combine_chunks().dictionary_encode())
            self.row_photos = torch.from_numpy(photos.astype("int64"))
        scene_photos, places = (self.row_photos if scenes is None else self.row_photos[scenes]).unique(
            return_inverse=True
        )
        self.num_photos = len(scene_photos)
        self.scene_places = torch.full_like(self.row_photos, -1)  # number of each row's photo among the scenes' photos
        self.scene_places[scenes if scenes is not None else slice(None)] = places
        self.scene_counts = torch.bincount(scene_names, minlength=len(self.names))
        self._begin_fits()

    def _begin_fits(self) -> None:
        self._regressions: dict[float, SceneRegression] = {}
        self._fitting = threading.Lock()

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        moved = super().to(device)
        moved.tokens = self.tokens.to(device)
        for name in ("row_names", "row_photos", "scene_places", "scene_counts"):
            setattr(moved, name, getattr(self, name).to(device))
        moved._begin_fits()
        return moved

    def scene_regression(self, penalty: float) -> SceneRegression:
        """Regression of the scene rows' names on their photos' keys; fitted at the first call after an edit."""
        with self._fitting:
            if penalty not in self._regressions:
                self._regressions[penalty] = self._fit_scenes(penalty)
            return self._regressions[penalty]

    def _fit_scenes(self, penalty: float, photo_weights: torch.Tensor | None = None) -> SceneRegression:
        scenes = self.rows_of_kind("scene")
        places = self.scene_places[scenes]
        first = torch.full((self.num_photos,), len(scenes), device=self.device)
        first.scatter_reduce_(0, places, torch.arange(len(scenes), device=self.device), "amin")
        keys, names = self.unit_keys(scenes[first]), self.row_names[scenes]
        return SceneRegression(keys, places, names, len(self.names), penalty, photo_weights)

    @property
    def document_frequency(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(names,)`: Share of the scene photos of which each name is said."""
        return self.scene_counts / max(self.num_photos, 1)

    def retrieved(
        self, name_ids: torch.LongTensor, scores: torch.Tensor, row_ids: torch.LongTensor
    ) -> EVCapRetrievedNames:
        """What was retrieved as a model reads it: places of names in `names`, -1 for none, all `(batch_size, K)`."""
        input_ids, attention_mask = self.tokens.join(name_ids)
        if torch.compiler.is_compiling():  # an exported graph holds no text; `row_ids` tell the names
            return EVCapRetrievedNames(None, scores, row_ids, input_ids, attention_mask)
        names = [[self.names[index] for index in row if index >= 0] for row in name_ids.tolist()]
        return EVCapRetrievedNames(names, scores, row_ids, input_ids, attention_mask)


__all__ = ["SearchableNames"]
