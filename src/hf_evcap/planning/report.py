"""A plan as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .model_plan import ModelPlan


RUNS = {
    "plain": "train, from photos",
    "gradient_checkpointing": "  with gradient checkpointing",
    "feature_cache": "train, from a feature cache",
    "both": "  with gradient checkpointing",
}
COLUMNS = ("weights", "gradients", "optimizer", "memory", "activations", "total")


def describe(plan: ModelPlan) -> str:
    """The whole plan, as `hf-evcap plan` prints it."""
    return "\n\n".join(
        "\n".join(lines) for lines in (_model(plan), _memory(plan), _advice(plan), _rest(plan)) if lines
    )


def gigabytes(size: float) -> str:
    """Bytes in GB, with three digits where there are less than 10."""
    size = size / 1e9
    return f"{size:.1f}" if size >= 10 else f"{size:.2f}" if size >= 1 else f"{size:.3f}"


def _model(plan: ModelPlan) -> list[str]:
    trained, total = plan.trainable_parameters, plan.total_parameters
    bits = f", language model in {plan.arguments.quantization[0]} bits" if plan.arguments.quantization else ""
    lines = [
        f"{plan.source}: {total:,} parameters, {plan.dtype}{bits}",
        f"policy {plan.arguments.policy} trains {trained:,} ({100 * trained / total:.3g} %)",
    ]
    for part, (own, all_of_it) in plan.parameters.items():
        lines.append(f"  {part:<22} {all_of_it:>15,}" + (f"   trained {own:>13,}" if own else ""))
    return lines


def _memory(plan: ModelPlan) -> list[str]:
    work = plan.workload
    read = f"{work.sequence_tokens} tokens of prompt"
    where = "" if plan.launch.kind == "single" else f" of each of {plan.launch}"
    rows = [("load", {"weights": plan.load}, plan.load)]
    caption = plan.captioning
    held = {"weights": caption.weights, "memory": caption.memory, "activations": caption.cache + caption.activations}
    rows.append((f"caption, {work.num_beams} beams, {work.new_tokens} tokens", held, caption.peak))
    for name, label in RUNS.items():
        if name in plan.training:
            training = plan.training[name]
            parts = {column: getattr(training, column) for column in COLUMNS[:-1]}
            rows.append((label + (" *" if name == plan.asked else ""), parts, training.peak))
    lines = [
        f"GB (1e9 bytes){where or ' of one device'}, {work.batch_size} photos at once, {read}, captions of "
        f"{work.caption_tokens} tokens",
        _row("", COLUMNS),
    ]
    for label, parts, total in rows:
        cells = [gigabytes(parts[column]) if column in parts else "" for column in COLUMNS[:-1]]
        fits = "" if plan.fits(total) is None else "   fits" if plan.fits(total) else "   too much"
        lines.append(_row(label, [*cells, gigabytes(total)]) + fits)
    lines.append("* as asked for. Activations hold temporaries, too, and in captioning the cache of keys and values.")
    if not work.memory_shape[0]:
        lines.append("Without a memory: its folder is not there, and --memory_rows was not given.")
    return lines


def _row(label: str, cells: Sequence[str]) -> str:
    return f"{label:<32}" + "".join(f"{cell:>12}" for cell in cells)


def _advice(plan: ModelPlan) -> list[str]:
    if plan.fits(plan.training[plan.asked].peak) is not False:
        return []
    room = f"{plan.arguments.memory_gb:g} GB"
    if plan.advice and plan.fits(plan.advice[-1][1]):
        lines = [f"To fit into {room}:"]
    else:
        lines = [f"Nothing that this plan knows makes it fit into {room}. What helps most:"]
    return [*lines, *(f"  {change:<62} {gigabytes(peak):>6} GB" for change, peak in plan.advice)]


def _rest(plan: ModelPlan) -> list[str]:
    cache, compute = plan.feature_cache, plan.compute
    shape = " x ".join(map(str, cache.shape))
    lines = [
        f"feature cache: {cache.photos:,} photos of {shape}, {gigabytes(cache.bytes())} GB on disk in float16, "
        f"{gigabytes(cache.bytes('float32'))} in float32",
        f"largest layer: {gigabytes(plan.largest_layer[1])} GB ({plan.largest_layer[0]}), the least for device_map",
        f"TFLOP: {compute.encode_photo / 1e12:.3g} to encode a photo, {compute.caption_photo / 1e12:.3g} to caption "
        f"it, {compute.train_example / 1e12:.3g} to train on it ({compute.train_cached_example / 1e12:.3g} from the "
        "cache)",
    ]
    if not compute.hours:
        return [*lines, "hours: give --tflops, what a GPU really does"]
    hours = compute.hours
    lines.append(
        f"hours for {compute.examples:,.0f} examples at {plan.arguments.tflops:g} TFLOP/s a GPU, {plan.launch}: "
        f"{hours['train']:.3g}; with a feature cache {hours['train_from_feature_cache']:.3g}, and "
        f"{hours['make_feature_cache']:.3g} to make it"
    )
    return lines


__all__ = ["describe"]
