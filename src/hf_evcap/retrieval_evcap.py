"""Retrieval of object names from a visual-name memory, in tensors on the query's device (EVCap, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch

from .configuration_evcap import EVCapConfig
from .memory_evcap import VisualNameMemory
from .name_tokens_evcap import EVCapRetrievedNames, NameTokens, normalize_name
from .retrieval_rows import RowRetriever, keep_first
from .searchable_names_evcap import SearchableNames
from .store_snapshot import StoreSnapshot


class NameRetriever(RowRetriever):
    """
    A memory attached to a model, which it follows: every call retrieves from the rows that the memory has when it
    begins. Names are normalised and tokenised once.

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
        self.max_name_length = max_name_length
        self.name_column = name_column
        super().__init__(memory)

    def _prepare(self, snapshot: StoreSnapshot, earlier: SearchableNames | None) -> SearchableNames:
        return SearchableNames(snapshot, self.name_tokenizer, self.max_name_length, self.name_column, earlier)

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
            exclude_rows (`torch.LongTensor` of shape `(batch_size, n)`, *optional*):
                As in [`~retrieval_rows.SearchableRows.nearest`].
            training_retrieval ([`TrainingRetrieval`], *optional*): Draws the K names from more candidates.
        """
        memory: SearchableNames = self.ready(queries.device)
        if memory.rows == 0 or config.num_retrieved_names == 0:
            none = torch.zeros(queries.shape[0], 0, dtype=torch.long, device=queries.device)
            return memory.retrieved(none, none.float(), none)
        rule = vote_rule if config.retrieval_rule == "vote" else nearest_rule
        if training_retrieval is None:
            return memory.retrieved(*rule(memory, queries, config, exclude_rows))
        names, scores, rows = rule(memory, queries, training_retrieval.widened(config), exclude_rows)
        kept = training_retrieval.kept(names >= 0, config.num_retrieved_names)
        drawn = keep_first(kept, config.num_retrieved_names, names, scores, rows, fill=(-1, 0.0, -1))
        return memory.retrieved(*drawn)


def first_occurrences(ids: torch.LongTensor) -> torch.BoolTensor:
    """Marks in each row of `ids` `(batch_size, n)` the first place of every id; negative ids are never marked."""
    earlier = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril(-1)
    repeated = ((ids[:, :, None] == ids[:, None, :]) & earlier).any(-1)
    return ~repeated & (ids >= 0)


def nearest_rule(
    memory: SearchableNames, queries: torch.Tensor, config: EVCapConfig, exclude_rows: torch.LongTensor | None
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    """
    Rules `release` and `paper`: the nearest rows of every query, sorted by similarity, names deduplicated in order.

    The paper takes one row a query; the release takes five, keeps the best 32 of all and then deduplicates.

    Returns:
        Name ids, scores and row ids of shape `(batch_size, K)`.
    """
    release = config.retrieval_rule == "release"
    k = config.num_neighbors_per_query if release else 1
    scores, rows = memory.nearest(queries, k, exclude_rows)
    scores, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    rows = rows.flatten(1).gather(1, order)
    if release:
        scores, rows = scores[:, : config.max_candidates], rows[:, : config.max_candidates]
    names = memory.row_names[rows.clamp(min=0)].masked_fill(torch.isneginf(scores), -1)
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
    memory: SearchableNames, queries: torch.Tensor, config: EVCapConfig, exclude_rows: torch.LongTensor | None
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
    nearest = memory.nearest(queries[:, :1], options["vote_rows"], exclude_rows, kind="scene")
    scene_scores, scene_rows = (values[:, 0] for values in nearest)
    threshold = options["object_threshold"]
    if options["scene_evidence"]:
        threshold = threshold + options["scene_evidence"] * _scene_evidence(memory, scene_scores, scene_rows, options)
    objects = _object_evidence(memory, queries, options, exclude_rows, threshold)
    if options["ridge_penalty"] is None:
        scenes = _scene_votes(memory, scene_scores, scene_rows, options)
    else:
        scenes = _scene_fits(memory, queries[:, 0], scene_scores, scene_rows, options, exclude_rows)
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
    memory: SearchableNames,
    queries: torch.Tensor,
    options: dict[str, Any],
    exclude_rows: torch.LongTensor | None,
    threshold: float | torch.Tensor,
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    scores, rows = memory.nearest(queries, options["vote_rows"], exclude_rows, kind="object", any_query=True)
    scores, rows = scores[:, 0], rows[:, 0]
    names, ranks, scores, rows = group_by_name(memory.row_names[rows], scores, rows)
    usable = ~torch.isneginf(scores)
    weights = scores.new_tensor([*options["exemplar_weights"], 0.0])
    weight = weights[ranks.clamp(max=len(weights) - 1)]
    evidence = scores.new_zeros(scores.shape[0], len(memory.names))
    evidence.scatter_add_(1, names, torch.where(usable, weight * scores, 0.0))
    name_scores = evidence.gather(1, names)
    eligible = (ranks == 0) & usable & (name_scores >= threshold)
    return _best_names(names, name_scores.masked_fill(~eligible, -torch.inf), rows, options["object_slots"])


def _scene_evidence(
    memory: SearchableNames, scores: torch.Tensor, rows: torch.LongTensor, options: dict[str, Any]
) -> torch.Tensor:
    """Weighted sum of the nearest scene photos' similarities, as an object name sums its exemplars'; `(batch, 1)`."""
    photos = memory.row_photos[rows]  # a photo's rows share its similarity, so they stand together
    distinct = torch.ones_like(photos, dtype=torch.bool)
    distinct[:, 1:] = photos[:, 1:] != photos[:, :-1]
    weights = scores.new_tensor([*options["exemplar_weights"], 0.0])
    weight = weights[(distinct.cumsum(1) - 1).clamp(min=0, max=len(weights) - 1)]
    usable = distinct & ~torch.isneginf(scores)
    return torch.where(usable, weight * scores, 0.0).sum(1, keepdim=True)


def _scene_votes(
    memory: SearchableNames, scores: torch.Tensor, rows: torch.LongTensor, options: dict[str, Any]
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    votes = torch.softmax(scores / options["vote_temperature"], dim=1).nan_to_num(0.0)
    shares = votes.new_zeros(votes.shape[0], len(memory.names))
    shares.scatter_add_(1, memory.row_names[rows], votes)
    return _rare_names_first(memory, shares, votes > 0, rows, options)


def _scene_fits(
    memory: SearchableNames,
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
        places = memory.scene_places[exclude_rows.clamp(min=0)].masked_fill(exclude_rows < 0, -1)
        distinct = first_occurrences(places)
        (excluded,) = keep_first(distinct, int(distinct.sum(1).max()), places, fill=(-1,))
    regression = memory.scene_regression(options["ridge_penalty"])
    fits = regression(torch.nn.functional.normalize(queries.float(), dim=-1), excluded)
    return _rare_names_first(memory, fits, ~torch.isneginf(scores), rows, options)


def _rare_names_first(
    memory: SearchableNames,
    evidence: torch.Tensor,
    usable: torch.BoolTensor,
    rows: torch.LongTensor,
    options: dict[str, Any],
) -> tuple[torch.LongTensor, torch.Tensor, torch.LongTensor]:
    """Names of the usable rows by `evidence` `(batch, names)`, of which common names need more."""
    names, ranks, usable, rows = group_by_name(memory.row_names[rows], usable, rows)
    rarity = (memory.document_frequency + options["df_offset"]) ** options["df_exponent"]
    name_scores = (evidence / rarity).gather(1, names)
    eligible = (ranks == 0) & usable
    return _best_names(names, name_scores.masked_fill(~eligible, -torch.inf), rows, options["scene_slots"])


__all__ = ["EVCapRetrievedNames", "NameRetriever", "NameTokens", "normalize_name"]
