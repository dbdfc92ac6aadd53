"""Cards of retrieval stores: metadata that the Hub reads, counts, sources, licences, coverage and a preview."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .hub_card import make_card, table_cell


# Licences that the Hub knows by these identifiers; others are `other` there and spelt out in the text.
_LICENSE_IDS = ("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "odc-by", "odbl")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_COVERAGE = ((1, "1"), (5, "2 to 5"), (10, "6 to 10"), (100, "11 to 100"), (float("inf"), "more than 100"))
_PREVIEW_TEXTS = 20


@dataclass(frozen=True)
class CardWords:
    """What the cards of one kind of store say."""

    title: str
    family: str  # the models that read it, as a link to their paper
    what: str  # it is for
    use: str  # Python, with {repo_id}
    tags: tuple[str, ...]
    facts: tuple[str, ...] = ("sha256", "encoder_fingerprint", "metric", "index_factory")  # of the manifest


MEMORY_WORDS = CardWords(
    title="Visual-name memory",
    family="[EVCap](https://arxiv.org/abs/2311.15879)",
    what="A model retrieves from it the names of what a photo may show; edit it, and the captions follow.",
    use="""import hf_evcap
from hf_evcap import EVCapForConditionalGeneration, VisualNameMemory

memory = VisualNameMemory.from_pretrained("{repo_id}")  # revision="..." pins a version
model.set_memory(memory)
model = EVCapForConditionalGeneration.from_pretrained("org/model", memory="{repo_id}")""",
    tags=("evcap", "visual-name-memory", "image-captioning"),
    facts=("sha256", "encoder_fingerprint", "query_tokens_hash", "metric", "index_factory"),
)
DATASTORE_WORDS = CardWords(
    title="Caption datastore",
    family="[SmallCap](https://arxiv.org/abs/2209.15323)",
    what="A model retrieves from it captions of similar photos and reads them before\nit writes its own; with another "
    "datastore it captions another domain.",
    use="""import hf_evcap
from hf_evcap import CaptionDatastore, SmallCapForConditionalGeneration

datastore = CaptionDatastore.from_pretrained("{repo_id}")  # revision="..." pins a version
model.set_memory(datastore)
model = SmallCapForConditionalGeneration.from_pretrained("org/model", memory="{repo_id}")""",
    tags=("smallcap", "caption-datastore", "image-captioning"),
)


def describe_rows(rows: Any, word: str) -> dict[str, Any]:
    """
    Says in numbers what a store holds: rows, texts, rows a text, sources, and who built it.

    Args:
        rows ([`StoreSnapshot`]): The rows.
        word (`str`): What a text is called.
    """
    rows_per_text = Counter(rows.texts)
    sources: Counter[str] = Counter()
    if "source" in rows.columns.column_names:
        sources = Counter(
            "unknown" if source is None else str(source) for source in rows.columns["source"].to_pylist()
        )
    return {
        "rows": len(rows),
        f"{word}s": len(rows_per_text),
        "dim": rows.dim,
        "dtype": rows.keys.dtype.name,
        f"rows_per_{word}": {
            "min": min(rows_per_text.values(), default=0),
            "mean": len(rows) / max(len(rows_per_text), 1),
            "max": max(rows_per_text.values(), default=0),
        },
        "sources": dict(sources.most_common()),
        "columns": [rows.text_column, "key", *rows.further_columns],
        **rows.settings.to_dict(),
        "index_factory": rows.index_factory,
    }


def store_card(store: Any, manifest: Mapping[str, Any], words: CardWords, repo_id: str | None = None) -> str:
    """
    Writes the dataset card of a memory or datastore.

    Args:
        store ([`RetrievalStore`]): The rows.
        manifest (`Mapping[str, Any]`): What `memory_config.json` says of them.
        words ([`CardWords`]): What is said of this kind of store.
        repo_id (`str`, *optional*): Where it will be published.
    """
    facts, word, called = store.describe(), store.text_word, store.store_word
    rows_per_text = Counter(store.texts)
    article = "an" if word[0] in "aeiou" else "a"
    sections = [
        f"# {words.title}",
        f"{facts['rows']:,} rows of a key and {article} {word}, {facts[f'{word}s']:,} {word}s, keys of dimension "
        f"{facts['dim']}, for {words.family}\nmodels of `hf_evcap`. {words.what}",
        f"```python\n{words.use.format(repo_id=repo_id or 'this/repo')}\n```\n\nIt is a plain dataset too: "
        f'`datasets.load_dataset("{repo_id or "this/repo"}")`.',
        "## What it is\n\n"
        + _table(
            ("what", "value"),
            [
                *((what, f"`{manifest.get(what)}`") for what in words.facts),
                *((f"retrieval: {what}", f"`{value}`") for what, value in sorted(store.retrieval.items())),
            ],
        )
        + f"\n\nA model whose encoder fingerprint differs refuses this {called}. `sha256` is over the ordered {word}s "
        "and keys and is\nchecked at loading; `index.faiss` is a cache that is rebuilt when it does not fit.",
        _coverage(facts, rows_per_text, word),
    ]
    columns = [column for column in facts["columns"] if column not in (store.text_column, "key")]
    if columns:
        sections.append(f"Further columns: {', '.join(f'`{table_cell(column)}`' for column in columns)}.")
    if facts["sources"]:
        rows = [(source, f"{count:,}") for source, count in facts["sources"].items()]
        sections.append(f"## Sources\n\n{_table(('source', 'rows'), rows)}")
    if store.licenses:
        sections.append(f"## Licences\n\n{_table(('source', 'licence'), list(store.licenses.items()))}")
    preview = sorted(rows_per_text.items(), key=lambda item: (-item[1], item[0]))[:_PREVIEW_TEXTS]
    if preview:
        rows = [(text, f"{count:,}") for text, count in preview]
        sections.append(f"## {word.capitalize()}s with the most rows\n\n{_table((word, 'rows'), rows)}")
    return make_card(_metadata(store, facts, words), "\n\n".join(sections))


def _metadata(store: Any, facts: Mapping[str, Any], words: CardWords) -> dict[str, Any]:
    licenses = {text.strip().lower().replace(" ", "-") for text in store.licenses.values()}
    license_id = None
    if licenses:
        license_id = next(iter(licenses)) if len(licenses) == 1 and licenses <= set(_LICENSE_IDS) else "other"
    return {
        "pretty_name": words.title,
        "license": license_id,
        "task_categories": ["image-to-text"],
        "size_categories": [next((size for limit, size in _SIZES if facts["rows"] < limit), "n>1M")],
        "tags": list(words.tags),
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }


def _coverage(facts: Mapping[str, Any], rows_per_text: Counter[str], word: str) -> str:
    spread = facts[f"rows_per_{word}"]
    text = f"## Coverage\n\nRows a {word}: {spread['min']} to {spread['max']}, {spread['mean']:.1f} on average."
    counts: list[tuple[str, str]] = []
    start: float = 0
    for limit, label in _COVERAGE:
        texts = sum(start < rows <= limit for rows in rows_per_text.values())
        start = limit
        if texts:
            counts.append((label, f"{texts:,}"))
    return f"{text}\n\n{_table((f'rows a {word}', f'{word}s'), counts)}" if counts else text


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *(tuple(map(table_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = ["DATASTORE_WORDS", "MEMORY_WORDS", "CardWords", "describe_rows", "store_card"]
