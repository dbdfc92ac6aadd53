"""Plans are made without weights, and say what real steps then take."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_smallcap
import torch
from documentation_pages import ROOT, arguments_of, commands, read_page, snippets
from real_steps import caption_peak, train_peak
from tiny_models import PHOTOS, make_config, make_model, make_processor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BertConfig

import hf_evcap
from hf_evcap.cli.main import main
from hf_evcap.planning import PlanArguments, plan_model
from hf_evcap.planning.fake_model import build_on_meta, fake_mode, freeze, make_fake, quantize
from hf_evcap.planning.model_plan import OVERHEAD
from hf_evcap.planning.peak_memory import PeakMemory, storage_bytes
from hf_evcap.planning.planner import load_config
from hf_evcap.planning.rehearsal import TrainingMemory
from hf_evcap.planning.sharding import on_one_gpu, read_launch
from hf_evcap.training.fine_tuning.freezing import apply_policy, count_trainable


HUB_CONFIGS = ROOT / "hub_configs"
VICUNA = str(HUB_CONFIGS / "evcap-vicuna-13b")
WITHIN = 0.15


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos with a caption each."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    captions = ["a cat on a mat", "two dogs play with a ball in the park near a river", "a red bus"]
    rows = [
        {"image": str(photos[row % len(photos)]), "image_id": str(row), "captions": [captions[row % 3]]}
        for row in range(8)
    ]
    file = tmp_path_factory.mktemp("photos") / "captions.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return file


# The paper's model


@pytest.fixture(scope="module")
def paper_plan() -> Any:
    """EVCap-Vicuna-13B on 4 GPUs of 24 GB."""
    return plan_model(VICUNA, batch_size=6, dtype="bfloat16", bf16=True, gpus=4, memory_gb=24, tflops=100)


def test_the_papers_model_trains_its_3968000_parameters(paper_plan: Any) -> None:
    assert paper_plan.trainable_parameters == 3_968_000
    assert paper_plan.total_parameters == sum(total for _, total in paper_plan.parameters.values()) == 14_290_684_160
    own = {part: trained for part, (trained, _) in paper_plan.parameters.items() if trained}
    assert own == {"query_tokens": 32 * 768, "name_query_tokens": 8 * 768, "language_projection": 768 * 5120 + 5120}


def test_the_papers_model_is_loaded_in_its_precisions(paper_plan: Any) -> None:
    in_float32 = ("query_tokens", "name_query_tokens", "qformer", "fusion_qformer")  # they stay in it
    sizes = {part: total * (4 if part in in_float32 else 2) for part, (_, total) in paper_plan.parameters.items()}
    assert paper_plan.load == pytest.approx(sum(sizes.values()), rel=1e-5)  # buffers besides
    assert paper_plan.largest_layer == ("language_model.model.layers.0", 2 * 317_204_480)


def test_the_papers_training_on_four_gpus(paper_plan: Any) -> None:
    step = paper_plan.training["plain"]
    assert paper_plan.launch.kind == "ddp" and paper_plan.launch.processes == 4
    assert step.gradients == 4 * 3_968_000 and step.optimizer == pytest.approx(8 * 3_968_000, rel=1e-3)
    assert step.weights == pytest.approx(paper_plan.load, rel=1e-3)
    # Of 40 layers one is left to recompute, beside what goes from layer to layer.
    assert paper_plan.training["gradient_checkpointing"].activations < step.activations / 5
    assert "3,968,000 (0.0278 %)" in str(paper_plan) and "4 GPUs, DDP" in str(paper_plan)
    flops, hours = paper_plan.compute, paper_plan.compute.hours
    # Forward and backward through a frozen language model of 13 billion: two products a value and token each.
    assert flops.train_cached_example == pytest.approx(4 * 13.0e9 * (64 + 20), rel=0.1)
    assert hours["train"] == pytest.approx(566_747 * flops.train_example / (4 * 100e12 * 3600))
    assert hours["train"] - hours["train_from_feature_cache"] == pytest.approx(
        566_747 * flops.encode_photo / (4 * 100e12 * 3600), rel=0.01
    )
    assert paper_plan.feature_cache.bytes() == 113_287 * 257 * 1408 * 2


def test_the_papers_training_is_made_to_fit(paper_plan: Any) -> None:
    peak = paper_plan.training["plain"].peak
    assert peak > 24e9 and paper_plan.fits(peak) is False
    [(change, left)] = paper_plan.advice
    assert change == "--quantization 8bit" and left + OVERHEAD < 24e9
    assert "To fit into 24 GB:\n  --quantization 8bit  " in str(paper_plan)


def test_what_advice_promises_is_what_is_planned_then() -> None:
    config = make_config()
    alone = plan_model(config, dtype="bfloat16", bf16=True, device="cpu")
    room = (alone.training["plain"].peak - 1) / 1e9
    for change, left in plan_model(config, dtype="bfloat16", bf16=True, device="cpu", memory_gb=room).advice:
        assert change == "--gradient_checkpointing true"
        then = plan_model(config, dtype="bfloat16", bf16=True, device="cpu", gradient_checkpointing=True)
        assert then.training[then.asked].peak == left < alone.training["plain"].peak


def test_planning_holds_no_weights() -> None:
    config, _ = load_config(PlanArguments(config=VICUNA))
    model = freeze(build_on_meta(config, torch.bfloat16), "paper")
    with fake_mode():
        model = make_fake(model)
        assert storage_bytes(model.parameters()) > 28e9
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("The peak of this process is read from /proc, which is not there.")
    assert int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) < 8 << 20  # KiB, of the whole suite


# Against real steps


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("paper", {}),
        ("paper", {"gradient_checkpointing": True}),
        ("paper", {"feature_cache": True}),
        ("fusion", {}),
        ("qformers", {}),
        ("lora", {}),
        ("full", {}),
    ],
)
def test_a_real_training_step_of_the_embedded_model(
    policy: str, options: dict[str, Any], listing: Path, tmp_path: Path
) -> None:
    source = hf_evcap.default_model()
    processor = AutoProcessor.from_pretrained(source)
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, memory=False)
    real, lengths = train_peak(apply_policy(model, policy), processor, listing, tmp_path, 4, **options)
    plan = plan_model(
        source, policy=policy, batch_size=4, memory_rows=0, device="cpu", **options, **lengths.options(48)
    )
    assert plan.training[plan.asked].peak == pytest.approx(real, rel=WITHIN)


@pytest.mark.parametrize(
    ("text", "policy", "options"),
    [
        ("gpt2", "paper", {"gradient_checkpointing": True}),
        ("gpt2", "decoder", {}),
        ("gpt2", "full", {}),
        ("opt", "paper", {}),
        ("opt", "decoder", {"feature_cache": True}),
        ("opt", "full", {}),
    ],
)
def test_a_real_training_step_of_smallcap(
    text: str, policy: str, options: dict[str, Any], listing: Path, tmp_path: Path
) -> None:
    wide = {"gpt2": {"n_embd": 256, "n_layer": 4, "n_head": 4}, "opt": {"hidden_size": 256, "num_attention_heads": 4}}
    decoder = {**tiny_smallcap.DECODERS[text], **wide[text], "vocab_size": 2000}
    if text == "opt":
        decoder |= {"word_embed_proj_dim": 256, "ffn_dim": 1024}
    config = tiny_smallcap.make_config(text, text_config=decoder)
    model = AutoModelForImageTextToText.from_config(config)
    model.tokenizer = tiny_smallcap.make_processor().tokenizer
    model.set_datastore(tiny_smallcap.make_datastore(model))
    model.freeze_for_training(policy)
    real, lengths = train_peak(model, tiny_smallcap.make_processor(), listing, tmp_path, 4, **options)
    plan = plan_model(config, policy=policy, batch_size=4, device="cpu", **options, **lengths.options(0))
    assert plan.training[plan.asked].peak == pytest.approx(real, rel=WITHIN)
    assert plan.parameters == count_trainable(model)


def test_a_real_caption_of_the_embedded_model(photo_paths: list[str]) -> None:
    source = hf_evcap.default_model()
    processor = AutoProcessor.from_pretrained(source)
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32, memory=False).eval()
    real, lengths = caption_peak(model, processor, photo_paths[:4], new_tokens=16, beams=5)
    found = lengths.options(48, captioning=True)
    plan = plan_model(source, batch_size=4, num_beams=5, max_new_tokens=16, memory_rows=0, device="cpu", **found)
    assert plan.captioning.peak == pytest.approx(real, rel=WITHIN)


def test_fake_weights_have_the_precisions_of_loaded_ones(tmp_path: Path) -> None:
    for number, model in enumerate([make_model(), tiny_smallcap.make_model("opt")]):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
            planned = build_on_meta(AutoConfig.from_pretrained(folder), dtype)
            real = {name: (weight.dtype, weight.shape) for name, weight in loaded.named_parameters()}
            assert {name: (weight.dtype, weight.shape) for name, weight in planned.named_parameters()} == real


@pytest.mark.parametrize("policy", ["paper", "fusion", "qformers", "lora", "full"])
def test_what_is_trained_is_counted_as_in_training(policy: str) -> None:
    plan = plan_model(make_config(), policy=policy)
    assert plan.parameters == count_trainable(apply_policy(make_model(memory=False), policy))
    assert plan.trainable_parameters > 0


@pytest.mark.parametrize("text", ["llama", "gpt2", "opt", "qwen2", "qwen3"])
def test_every_language_model_is_planned_for(text: str) -> None:
    plan = plan_model(make_config(text), gradient_checkpointing=True)
    assert plan.training["both"].peak > plan.load and plan.captioning.cache > 0
    beams = plan_model(make_config(text), num_beams=10)
    assert beams.captioning.cache == 2 * plan.captioning.cache


def test_the_feature_cache_is_as_large_as_a_real_one(listing: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "features"
    assert main(["cache-features", "--dataset", str(listing), "--output", str(folder)]) == 0
    manifest = json.loads((folder / "feature_cache.json").read_text(encoding="utf-8"))
    plan = plan_model(photos=8)
    assert list(plan.feature_cache.shape) == manifest["shape"]
    on_disk = sum(shard["bytes"] for shard in manifest["shards"])
    assert plan.feature_cache.bytes() == pytest.approx(on_disk, rel=0.02)


# The parts


def test_peak_memory_counts_storages_once_and_until_their_end() -> None:
    weight = torch.nn.Parameter(torch.randn(100, 100))
    with PeakMemory([weight]) as memory:
        assert memory.now == 40_000
        product = weight @ weight
        view = product.view(-1)[:10]
        assert memory.now == 80_000
        del product
        assert memory.now == 80_000  # the view holds it
        del view
        assert memory.now == 40_000 and memory.peak == 80_000
    assert memory.flops == 2 * 100**3


def test_grouped_convolutions_count_their_groups() -> None:
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    photo = torch.randn(1, 8, 10, 10, requires_grad=True)
    with PeakMemory() as memory:
        layer(photo).sum().backward()
    assert memory.flops == 3 * 2 * 8 * 9 * 100


@pytest.mark.parametrize(("quantization", "size"), [("8bit", 1.0), ("4bit", 0.516)])
@pytest.mark.parametrize("text", ["llama", "gpt2"])
def test_quantized_weights_have_their_size(text: str, quantization: str, size: float) -> None:
    wide = {"llama": {"hidden_size": 512, "intermediate_size": 1024}, "gpt2": {"n_embd": 512}}[text]
    config = make_config(text)
    for name, value in wide.items():
        setattr(config.text_config, name, value)
    plain, packed = (build_on_meta(config, torch.bfloat16) for _ in range(2))
    quantize(packed, config, quantization)
    weights = {name for name, _ in plain.language_model.named_parameters() if _is_matrix_of_a_layer(name)}
    values = sum(weight.numel() for name, weight in plain.language_model.named_parameters() if name in weights)
    saved = storage_bytes(plain.parameters()) - storage_bytes(packed.parameters())
    assert saved == pytest.approx(values * (2 - size), rel=0.01)
    plan = plan_model(config, dtype="bfloat16", bf16=True, quantization=quantization, policy="lora")
    assert plan.training["plain"].peak > plan.load


def _is_matrix_of_a_layer(name: str) -> bool:
    return re.search(r"\.(layers|h)\..*(?<!norm)(?<!ln_[12])\.weight$", name) is not None


@pytest.mark.parametrize(
    ("file", "kind", "processes"),
    [("multi_gpu", "ddp", 4), ("fsdp", "fsdp", 8), ("deepspeed_zero3", "zero3", 8), ("cpu", "ddp", 2)],
)
def test_launch_files(file: str, kind: str, processes: int) -> None:
    path = str(HUB_CONFIGS / "accelerate" / f"{file}.yaml")
    launch = read_launch(path)
    assert (launch.kind, launch.processes) == (kind, processes)
    assert read_launch(path, gpus=16).processes == 16


def test_sharded_training_holds_a_share() -> None:
    config, _ = load_config(PlanArguments(config=VICUNA))
    model = freeze(build_on_meta(config, torch.bfloat16), "paper")
    weights, trained = storage_bytes(model.parameters()), 3_968_000
    alone = TrainingMemory(weights, 4 * trained, 8 * trained, memory=0, activations=5_000_000_000, flops=0)
    ddp, fsdp, zero = (
        on_one_gpu(alone, read_launch(str(HUB_CONFIGS / "accelerate" / f"{name}.yaml")), model)
        for name in ("multi_gpu", "fsdp", "deepspeed_zero3")
    )
    assert ddp == replace(alone, activations=alone.activations + 4 * trained)  # its buckets
    assert (fsdp.weights, fsdp.gradients, fsdp.optimizer) == (weights / 8, trained / 2, trained)
    # Two layers of the language model, its head, and what lies in no layer: patch, position and name embeddings, ...
    layers, head = 2 * 2 * 317_204_480, 2 * 163_840_000
    assert layers + head < fsdp.activations - alone.activations < layers + head + 5e8
    assert zero.weights == 2 * 14_290_684_160 / 8
    assert zero.activations == alone.activations + 2 * trained + 2 * 1_000_000_000
    assert (zero.gradients, zero.optimizer) == (2 * trained / 8, 12 * trained / 8)
    offloaded = replace(read_launch(str(HUB_CONFIGS / "accelerate" / "fsdp.yaml")), offloads_parameters=True)
    assert on_one_gpu(alone, offloaded, model).weights == 0
    kept = on_one_gpu(alone, replace(offloaded, offloads_parameters=False, reshard=False), model)
    assert kept.activations == alone.activations + weights


# Advice


def test_advice_makes_activations_smaller_where_weights_fit() -> None:
    config = make_config()
    alone = plan_model(config, batch_size=64, policy="qformers", device="cpu")
    room = (alone.training["plain"].peak * 0.4) / 1e9
    plan = plan_model(config, batch_size=64, policy="qformers", device="cpu", memory_gb=room)
    assert plan.fits(plan.training["plain"].peak) is False
    words = [change for change, _ in plan.advice]
    assert all("gradient" in word for word in words) and "batch_size" in words[-1]
    peaks = [peak for _, peak in plan.advice]
    assert peaks == sorted(peaks, reverse=True) and plan.fits(peaks[-1])
    assert "To fit into" in str(plan)
    assert plan_model(config, batch_size=64, policy="qformers", device="cpu", memory_gb=100).advice == []


def test_advice_that_is_not_enough_says_so() -> None:
    plan = plan_model(make_config(), policy="full", memory_gb=0.001)
    assert plan.advice and not plan.fits(plan.advice[-1][1])
    assert "--policy lora" in [change for change, _ in plan.advice]
    assert "Nothing that this plan knows makes it fit into 0.001 GB" in str(plan)


# The command line


def test_command_line_prints_a_table_and_json(capsys: pytest.CaptureFixture) -> None:
    options = ["plan", "--batch_size", "2", "--num_train_epochs", "3", "--tflops", "0.05", "--captions", "1000"]
    assert main(options) == 0
    table = capsys.readouterr().out
    plan = plan_model(batch_size=2, num_train_epochs=3, tflops=0.05, captions=1000)
    assert table == f"{plan}\n"
    assert f"{plan.trainable_parameters:,}" in table and "3,000 examples at 0.05 TFLOP/s" in table
    assert main([*options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(plan.to_dict()))
    assert printed["bytes"]["training"]["plain"]["peak"] == plan.training["plain"].peak


def test_a_saved_model_is_planned_with_its_own_memory_prompt_and_beams(
    tiny_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    memory = json.loads((tiny_dir / "memory" / "memory_config.json").read_text(encoding="utf-8"))
    prompt = make_processor()
    plan = plan_model(str(tiny_dir))
    assert plan.workload.memory_shape == (memory["rows"], memory["dim"])
    assert plan.workload.sequence_tokens == len(prompt.encode_prompt(prompt.prompt))
    by_file = plan_model(config=str(tiny_dir / "config.json"))
    assert by_file.workload == plan.workload and by_file.training == plan.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "a", "--config", "b"], "either a model or a config"),
        (["--config", "nowhere/config.json"], "There is no configuration nowhere/config.json"),
        (["--model", "nobody/nothing"], "nobody/nothing"),
        (["--policy", "everything"], "Unknown freezing policy 'everything'; this model has paper"),
        (["--dtype", "int8"], "there is no precision 'int8'"),
        (["--optim", "adam"], "`optim` must be one of adamw_torch"),
        (["--batch_size", "0"], "--batch-size: must be at least 1"),
        (["--memory_gb", "-1"], "--memory-gb: must be above 0"),
        (["--bf16", "--fp16"], "either `bf16` or `fp16`"),
        (["--policy", "full", "--quantization", "4bit"], "quantized weights cannot be trained"),
        (["--policy", "full", "--feature_cache"], "trains the vision encoder"),
        (["--policy", "lora", "--lora_parts", "voice"], "no linear layers to adapt in 'voice'"),
        (["--accelerate_config", "nowhere/a.yaml"], "There is no accelerate configuration nowhere/a.yaml"),
        (["--config", "evcap-vicuna-99b"], "nor a configuration of the package"),
    ],
)
def test_bad_options_get_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", *options]) in (1, 2)
    printed = capsys.readouterr().err.strip()
    assert message in printed and printed.startswith("hf-evcap plan: ")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("content", ["distributed_type: NONSENSE", "a: [", "distributed_type: MULTI_GPU\nx: 1", ""])
def test_bad_launch_files_are_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / "launch.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="launch.yaml is not a configuration of `accelerate launch`"):
        read_launch(str(file))


def test_other_models_and_layers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of type 'bert'; plans are made for EVCap and SmallCap"):
        plan_model(BertConfig())
    file = tmp_path / "fsdp.yaml"
    text = (HUB_CONFIGS / "accelerate" / "fsdp.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("LlamaDecoderLayer,Blip2EncoderLayer,Blip2QFormerLayer", "GPT9Block"))
    with pytest.raises(ValueError, match="no layers of the classes GPT9Block .* one of LlamaDecoderLayer"):
        plan_model(accelerate_config=str(file))


def test_precisions_that_do_not_run_are_told_apart() -> None:
    config = tiny_smallcap.make_config()
    with pytest.raises(ValueError, match="does not run with frozen parts in bfloat16 .* mixed precision"):
        plan_model(config, dtype="bfloat16")
    assert plan_model(config, dtype="bfloat16", bf16=True).training["plain"].peak > 0


# The page


def test_commands_and_snippets_of_the_page_run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    page = read_page("planning.md")
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        if not command.startswith("scripts/"):
            assert main(arguments_of(command)) == 0
            assert capsys.readouterr().out
    [snippet] = snippets(page)
    names: dict[str, Any] = {}
    exec(snippet, names)
    printed = re.search(r"plan\.trainable_parameters  # (\d+)", snippet)[1]
    assert names["plan"].trainable_parameters == int(printed) == 7_094_016
    assert names["plan"].training["gradient_checkpointing"].peak > 0


def test_the_table_of_the_page_has_every_case_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from benchmarks.plan import CASES, describe, make_parser

    page = read_page("planning.md")
    [command] = [line for line in commands(page) if line.startswith("scripts/benchmark.py plan")]
    assert make_parser().parse_args(command.split()[2:]).cases is None  # all
    rows = re.findall(r"^\| (\w+Cap,.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert [row[0] for row in rows] == [describe(case) for case in CASES]
    for _, measured, planned, ratio in rows:
        assert float(planned) / float(measured) == pytest.approx(float(ratio), abs=0.01)
        assert float(ratio) == pytest.approx(1, abs=WITHIN)
