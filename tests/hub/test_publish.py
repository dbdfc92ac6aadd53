"""Publishing and consuming through the Hub's own protocol, with the real client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_client import ClientError
from transformers import pipeline

from hf_evcap import VisualNameMemory, default_model


# In front of a program: hf_evcap is not installed.
WITHOUT_PACKAGE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_evcap":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""
PIPELINE = """
import json, sys
import transformers
pipe = transformers.pipeline("image-to-text", model=sys.argv[1], trust_remote_code=True)
print(json.dumps([pipe(sys.argv[2]), type(pipe).__module__, pipe.model.memory.fingerprint]))
"""
LOAD_AS_BFLOAT16 = """
import json, sys
import transformers
options = {"trust_remote_code": True, "dtype": "bfloat16"}
models = [
    transformers.AutoModelForImageTextToText.from_pretrained(sys.argv[1], **options),
    transformers.pipeline("image-to-text", model=sys.argv[1], **options).model,
]
print(json.dumps([[str(part.dtype) for part in (model.vision_model, model.language_model)] for model in models]))
"""
LOAD = """
import json, sys
from hf_evcap import EVCapForConditionalGeneration
model = EVCapForConditionalGeneration.from_pretrained(sys.argv[1], memory=sys.argv[2])
print(json.dumps([model.memory.fingerprint, model.memory.repo_id, model.memory.revision]))
"""


def run_program(program: str, *arguments: str, environment: dict[str, str]) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def memory_dir(tmp_path: Path) -> Path:
    """Folder of a memory of three rows; no other test has uploaded its file."""
    keys = np.eye(3, 8, dtype=np.float32)
    memory = VisualNameMemory.from_rows(["kettle", "mug", "mug"], keys, source="kitchen", test=tmp_path.name)
    memory.save_pretrained(tmp_path / "memory")
    return tmp_path / "memory"


def expected_caption(client: Any, folder: Path, photo: str) -> Any:
    code = "import transformers\nresult = transformers.pipeline('image-to-text', model=folder)(photo)"
    return client(code, folder=str(folder), photo=photo)


def test_pushed_repo_captions_where_hf_evcap_is_not_installed_and_where_it_is(
    hub: Any, client: Any, environment_of: Callable[..., dict[str, str]], tiny_dir: Path, photo_paths: list[str]
) -> None:
    expected = expected_caption(client, tiny_dir, photo_paths[0])
    client(
        """
        from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor
        model = EVCapForConditionalGeneration.from_pretrained(folder)
        processor = EVCapProcessor.from_pretrained(folder)
        model.memory.push_to_hub("alice/names")
        model.push_to_hub("alice/captioner")
        processor.push_to_hub("alice/captioner")
        """,
        folder=str(tiny_dir),
    )
    assert hub.titles("dataset", "alice/names") == ["Upload memory"]
    assert hub.titles("model", "alice/captioner") == ["Upload model", "Upload processor"]
    files = hub.files("model", "alice/captioner")
    pinned = hub.repos["dataset", "alice/names"].branches["main"]
    assert json.loads(files["config.json"])["memory_reference"] == {"repo_id": "alice/names", "revision": pinned}
    assert not any(name.startswith("memory/") for name in files)

    caption, module, fingerprint = run_program(
        WITHOUT_PACKAGE + PIPELINE, "alice/captioner", photo_paths[0], environment=environment_of()
    )
    assert caption == expected
    assert module.startswith("transformers_modules.alice.captioner.")
    assert fingerprint == VisualNameMemory.from_pretrained(tiny_dir / "memory").fingerprint

    code = "import transformers\nresult = transformers.pipeline('image-to-text', model='alice/captioner')(photo)"
    assert client(code, photo=photo_paths[0]) == expected
    assert hub.authorized_storage_requests == []  # the token is for the Hub only


@pytest.mark.parametrize("which", ["embedded", "evcap", "smallcap"])
def test_a_folder_with_its_own_code_is_loaded_as_asked(
    which: str, environment_of: Any, tiny_dir: Path, smallcap_dir: Path, tmp_path: Path
) -> None:
    """Where loading fails at first, a pipeline tries again in float32, and nobody notices."""
    folder = {"embedded": tmp_path, "evcap": tiny_dir, "smallcap": smallcap_dir}[which]
    if which == "embedded":
        pipeline("image-to-text", model=default_model()).save_pretrained(folder)
    found = run_program(WITHOUT_PACKAGE + LOAD_AS_BFLOAT16, str(folder), environment=environment_of())
    assert found == [["torch.bfloat16", "torch.bfloat16"]] * 2


def test_pipeline_goes_up_in_one_commit_with_everything(
    hub: Any, client: Any, tiny_dir: Path, photo_paths: list[str], tmp_path: Path
) -> None:
    expected = expected_caption(client, tiny_dir, photo_paths[1])
    answer = client(
        """
        import transformers
        pipe = transformers.pipeline("image-to-text", model=folder)
        pipe.model.push_to_hub("alice/piped", processor=pipe.processor, max_shard_size="200KB")
        sharded = transformers.pipeline("image-to-text", model="alice/piped")(photo)
        commit = pipe.push_to_hub("alice/piped", commit_message="One file of weights", private=True, tags=["kitchen"])
        result = [sharded, commit.oid, transformers.pipeline("image-to-text", model="alice/piped")(photo)]
        """,
        folder=str(tiny_dir),
        photo=photo_paths[1],
    )
    assert answer[0] == answer[2] == expected
    repo = hub.repos["model", "alice/piped"]
    assert hub.titles("model", "alice/piped") == ["Upload model", "One file of weights"]
    assert repo.branches["main"] == answer[1]
    files = hub.files("model", "alice/piped")
    assert [name for name in files if "safetensors" in name] == ["model.safetensors"]  # no shard of before
    assert {"memory/data/train-00000-of-00001.parquet", "memory/memory_config.json"} <= set(files)
    assert {
        "processor_config.json",
        "tokenizer.json",
        "name_tokenizer/tokenizer.json",
        "pipeline_captioning.py",
    } <= set(files)
    assert b"- kitchen" in files["README.md"]
    config = json.loads(files["config.json"])
    assert config["auto_map"]["AutoModelForImageTextToText"] == "modeling_evcap.EVCapForConditionalGeneration"
    assert config["custom_pipelines"]["image-to-text"]["impl"] == "pipeline_captioning.CaptioningPipeline"
    for name, content in files.items():
        if name.endswith((".json", ".md")):
            assert str(tiny_dir).encode() not in content, name


def test_memory_variants_by_branch_tag_and_commit(hub: Any, client: Any, memory_dir: Path) -> None:
    first, second, diff, lengths, rows = client(
        """
        import contextlib, io
        import datasets
        from huggingface_hub import HfApi
        from hf_evcap import VisualNameMemory
        from hf_evcap.cli.main import main
        memory = VisualNameMemory.from_pretrained(folder)
        first = memory.push_to_hub("alice/variants")
        HfApi().create_tag("alice/variants", tag="v1", repo_type="dataset")
        memory.remove(["kettle"]).add(["teapot"], [[0, 0, 0, 1, 0, 0, 0, 0]], source="kitchen", test="")
        assert memory.repo_id is None and memory.revision is None
        second = memory.push_to_hub("alice/variants", commit_message="Teapots")
        branch = memory.push_to_hub("alice/variants", revision="kitchens/small")
        old = VisualNameMemory.from_pretrained("alice/variants@v1")
        new = VisualNameMemory.from_pretrained("alice/variants", revision=second)
        assert (old.revision, new.revision) == (first, second)
        small = VisualNameMemory.from_pretrained("alice/variants@kitchens/small")
        diff = old.diff(new)
        lengths = [len(old), len(new), len(small), branch]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main(["memory", "diff", "alice/variants@v1", "alice/variants"]) == 0
        rows = datasets.load_dataset("alice/variants", revision="v1", split="train")["name"][:]
        result = [first, second, [str(diff), printed.getvalue()], lengths, rows]
        """,
        folder=str(memory_dir),
    )
    repo = hub.repos["dataset", "alice/variants"]
    assert repo.tags == {"v1": first} and repo.branches["main"] == second
    assert repo.branches["kitchens/small"] == lengths[3] == second  # nothing had changed, so no commit was made
    assert lengths[:3] == [3, 3, 3] and rows == ["kettle", "mug", "mug"]
    assert all("teapot" in told and "kettle" in told for told in diff)


def test_variant_loads_offline_after_the_first_time(
    hub: Any, environment_of: Callable[..., dict[str, str]], client: Any, tiny_dir: Path, tmp_path: Path
) -> None:
    want = client(
        """
        import os
        from hf_evcap import EVCapForConditionalGeneration
        model = EVCapForConditionalGeneration.from_pretrained(folder)
        model.push_to_hub("alice/offline")
        memory = model.memory.subset(["owl", "dog"])
        commit = memory.push_to_hub("alice/owls", revision="small")
        model = EVCapForConditionalGeneration.from_pretrained("alice/offline", memory="alice/owls@small")
        model.save_pretrained(target)
        model.memory.retrieval["min_similarity"] = 0.3  # no longer what the Hub has
        model.save_pretrained(target + "-changed")
        changed = os.listdir(target + "-changed/memory")
        model.set_memory(memory)
        model.save_pretrained(target + "-changed")
        assert "memory_config.json" in changed and not os.path.exists(target + "-changed/memory")
        result = [memory.fingerprint, "alice/owls", commit]
        """,
        folder=str(tiny_dir),
        target=str(tmp_path / "saved"),
    )
    reference = {"repo_id": "alice/owls", "revision": want[2]}
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["memory_reference"] == reference
    home = client("import os; result = os.environ['HF_HOME']")
    before = len(hub.requests)
    offline = environment_of(home, HF_HUB_OFFLINE="1")
    assert run_program(LOAD, "alice/offline", "alice/owls@small", environment=offline) == want
    assert len(hub.requests) == before


def test_pull_requests_and_private_repos(hub: Any, client: Any, memory_dir: Path) -> None:
    answer = client(
        """
        from hf_evcap import VisualNameMemory
        memory = VisualNameMemory.from_pretrained(folder)
        memory.push_to_hub("alice/closed", private=True)
        memory.push_to_hub("alice/open")
        memory.rename({"mug": "cup"})
        proposed = memory.push_to_hub("alice/open", create_pr=True, token="hf_bob", commit_message="Cups")
        result = [proposed, VisualNameMemory.from_pretrained("alice/open", revision="refs/pr/1").names]
        """,
        folder=str(memory_dir),
    )
    repo = hub.repos["dataset", "alice/open"]
    assert repo.pulls == {"refs/pr/1": answer[0]} and answer[1] == ["kettle", "cup", "cup"]
    assert hub.repos["dataset", "alice/closed"].private and not repo.private
    with pytest.raises(ClientError, match="There is no dataset repo 'alice/closed', or it is private") as raised:
        client("from hf_evcap import VisualNameMemory as M; M.from_pretrained('alice/closed', token='hf_bob')")
    assert raised.value.kind == "RepositoryNotFoundError"


@pytest.mark.parametrize(
    ("snippet", "kind", "message"),
    [
        ("memory.push_to_hub('alice/refused', token='hf_nobody')", "HfHubHTTPError", "did not accept the token"),
        ("memory.push_to_hub('bob/refused')", "HfHubHTTPError", "may not write to the dataset repo 'bob/refused'"),
        ("memory.push_to_hub('alice/refused/x')", "HFValidationError", "Repo id"),
        ("Memory.from_pretrained('alice/nothing')", "RepositoryNotFoundError", "There is no dataset repo"),
        ("Memory.from_pretrained('alice/typed@v9')", "RevisionNotFoundError", "has no revision 'v9'"),
        ("Model.from_pretrained(folder, memory='alice/typed-model')", "RepositoryNotFoundError", "there is a model"),
        ("Memory.from_pretrained('alice/typed', token='hf_nobody')", "HfHubHTTPError", "did not accept the token"),
        ("Model.from_pretrained('alice/typed')", "OSError", "alice/typed is not a local folder"),
        ("Model.from_pretrained(folder, memory='no/such/place')", "FileNotFoundError", "neither a folder nor a Hub"),
    ],
)
def test_refusals_say_why_and_change_nothing(
    hub: Any, client: Any, tiny_dir: Path, snippet: str, kind: str, message: str
) -> None:
    prepare = """
        from huggingface_hub import HfApi
        from hf_evcap import EVCapForConditionalGeneration as Model, VisualNameMemory as Memory
        memory = Memory.from_pretrained(folder + "/memory")
        HfApi().create_repo("alice/typed", repo_type="dataset", exist_ok=True)
        HfApi().create_repo("alice/typed-model", exist_ok=True)
        """
    with pytest.raises(ClientError, match=message) as raised:
        client(prepare.replace("        ", "") + snippet, folder=str(tiny_dir))
    assert raised.value.kind == kind
    assert not any("refused" in repo_id for _, repo_id in hub.repos)


def test_failed_upload_commits_nothing_and_a_retry_succeeds(hub: Any, client: Any, memory_dir: Path) -> None:
    push = """
        from hf_evcap import VisualNameMemory
        memory = VisualNameMemory.from_pretrained(folder)
        result = memory.push_to_hub("alice/failing")
        """
    hub.fail("PUT", "/storage/", status=400)
    # Files go up in parallel: any of them may be the one that fails.
    failed = r"Error while uploading '(data/|index\.faiss).*Nothing was committed to the dataset repo"
    with pytest.raises(ClientError, match=failed):
        client(push, folder=str(memory_dir))
    assert hub.titles("dataset", "alice/failing") == []
    hub.fail("POST", "/commit/", status=412)
    with pytest.raises(ClientError, match="changed during the upload. Nothing was committed"):
        client(push, folder=str(memory_dir))
    assert set(hub.files("dataset", "alice/failing")) == {".gitattributes"}
    commit = client(push, folder=str(memory_dir))
    assert hub.repos["dataset", "alice/failing"].branches["main"] == commit
    assert "data/train-00000-of-00001.parquet" in hub.files("dataset", "alice/failing")


def start_and_kill(hub: Any, client: Any, fault: Any, snippet: str, **values: Any) -> None:
    """Runs a snippet in a process of its own, which is killed in the middle of a transfer."""
    fork = """
        import os
        result = os.fork()
        if result == 0:
            try:
                exec(inner)
            finally:
                os._exit(1)
        """
    process = client(fork, inner=snippet, **values)
    assert fault.reached.wait(60)
    os.kill(process, signal.SIGKILL)
    client("import os; os.waitpid(process, 0)", process=process)


def test_upload_killed_halfway(hub: Any, client: Any, memory_dir: Path) -> None:
    push = "from hf_evcap import VisualNameMemory as M; result = M.from_pretrained(folder).push_to_hub('alice/killed')"
    fault = hub.fail("PUT", "/storage/", hold=True)
    start_and_kill(hub, client, fault, push, folder=str(memory_dir))
    assert hub.titles("dataset", "alice/killed") == []
    client(push, folder=str(memory_dir))
    assert client("from hf_evcap import VisualNameMemory as M; result = len(M.from_pretrained('alice/killed'))") == 3


def test_download_broken_off_goes_on_where_it_was(hub: Any, client: Any, memory_dir: Path) -> None:
    client(
        "from hf_evcap import VisualNameMemory as M; M.from_pretrained(folder).push_to_hub('alice/broken')",
        folder=str(memory_dir),
    )
    load = "from hf_evcap import VisualNameMemory as M; result = M.from_pretrained('alice/broken').names"
    fault = hub.fail("GET", "/storage/", hold=True)
    start_and_kill(hub, client, fault, load)
    with pytest.raises(ClientError) as raised:  # half of it is not taken for the whole
        client(load.replace("('alice/broken')", "('alice/broken', local_files_only=True)"))
    assert raised.value.kind in ("LocalEntryNotFoundError", "FileNotFoundError", "IncompleteSnapshotError")
    again = hub.fail("GET", "/storage/")
    assert client(load) == ["kettle", "mug", "mug"]
    assert again.reached.is_set()


def test_card_that_a_person_edited_is_kept(hub: Any, client: Any, memory_dir: Path) -> None:
    client(
        """
        from huggingface_hub import HfApi, RepoCard
        from hf_evcap import VisualNameMemory
        memory = VisualNameMemory.from_pretrained(folder)
        memory.push_to_hub("alice/carded")
        card = RepoCard.load("alice/carded", repo_type="dataset")
        mark = "<!-- hf_evcap: generated from"
        text = card.content.replace(mark, "Words of mine.\\n\\n" + mark)
        text = text.replace("pretty_name: Visual-name memory", "pretty_name: My kitchen\\nlanguage: ko")
        edited = {"path_or_fileobj": text.encode(), "path_in_repo": "README.md"}
        HfApi().upload_file(**edited, repo_id="alice/carded", repo_type="dataset")
        memory.add(["ladle"], [[0, 0, 0, 0, 1, 0, 0, 0]])
        memory.push_to_hub("alice/carded")
        """,
        folder=str(memory_dir),
    )
    card = hub.files("dataset", "alice/carded")["README.md"].decode()
    assert "Words of mine." in card and "pretty_name: My kitchen" in card and "language: ko" in card
    assert "4 rows of a key and a name" in card and "3 rows" not in card
    assert card.count("generated from here") == 1


def test_command_line_pushes_folders_as_they_are(hub: Any, client: Any, tiny_dir: Path, tmp_path: Path) -> None:
    push = """
        import contextlib, io
        from hf_evcap.cli.main import main
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            code = main(["push", *words])
        result = [code, printed.getvalue()]
        """
    code, printed = client(push, words=["model", str(tiny_dir), "alice/typed-in", "--dry-run"])
    assert code == 0 and ("model", "alice/typed-in") not in hub.repos
    listed = {line.split("  ")[-1].strip() for line in printed.splitlines()[:-1]}
    assert "would go to the model repo alice/typed-in" in printed.splitlines()[-1]
    words = ["model", str(tiny_dir), "alice/typed-in", "--private", "--revision", "next", "--commit-message", "First"]
    code, printed = client(push, words=words)
    assert code == 0
    assert set(hub.files("model", "alice/typed-in", "next")) == listed | {".gitattributes"}
    assert set(hub.files("model", "alice/typed-in")) == {".gitattributes"}
    assert hub.titles("model", "alice/typed-in") == ["First"] and hub.repos["model", "alice/typed-in"].private
    card = hub.files("model", "alice/typed-in", "next")["README.md"].decode()
    assert 'model="alice/typed-in", trust_remote_code=True' in card

    code, printed = client(push, words=["memory", str(tiny_dir / "memory"), "alice/typed-memory", "--create-pr"])
    assert code == 0 and printed.splitlines()[-1].endswith("/datasets/alice/typed-memory/discussions/1")
    space = tmp_path / "space"
    space.mkdir()
    (space / "app.py").write_text("print('hello')\n")
    code, _ = client(push, words=["space", str(space), "alice/app"])
    assert code == 1 and ("space", "alice/app") not in hub.repos
    (space / "README.md").write_text("---\nsdk: gradio\n---\n# App\n")
    code, _ = client(push, words=["space", str(space), "alice/app"])
    assert code == 0 and "app.py" in hub.files("space", "alice/app")
    assert client(push, words=["metric", "cider", "alice/cider"])[0] == 0
    assert "cider.py" in hub.files("space", "alice/cider")
