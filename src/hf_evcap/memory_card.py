"""The card of a visual-name memory: metadata that the Hub reads, counts, sources, licences, coverage and a preview."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .hub_card import make_card, table_cell


# Licences that the Hub knows by these identifiers; others are `other` there and spelt out in the text.
_LICENSE_IDS = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "odc-by", "odbl")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COVERAGE = ((1, "1"), (5, "2 to 5"), (10, "6 to 10"), (100, "11 to 100"), (float("inf"), "more than 100"))
_PREVIEW_NAMES = 20


def memory_card(memory: Any, manifest: Mapping[str, Any], repo_id: str | None = None) -> str:
    """
    Writes the dataset card of a memory.

    Args:
        memory ([`VisualNameMemory`]): The rows.
        manifest (`Mapping[str, Any]`): What `memory_config.json` says of them.
        repo_id (`str`, *optional*): Where it will be published.
    """
    facts = memory.describe()
    rows_per_name = Counter(memory.names)
    sections = [
        "# Visual-name memory",
        f"{facts['rows']:,} rows of a key and a name, {facts['names']:,} names, keys of dimension {facts['dim']}, for "
        "[EVCap](https://arxiv.org/abs/2311.15879)\nmodels of `hf_evcap`. A model retrieves from it the names of what "
        "a photo may show; edit it, and the captions follow.",
        _use(repo_id or "this/repo"),
        "## What it is\n\n"
        + _table(
            ("what", "value"),
            [
                (what, f"`{manifest.get(what)}`")
                for what in ("sha256", "encoder_fingerprint", "query_tokens_hash", "metric", "index_factory")
            ],
        )
        + "\n\nA model whose encoder fingerprint differs refuses this memory. `sha256` is over the ordered names and "
        "keys and is\nchecked at loading; `index.faiss` is a cache that is rebuilt when it does not fit.",
        _coverage(facts, rows_per_name),
    ]
    columns = [column for column in facts["columns"] if column not in ("name", "key")]
    if columns:
        sections.append(f"Further columns: {', '.join(f'`{table_cell(column)}`' for column in columns)}.")
    if facts["sources"]:
        rows = [(source, f"{count:,}") for source, count in facts["sources"].items()]
        sections.append(f"## Sources\n\n{_table(('source', 'rows'), rows)}")
    if memory.licenses:
        sections.append(f"## Licences\n\n{_table(('source', 'licence'), list(memory.licenses.items()))}")
    preview = sorted(rows_per_name.items(), key=lambda item: (-item[1], item[0]))[:_PREVIEW_NAMES]
    if preview:
        rows = [(name, f"{count:,}") for name, count in preview]
        sections.append(f"## Names with the most rows\n\n{_table(('name', 'rows'), rows)}")
    return make_card(_metadata(memory, facts), "\n\n".join(sections))


def _metadata(memory: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    licenses = {text.strip().lower().replace(" ", "-") for text in memory.licenses.values()}
    license_id = None
    if licenses:
        license_id = next(iter(licenses)) if len(licenses) == 1 and licenses <= set(_LICENSE_IDS) else "other"
    return {
        "pretty_name": "Visual-name memory",
        "license": license_id,
        "task_categories": ["image-to-text"],
        "size_categories": [next((size for limit, size in _SIZES if facts["rows"] < limit), "n>1M")],
        "tags": ["evcap", "visual-name-memory", "image-captioning"],
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }


def _use(repo_id: str) -> str:
    return f"""```python
import hf_evcap
from hf_evcap import EVCapForConditionalGeneration, VisualNameMemory

memory = VisualNameMemory.from_pretrained("{repo_id}")  # revision="..." pins a version
model.set_memory(memory)
model = EVCapForConditionalGeneration.from_pretrained("org/model", memory="{repo_id}")
```

It is a plain dataset too: `datasets.load_dataset("{repo_id}")`."""


def _coverage(facts: Mapping[str, Any], rows_per_name: Counter[str]) -> str:
    spread = facts["rows_per_name"]
    text = f"## Coverage\n\nRows a name: {spread['min']} to {spread['max']}, {spread['mean']:.1f} on average."
    counts: list[tuple[str, str]] = []
    start: float = 0
    for limit, label in _COVERAGE:
        names = sum(start < rows <= limit for rows in rows_per_name.values())
        start = limit
        if names:
            counts.append((label, f"{names:,}"))
    return f"{text}\n\n{_table(('rows a name', 'names'), counts)}" if counts else text


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(table_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = ["memory_card"]
