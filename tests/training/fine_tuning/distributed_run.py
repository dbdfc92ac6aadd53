"""Caches features and trains in several ways, on as many processes as there are; `test_multi_process.py` compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_models import make_model, make_processor
from transformers import Seq2SeqTrainingArguments
from transformers.utils import logging

from hf_evcap.caption_data import load_caption_data
from hf_evcap.cli.main import main
from hf_evcap.photo_rows import photo_keys
from hf_evcap.processes import process_state
from hf_evcap.training.fine_tuning.caption_collator import PhotoCaptionCollator
from hf_evcap.training.fine_tuning.caption_examples import CaptionExamples
from hf_evcap.training.fine_tuning.caption_trainer import CaptionTrainer
from hf_evcap.training.fine_tuning.retrieval_in_training import TrainingRetrieval


FSDP = Path(__file__).parents[3] / "hub_configs" / "accelerate" / "fsdp.yaml"
GLOBAL_BATCH = 4
STEPS = 4


def train(
    listing: Path, folder: Path, accumulation: int = 1, retrieval: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Losses of the steps, and some of the trained weights."""
    processor, model = make_processor(), make_model()
    model.freeze_for_training("paper")
    arguments = Seq2SeqTrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=GLOBAL_BATCH // accumulation // process_state().num_processes,
        gradient_accumulation_steps=accumulation,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = CaptionTrainer(
        model,
        arguments,
        processing_class=processor,
        data_collator=PhotoCaptionCollator(processor, photo_keys=photo_keys),
        train_dataset=CaptionExamples(load_caption_data(listing), processor),
        retrieval=TrainingRetrieval(model, **retrieval) if retrieval else None,
    )
    trainer.log = lambda logs, *args, **kwargs: trainer.state.log_history.append(logs)  # nothing is printed
    trainer.train()
    return {
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "weights": [*model.query_tokens.detach().flatten()[:8].tolist(), *model.language_projection.bias[:8].tolist()],
    }


def shard(listing: Path) -> dict[str, Any]:
    """Shards a model as the FSDP configuration says, by accelerate's own code, and compares it with the whole one."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    settings = yaml.safe_load(FSDP.read_text(encoding="utf-8"))["fsdp_config"]
    accelerator = Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        cpu_ram_efficient_loading=settings["fsdp_cpu_ram_efficient_loading"],
        state_dict_type=settings["fsdp_state_dict_type"],
    )
    processor, found = make_processor(), {}
    rows = load_caption_data(listing).select(range(3))
    batch = processor(images=rows["image"], suffix=[captions[0] for captions in rows["captions"]], return_tensors="pt")
    for dtype in (torch.float32, torch.bfloat16):
        model = make_model()
        for part in (model.vision_model, model.language_model):  # as `from_pretrained(dtype=...)` does
            part.to(dtype)
        model.freeze_for_training("paper")
        prompt = {name: value for name, value in batch.items() if name != "labels"}
        written = model.generate(**prompt, num_beams=2).tolist()
        model.train()
        loss = model(**batch).loss
        loss.backward()
        gradient = model.query_tokens.grad
        model.zero_grad()
        sharded = fsdp2_prepare_model(accelerator, model)
        register_fsdp_forward_method(sharded, "generate")
        written_again = sharded.generate(**prompt, num_beams=2, synced_gpus=True).tolist()
        again = sharded(**batch).loss
        again.backward()
        units = [type(module).__name__ for module in sharded.modules() if isinstance(module, FSDPModule)]
        found[str(dtype)] = {
            "loss": [loss.item(), again.item()],
            "captions": [written, written_again],
            "gradient": (sharded.query_tokens.grad.full_tensor() - gradient).abs().max().item(),
            "largest": gradient.abs().max().item(),
            "units": sorted(unit.removeprefix("FSDP") for unit in units),
        }
    return found


def run(model: Path, listing: Path, folder: Path) -> dict[str, Any]:
    """Caches features in `folder / "features"` and trains in all ways."""
    options = ["--model", str(model), "--dataset", str(listing), "--output", str(folder / "features")]
    assert main(["cache-features", *options, "--batch-size", "2", "--shard-size", "3"]) == 0
    sampled = {"sample_from": 6, "name_dropout": 0.3, "seed": 1}
    found = {
        "plain": train(listing, folder),
        "accumulated": train(listing, folder, accumulation=2),
        "drawn": train(listing, folder, retrieval=sampled),
        "processes": process_state().num_processes,
    }
    if process_state().num_processes > 1:
        found["sharded"] = shard(listing)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    results = run(*map(Path, sys.argv[1:]))
    if process_state().is_main_process:
        (Path(sys.argv[3]) / "found.json").write_text(json.dumps(results), encoding="utf-8")
