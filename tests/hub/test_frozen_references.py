"""Repos that name their frozen parts: what they hold, loading them with and without the package, changed parts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_client import Client, ClientError
from safetensors.torch import load, load_file, save_file
from test_publish import WITHOUT_PACKAGE, run_program
from tiny_models import make_model, make_name_tokenizer
from tiny_parts import save_blip2, save_gguf, save_language_model
from transformers import AutoModelForCausalLM, AutoTokenizer


ASSEMBLE = """
import torch, transformers
from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor

parts = ("alice/blip2", "alice/llama")
processor = EVCapProcessor.from_encoder_and_language_model_pretrained(*parts, name_tokenizer="alice/words")

def assemble(**options):
    return EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(
        *parts, processor=processor, **options
    )

def train(model, policy="paper", steps=20):
    model.freeze_for_training(policy)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    batch = processor(images=photos, suffix=["a cat on a mat", "a red bus"], return_tensors="pt")
    for step in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()

def captions(model):
    pipe = transformers.pipeline("image-to-text", model=model, processor=processor)
    return [photo[0]["generated_text"] for photo in pipe(photos)]
"""
CAPTION = """
import json, sys
import transformers
pipe = transformers.pipeline("image-to-text", model=sys.argv[1], trust_remote_code=True)
captions = [photo[0]["generated_text"] for photo in pipe(sys.argv[2:])]
print(json.dumps([captions, type(pipe.model).__module__]))
"""
UPLOAD = """
from huggingface_hub import HfApi
HfApi().create_repo(repo, exist_ok=True)
result = HfApi().upload_folder(repo_id=repo, folder_path=folder).oid
"""


@pytest.fixture(scope="module")
def parts(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a BLIP-2, a Llama and a name tokenizer, which are on the Hub as alice/blip2 and so on."""
    root = tmp_path_factory.mktemp("parts")
    save_blip2(root / "blip2", make_model(memory=False), max_shard_size="100KB")
    save_language_model(root / "llama", "llama")
    make_name_tokenizer().save_pretrained(root / "words")
    for name in ("blip2", "llama", "words"):
        client(UPLOAD, repo=f"alice/{name}", folder=str(root / name))
    return root


@pytest.fixture(scope="module")
def two_photos(photo_paths: list[str]) -> list[str]:
    return photo_paths[:2]


@pytest.fixture(scope="module")
def trained(hub: Any, client: Client, parts: Path, two_photos: list[str]) -> list[str]:
    """Captions of a model that was trained and pushed as alice/trained, with its frozen parts by reference."""
    return client(
        ASSEMBLE
        + """
model = assemble()
untrained = captions(model)
train(model)
model.push_to_hub("alice/trained", processor=processor, frozen="reference")
result = captions(model)
assert result != untrained
""",
        photos=two_photos,
    )


def test_the_repo_holds_what_was_trained_and_names_the_rest(hub: Any, trained: list[str]) -> None:
    files = hub.files("model", "alice/trained")
    weights = load(files["model.safetensors"])
    places = {name.split(".")[0] for name in weights}
    assert places == {"query_tokens", "name_query_tokens", "language_projection", "fusion_qformer"}
    # what the fusion took from the BLIP-2 is there already; the rest was drawn, and lies in half the room
    own = "fusion_qformer.encoder.layer.0.intermediate.dense.weight"
    assert "fusion_qformer.encoder.layer.0.intermediate_query.dense.weight" not in weights
    assert weights[own].dtype == torch.bfloat16
    assert weights["query_tokens"].dtype == torch.float32

    config = json.loads(files["config.json"])
    commits = {name: hub.repos["model", f"alice/{name}"].branches["main"] for name in ("blip2", "llama")}
    sources = config["part_sources"]
    assert {part: record["referenced"] for part, record in sources.items()} == {
        "vision_model": True,
        "qformer": True,
        "query_tokens": False,
        "fusion_qformer": True,
        "language_model": True,
    }
    assert {(record["repo_id"], record["revision"]) for record in sources.values()} == {
        ("alice/blip2", commits["blip2"]),
        ("alice/llama", commits["llama"]),
    }
    assert sources["vision_model"]["prefixes"] == ["vision_model."]
    assert all(len(record["sha256"]) == 64 for record in sources.values())
    assert "/tmp" not in files["config.json"].decode()


def test_it_captions_alike_with_and_without_the_package_and_offline(
    hub: Any, trained: list[str], environment_of: Callable[..., dict[str, str]], two_photos: list[str], tmp_path: Path
) -> None:
    environment = environment_of(tmp_path / "home")
    arguments = ("alice/trained", *two_photos)
    found, module = run_program(WITHOUT_PACKAGE + CAPTION, *arguments, environment=environment)
    assert found == trained
    assert module.startswith("transformers_modules.alice.trained.")
    found, module = run_program("import hf_evcap" + CAPTION, *arguments, environment=environment)
    assert (found, module) == (trained, "hf_evcap.modeling_evcap")
    offline = {**environment, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert run_program("import hf_evcap" + CAPTION, *arguments, environment=offline)[0] == trained
    # the shards of the BLIP-2 that hold its language model alone were never downloaded
    cached = {path.name for path in (tmp_path / "home").rglob("models--alice--blip2/snapshots/*/*.safetensors")}
    index = json.loads(hub.files("model", "alice/blip2")["model.safetensors.index.json"])["weight_map"]
    used = {file for name, file in index.items() if name.startswith(("vision_model.", "qformer.", "query_tokens"))}
    assert cached == used
    assert used < set(index.values())


LOAD = """
from hf_evcap import EVCapForConditionalGeneration
model = EVCapForConditionalGeneration.from_pretrained(source, memory=False, **options)
"""


def test_a_later_commit_of_a_part_changes_nothing(
    client: Client, parts: Path, trained: list[str], two_photos: list[str], tmp_path: Path
) -> None:
    shutil.copytree(parts / "llama", tmp_path / "llama")
    weights = load_file(tmp_path / "llama" / "model.safetensors")
    save_file({name: value * 2 for name, value in weights.items()}, tmp_path / "llama" / "model.safetensors")
    client(UPLOAD, repo="alice/llama", folder=str(tmp_path / "llama"))
    code = ASSEMBLE.replace("processor = EVCapProcessor.from_encoder_and_language_model_pretrained(*parts, ", "(")
    code = code.replace(
        '(name_tokenizer="alice/words")', "processor = EVCapProcessor.from_pretrained('alice/trained')"
    )
    try:
        found = client(code + LOAD + "result = captions(model)", source="alice/trained", options={}, photos=two_photos)
    finally:
        client(UPLOAD, repo="alice/llama", folder=str(parts / "llama"))
    assert found == trained


def changed_folder(hub: Any, part: str, revision: str, folder: Path) -> Path:
    """alice/trained as a folder, with one part's record pointing at another revision."""
    for name, data in hub.files("model", "alice/trained").items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["part_sources"][part]["revision"] = revision
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("part", "repo"), [("language_model", "llama"), ("vision_model", "blip2")])
def test_one_flipped_weight_in_a_part_is_refused_by_its_name(
    hub: Any, client: Client, parts: Path, trained: list[str], tmp_path: Path, part: str, repo: str
) -> None:
    folder = shutil.copytree(parts / repo, tmp_path / repo)
    file = next(
        path for path in sorted(folder.glob("*.safetensors"))
        if any(name.startswith(("vision_model.", "model.layers")) for name in load_file(path))
    )  # fmt: skip
    weights = load_file(file)
    name = next(name for name in weights if name.startswith(("vision_model.", "model.layers")))
    bits = weights[name].view(torch.int32).reshape(-1)
    bits[-1] ^= 1  # the last bit of one value
    save_file(weights, file, metadata={"format": "pt"})
    revision = client(UPLOAD, repo=f"alice/{repo}-changed", folder=str(folder))
    # (a) the same repo name at another revision
    changed = client(UPLOAD, repo=f"alice/{repo}", folder=str(folder))
    client(UPLOAD, repo=f"alice/{repo}", folder=str(parts / repo))
    source = changed_folder(hub, part, changed, tmp_path / "model")
    with pytest.raises(ClientError, match=f"part '{part}' in 'alice/{repo}@{changed[:12]}'.*SHA-256 begins") as error:
        client(LOAD, source=str(source), options={})
    assert error.value.kind == "ValueError"
    # (b) a copy that was named instead
    with pytest.raises(ClientError, match=f"part '{part}' in 'alice/{repo}-changed@{revision}'.*SHA-256"):
        client(LOAD, source="alice/trained", options={"parts": {part: f"alice/{repo}-changed@{revision}"}})
    # an equal copy will do
    client(LOAD, source="alice/trained", options={"parts": {part: str(parts / repo)}})


def test_a_cached_file_that_went_bad_is_refused(client: Client, trained: list[str], tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path)}
    client(LOAD, source="alice/trained", options=options)
    [link] = tmp_path.rglob("models--alice--llama/snapshots/*/model.safetensors")
    data = bytearray(link.resolve().read_bytes())
    data[-1] ^= 1
    link.resolve().write_bytes(data)
    with pytest.raises(ClientError, match="part 'language_model' in 'alice/llama@.*force_download=True"):
        client(LOAD, source="alice/trained", options=options)
    client(LOAD, source="alice/trained", options={**options, "force_download": True})
    client(LOAD, source="alice/trained", options={**options, "local_files_only": True})


def test_a_part_that_is_gone_says_what_to_do(
    hub: Any, client: Client, parts: Path, trained: list[str], tmp_path: Path
) -> None:
    for repo, status in (("gone", 404), ("gated", 403)):
        folder = changed_folder(hub, "language_model", "0" * 40, tmp_path / repo)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["part_sources"]["language_model"]["repo_id"] = f"alice/{repo}"
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if status == 403:
            hub.fail("HEAD", "/alice/gated/", times=9, status=403, code="GatedRepo")
        with pytest.raises(ClientError) as error:
            client(LOAD, source=str(folder), options={})
        message = str(error.value)
        assert f"part 'language_model' of this model lies in 'alice/{repo}@000000000000'" in message
        assert "parts={'language_model': FOLDER}" in message
        assert ("gated: ask for access" in message) == (status == 403)
        client(LOAD, source=str(folder), options={"parts": {"language_model": str(parts / "llama")}})
    with pytest.raises(
        ClientError, match="`parts` names projection, but this model reads fusion_qformer, language_model, "
    ):
        client(LOAD, source="alice/trained", options={"parts": {"projection": "x"}})


def test_a_renamed_part_says_so(hub: Any, client: Client, parts: Path, trained: list[str], tmp_path: Path) -> None:
    folder = shutil.copytree(parts / "blip2", tmp_path / "renamed", ignore=shutil.ignore_patterns("*.index.json"))
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(load_file(file))
        file.unlink()
    save_file(
        {name.replace("vision_model.", "vision_tower."): value for name, value in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ClientError, match=r"(?s)'vision_model'.*no weights named vision_model\.\*.*renamed"):
        client(LOAD, source="alice/trained", options={"parts": {"vision_model": str(folder)}})


# Nothing that was trained is lost


@pytest.mark.parametrize("policy", ["fusion", "qformers", "full"])
def test_trained_parts_are_saved_whole(
    hub: Any, client: Client, parts: Path, two_photos: list[str], tmp_path: Path, policy: str
) -> None:
    answer = client(
        ASSEMBLE
        + """
model = assemble()
train(model, policy, steps=2)
model.save_pretrained(folder, frozen="reference")
again = EVCapForConditionalGeneration.from_pretrained(folder)
state = again.state_dict()
differing = [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])]
referenced = [part for part, record in again.config.part_sources.items() if record["referenced"]]
result = [differing, sorted(referenced), captions(model) == captions(again)]
""",
        photos=two_photos,
        policy=policy,
        folder=str(tmp_path),
    )
    kept = {"fusion": ["language_model", "qformer", "vision_model"], "qformers": ["language_model", "vision_model"]}
    assert answer == [[], kept.get(policy, []), True]


def test_one_changed_value_keeps_a_part(
    hub: Any, client: Client, parts: Path, two_photos: list[str], tmp_path: Path
) -> None:
    answer = client(
        ASSEMBLE
        + """
result = {}
for part, name in (("vision_model", "vision_model.post_layernorm.bias"), ("qformer", "qformer.layernorm.weight"),
                   ("language_model", "language_model.lm_head.weight")):
    model = assemble()
    with torch.no_grad():
        parameter = dict(model.named_parameters())[name]
        parameter.view(torch.int32).reshape(-1)[-1] ^= 1
    model.save_pretrained(folder, frozen="reference")
    again = EVCapForConditionalGeneration.from_pretrained(folder)
    result[part] = [
        again.config.part_sources[part]["referenced"],
        torch.equal(dict(again.named_parameters())[name], parameter),
        sum(record["referenced"] for record in again.config.part_sources.values()),
    ]
""",
        photos=two_photos,
        folder=str(tmp_path),
    )
    assert answer == {part: [False, True, 4] for part in ("vision_model", "qformer", "language_model")}


def test_half_precision_still_refers_to_its_parts(
    hub: Any, client: Client, parts: Path, two_photos: list[str], tmp_path: Path
) -> None:
    answer = client(
        ASSEMBLE
        + """
model = assemble(dtype="bfloat16")
model.save_pretrained(folder)
again = EVCapForConditionalGeneration.from_pretrained(folder)
state = again.state_dict()
result = [
    str(again.dtype), str(again.qformer.dtype),
    [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])],
    sorted(part for part, record in again.config.part_sources.items() if not record["referenced"]),
]
""",
        photos=two_photos,
        folder=str(tmp_path),
    )
    assert answer == ["torch.bfloat16", "torch.float32", [], []]


def test_parts_in_other_precisions_are_named_or_it_is_said_why_not(
    hub: Any, client: Client, parts: Path, two_photos: list[str], tmp_path: Path
) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(parts / "llama", dtype=torch.float16).save_pretrained(half)
    AutoTokenizer.from_pretrained(parts / "llama").save_pretrained(half)
    client(UPLOAD, repo="alice/half", folder=str(half))
    answer = client(
        ASSEMBLE
        + """
import logging

told = []
class Listener(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())
listener = Listener()
logging.getLogger("hf_evcap.frozen_references").addHandler(listener)

def save_and_load(model, name, **options):
    model.save_pretrained(folder + "/" + name, frozen="reference")
    again = EVCapForConditionalGeneration.from_pretrained(folder + "/" + name, **options)
    return again, sorted(part for part, record in again.config.part_sources.items() if not record["referenced"])

def differing(one, other):
    state = other.state_dict()
    return [name for name, value in one.state_dict().items() if not torch.equal(value, state[name])]

# In the precision of its language model's file; its vision encoder, in float32 in its own repo, is rounded to it.
model = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(
    "alice/blip2", "alice/half", processor=processor
)
again, whole = save_and_load(model, "half")
result = {"half": [str(model.dtype), whole, differing(model, again), captions(model) == captions(again)]}
wide, whole = save_and_load(EVCapForConditionalGeneration.from_pretrained(folder + "/half", dtype="float32"), "wide")
result["wide"] = [str(wide.dtype), whole, captions(wide) == captions(save_and_load(wide, "wider")[0])]
assert not told
# Rounded in a copy, which is then loaded in float32: what is not the repo's is kept, and it is said why.
model = assemble(dtype="bfloat16")
model.save_pretrained(folder + "/copy", frozen="copy")
rounded = EVCapForConditionalGeneration.from_pretrained(folder + "/copy", dtype="float32")
again, whole = save_and_load(rounded, "rounded")
result["rounded"] = [whole, differing(rounded, again), list(told)]
told.clear()
named, whole = save_and_load(EVCapForConditionalGeneration.from_pretrained(folder + "/copy"), "named")
result["named"] = [str(named.dtype), whole, differing(named, model), told]
logging.getLogger("hf_evcap.frozen_references").removeHandler(listener)
""",
        photos=two_photos,
        folder=str(tmp_path),
    )
    assert answer["half"] == ["torch.float16", [], [], True]
    assert answer["wide"] == ["torch.float32", [], True]
    whole, differing, told = answer["rounded"]
    assert (whole, differing) == (["language_model", "vision_model"], []) and len(told) == 2
    [text] = [line for line in told if "'language_model'" in line]
    assert "those of 'alice/llama' rounded to torch.bfloat16" in text and "dtype=torch.bfloat16 and save" in text
    assert answer["named"] == ["torch.bfloat16", [], [], []]


def test_copies_and_merging(hub: Any, client: Client, parts: Path, two_photos: list[str], tmp_path: Path) -> None:
    answer = client(
        ASSEMBLE
        + """
from pathlib import Path
from safetensors import safe_open

def places(folder):
    with safe_open(Path(folder) / "model.safetensors", framework="pt") as file:
        return sorted({name.split(".")[0] for name in file.keys()})

model = assemble()
train(model, steps=1)
model.save_pretrained(folder + "/whole", frozen="copy")
again = EVCapForConditionalGeneration.from_pretrained(folder + "/whole")
again.save_pretrained(folder + "/still-whole")  # as it was
again.save_pretrained(folder + "/named", frozen="reference")
last = EVCapForConditionalGeneration.from_pretrained(folder + "/named")
state = last.state_dict()
result = [places(folder + "/" + name) for name in ("whole", "still-whole", "named")]
result.append([name for name, value in model.state_dict().items() if not torch.equal(value, state[name])])
""",
        photos=two_photos,
        folder=str(tmp_path),
    )
    everything = ["fusion_qformer", "language_model", "language_projection", "name_query_tokens", "qformer",
                  "query_tokens", "vision_model"]  # fmt: skip
    own = ["fusion_qformer", "language_projection", "name_query_tokens", "query_tokens"]
    assert answer == [everything, everything, own, []]


# Training and the command line


def test_training_keeps_small_checkpoints_goes_on_and_ends_with_the_best(
    client: Client, parts: Path, two_photos: list[str], tmp_path: Path
) -> None:
    answer = client(
        ASSEMBLE
        + """
import datasets, json
from pathlib import Path
from hf_evcap.cli.main import main
from hf_evcap.training.fine_tuning.caption_trainer import CaptionTrainer

def run(*more):
    assert main([
        "train", "--model", "alice/fresh", "--dataset", folder + "/captions.jsonl", "--policy", policy,
        "--eval_dataset", folder + "/captions.jsonl", "--output_dir", folder + "/out", "--save_strategy", "steps",
        "--eval_strategy", "steps", "--save_steps", "2", "--eval_steps", "2", "--learning_rate", "0.01",
        "--per_device_train_batch_size", "2", "--load_best_model_at_end", "true", "--metric_for_best_model", "loss",
        "--report_to", "none", *more
    ]) == 0

model = assemble()
model.push_to_hub("alice/fresh", processor=processor)
Path(folder).mkdir(exist_ok=True)
rows = [{"image": photo, "captions": ["a cat on a mat", "a red bus"]} for photo in photos]
Path(folder, "captions.jsonl").write_text("\\n".join(map(json.dumps, rows)))
run("--max_steps", "4")
run("--max_steps", "6", "--resume_from_checkpoint", "true")
out = Path(folder, "out")
state = json.loads((out / "trainer_state.json").read_text())
best = EVCapForConditionalGeneration.from_pretrained(state["best_model_checkpoint"]).state_dict()
final = EVCapForConditionalGeneration.from_pretrained(out)
result = {
    "steps": state["global_step"],
    "moved": not torch.equal(final.language_projection.weight, model.language_projection.weight),
    "differing": [name for name, value in final.state_dict().items() if not torch.equal(value, best[name])],
    "sizes": [Path(folder, "out", where, "model.safetensors").stat().st_size for where in ("checkpoint-2", "")],
    "referenced": sorted(part for part, record in final.config.part_sources.items() if record["referenced"]),
}
""",
        photos=two_photos,
        folder=str(tmp_path),
        policy="paper",
    )
    assert answer["steps"] == 6
    assert answer["moved"]
    assert answer["differing"] == []
    assert all(size < 200_000 for size in answer["sizes"]), answer["sizes"]  # the whole model has 500,000 bytes
    assert answer["referenced"] == ["fusion_qformer", "language_model", "qformer", "vision_model"]


def test_a_checkpoint_restores_parts_that_were_trained_after_it(
    client: Client, parts: Path, two_photos: list[str], tmp_path: Path
) -> None:
    answer = client(
        ASSEMBLE
        + """
from hf_evcap.frozen_references import restore_referenced_parts

model = assemble()
before = {name: value.clone() for name, value in model.state_dict().items()}
model.save_pretrained(folder)  # names all of its parts
train(model, "full", steps=2)
moved = not torch.equal(model.language_model.lm_head.weight, before["language_model.lm_head.weight"])
named = restore_referenced_parts(model, folder)
differing = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
other = EVCapForConditionalGeneration.from_pretrained(folder)
other.config.part_sources["qformer"]["sha256"] = "0" * 64
try:
    restore_referenced_parts(other, folder)
except ValueError as error:
    message = str(error)
result = [moved, sorted(named), sorted(differing), message]
""",
        photos=two_photos,
        folder=str(tmp_path),
    )
    assert answer[0]
    assert answer[1] == ["fusion_qformer", "language_model", "qformer", "query_tokens", "vision_model"]
    assert answer[2] == ["fusion_qformer", "language_projection", "name_query_tokens"]  # which the checkpoint holds
    assert "has the part 'qformer' of 'alice/blip2', this model does not" in answer[3]


def test_adapters_lose_nothing_and_merge(client: Client, parts: Path, two_photos: list[str], tmp_path: Path) -> None:
    answer = client(
        ASSEMBLE
        + """
import json
from pathlib import Path
from hf_evcap.cli.main import main

model = assemble()
model.push_to_hub("alice/base", processor=processor)
rows = [{"image": photo, "captions": ["a cat on a mat", "a red bus"]} for photo in photos]
Path(folder, "captions.jsonl").write_text("\\n".join(map(json.dumps, rows)))
adapters, whole, named = (str(Path(folder, name)) for name in ("adapters", "whole", "named"))
assert main([
    "train", "--model", "alice/base", "--dataset", folder + "/captions.jsonl", "--policy", "lora",
    "--max_steps", "3", "--learning_rate", "0.05", "--output_dir", adapters, "--report_to", "none",
]) == 0
base_name = json.loads(Path(adapters, "adapter_config.json").read_text())["base_model_name_or_path"]
assert main(["merge", adapters, "--out", whole]) == 0
merged = EVCapForConditionalGeneration.from_pretrained(whole)
merged.save_pretrained(named, frozen="reference")
again = EVCapForConditionalGeneration.from_pretrained(named)
state = again.state_dict()
adapted = EVCapForConditionalGeneration.from_pretrained(adapters)
batch = processor(images=photos, suffix=["a cat", "a bus"], return_tensors="pt")
with torch.no_grad():
    losses = [float(one(**batch).loss) for one in (model, adapted, merged, again)]
result = [
    base_name, losses,
    [name for name, value in merged.state_dict().items() if not torch.equal(value, state[name])],
    sorted(part for part, record in again.config.part_sources.items() if record["referenced"]),
]
""",
        photos=two_photos,
        folder=str(tmp_path),
    )
    name, (untrained, adapted, merged, again), differing, referenced = answer
    assert name == "alice/base"
    assert abs(untrained - adapted) > 0.01
    assert adapted == pytest.approx(merged, abs=1e-4) and merged == again
    assert differing == []
    assert referenced == ["fusion_qformer", "qformer", "query_tokens", "vision_model"]  # not what was adapted


def test_push_and_merge_from_the_command_line(
    hub: Any, client: Client, parts: Path, trained: list[str], two_photos: list[str], tmp_path: Path
) -> None:
    answer = client(
        ASSEMBLE
        + """
from hf_evcap.cli.main import main
whole = folder + "/whole"
assert main(["merge", "alice/trained", "--out", whole]) == 0
assert main(["push", "model", whole, "alice/whole", "--frozen", "copy"]) == 0
assert main(["push", "model", whole, "alice/named", "--frozen", "reference"]) == 0
assert main(["push", "model", "alice/named", "alice/again"]) == 0
result = [captions(EVCapForConditionalGeneration.from_pretrained(source))
          for source in (whole, "alice/whole", "alice/named", "alice/again")]
""",
        photos=two_photos,
        folder=str(tmp_path),
    )
    assert answer == [trained] * 4
    names = ("trained", "whole", "named", "again")
    sizes = {name: len(hub.files("model", f"alice/{name}")["model.safetensors"]) for name in names}
    assert sizes["named"] == sizes["again"] == sizes["trained"] < sizes["whole"] / 2
    assert (tmp_path / "whole" / "processor_config.json").is_file()
    card = hub.files("model", "alice/named")["README.md"].decode()
    assert "[alice/llama](https://huggingface.co/alice/llama)" in card
    with pytest.raises(ClientError, match="`frozen` is for models"):
        client(
            "from hf_evcap.hub.ready_repo import prepare_repo\nfrom pathlib import Path\n"
            "prepare_repo('memory', 'alice/x', Path('.'), 'alice/y', frozen='copy')"
        )


def test_a_new_evcap_from_the_command_line(
    hub: Any, client: Client, parts: Path, two_photos: list[str], tmp_path: Path
) -> None:
    client(
        """
        from hf_evcap.cli.main import main
        assert main(["new", "evcap", "--encoder", "alice/blip2", "--language-model", "alice/llama",
                     "--name-tokenizer", "alice/words", "--fusion-init", "random:3", "--prompt", "What is it?",
                     "--out", folder]) == 0
        """,
        folder=str(tmp_path / "new"),
    )
    config = json.loads((tmp_path / "new" / "config.json").read_text(encoding="utf-8"))
    assert sorted(config["part_sources"]) == ["language_model", "qformer", "query_tokens", "vision_model"]
    weights = load_file(tmp_path / "new" / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"name_query_tokens", "language_projection", "fusion_qformer"}
    processor = json.loads((tmp_path / "new" / "processor_config.json").read_text(encoding="utf-8"))
    assert processor["prompt"] == "What is it?"
    client("from huggingface_hub import create_repo\ncreate_repo('alice/photos', repo_type='dataset')")
    for name, why in (
        ("alice/nothing", "There is no model repo 'alice/nothing'"),
        ("alice/photos", "There is no model repo 'alice/photos'; there is a dataset repo of this name"),
        ("alice/locked", "is gated: ask"),
        ("alice/llama@v9", "The model repo 'alice/llama' has no revision 'v9'"),
    ):
        hub.fail("HEAD", "/alice/locked/", times=9, status=403, code="GatedRepo")
        with pytest.raises(ClientError, match=why):
            client(
                "from hf_evcap.assembly_evcap import EVCapAssembly\nfrom hf_evcap import EVCapProcessor\n"
                "EVCapAssembly(EVCapProcessor, 'alice/blip2', name)",
                name=name,
            )


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `quantization`)")
def test_a_quantized_language_model_is_named_and_loads_as_asked(
    client: Client, parts: Path, two_photos: list[str], tmp_path: Path
) -> None:
    save_language_model(tmp_path / "wide", "llama", hidden_size=64, intermediate_size=128)
    client(UPLOAD, repo="alice/wide", folder=str(tmp_path / "wide"))
    answer = client(
        ASSEMBLE
        + """
import json
from collections import Counter
from pathlib import Path
from safetensors import safe_open
from transformers import BitsAndBytesConfig

parts = ("alice/blip2", "alice/wide")
four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
model = assemble(quantization_config=four_bits)
for parameter in model.modules():
    if hasattr(parameter, "support_avx512bf16_for_cpu"):
        parameter.support_avx512bf16_for_cpu = False
train(model, steps=2)
model.save_pretrained(folder + "/model", frozen="reference")
with safe_open(folder + "/model/model.safetensors", framework="pt") as file:
    places = sorted({name.split(".")[0] for name in file.keys()})
config = json.loads(Path(folder, "model", "config.json").read_text())

def kinds(model):
    return Counter(type(module).__name__ for module in model.language_model.modules())["Linear4bit"]

plain = EVCapForConditionalGeneration.from_pretrained(folder + "/model")
again = EVCapForConditionalGeneration.from_pretrained(folder + "/model", quantization_config=four_bits)
again.save_pretrained(folder + "/again")
changed = assemble(quantization_config=four_bits)
with torch.no_grad():
    changed.language_model.lm_head.weight[0, 0] += 1
changed.save_pretrained(folder + "/changed", frozen="reference")
last = EVCapForConditionalGeneration.from_pretrained(folder + "/changed")
result = {
    "places": places,
    "quantization": config.get("quantization_config"),
    "kinds": [kinds(one) for one in (model, plain, again, last)],
    "projection": torch.equal(model.language_projection.weight, again.language_projection.weight),
    "still": hasattr(model.config, "quantization_config") and model.hf_quantizer is not None,
    "changed": last.config.part_sources["language_model"]["referenced"],
    "kept": torch.equal(last.language_model.lm_head.weight, changed.language_model.lm_head.weight),
}
""",
        photos=two_photos,
        folder=str(tmp_path),
    )
    own = ["fusion_qformer", "language_projection", "name_query_tokens", "query_tokens"]
    assert answer == {
        "places": own, "quantization": None, "kinds": [14, 0, 14, 14], "projection": True, "still": True,
        "changed": False, "kept": True,
    }  # fmt: skip


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed: pip install gguf")
def test_a_gguf_file_on_the_hub_is_named(client: Client, parts: Path, two_photos: list[str], tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    save_gguf(tmp_path / "repo" / "tiny.gguf")
    client(UPLOAD, repo="alice/gguf", folder=str(tmp_path / "repo"))
    answer = client(
        """
        import torch
        from safetensors import safe_open
        from hf_evcap import EVCapForConditionalGeneration

        model = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained(
            "alice/blip2", "alice/gguf", gguf_file="tiny.gguf", name_tokenizer="alice/words"
        )
        model.save_pretrained(folder)
        with safe_open(folder + "/model.safetensors", framework="pt") as file:
            places = {name.split(".")[0] for name in file.keys()}
        state = EVCapForConditionalGeneration.from_pretrained(folder).state_dict()
        differing = [name for name, value in model.state_dict().items() if not torch.equal(value, state[name])]
        result = ["language_model" in places, model.config.part_sources["language_model"]["gguf_file"], differing]
        """,
        folder=str(tmp_path / "model"),
    )
    assert answer == [False, "tiny.gguf", []]
