"""Retrieval of object names from a visual-name memory, in tensors on the query's device (EVCap, section 3.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput, logging

from .configuration_evcap import EVCapConfig
from .memory_evcap import VisualNameMemory
from .retrieval_rows import GrowingRows, RowRetriever, keep_first
from .scene_regression_evcap import SceneRegression
from .store_keys import dictionary_codes


logger = logging.get_logger(__name__)

_FOLDED_CHARACTERS = re.compile(r"[\s_!,'\"()*#:;~]+")


def normalize_name(name: str) -> str:
    """Lower-cases a name and turns the characters that the released implementation drops into single spaces."""
    return _FOLDED_CHARACTERS.sub(" ", name.lower()).strip() or name.strip().lower()


@dataclass
class EVCapRetrievedNames(ModelOutput):
    """
    Names retrieved for a batch of photos, at most K a photo, best first.

    Args:
        names (`list[list[str]]`): Normalised names of each photo.
        scores (`torch.Tensor` of shape `(batch_size, K)`): Similarity of each name's best row; 0 where there is none.
        row_ids (`torch.LongTensor` of shape `(batch_size, K)`): That row of the memory; -1 where there is none.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): The names joined by separators.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`): 1 for tokens, 0 for padding.
        memories (`list[list[str]]`, *optional*): Which of several memories each name came from.
    """

    names: list[list[str]] | None = None
    scores: torch.Tensor | None = None
    row_ids: torch.LongTensor | None = None
    input_ids: torch.LongTensor | None = None
    attention_mask: torch.LongTensor | None = None
    memories: list[list[str]] | None = None


class NameTokens:
    """
    Names tokenised once, so that any K of them are joined for the fusion Q-Former by indexing.

    Args:
        names (`Sequence[str]`): Normalised names.
        tokenizer: The name tokenizer; needs a `sep_token`, which stands between names and at the end.
        max_length (`int`): Joined names are cut at this many tokens, the last of which stays the separator.
    """

    def __init__(self, names: Sequence[str], tokenizer: Any, max_length: int) -> None:
        if tokenizer.sep_token_id is None:
            raise ValueError(
                "The name tokenizer has no sep_token to stand between names; set one, for example "
                "`tokenizer.add_special_tokens({'sep_token': '[SEP]'})`."
            )
        self.tokens = torch.zeros(1, dtype=torch.long)
        self.lengths = torch.zeros(0, dtype=torch.long)
        self.offsets = torch.zeros(0, dtype=torch.long)
        self.max_length = max_length
        self.sep_token_id: int = tokenizer.sep_token_id
        self.cls_token_id: int | None = tokenizer.cls_token_id
        self.pad_token_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.sep_token_id
        self.extend(names, tokenizer)

    def extend(self, names: Sequence[str], tokenizer: Any) -> None:
        """Adds names, tokenised by the same tokenizer."""
        if not names:
            return
        # Special tokens inside a name ("[SEP]") are spelled out: a name cannot pass for two.
        encoded = tokenizer(
            list(names),
            add_special_tokens=False,
            truncation=True,
            max_length=self.max_length,
            split_special_tokens=True,
        )["input_ids"]
        device = self.tokens.device
        lengths = torch.tensor([len(ids) for ids in encoded], dtype=torch.long, device=device)
        tokens = torch.tensor([token for ids in encoded for token in ids], dtype=torch.long, device=device)
        self.offsets = torch.cat([self.offsets, len(self.tokens) + torch.cumsum(lengths, 0) - lengths])
        self.lengths = torch.cat([self.lengths, lengths])
        self.tokens = torch.cat([self.tokens, tokens])

    def to(self, device: torch.device) -> NameTokens:
        """Moves the table to a device, in place."""
        self.tokens, self.lengths, self.offsets = (t.to(device) for t in (self.tokens, self.lengths, self.offsets))
        return self

    def join(self, name_ids: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """
        Joins names as `[CLS] name [SEP] name [SEP]`.

        Args:
            name_ids (`torch.LongTensor` of shape `(batch_size, K)`): Indices of names, -1 (only at the end) for none.

        Returns:
            `input_ids` and `attention_mask` of shape `(batch_size, sequence_length)`. Without a name, a separator
            remains, so that the fusion has something to attend to.
        """
        present = name_ids >= 0
        known = name_ids.clamp(min=0)
        prefix = int(self.cls_token_id is not None)
        if self.lengths.numel():
            lengths, offsets = self.lengths[known], self.offsets[known]
        else:
            lengths = offsets = torch.zeros_like(known)
        spans = torch.where(present, lengths + 1, 0)  # a name and its separator
        ends = torch.cumsum(spans, 1) + prefix
        totals = torch.clamp(spans.sum(1, keepdim=True), min=1) + prefix
        length = min(int(totals.max()), self.max_length) if len(name_ids) else prefix + 1
        positions = torch.arange(length, device=name_ids.device).expand(len(name_ids), -1).contiguous()
        input_ids = torch.full_like(positions, self.sep_token_id)
        if name_ids.shape[1]:
            slots = torch.searchsorted(ends, positions, right=True).clamp(max=name_ids.shape[1] - 1)
            within = positions - (ends - spans).gather(1, slots)
            inside = (within >= 0) & (within < lengths.gather(1, slots)) & present.gather(1, slots)
            indices = (offsets.gather(1, slots) + within).clamp(0, self.tokens.numel() - 1)
            input_ids = torch.where(inside, self.tokens[indices], input_ids)
        if self.cls_token_id is not None:
            input_ids[:, 0] = self.cls_token_id
        totals = totals.clamp(max=self.max_length)
        attention_mask = (positions < totals).long()
        input_ids = torch.where(positions == totals - 1, self.sep_token_id, input_ids)
        return input_ids.masked_fill(attention_mask == 0, self.pad_token_id), attention_mask


def first_occurrences(ids: torch.LongTensor) -> torch.BoolTensor:
    """Marks in each row of `ids` `(batch_size, n)` the first place of every id; negative ids are never marked."""
    earlier = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril(-1)
    repeated = ((ids[:, :, None] == ids[:, None, :]) & earlier).any(-1)
    return ~repeated & (ids >= 0)


class NameRetriever(RowRetriever):
    """
    A memory attached to a model: keys ready for search, names normalised and tokenised once.

    Follows the memory: rows that were added to it are added here, after any other edit it is made anew, so an edited
    memory is never searched with stale names.

    Args:
        memory ([`VisualNameMemory`]): The memory.
        name_tokenizer: Tokenizer of the fusion Q-Former.
        max_name_length (`int`): Tokens at which joined names are cut.
        name_column (`str`, *optional*, defaults to `"name"`):
            Column of the memory that words the names, for example `name_ko`; rows that lack it keep their `name`.
    """

    memory: VisualNameMemory

    def __init__(
        self, memory: VisualNameMemory, name_tokenizer: Any, max_name_length: int, name_column: str = "name"
    ) -> None:
        self.name_tokenizer = name_tokenizer
        self.name_column = name_column
        self._name_ids: dict[str, int] = {}
        self.names: list[str] = []
        self.tokens = NameTokens([], name_tokenizer, max_name_length)
        self._row_names = GrowingRows(torch.zeros(0, dtype=torch.long))
        super().__init__(memory)

    @property
    def row_names(self) -> torch.LongTensor:
        """`torch.LongTensor` of shape `(rows,)`: Place of each row's name in `names`."""
        return self._row_names.values

    def _follow(self) -> None:
        """Takes up the memory's rows that are new; the work is in proportion to them."""
        memory, start = self.memory, self.rows
        if self.name_column == "name":
            names = memory.columns["name"].slice(start).combine_chunks()
        else:
            names = memory.names_in(self.name_column).slice(start)
        encoded = names.dictionary_encode()
        normalized = [normalize_name(name) for name in encoded.dictionary.to_pylist()]
        unseen = [name for name in dict.fromkeys(normalized) if name not in self._name_ids]
        self._name_ids.update({name: len(self.names) + place for place, name in enumerate(unseen)})
        self.names.extend(unseen)
        self.tokens.extend(unseen, self.name_tokenizer)
        of_distinct = torch.tensor([self._name_ids[name] for name in normalized], dtype=torch.long)
        self._row_names.extend(of_distinct[torch.from_numpy(dictionary_codes(encoded).astype("int64"))])
        super()._follow()
        self._read_kinds()

    def _read_kinds(self) -> None:
        """Splits rows by the column `kind`: exemplars of objects, and photos of scenes with the words said of them."""
        columns, kinds = self.memory.columns, ["object"]
        if "kind" in columns.column_names:
            column = columns["kind"].combine_chunks().cast("string")
            encoded = (column.fill_null("object") if column.null_count else column).dictionary_encode()
            kinds = [kind or "object" for kind in encoded.dictionary.to_pylist()] or kinds
        self.kinds = sorted(set(kinds))
        self.pools: dict[str, torch.LongTensor | None] = {kind: None for kind in self.kinds}  # None: all rows
        if len(self.kinds) > 1:
            number = torch.tensor([self.kinds.index(kind) for kind in kinds])
            row_kinds = number[torch.from_numpy(dictionary_codes(encoded).astype("int64"))].to(self.device)
            self.pools = {kind: (row_kinds == place).nonzero()[:, 0] for place, kind in enumerate(self.kinds)}
        scenes = self.pools["scene"] if "scene" in self.pools else torch.arange(0, device=self.device)
        scene_names = self.row_names if scenes is None else self.row_names[scenes]
        self.row_photos = torch.arange(len(self.row_names), device=self.device)
        if "photo" in columns.column_names and len(scene_names):
            photos = dictionary_codes(columns["photo"].combine_chunks().dictionary_encode())
            self.row_photos = torch.from_numpy(photos.astype("int64")).to(self.device)
        scene_photos, places = (self.row_photos if scenes is None else self.row_photos[scenes]).unique(
            return_inverse=True
        )
        self.num_photos = len(scene_photos)
        self.scene_places = torch.full_like(self.row_photos, -1)  # number of each row's photo among the scenes' photos
        self.scene_places[scenes if scenes is not None else slice(None)] = places
        self.scene_counts = torch.bincount(scene_names, minlength=len(self.names))
        self._regressions: dict[float, SceneRegression] = {}

    def scene_regression(self, penalty: float) -> SceneRegression:
        """Regression of the scene rows' names on their photos' keys; fitted at the first call after an edit."""
        if penalty not in self._regressions:
            scenes = self.rows_of_kind("scene")
            places = self.scene_places[scenes]
            first = torch.full((self.num_photos,), len(scenes), device=self.device)
            first.scatter_reduce_(0, places, torch.arange(len(scenes), device=self.device), "amin")
            keys = self.unit_keys(scenes[first])
            self._regressions[penalty] = SceneRegression(
                keys, places, self.row_names[scenes], len(self.names), penalty
            )
        return self._regressions[penalty]

    @property
    def document_frequency(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(names,)`: Share of the scene photos of which each name is said."""
        return self.scene_counts / max(self.num_photos, 1)

    def _move(self, device: torch.device) -> None:
        super()._move(device)
        self.tokens.to(device)
        self._row_names.to(device)
        self.scene_counts, self.row_photos = self.scene_counts.to(device), self.row_photos.to(device)
        self.scene_places = self.scene_places.to(device)
        self._regressions.clear()

    def __call__(
        self,
        queries: torch.Tensor,
        config: EVCapConfig,
        exclude_rows: torch.LongTensor | None = None,
        training_retrieval: Any = None,
    ) -> EVCapRetrievedNames:
        """
        Retrieves K names for each photo by the rule that the configuration names.

        Args:
            queries (`torch.Tensor` of shape `(batch_size, num_queries, dim)`): `features.retrieval_queries`.
            config ([`EVCapConfig`]): Its `retrieval_rule`, `num_retrieved_names` and the rule's numbers are read at
                every call, so they may be changed between calls.
            exclude_rows (`torch.LongTensor` of shape `(batch_size, n)`, *optional*): As in [`nearest`].
            training_retrieval ([`TrainingRetrieval`], *optional*): Draws the K names from more candidates.
        """
        self.to(queries.device)
        if len(self.row_names) == 0 or config.num_retrieved_names == 0:
            none = torch.zeros(len(queries), 0, dtype=torch.long, device=queries.device)
            return self._output(none, none.float(), none)
        rule = vote_rule if config.retrieval_rule == "vote" else nearest_rule
        if training_retrieval is None:
            return self._output(*rule(self, queries, config, exclude_rows))
        names, scores, rows = rule(self, queries, training_retrieval.widened(config), exclude_rows)
        kept = training_retrieval.kept(names >= 0, config.num_retrieved_names)
        drawn = keep_first(kept, config.num_retrieved_names, names, scores, rows, fill=(-1, 0.0, -1))
        return self._output(*drawn)

    def _output(
        self, name_ids: torch.LongTensor, scores: torch.Tensor, row_ids: torch.LongTensor
    ) -> EVCapRetrievedNames:
        input_ids, attention_mask = self.tokens.join(name_ids)
        names = [[self.names[index] for index in row if index >= 0] for row in name_ids.tolist()]
        return EVCapRetrievedNames(names, scores, row_ids, input_ids, attention_mask)


def nearest_rule(
    retriever: NameRetriever, queries: torch.Tensor, config: EVCapConfig, exclude_rows: torch.LongTensor | None
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    """
    Rules `release` and `paper`: the nearest rows of every query, sorted by similarity, names deduplicated in order.

    The paper takes one row a query; the release takes five, keeps the best 32 of all and then deduplicates.

    Returns:
        Name ids, scores and row ids of shape `(batch_size, K)`.
    """
    release = config.retrieval_rule == "release"
    k = config.num_neighbors_per_query if release else 1
    scores, rows = retriever.nearest(queries, k, exclude_rows)
    scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    rows = rows.flatten(1).gather(1, order)
    if release:
        scores, rows = scores[:, : config.max_candidates], rows[:, : config.max_candidates]
    names = retriever.row_names[rows.clamp(min=0)].masked_fill(torch.isneginf(scores), -1)
    kept = first_occurrences(names)
    names, scores, rows = keep_first(kept, config.num_retrieved_names, names, scores, rows, fill=(-1, 0.0, -1))
    return names, scores, rows


def group_by_name(names: torch.LongTensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """
    Brings rows of the same name together, keeping their order within a name.

    Args:
        names (`torch.LongTensor` of shape `(batch_size, n)`): Name of each row.
        values (`torch.Tensor` of shape `(batch_size, n)`): Moved along.

    Returns:
        The names, each row's rank within its name (0 for the first), and the values, all of shape `(batch_size, n)`.
    """
    names, order = names.sort(dim=1, stable=True)
    places = torch.arange(names.shape[1], device=names.device).expand_as(names)
    starts = torch.ones_like(names, dtype=torch.bool)
    starts[:, 1:] = names[:, 1:] != names[:, :-1]
    ranks = places - places.where(starts, torch.zeros_like(places)).cummax(dim=1).values
    return names, ranks, *(value.gather(1, order) for value in values)


def vote_rule(
    retriever: NameRetriever, queries: torch.Tensor, config: EVCapConfig, exclude_rows: torch.LongTensor | None
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    """
    Rule `vote`: names ranked by the evidence of many rows, of two kinds (the memory's column `kind`).

    Rows of kind `object` are exemplars: a name scores the weighted sum of its best rows' similarities to any query.
    Rows of kind `scene` are photos under a word that is said of them: the nearest to the whole photo vote for their
    word, softly by similarity, and words that are said of everything count less. With `ridge_penalty`, the nearest
    rows' words are ranked by a regression of words on keys instead of by votes ([`SceneRegression`]); a photo of which
    a row is excluded is then left out whole. Objects that are similar enough, by themselves or in comparison with the
    nearest scenes, come first, then scene names. `config.retrieval_options` holds the numbers (`VOTE_OPTIONS`).

    Returns:
        Name ids, scores and row ids of shape `(batch_size, K)`.
    """
    options = config.retrieval_options
    nearest = retriever.nearest(queries[:, :1], options["vote_rows"], exclude_rows, kind="scene")
    scene_scores, scene_rows = (values[:, 0] for values in nearest)
    threshold = options["object_threshold"]
    if options["scene_evidence"]:
        threshold = threshold + options["scene_evidence"] * _scene_evidence(
            retriever, scene_scores, scene_rows, options
        )
    objects = _object_evidence(retriever, queries, options, exclude_rows, threshold)
    if options["ridge_penalty"] is None:
        scenes = _scene_votes(retriever, scene_scores, scene_rows, options)
    else:
        scenes = _scene_fits(retriever, queries[:, 0], scene_scores, scene_rows, options, exclude_rows)
    names, scores, rows = (torch.cat(pair, dim=1) for pair in zip(objects, scenes, strict=True))
    kept = first_occurrences(names)
    names, scores, rows = keep_first(kept, config.num_retrieved_names, names, scores, rows, fill=(-1, 0.0, -1))
    return names, scores, rows


def _best_names(
    names: torch.LongTensor, scores: torch.Tensor, rows: torch.LongTensor, slots: int
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    """The `slots` best-scored places, best first; names of places with the score -inf become -1."""
    scores, order = scores.topk(min(slots, scores.shape[1]), dim=1)
    return names.gather(1, order).masked_fill(torch.isneginf(scores), -1), scores, rows.gather(1, order)


def _object_evidence(
    retriever: NameRetriever,
    queries: torch.Tensor,
    options: dict[str, Any],
    exclude_rows: torch.LongTensor | None,
    threshold: float | torch.Tensor,
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    scores, rows = retriever.nearest(queries, options["vote_rows"], exclude_rows, kind="object", any_query=True)
    scores, rows = scores[:, 0], rows[:, 0]
    names, ranks, scores, rows = group_by_name(retriever.row_names[rows], scores, rows)
    usable = ~torch.isneginf(scores)
    weights = scores.new_tensor([*options["exemplar_weights"], 0.0])
    weight = weights[ranks.clamp(max=len(weights) - 1)]
    evidence = scores.new_zeros(len(scores), len(retriever.names))
    evidence.scatter_add_(1, names, torch.where(usable, weight * scores, 0.0))
    name_scores = evidence.gather(1, names)
    eligible = (ranks == 0) & usable & (name_scores >= threshold)
    return _best_names(names, name_scores.masked_fill(~eligible, -torch.inf), rows, options["object_slots"])


def _scene_evidence(
    retriever: NameRetriever, scores: torch.Tensor, rows: torch.LongTensor, options: dict[str, Any]
) -> torch.Tensor:
    """Weighted sum of the nearest scene photos' similarities, as an object name sums its exemplars'; `(batch, 1)`."""
    photos = retriever.row_photos[rows]  # a photo's rows share its similarity, so they stand together
    distinct = torch.ones_like(photos, dtype=torch.bool)
    distinct[:, 1:] = photos[:, 1:] != photos[:, :-1]
    weights = scores.new_tensor([*options["exemplar_weights"], 0.0])
    weight = weights[(distinct.cumsum(1) - 1).clamp(min=0, max=len(weights) - 1)]
    usable = distinct & ~torch.isneginf(scores)
    return torch.where(usable, weight * scores, 0.0).sum(1, keepdim=True)


def _scene_votes(
    retriever: NameRetriever, scores: torch.Tensor, rows: torch.LongTensor, options: dict[str, Any]
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    votes = torch.softmax(scores / options["vote_temperature"], dim=1).nan_to_num(0.0)
    shares = votes.new_zeros(len(votes), len(retriever.names))
    shares.scatter_add_(1, retriever.row_names[rows], votes)
    return _rare_names_first(retriever, shares, votes > 0, rows, options)


def _scene_fits(
    retriever: NameRetriever,
    queries: torch.Tensor,
    scores: torch.Tensor,
    rows: torch.LongTensor,
    options: dict[str, Any],
    exclude_rows: torch.LongTensor | None,
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    if not rows.shape[1]:
        return rows, scores, rows
    excluded = None
    if exclude_rows is not None:
        places = retriever.scene_places[exclude_rows.clamp(min=0)].masked_fill(exclude_rows < 0, -1)
        distinct = first_occurrences(places)
        (excluded,) = keep_first(distinct, int(distinct.sum(1).max()), places, fill=(-1,))
    regression = retriever.scene_regression(options["ridge_penalty"])
    fits = regression(torch.nn.functional.normalize(queries.float(), dim=-1), excluded)
    return _rare_names_first(retriever, fits, ~torch.isneginf(scores), rows, options)


def _rare_names_first(
    retriever: NameRetriever,
    evidence: torch.Tensor,
    usable: torch.BoolTensor,
    rows: torch.LongTensor,
    options: dict[str, Any],
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    """Names of the usable rows by `evidence` `(batch, names)`, of which common names need more."""
    names, ranks, usable, rows = group_by_name(retriever.row_names[rows], usable, rows)
    rarity = (retriever.document_frequency + options["df_offset"]) ** options["df_exponent"]
    name_scores = (evidence / rarity).gather(1, names)
    eligible = (ranks == 0) & usable
    return _best_names(names, name_scores.masked_fill(~eligible, -torch.inf), rows, options["scene_slots"])


__all__ = ["EVCapRetrievedNames", "NameRetriever"]
