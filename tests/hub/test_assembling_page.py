"""docs/assembling.md: commands and snippets run in their order, on tiny parts that a Hub has under the real names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from documentation_pages import RUN, arguments_of, blocks, commands_of, read_page
from hub_client import Client
from hub_server import HubServer
from safetensors import safe_open
from tiny_models import PHOTOS
from tiny_parts import save_gguf


PAGE = read_page("assembling.md")
USER = {"USER": "alice"}  # whose repos are written
RUN_SNIPPET = """
import sys, types
names = vars(sys.modules.setdefault("snippets_of_the_page", types.ModuleType("snippets_of_the_page")))
exec(code, names)
result = sorted(names["model"].config.part_sources)
"""


@pytest.fixture(scope="module")
def folder(client: Client, public_parts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the page's reader works: photos, a GGUF file, a copy of the language model."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(PHOTOS, folder / "photos")
    shutil.copytree(public_parts["lmsys/vicuna-13b-v1.3"], folder / "copies" / "vicuna-13b")
    if find_spec("gguf") is not None:
        save_gguf(folder / "SmolLM2-135M-Instruct.Q8_0.gguf")
    client("import os\nos.chdir(folder)", folder=str(folder))
    yield folder
    client("import os\nos.chdir(folder)", folder=os.getcwd())


def test_every_command_and_snippet_runs(folder: Path, client: Client, hub: HubServer) -> None:
    without_gguf = find_spec("gguf") is None  # the page says that it takes the extra
    for language, code in blocks(PAGE):
        if language == "python":
            assert client(RUN_SNIPPET, code=code.replace("USER/", "alice/"))
            continue
        for command in commands_of(code):
            if not (without_gguf and ".gguf" in command):
                status, _, told = client(RUN, argv=arguments_of(command, USER))
                assert status == 0, f"{command}\n{told}"
    check_results(folder, hub)


def places_in(file: Path) -> set[str]:
    """The parts that a weight file holds."""
    with safe_open(file, framework="pt") as weights:
        return {name.split(".")[0] for name in weights.keys()}


def check_results(folder: Path, hub: HubServer) -> None:
    """What the page says of its models is so."""
    own = {"name_query_tokens", "language_projection", "fusion_qformer"}
    assert places_in(folder / "evcap-vicuna" / "model.safetensors") == own
    assert places_in(folder / "evcap-vicuna-whole" / "model.safetensors") > own | {"vision_model", "language_model"}
    configs = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/config.json")}
    assert configs["evcap-qwen"]["text_config"]["model_type"] == "qwen2"
    small = configs["evcap-small"]
    assert (small["retrieval_space"], small["untrained_parts"]) == ("vision", ["fusion_qformer", "qformer"])
    assert small["retrieval_options"]["key_size"] < small["vision_config"]["hidden_size"]  # learnt from the photos
    assert "<|im_start|>" in (folder / "evcap-small" / "processor_config.json").read_text(encoding="utf-8")
    assert configs["smallcap"]["part_sources"]["language_model"]["repo_id"] == "openai-community/gpt2"
    if "evcap-dinov2" in configs:
        repos = {record["repo_id"] for record in configs["evcap-dinov2"]["part_sources"].values()}
        assert repos == {"facebook/dinov2-base", "google-bert/bert-base-uncased"}
    assert {"alice/evcap-vicuna", "alice/evcap-small"} <= {repo_id for _, repo_id in hub.repos}
