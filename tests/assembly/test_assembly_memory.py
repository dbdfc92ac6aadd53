"""What assembling takes: no part is in memory twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_config, make_name_tokenizer
from tiny_parts import save_blip2, save_language_model

import hf_evcap
from hf_evcap import EVCapForConditionalGeneration


PROGRAM = """
import json, sys, threading
import torch
from hf_evcap import EVCapForConditionalGeneration
from transformers import AutoTokenizer

def memory(field):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

def sample():
    while not done.wait(0.002):
        peak[0] = max(peak[0], memory("RssAnon"))

folder, dtype = sys.argv[1:]
names = AutoTokenizer.from_pretrained(folder + "/names")
assemble = EVCapForConditionalGeneration.from_encoder_and_language_model_pretrained
assemble(folder + "/tiny", folder + "/tiny-llama", name_tokenizer=names)  # imports, and what only the first load takes
done, peak, start = threading.Event(), [0], memory("RssAnon")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest resident size counts from here
resident = memory("VmRSS")
sampler = threading.Thread(target=sample)
sampler.start()
model = assemble(folder + "/blip2", folder + "/llama", name_tokenizer=names, dtype=dtype)
done.set()
sampler.join()
size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
print(json.dumps([size, peak[0] - start, memory("VmHWM") - resident]))
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BLIP-2 of 45 MB and a Llama of 290 MB, and tiny ones."""
    root = tmp_path_factory.mktemp("large")
    config = make_config()
    save_blip2(root / "tiny", EVCapForConditionalGeneration(config))
    config.vision_config.update({"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6})
    config.qformer_config.encoder_hidden_size = 384
    save_blip2(root / "blip2", EVCapForConditionalGeneration(config))
    save_language_model(root / "tiny-llama", "llama")
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 6, "num_attention_heads": 16}
    save_language_model(root / "llama", "llama", **sizes, max_shard_size="100MB")
    make_name_tokenizer().save_pretrained(root / "names")
    return root


def measure(parts: Path, dtype: str) -> list[int]:
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_evcap.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(parts), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through Linux' /proc")
def test_in_its_own_precision_a_model_takes_its_size(parts: Path) -> None:
    size, own, resident = measure(parts, "float32")
    assert size > 250_000_000
    assert resident < 1.15 * size  # files that are mapped count, too
    assert own < 0.1 * size  # weights stay in their files until they are changed


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured through Linux' /proc")
def test_in_another_precision_a_model_takes_its_size(parts: Path) -> None:
    size, own, _ = measure(parts, "bfloat16")  # the float32 files are mapped, and make room where it is needed
    assert size > 125_000_000
    assert own < 1.15 * size
