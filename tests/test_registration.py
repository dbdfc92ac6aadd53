"""Importing the package is cheap, and in whatever order things are imported the classes end up registered."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import hf_evcap


CHECK = """
from transformers import AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
import hf_evcap
assert CONFIG_MAPPING["evcap"] is hf_evcap.EVCapConfig, CONFIG_MAPPING["evcap"]
model_class = AutoModelForImageTextToText._model_mapping[hf_evcap.EVCapConfig]
assert model_class is hf_evcap.EVCapForConditionalGeneration, model_class
task = PIPELINE_REGISTRY.supported_tasks["image-text-to-text"]["impl"]
assert task is hf_evcap.CaptioningPipeline, task
"""

ORDERS = {
    "hf_evcap first": "import hf_evcap",
    "transformers first": "import transformers; import hf_evcap",
    "pipeline first": "from transformers import pipeline; import hf_evcap",
    "pipeline after": "import hf_evcap; from transformers import pipeline",
    "model module": "import hf_evcap.modeling_evcap",
    "processor module": "import hf_evcap.processing_evcap",
    "conversion": "from hf_evcap.conversion import convert_evcap",
    "memory module": "from hf_evcap import VisualNameMemory",
    "other model first": "from transformers import Blip2Model, Blip2Config; import hf_evcap",
    "other model after": "import hf_evcap; from transformers import Blip2Model",
    "auto module after": "import hf_evcap; import transformers.models.auto.modeling_auto",
}


def run(program):
    """Runs a program in a fresh interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process):
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return output


def test_importing_the_package_imports_nothing_heavy():
    program = (
        "import sys, json; before = set(sys.modules); import hf_evcap; hf_evcap.default_model(); dir(hf_evcap);"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    heavy = {"torch", "transformers", "datasets", "numpy", "faiss", "pyarrow", "huggingface_hub", "PIL"}
    assert not heavy & set(json.loads(finish(run(program))))


# Each order needs an interpreter of its own. One program forks them all after it has imported what none of the orders
# is about, which takes seconds instead of minutes.
FORKS = """
import os, sys, traceback
import torch, pyarrow.parquet, faiss, PIL.Image, huggingface_hub, accelerate, datasets
import torch._dynamo, torch.distributed.tensor, torch.distributed.checkpoint, torch.export
assert not {{"hf_evcap", "transformers"}} & set(sys.modules)
check, orders = {check!r}, {orders!r}
failed = []
for name, order in orders.items():
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            exec(order, {{}})
            exec(check, {{}})
        except BaseException:
            sys.stderr.write(f"== {{name}}\\n")
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print("FAILED", failed)
sys.exit(bool(failed))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks interpreters, which this system cannot")
def test_every_import_order_registers():
    assert "FAILED []" in finish(run(FORKS.format(check=CHECK, orders=ORDERS)))


def test_public_names_resolve():
    for name in hf_evcap.__all__:
        value = getattr(hf_evcap, name)
        assert value is getattr(hf_evcap, name)
        assert name in dir(hf_evcap)
        assert value.__doc__
    with pytest.raises(AttributeError, match="EVCapModell"):
        _ = hf_evcap.EVCapModell


def test_promised_names_exist():
    promised = {"EVCapConfig", "EVCapForConditionalGeneration", "EVCapProcessor", "VisualNameMemory", "metric_path"}
    assert promised <= set(hf_evcap.__all__)
    from hf_evcap.conversion import convert_evcap, load_evcap_memory

    assert callable(convert_evcap) and callable(load_evcap_memory)


def test_registering_again_changes_nothing():
    from transformers.pipelines import PIPELINE_REGISTRY

    before = dict(PIPELINE_REGISTRY.supported_tasks["image-text-to-text"])
    hf_evcap.registration.register()
    assert PIPELINE_REGISTRY.supported_tasks["image-text-to-text"] == before


def test_the_import_hook_goes_away():
    import transformers.models.auto.modeling_auto  # noqa: F401 -- has certainly been imported now

    assert not any("RegisterAfterImport" in type(finder).__name__ for finder in sys.meta_path)


def test_only_the_message_that_is_not_so_is_dropped(caplog):
    """transformers says of a task that is registered here that it has been removed; what else it says is heard."""
    from transformers.pipelines import logger

    with caplog.at_level("WARNING", logger="transformers.pipelines"):
        logger.warning("The task `image-to-text` has been removed and has been replaced by `image-text-to-text`.")
        logger.warning("The task `summarization` has been removed.")
    assert caplog.messages == ["The task `summarization` has been removed."]
