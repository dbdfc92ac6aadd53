"""hub_configs/accelerate: every file is read by accelerate's own code, and names layers that the models have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin, infer_auto_device_map
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from transformers import AutoConfig, AutoModelForImageTextToText


HUB_CONFIGS = Path(__file__).parents[3] / "hub_configs"
FILES = {"multi_gpu": 4, "fsdp": 8, "deepspeed_zero3": 8, "cpu": 2}


@pytest.fixture(scope="module")
def vicuna_13b() -> torch.nn.Module:
    """The paper's model without weights."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(HUB_CONFIGS / "evcap-vicuna-13b"))


def read(name: str) -> ClusterConfig:
    return load_config_from_file(str(HUB_CONFIGS / "accelerate" / f"{name}.yaml"))


def test_every_file_is_known() -> None:
    files = {path.stem for path in (HUB_CONFIGS / "accelerate").glob("*.yaml")}
    assert files == set(FILES)
    text = (HUB_CONFIGS / "accelerate" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}.yaml`" in text for name in files)


@pytest.mark.parametrize("name", FILES)
def test_the_launcher_takes_every_file(name: str) -> None:
    config = read(name)
    assert config.num_processes == FILES[name]
    options = ["--config_file", str(HUB_CONFIGS / "accelerate" / f"{name}.yaml"), "script.py"]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    assert arguments.num_processes == FILES[name] and defaults.distributed_type == config.distributed_type
    kinds = arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed
    assert kinds == (name in ("multi_gpu", "cpu"), name == "fsdp", name == "deepspeed_zero3")
    assert arguments.use_cpu == (name == "cpu")


def test_fsdp_wraps_the_layers_of_all_parts(vicuna_13b: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(HUB_CONFIGS / "accelerate" / "fsdp.yaml")
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", file, "x.py"]))
    for name, value in prepare_multi_gpu_env(arguments).items():  # what the launched processes see
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward, plugin.cpu_ram_efficient_loading) == (2, True, True)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, vicuna_13b)
    assert policy is not None
    wrapped = [(name, module) for name, module in vicuna_13b.named_modules() if policy(module)]
    assert Counter(name.split(".")[0] for name, _ in wrapped) == {
        "language_model": 40, "vision_model": 39, "qformer": 12, "fusion_qformer": 12
    }  # fmt: skip
    inside = sum(weight.numel() for _, module in wrapped for weight in module.parameters())
    total = sum(weight.numel() for weight in vicuna_13b.parameters())
    assert inside / total > 0.97  # what every GPU gathers besides a layer is small
    # Name embeddings are looked up from outside their module, so they must not be a unit of their own.
    assert "EVCapNameEmbeddings" not in plugin.transformer_cls_names_to_wrap
    plugin = FullyShardedDataParallelPlugin(transformer_cls_names_to_wrap=["NoSuchLayer"])
    with pytest.raises(ValueError, match="Could not find the transformer layer class NoSuchLayer"):
        fsdp2_prepare_auto_wrap_policy(plugin, vicuna_13b)


def test_deepspeed_shards_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    config = read("deepspeed_zero3")
    assert config.distributed_type == DistributedType.DEEPSPEED
    settings = config.deepspeed_config
    monkeypatch.setenv("ACCELERATE_GRADIENT_CLIPPING", settings["gradient_clipping"])
    plugin = DeepSpeedPlugin(
        zero_stage=settings["zero_stage"],
        zero3_init_flag=settings["zero3_init_flag"],
        zero3_save_16bit_model=settings["zero3_save_16bit_model"],
        offload_optimizer_device=settings["offload_optimizer_device"],
        offload_param_device=settings["offload_param_device"],
        gradient_accumulation_steps=settings["gradient_accumulation_steps"],
    )
    made = plugin.deepspeed_config
    assert made["zero_optimization"]["stage"] == 3
    assert made["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"]
    assert not plugin.zero3_init_flag  # models are compared with their memory when they are loaded
    assert made["gradient_accumulation_steps"] == made["train_micro_batch_size_per_gpu"] == "auto"


def test_layers_are_not_split_between_devices(vicuna_13b: torch.nn.Module) -> None:
    names = {"Blip2EncoderLayer", "Blip2QFormerLayer", "EVCapNameEmbeddings", "LlamaDecoderLayer"}
    assert names <= set(vicuna_13b._no_split_modules)
    found = {type(module).__name__ for module in vicuna_13b.modules()}
    missing = set(vicuna_13b._no_split_modules) - found
    assert names <= found and not {name for name in missing if name.startswith("EVCap")}
    sizes = {0: "9GiB", 1: "9GiB", 2: "14GiB", "cpu": "60GiB"}
    placed = infer_auto_device_map(
        vicuna_13b, sizes, no_split_module_classes=list(vicuna_13b._no_split_modules), dtype=torch.bfloat16
    )
    assert len(set(placed.values())) == 3
    whole = SimpleNamespace(
        names=[name for name, module in vicuna_13b.named_modules() if type(module).__name__ in names]
    )
    assert not [place for place in placed if any(place.startswith(f"{name}.") for name in whole.names)]
