"""Peaks of real training steps and captions, as PyTorch's profiler saw them being allocated."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile
from transformers import Seq2SeqTrainingArguments

from hf_evcap.caption_data import load_caption_data
from hf_evcap.planning.peak_memory import storage_bytes
from hf_evcap.training.feature_cache import VisionFeatureCache, build_feature_cache
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples
from hf_evcap.training.fine_tuning.caption_trainer import CaptionTrainer


def allocated_peak(run: Callable[[], Any]) -> int:
    """The most bytes that a function had allocated at once, beyond what was there before."""
    gc.collect()  # garbage of before that is let go meanwhile would count as less
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    found = profiler.profiler.kineto_results.events()
    events = sorted((event.start_ns(), event.nbytes()) for event in found if event.name() == "[memory]")
    now = peak = 0
    for _, size in events:
        now += size
        peak = max(peak, now)
    assert events
    return peak


class Lengths:
    """Notes the longest sequences and captions that a model is given."""

    def __init__(self, model: Any) -> None:
        self.sequence = self.names = self.caption = 0
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        layers = base.language_model.base_model
        getattr(layers, "decoder", layers).register_forward_pre_hook(self._sequence, with_kwargs=True)
        if hasattr(base, "fusion_qformer"):
            base.fusion_qformer.embeddings.register_forward_pre_hook(self._names)

    def _sequence(self, module: Any, args: Any, kwargs: Any) -> None:
        embeds = kwargs.get("inputs_embeds")  # later tokens of a caption come by their ids
        self.sequence = max(self.sequence, 0 if embeds is None else embeds.shape[1])

    def _names(self, module: Any, args: Any) -> None:
        self.names = max(self.names, args[0].shape[1])

    def options(self, prefix: int, captioning: bool = False) -> dict[str, int | None]:
        """Options of a plan for just these."""
        prompt = self.sequence - prefix - self.caption + captioning  # all but the prompt's last token run first
        longest = {} if captioning else {"max_caption_length": self.caption}
        return {"prompt_tokens": prompt, "retrieved_tokens": self.names or None, **longest}


def train_peak(
    model: Any,
    processor: Any,
    listing: Path,
    folder: Path,
    batch_size: int,
    feature_cache: bool = False,
    **arguments: Any,
) -> tuple[int, Lengths]:
    """Bytes at the peak of three steps of the package's trainer, weights included; from cached features if asked."""
    photos = load_caption_data(listing)
    if feature_cache:
        build_feature_cache(model, processor, photos, folder / "features")
        photos = VisionFeatureCache.open(folder / "features", model, processor).attach(photos)
    examples = CaptionExamples(photos, processor)
    lengths = Lengths(model)
    lengths.caption = max(len(processor.encode_caption(one)) for row in examples.references.values() for one in row)
    trainer = CaptionTrainer(
        model,
        Seq2SeqTrainingArguments(
            str(folder),
            max_steps=3,
            per_device_train_batch_size=batch_size,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            use_cpu=True,
            disable_tqdm=True,
            optim="adamw_torch",
            **arguments,
        ),
        processing_class=processor,
        data_collator=PhotoCaptionCollator(processor),
        train_dataset=examples,
    )
    trainer.log = lambda *args, **kwargs: None  # nothing is printed
    weights = storage_bytes([*model.parameters(), *model.buffers()])
    return weights + allocated_peak(trainer.train), lengths


def caption_peak(model: Any, processor: Any, photos: list[str], new_tokens: int, beams: int) -> tuple[int, Lengths]:
    """Bytes at the peak of captioning photos at once, weights included."""
    inputs = processor(images=photos, return_tensors="pt")
    lengths = Lengths(model)
    weights = storage_bytes([*model.parameters(), *model.buffers()])
    options = {"num_beams": beams, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    return weights + allocated_peak(lambda: model.generate(**inputs, **options)), lengths
