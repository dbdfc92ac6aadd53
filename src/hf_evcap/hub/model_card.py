"""The model card: what the files tell (architecture, parameters, memory) and what was measured (`results.json`)."""

from __future__ import annotations

import argparse
import os
import pprint
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData
from transformers import AutoConfig, AutoModelForImageTextToText

from ..hub_card import make_card, merge_cards, table_cell
from ..hub_upload import CARD_NAME
from ..whole_files import write_text
from .architecture import FAMILIES, count_parameters
from .card_facts import RESULTS_NAME, CardFacts, ResultTable, Training, read_card_facts
from .inherited_terms import inherit_terms


TASK = "image-to-text"
_TAGS = ("image-captioning", "retrieval-augmented")


def make_model_card(
    folder: Path,
    *,
    repo_id: str | None = None,
    memory: Any = None,
    tags: Sequence[str] = (),
    link: str = "",
    tuned_from: str | None = None,
    tuned_from_revision: str | None = None,
) -> str:
    """
    Makes the card of a model's folder.

    Args:
        folder (`Path`): With `config.json`, and maybe `results.json`, `memory/`. Weights are not read.
        repo_id (`str`, *optional*): Where it will be published; absent, the card is of the embedded default.
        memory (*optional*): The model's memory, where it is not in the folder.
        tags (`Sequence[str]`, *optional*): Further tags.
        link (`str`, *optional*): What is put in front of links to files of the folder.
        tuned_from, tuned_from_revision (`str`, *optional*): Folder or repo id (and revision) of the model that it was
            tuned from, whose licence is taken over where `results.json` does not say more; see [`inherit_terms`].

    Returns:
        `str`: The card, its text between the marks of [`make_card`].

    Raises:
        ValueError: `results.json` is not as it should be, or the model is of an unknown family.
    """
    config = AutoConfig.from_pretrained(folder)
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"Cards can be made for models of type {known}; {folder} is of type {config.model_type!r}.")
    family = FAMILIES[config.model_type]
    results = folder / RESULTS_NAME
    default_title = (repo_id or folder.resolve().name).split("/")[-1]
    if results.is_file():
        facts = read_card_facts(results)
    elif tuned_from:
        facts = inherit_terms(CardFacts(title=default_title), folder, tuned_from, tuned_from_revision, repo_id)
    else:
        facts = CardFacts(title=default_title)
    model_class = AutoModelForImageTextToText._model_mapping[type(config)]
    allowed = model_class.policies_for(config)
    policy = "paper" if facts.training else allowed[0]
    trained = facts.training.trained_parts if facts.training else None
    if trained is None:
        trained = list(model_class.trainable_parts[policy])
    parts = family.parts(config)
    try:
        counts = count_parameters(config, [part.name for part in parts], trained)
    except ValueError as error:
        raise ValueError(f"{results}: {error}") from error
    body = (
        _environment()
        .get_template("model_card.md.jinja")
        .render(
            title=facts.title,
            facts=facts,
            config=config,
            counts=counts,
            family=family,
            parts=parts,
            trained=trained,
            policy=policy,
            refused=" and ".join(f"`{name}`" for name in model_class.trainable_parts if name not in allowed),
            total=sum(count.total for count in counts.values()),
            trained_total=sum(count.trained for count in counts.values()),
            memory=_memory_rows(folder, config, memory),
            link=link,
            self_contained=repo_id is not None,
            model_expression="hf_evcap.default_model()" if repo_id is None else f'"{repo_id}"',
        )
    )
    parts_from = [record["repo_id"] for record in (config.part_sources or {}).values()]
    metadata = _metadata(facts, [config.model_type, *_TAGS, *facts.tags, *tags], parts_from)
    return make_card(metadata.to_dict(), body)


def write_model_card(folder: Path, **options: Any) -> Path:
    """Writes or brings up to date the card in a model's folder; see [`make_model_card`] for the options."""
    card = folder / CARD_NAME
    new = make_model_card(folder, **options)
    write_text(card, merge_cards(new, card.read_text(encoding="utf-8") if card.is_file() else None))
    return card


def _metadata(facts: CardFacts, tags: list[str], parts_from: Sequence[str] = ()) -> ModelCardData:
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=row.dataset_id or row.dataset,
            dataset_name=row.dataset,
            dataset_split=row.split,
            metric_type=metric.lower(),
            metric_name=f"{metric} ({row.setting})" if row.setting else metric,
            metric_value=value,
        )
        for table in facts.tables
        for row in table.rows
        if row.model_index
        for metric, value in row.metrics.items()
    ]
    started_from = [weights.repo_id for weights in facts.started_from if weights.repo_id]
    base_models = list(dict.fromkeys([*started_from, *parts_from]))
    datasets = list(dict.fromkeys(data.id for data in facts.data if data.id))
    return ModelCardData(
        language=facts.language or None,
        license=facts.license,
        license_name=facts.license_name,
        license_link=facts.license_link,
        library_name="transformers",
        pipeline_tag=TASK,
        tags=list(dict.fromkeys(tags)),
        base_model=base_models or None,
        datasets=datasets or None,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _memory_rows(folder: Path, config: Any, memory: Any) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    model_class = AutoModelForImageTextToText._model_mapping[type(config)]
    own = folder / model_class.memory_folder
    if memory is None and own.is_dir():
        memory = model_class.memory_class.from_pretrained(own)
    if config.memory_reference:
        rows.append(("repo", f"`{config.memory_reference['repo_id']}`"))
        rows.append(("revision", f"`{config.memory_reference.get('revision')}`"))
    elif memory is not None:
        rows.append(("repo", f"this one, folder `{model_class.memory_folder}/`"))
    layers = getattr(memory, "memories", None) or {"": memory}
    for name, layer in layers.items() if memory is not None else ():
        of = f" of layer {name}" if name else ""
        facts = layer.describe()
        rows.append((f"rows{of}", f"{len(layer):,} of {layer.dim} numbers"))
        rows.append((f"{layer.text_word}s{of}", f"{facts[f'{layer.text_word}s']:,}"))
        rows.append((f"fingerprint (SHA-256){of}", f"`{layer.fingerprint}`"))
        sources = [f"{source}: {count:,} rows" for source, count in facts["sources"].items()]
        rows.append((f"sources{of}", "; ".join(sources)))
        rows.append((f"licences{of}", "; ".join(f"{source}: {text}" for source, text in layer.licenses.items())))
    return [row for row in rows if row[1]]


# The template's filters


def _link(text: str, url: str | None) -> str:
    return f"[{table_cell(text)}]({url})" if url else table_cell(text)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f} million" if count >= 100_000 else f"{count:,}"


def _results_table(table: ResultTable) -> str:
    metrics = list(dict.fromkeys(metric for row in table.rows for metric in row.metrics))
    columns: list[tuple[str, Any]] = [
        ("dataset", lambda row: row.dataset),
        ("split", lambda row: row.split),
        ("photos", lambda row: row.photos),
        ("setting", lambda row: row.setting),
    ]
    columns = [(name, read) for name, read in columns if any(read(row) for row in table.rows)]
    lines = [[name for name, _ in columns] + metrics]
    lines.append(["---"] * len(lines[0]))
    for row in table.rows:
        cells = [read(row) for _, read in columns] + [row.metrics.get(metric) for metric in metrics]
        lines.append(["" if cell is None else table_cell(cell) for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _training_text(training: Training) -> str:
    sentences = []
    if training.command:
        sentences.append(f"Trained with `{training.command}`")
        sentences[-1] += f" (recipe `{training.recipe}`)." if training.recipe else "."
    facts = [training.hardware] if training.hardware else []
    facts += [f"{training.hours:g} hours"] if training.hours is not None else []
    facts += [f"seed {training.seed}"] if training.seed is not None else []
    if facts:
        sentences.append(f"{', '.join(facts)}.")
    return " ".join(sentences)


def _environment() -> jinja2.Environment:
    templates = {
        "model_card.md.jinja": resources.files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    }
    environment = jinja2.Environment(  # Markdown, not HTML; `table_cell` guards what others wrote
        loader=jinja2.DictLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters.update(
        basename=os.path.basename,
        cell=table_cell,
        link=_link,
        millions=_millions,
        printed=lambda value: pprint.pformat(value, width=100, sort_dicts=False),
        results_table=_results_table,
        trained=lambda count: "no" if not count.trained else "yes" if count.trained == count.total else "in part",
        training_text=_training_text,
    )
    return environment


def main(argv: list[str] | None = None) -> None:
    """Writes a folder's card, and maybe the same card elsewhere."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_evcap.hub.model_card", description="Write the card of a model's folder from its files."
    )
    parser.add_argument("folder", type=Path, help="folder with config.json and results.json")
    parser.add_argument("--copy", type=Path, help="a second file for the card; its links lead into the folder")
    arguments = parser.parse_args(argv)
    write_model_card(arguments.folder)
    if arguments.copy is not None:
        link = Path(os.path.relpath(arguments.folder, arguments.copy.parent or Path())).as_posix() + "/"
        arguments.copy.write_text(make_model_card(arguments.folder, link=link), encoding="utf-8")


if __name__ == "__main__":
    main()
