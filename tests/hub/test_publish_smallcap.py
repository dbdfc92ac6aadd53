"""SmallCap and its datastores through the Hub's own protocol, as EVCap in test_publish.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_client import ClientError
from test_publish import PIPELINE, WITHOUT_PACKAGE, expected_caption, run_program
from tiny_smallcap import make_model, make_processor

from hf_evcap import CaptionDatastore


LOAD = """
import json, sys
from hf_evcap import SmallCapForConditionalGeneration
model = SmallCapForConditionalGeneration.from_pretrained(sys.argv[1], datastore=sys.argv[2])
print(json.dumps([model.datastore.fingerprint, model.datastore.repo_id, model.datastore.revision]))
"""


@pytest.fixture
def datastore_dir(tmp_path: Path) -> Path:
    """Folder of a datastore of three rows; no other test has uploaded its file."""
    captions = ["a kettle boils", "two mugs", "a mug"]
    datastore = CaptionDatastore.from_rows(
        captions, np.eye(3, 8, dtype=np.float32), image_id=["1", "2", "2"], source="kitchen", test=tmp_path.name
    )
    datastore.save_pretrained(tmp_path / "datastore")
    return tmp_path / "datastore"


@pytest.mark.parametrize("decoder", ["gpt2", "llama"])
def test_command_line_pushes_a_whole_repo_that_needs_no_package(
    decoder: str,
    hub: Any,
    client: Any,
    environment_of: Callable[..., dict[str, str]],
    smallcap_dir: Path,
    photo_paths: list[str],
    tmp_path: Path,
) -> None:
    if decoder != "gpt2":
        make_model(decoder).save_pretrained(tmp_path)
        make_processor().save_pretrained(tmp_path)
        smallcap_dir = tmp_path
    repo = f"alice/smallcap-{decoder}"
    expected = expected_caption(client, smallcap_dir, photo_paths[1])
    assert expected[0]["generated_text"] and len(expected[0]["retrieved_captions"]) == 4
    client(
        """
        import contextlib, io
        from hf_evcap.cli.main import main
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["push", "model", folder, repo]) == 0
        """,
        folder=str(smallcap_dir),
        repo=repo,
    )
    assert hub.titles("model", repo) == ["Upload model"]
    files = hub.files("model", repo)
    assert {"README.md", "config.json", "model.safetensors", "datastore/memory_config.json"} <= set(files)
    assert {"modeling_smallcap.py", "pipeline_captioning.py", "tokenizer.json", "processor_config.json"} <= set(files)
    for name, content in files.items():
        if name.endswith((".json", ".md")):
            assert str(smallcap_dir).encode() not in content, name
    caption, module, _ = run_program(WITHOUT_PACKAGE + PIPELINE, repo, photo_paths[1], environment=environment_of())
    assert caption == expected
    assert module.startswith("transformers_modules.alice.smallcap")
    assert expected_caption(client, Path(repo), photo_paths[1]) == expected  # no flag where the package is


def test_model_refers_to_a_datastore_on_the_hub(
    hub: Any, client: Any, environment_of: Callable[..., dict[str, str]], smallcap_dir: Path, tmp_path: Path
) -> None:
    want = client(
        """
        from hf_evcap import SmallCapForConditionalGeneration as Model
        model = Model.from_pretrained(folder)
        model.push_to_hub("alice/smallcap-carries")
        cats = model.datastore.subset(lambda caption: "cat" in caption)
        commit = cats.push_to_hub("alice/cats", revision="small")
        model = Model.from_pretrained("alice/smallcap-carries", datastore="alice/cats@small")
        model.save_pretrained(target)
        model.push_to_hub("alice/smallcap-refers")
        result = [cats.fingerprint, "alice/cats", commit]
        """,
        folder=str(smallcap_dir),
        target=str(tmp_path / "saved"),
    )
    reference = {"repo_id": "alice/cats", "revision": want[2]}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["memory_reference"] == reference
    assert not (tmp_path / "saved" / "datastore").exists()
    files = hub.files("model", "alice/smallcap-refers")
    assert json.loads(files["config.json"])["memory_reference"] == reference
    assert not any(name.startswith("datastore/") for name in files)
    card = files["README.md"].decode()
    assert "| repo | `alice/cats` |" in card and f"| revision | `{want[2]}` |" in card and "| captions | 2 |" in card
    home = client("import os; result = os.environ['HF_HOME']")
    before = len(hub.requests)
    offline = environment_of(home, HF_HUB_OFFLINE="1")
    assert run_program(LOAD, "alice/smallcap-carries", "alice/cats@small", environment=offline) == want
    assert len(hub.requests) == before


def test_datastore_variants_by_branch_tag_and_commit(hub: Any, client: Any, datastore_dir: Path) -> None:
    first, second, told, lengths, rows, ids = client(
        """
        import contextlib, io
        import datasets
        from huggingface_hub import HfApi
        from hf_evcap import CaptionDatastore
        from hf_evcap.cli.main import main
        def run(*words):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                assert main(list(words)) == 0
            return printed.getvalue()
        run("push", "datastore", folder, "alice/kitchen-captions")
        datastore = CaptionDatastore.from_pretrained("alice/kitchen-captions")
        first = datastore.revision
        HfApi().create_tag("alice/kitchen-captions", tag="v1", repo_type="dataset")
        datastore.remove(["two mugs"]).add(["a teapot"], [[0, 0, 0, 1, 0, 0, 0, 0]], image_id=3)
        assert datastore.repo_id is None
        second = datastore.push_to_hub("alice/kitchen-captions", commit_message="Teapots")
        old = CaptionDatastore.from_pretrained("alice/kitchen-captions@v1")
        new = CaptionDatastore.from_pretrained("alice/kitchen-captions", revision=second)
        told = [str(old.diff(new)), run("datastore", "diff", "alice/kitchen-captions@v1", "alice/kitchen-captions")]
        rows = datasets.load_dataset("alice/kitchen-captions", revision="v1", split="train")["caption"][:]
        result = [first, second, told, [len(old), len(new)], rows, new.image_ids]
        """,
        folder=str(datastore_dir),
    )
    repo = hub.repos["dataset", "alice/kitchen-captions"]
    assert repo.tags == {"v1": first} and repo.branches["main"] == second
    assert hub.titles("dataset", "alice/kitchen-captions") == ["Upload datastore", "Teapots"]
    assert lengths == [3, 3] and rows == ["a kettle boils", "two mugs", "a mug"] and ids == ["1", "2", "3"]
    assert all("a teapot" in one and "two mugs" in one for one in told)
    assert "# Caption datastore" in hub.files("dataset", "alice/kitchen-captions")["README.md"].decode()


@pytest.mark.parametrize(
    ("snippet", "kind", "message"),
    [
        ("Store.from_pretrained('alice/no-captions')", "RepositoryNotFoundError", "There is no dataset repo"),
        ("Memory.from_pretrained('alice/typed-captions')", "ValueError", "describes a 'caption-datastore', not a"),
        ("Model.from_pretrained(folder, datastore='no/such/place')", "FileNotFoundError", "neither a folder nor a"),
        ("Model.from_pretrained(folder, datastore='alice/typed-captions')", "ValueError", "keys have dimension 8"),
        ("main(['push', 'memory', datastore, 'alice/refused-captions']) == 1 and die()", "RuntimeError", "refused"),
    ],
)
def test_refusals_say_why(
    client: Any, hub: Any, smallcap_dir: Path, datastore_dir: Path, snippet: str, kind: str, message: str
) -> None:
    prepare = """
from hf_evcap import CaptionDatastore as Store, SmallCapForConditionalGeneration as Model, VisualNameMemory as Memory
from hf_evcap.cli.main import main
Store.from_pretrained(datastore).push_to_hub("alice/typed-captions")
def die(): raise RuntimeError("refused")
"""
    with pytest.raises(ClientError, match=message) as raised:
        client(prepare + snippet, folder=str(smallcap_dir), datastore=str(datastore_dir))
    assert raised.value.kind == kind
    assert ("dataset", "alice/refused-captions") not in hub.repos
