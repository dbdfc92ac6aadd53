"""Captions every photo of a dataset with a model's pipeline: batched, on all processes, going on after a crash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import torch
from tqdm import tqdm

from ..pipeline_loading import load_pipeline, number_field
from ..processes import process_state
from ..resumable_shards import ResumableShards
from ..weight_fingerprint import hash_tensors
from .variants import Variant, applied


def evaluated_pipeline(arguments: Any) -> Any:
    """
    Makes the pipeline of the model that is evaluated, on this process's device.

    Args:
        arguments ([`EvaluationArguments`]): Its model, memory, device and dtype.
    """
    return load_pipeline(
        arguments.model,
        revision=arguments.revision,
        memory=arguments.memory,
        device=arguments.device or process_state().device,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code,
    )


class _Photos(torch.utils.data.Dataset):
    """Rows of a dataset as the pipeline takes them, photos not yet decoded."""

    def __init__(self, data: datasets.Dataset, rows: Sequence[int]) -> None:
        self.images = data.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"image": self.images[self.rows[place]]["image"]}


def caption_photos(
    pipe: Any,
    data: datasets.Dataset,
    folder: Path,
    plan: Mapping[str, Any],
    arguments: Any,
    options: Mapping[str, Any],
    label: str,
) -> list[dict[str, Any]]:
    """
    Captions all photos and gives their predictions, on every process.

    Photos are dealt out in batches that do not depend on the number of processes, and each batch is written to a file
    of its own as it comes, so that a run that was killed goes on behind the last finished batch.

    Args:
        pipe: The pipeline.
        data (`datasets.Dataset`): From [`~caption_data.load_caption_data`].
        folder (`Path`): Where predictions are written, on a disk that all processes share.
        plan (`Mapping`): What captions depend on; predictions of another plan are refused.
        arguments ([`EvaluationArguments`]): Batch size, workers and what to do about unreadable photos.
        options (`Mapping`): Options of the pipeline.
        label (`str`): Shown beside the progress.

    Returns:
        `list[dict]`: For each photo `image_id`, `caption` (`None` if it could not be read, then with `error`) and
        `retrieved`.

    Raises:
        ValueError: A photo cannot be read, or the folder holds predictions under other settings.
    """
    shards = ResumableShards(
        folder,
        plan,
        len(data),
        arguments.batch_size,
        suffix=".jsonl",
        restart=arguments.restart,
        what="evaluation",
        finished=Path(arguments.output) / "results.json",
    )
    pending = [row for shard in shards.missing for row in shards.items_of(shard)]
    image_ids = data["image_id"]
    field = pipe.model.retrieved_field
    answers = iter(
        pipe(
            _Photos(data, pending),
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
            on_error="skip",
            **options,
        )
        if pending
        else ()
    )
    hidden = True if not shards.processes.is_main_process or not pending else None  # `None`: unless on a terminal
    with tqdm(total=len(pending), desc=label, unit="photo", disable=hidden, leave=False) as progress:
        for shard in shards.missing:
            rows = []
            for row in shards.items_of(shard):
                answer = next(answers)[0]
                if answer.get("error") and arguments.on_error == "raise":
                    raise ValueError(
                        f"The photo {image_ids[row]!r} cannot be read: {answer['error']} Repair it, or leave such "
                        'photos out with on_error="skip" (--on-error skip).'
                    )
                rows.append({
                    "image_id": image_ids[row],
                    "caption": answer["generated_text"],
                    "retrieved": answer[field],
                    **({"error": answer["error"]} if answer.get("error") else {}),
                })  # fmt: skip
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            shards.write(shard, partial(_write_text, text))
            progress.update(len(rows))
    shards.processes.wait_for_everyone()
    # Not `splitlines`: a caption may hold a line separator of Unicode, which JSON leaves as it is.
    return [json.loads(line) for file in shards.files for line in file.read_text(encoding="utf-8").split("\n") if line]


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def caption_variant(
    pipe: Any, data: datasets.Dataset, variant: Variant, folder: Path, plan: Mapping[str, Any], arguments: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Captions all photos under a variant; gives the predictions and a description of what was in force."""
    given = {"num_beams": arguments.num_beams, "max_new_tokens": arguments.max_new_tokens, "text": arguments.text}
    with applied(pipe.model, variant) as changed:
        options = {name: value for name, value in {**given, **changed}.items() if value is not None}
        settings = describe_settings(pipe, options)
        full_plan = {**plan, **settings}
        predictions = caption_photos(
            pipe, data, folder / "predictions" / variant.folder, full_plan, arguments, options, variant.name
        )
    return predictions, settings


def describe_settings(pipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a variant's captions depend on beside weights and photos."""
    model, processor = pipe.model, pipe.processor
    generation = {**model.generation_config.to_diff_dict(), **{k: v for k, v in options.items() if k != "text"}}
    config = model.config
    names = (number_field(config), "retrieval_rule", "retrieval_options", "num_neighbors_per_query", "max_candidates")
    return {
        "memory": describe_memory(model.memory),
        "retrieval": {name: getattr(config, name) for name in names if hasattr(config, name)},
        "generation": {name: value for name, value in generation.items() if name != "transformers_version"},
        "text": options.get("text") or getattr(processor, "prompt", None),
    }


def describe_memory(memory: Any) -> dict[str, Any] | None:
    """Identity and size of a memory, of layers or of a datastore."""
    if memory is None:
        return None
    if hasattr(memory, "memories"):
        return {name: describe_memory(one) for name, one in memory.memories.items()}
    return {
        "rows": len(memory),
        "fingerprint": memory.fingerprint,
        "min_similarity": memory.min_similarity,
        **({"repo": memory.hub_reference} if memory.hub_reference else {}),
    }


def describe_model(pipe: Any, arguments: Any) -> dict[str, Any]:
    """Identity of the model: its weights by a sample of their values."""
    model = pipe.model
    name = arguments.model or "evcap-tiny (embedded)"
    return {
        "name": Path(name).resolve().name if Path(name).is_dir() else name,
        "revision": arguments.revision,
        "type": model.config.model_type,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights_fingerprint": hash_tensors(model.state_dict()),
        "encoder_fingerprint": model.encoder_fingerprint,
    }


def hash_dataset(data: datasets.Dataset) -> str:
    """Identity of ids, captions and domains; photos are taken to be what their ids say."""
    columns = [name for name in ("image_id", "captions", "domain") if name in data.column_names]
    digest = hashlib.sha256()
    for row in data.select_columns(columns):
        digest.update(json.dumps([row[name] for name in columns], ensure_ascii=False).encode())
    return digest.hexdigest()
