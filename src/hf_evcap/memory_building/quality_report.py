"""What may be wrong with a memory: names spelled twice, exemplars that disagree, rows that win too often."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..memory_evcap import VisualNameMemory
from ..retrieval_evcap import normalize_name
from ..store_keys import normalize_keys


LISTED = 20


@dataclass
class QualityReport:
    """
    Args:
        rows, names (`int`): Size of the memory.
        rows_per_name (`dict`): How many names have so many rows.
        near_duplicate_names (`list[list[str]]`): Names that differ in case, punctuation, plural or one letter.
        disagreeing_names (`list[tuple[str, float]]`): Names of several rows with the lowest mean cosine among them,
            where it is far below the others' (more than 3 median deviations).
        hub_rows (`list[dict]`): Rows that are among the 5 nearest of far more probes than their share.
        never_retrieved (`list[str]`): Names that no probe brings among its 5 nearest rows.
        probe (`str`): What the probes were.
        self_similarity (`dict[str, float]`): That mean cosine, for every name of several rows.
        wins (`np.ndarray`): Number of probes that bring each row among their 5 nearest, most first.
    """

    rows: int
    names: int
    rows_per_name: dict[int, int]
    near_duplicate_names: list[list[str]]
    disagreeing_names: list[tuple[str, float]]
    hub_rows: list[dict[str, Any]]
    never_retrieved: list[str]
    probe: str
    self_similarity: dict[str, float] = field(repr=False)
    wins: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values, without the series behind the plot."""
        values = asdict(self)
        del values["self_similarity"], values["wins"]
        return values

    def to_text(self) -> str:
        """The report to read; long lists are cut."""

        def shorten(items: list[str]) -> str:
            more = f" ... and {len(items) - LISTED} more" if len(items) > LISTED else ""
            return ("; ".join(items[:LISTED]) or "none") + more

        several = [similarity for similarity in self.self_similarity.values()]
        typical = f"{np.median(several):.3f} (median of {len(several)} names)" if several else "no name has two rows"
        return "\n".join([
            f"{self.rows:,} rows, {self.names:,} names",
            "rows a name: " + ", ".join(f"{count} x {rows}" for rows, count in list(self.rows_per_name.items())[:12]),
            f"cosine among a name's rows: {typical}",
            f"near-duplicate names ({len(self.near_duplicate_names)}): "
            + shorten([" = ".join(group) for group in self.near_duplicate_names]),
            f"names whose exemplars disagree ({len(self.disagreeing_names)}): "
            + shorten([f"{name} ({similarity:.2f})" for name, similarity in self.disagreeing_names]),
            f"hub rows ({len(self.hub_rows)}): "
            + shorten([f"row {row['row']} {row['name']} ({row['wins']} x)" for row in self.hub_rows]),
            f"names never retrieved by {self.probe} ({len(self.never_retrieved)}): " + shorten(self.never_retrieved),
        ])  # fmt: skip

    def plot(self, file: str | os.PathLike) -> None:
        """
        Draws rows a name, agreement of exemplars and hub rows into a PNG.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("The plot needs matplotlib: `pip install hf_evcap[eval]`.") from error
        figure = Figure(figsize=(13, 4), layout="constrained")
        sizes, agreement, hubs = figure.subplots(1, 3)
        figure.suptitle(f"Visual-name memory: {self.rows:,} rows, {self.names:,} names")
        sizes.bar(list(self.rows_per_name), list(self.rows_per_name.values()), color="#4c72b0")
        sizes.set(xlabel="rows of a name", ylabel="names", title="How many exemplars names have")
        values = list(self.self_similarity.values())
        agreement.hist(values, bins=30, color="#55a868")
        agreement.set(xlabel="mean cosine among a name's rows", ylabel="names", title="Do exemplars of a name agree?")
        if self.disagreeing_names:
            worst = max(similarity for _, similarity in self.disagreeing_names)
            agreement.axvline(
                worst, color="#c44e52", linestyle="--", label=f"{len(self.disagreeing_names)} names disagree"
            )
            agreement.legend(loc="upper left")
        hubs.plot(np.arange(1, len(self.wins) + 1), self.wins + 1, color="#8172b3")
        hubs.set(xscale="log", yscale="log", xlabel="rows, most retrieved first", ylabel="times retrieved + 1",
                 title="Do few rows win too often?")  # fmt: skip
        hubs.axvline(
            max(len(self.hub_rows), 0.5), color="#c44e52", linestyle="--", label=f"{len(self.hub_rows)} hub rows"
        )
        hubs.legend(loc="upper right")
        for axes in (sizes, agreement, hubs):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, dpi=120, format="png")


def quality_report(
    memory: VisualNameMemory, probes: np.ndarray | None = None, k: int = 5, max_probes: int = 5000
) -> QualityReport:
    """
    Looks for what may be wrong with a memory.

    Args:
        memory ([`VisualNameMemory`]): The memory.
        probes (`np.ndarray` of shape `(num_probes, dim)`, *optional*):
            Retrieval queries of typical photos. Without them the memory's own rows ask for their neighbours.
        k (`int`, *optional*, defaults to 5): Nearest rows that count as retrieved.
        max_probes (`int`, *optional*, defaults to 5000): Own rows that ask, drawn at random.
    """
    names = memory.names
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows_of[name].append(row)
    similarity = {}
    for name, rows in rows_of.items():
        if len(rows) > 1:
            total = normalize_keys(memory.key_rows.take(np.array(rows))).sum(axis=0, dtype=np.float64)
            similarity[name] = float((total @ total - len(rows)) / (len(rows) * (len(rows) - 1)))
    asked = np.zeros(0, dtype=int)
    if probes is None:
        asked = np.sort(np.random.default_rng(0).permutation(len(memory))[:max_probes])
        probes, described = memory.key_rows.take(asked), f"{len(asked)} of its own rows"
    else:
        described = f"{len(probes)} probes"
    wins = np.zeros(len(memory), dtype=int)
    for start in range(0, len(probes) if len(memory) else 0, 256):
        found = memory.search(probes[start : start + 256], k + bool(len(asked)))[1]
        if len(asked):  # a row does not vote for itself
            own = found == asked[start : start + 256, None]
            own[:, -1] |= ~own.any(axis=1)
            found = found[~own].reshape(len(found), -1)
        wins += np.bincount(found.reshape(-1), minlength=len(memory))
    share = wins.sum() / max(len(memory), 1)
    limit = max(share + 5 * np.sqrt(share) + 5, 0)
    hubs = [row for row in np.argsort(-wins, kind="stable") if wins[row] > limit]
    retrieved = {names[row] for row in wins.nonzero()[0]}
    return QualityReport(
        rows=len(memory),
        names=len(rows_of),
        rows_per_name=dict(sorted(Counter(map(len, rows_of.values())).items())),
        near_duplicate_names=near_duplicates(list(rows_of)),
        disagreeing_names=_outliers(similarity),
        hub_rows=[{"row": int(row), "name": names[row], "wins": int(wins[row])} for row in hubs],
        never_retrieved=sorted(set(rows_of) - retrieved),
        probe=described,
        self_similarity=similarity,
        wins=-np.sort(-wins),
    )


def _outliers(similarity: dict[str, float]) -> list[tuple[str, float]]:
    if len(similarity) < 5:
        return []
    values = np.array(list(similarity.values()))
    middle = np.median(values)
    limit = middle - 3 * 1.4826 * np.median(np.abs(values - middle))
    return sorted(((name, value) for name, value in similarity.items() if value < limit), key=lambda item: item[1])


def near_duplicates(names: list[str]) -> list[list[str]]:
    """Groups names that are the same but for case, punctuation, order of words, plural, or one letter left out."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name in names:
        words = sorted(_singular(word) for word in normalize_name(name).replace("-", " ").split())
        folded = " ".join(words)
        groups[folded].add(name)
        if len(folded) > 6:
            for place in range(len(folded)):
                groups[f"{folded[:place]}{folded[place + 1 :]}\0"].add(name)
    found = {tuple(sorted(group)) for folded, group in groups.items() if len(group) > 1 and not folded.endswith("\0")}
    whole = {folded for folded in groups if not folded.endswith("\0")}
    found |= {tuple(sorted(groups[folded] | groups[f"{folded}\0"])) for folded in whole if f"{folded}\0" in groups}
    return [list(group) for group in sorted(found)]


def _singular(word: str) -> str:
    for ending, singular in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x"), ("s", "")):
        if len(word) > 3 and word.endswith(ending) and not word.endswith(("ss", "us", "is")):
            return word[: -len(ending)] + singular
    return word


__all__ = ["QualityReport", "near_duplicates", "quality_report"]
