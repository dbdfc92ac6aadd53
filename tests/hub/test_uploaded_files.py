"""What of a folder reaches the Hub: what the package wrote, cards and licences. Never a secret."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_evcap.cli.main import main
from hf_evcap.hub.ready_repo import STORES, prepare_repo
from hf_evcap.hub.repo_files import choose_files, store_files


SECRET = "sk-secret-of-the-user"
# Files that lie in people's folders, and must stay there.
UNASKED = (
    ".env", ".env.local", ".git/config", ".git/objects/ab/cd", ".ipynb_checkpoints/notes-checkpoint.ipynb", ".netrc",
    ".ssh/id_rsa", ".cache/huggingface/token", ".DS_Store", "notes.txt", "train.ipynb",
    "runs/May1_host/events.out.tfevents.1.host", "checkpoint-3/optimizer.pt", "checkpoint-3/model.safetensors",
    "checkpoint-3/rng_state.pth", "checkpoint-3/scheduler.pt",
    "training_args.bin", "optimizer.pt", "scheduler.pt", "trainer_state.json", "wandb/run.log", "server.pem", "id_rsa",
    "pytorch_model.bin", "model.pkl", "data.zip", "photos/cat.jpg", "memory/.env", "memory/notes.txt",
    "memory/data/raw.csv", "memory/data/mine.parquet", "data/mine.parquet",
    "data/.env", "data/raw.csv", "__pycache__/x.pyc", "secrets.json", "credentials",
    "LICENSE.key", "LICENSES/secret.txt",
    "license_server.env", "data/deep/rows.parquet", "layers/a/.env", "layers/a/data/x.csv", "other/README.md",
)  # fmt: skip
ASKED = ("LICENSE", "NOTICE.txt")


def litter(folder: Path, outside: Path) -> None:
    """Puts everything into a folder that has no business on the Hub, and links that leave it."""
    for name in UNASKED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET)
    for name in ASKED:
        if not (folder / name).exists():
            (folder / name).write_text("Licence text.")
    outside.mkdir(exist_ok=True)
    (outside / "key").write_text(SECRET)
    (folder / "key.txt").symlink_to(outside / "key")
    (folder / "NOTICE").symlink_to(outside / "key")
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "up").symlink_to(os.path.join("..", outside.name, "key"))
    (folder / "broken").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")


@pytest.fixture(scope="module")
def datastore_dir(smallcap_dir: Path) -> Path:
    return smallcap_dir / "datastore"


@pytest.fixture
def source(request: pytest.FixtureRequest, tiny_dir: Path, smallcap_dir: Path, tmp_path: Path) -> Path:
    """A copy of what is pushed, with litter in it."""
    folder = tmp_path / "source"
    kind = request.node.callspec.params["kind"]
    if kind == "space":
        folder.mkdir()
        (folder / "README.md").write_text("---\nsdk: gradio\n---\n# App\n")
        (folder / "app.py").write_text("print(1)")
        (folder / "requirements.txt").write_text("gradio")
    elif kind == "metric":
        shutil.copytree(Path(__file__).parents[2] / "src/hf_evcap/metrics/cider", folder / "cider")
        folder = folder / "cider"
    else:
        places = {"model": tiny_dir, "smallcap": smallcap_dir, "memory": tiny_dir / "memory"}
        shutil.copytree(places.get(kind) or smallcap_dir / "datastore", folder)
    return folder


KINDS = ("model", "smallcap", "memory", "datastore", "space", "metric")


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_belongs_to_the_repo_goes_up(kind: str, source: Path, tmp_path: Path, capsys: Any) -> None:
    verb = "model" if kind == "smallcap" else kind
    (tmp_path / "clean").mkdir()
    clean = prepare_repo(verb, str(source), tmp_path / "clean", "alice/x").files
    litter(source, tmp_path / "outside")
    (tmp_path / "ready").mkdir()
    ready = prepare_repo(verb, str(source), tmp_path / "ready", "alice/x")
    assert set(ready.files) == {*clean, *ASKED}
    for name in ready.files:
        assert SECRET.encode() not in (ready.folder / name).read_bytes(), name
    assert main(["push", verb, str(source), "alice/x", "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert {line.split("  ")[-1].strip() for line in printed.out.splitlines()[:-1]} == set(ready.files)
    for name in ("notes.txt", ".env", "runs/", "key.txt", "elsewhere/"):
        assert f"left out: {name} " in printed.err


def test_a_saved_folder_is_pushed_whole(tiny_dir: Path, smallcap_dir: Path, tmp_path: Path) -> None:
    """Whatever `save_pretrained` writes is known to the list of what goes up."""
    for number, (kind, folder) in enumerate(
        [("model", tiny_dir), ("model", smallcap_dir), ("memory", tiny_dir / "memory"),
         ("datastore", smallcap_dir / "datastore")]
    ):  # fmt: skip
        target = tmp_path / str(number)
        target.mkdir()
        ready = prepare_repo(kind, str(folder), target, "alice/x")
        assert set(ready.files) >= {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        assert ready.left_out == {}


@pytest.mark.parametrize("kind", KINDS)
def test_named_files_go_up_and_secrets_do_not(kind: str, source: Path, tmp_path: Path) -> None:
    verb = "model" if kind == "smallcap" else kind
    litter(source, tmp_path / "outside")
    (tmp_path / "ready").mkdir()
    ready = prepare_repo(verb, str(source), tmp_path / "ready", "alice/x", include=["notes.txt", "photos/*", "*"])
    assert {"notes.txt", "photos/cat.jpg", "train.ipynb", "checkpoint-3/model.safetensors"} <= set(ready.files)
    never = {".env", ".git/config", "optimizer.pt", "training_args.bin", "checkpoint-3/optimizer.pt", "server.pem",
             "id_rsa", "key.txt", "passwd", "elsewhere/key", "up", "NOTICE", "memory/.env", "data/.env", "pipe",
             ".ipynb_checkpoints/notes-checkpoint.ipynb", "runs/May1_host/events.out.tfevents.1.host"}  # fmt: skip
    assert not never & set(ready.files)
    for pattern in (
        ".env",
        ".git/*",
        "key.txt",
        "optimizer.pt",
        "runs/*",
        "nothing*",
        "../outside/key",
        "/etc/passwd",
    ):
        (tmp_path / "other").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="names nothing"):
            prepare_repo(verb, str(source), tmp_path / "other", "alice/x", include=[pattern])


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "memory", "memory/memory_config.json", "memory/data", "tokenizer.json"],
)
def test_a_repo_that_lies_behind_a_link_is_refused(name: str, tiny_dir: Path, tmp_path: Path) -> None:
    """Silently left out, it would leave a broken repo."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_dir, folder)
    shutil.move(folder / name, tmp_path / "moved")
    (folder / name).symlink_to(tmp_path / "moved")
    (tmp_path / "ready").mkdir()
    with pytest.raises(ValueError, match=f"(?s){name.split('/')[-1]}.*link"):
        prepare_repo("model", str(folder), tmp_path / "ready", "alice/x")


def test_links_inside_and_the_cache_of_the_hub_are_followed(tiny_dir: Path, tmp_path: Path) -> None:
    memory = tiny_dir / "memory"
    inside = tmp_path / "inside"
    shutil.copytree(memory, inside)
    (inside / "memory_config.json").rename(inside / "kept.json")
    (inside / "memory_config.json").symlink_to("kept.json")
    assert "memory_config.json" in choose_files(inside, store_files(inside)).files
    linked = tmp_path / "linked"
    linked.symlink_to(inside)
    assert set(choose_files(linked, store_files(linked)).files) == set(choose_files(inside, store_files(inside)).files)

    cache = tmp_path / "datasets--alice--names"
    snapshot = cache / "snapshots" / "0123"
    for number, file in enumerate(path for path in memory.rglob("*") if path.is_file()):
        blob = cache / "blobs" / str(number)
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        place = snapshot / file.relative_to(memory)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    (tmp_path / "secret").write_text(SECRET)
    (snapshot / "LICENSE").symlink_to(tmp_path / "secret")
    (tmp_path / "ready").mkdir()
    ready = prepare_repo("memory", str(snapshot), tmp_path / "ready", "alice/x")
    assert set(ready.files) == {path.relative_to(memory).as_posix() for path in memory.rglob("*") if path.is_file()}


def test_a_card_that_is_a_link_is_not_read(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    for kind, folder in (("model", tiny_dir), ("memory", tiny_dir / "memory")):
        source, target = tmp_path / kind, tmp_path / f"{kind}-ready"
        shutil.copytree(folder, source)
        target.mkdir()
        (source / "README.md").unlink(missing_ok=True)
        (source / "README.md").symlink_to(tmp_path / "secret")
        ready = prepare_repo(kind, str(source), target, "alice/x")
        assert SECRET not in (target / "README.md").read_text()
        assert "README.md" in ready.files


def test_what_the_hub_holds_is_what_the_dry_run_said(
    hub: Any, client: Any, tiny_dir: Path, smallcap_dir: Path, tmp_path: Path
) -> None:
    sources = {"model": tiny_dir, "memory": tiny_dir / "memory", "datastore": smallcap_dir / "datastore"}
    for kind, folder in sources.items():
        source = tmp_path / kind
        shutil.copytree(folder, source)
        litter(source, tmp_path / "outside")
        code, printed = client(
            """
            import contextlib, io
            from hf_evcap.cli.main import main
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                main(["push", kind, source, f"alice/littered-{kind}", "--dry-run", "--include", "notes.txt"])
                code = main(["push", kind, source, f"alice/littered-{kind}", "--include", "notes.txt"])
            result = [code, printed.getvalue()]
            """,
            kind=kind,
            source=str(source),
        )
        assert code == 0
        repo_type = "model" if kind == "model" else "dataset"
        files = hub.files(repo_type, f"alice/littered-{kind}")
        listed = {
            line.split("  ")[-1].strip() for line in printed.splitlines() if not line.startswith(("commit", "http"))
        }
        assert {*files} - {".gitattributes"} == {name for name in listed if not name.startswith("in ")}
        assert [name for name, content in files.items() if SECRET.encode() in content] == ["notes.txt"]


def test_python_pushes_what_it_saved(hub: Any, client: Any, tiny_dir: Path, tmp_path: Path) -> None:
    """From a folder with litter, by every `push_to_hub` and `save_pretrained(push_to_hub=True)`."""
    folder = tmp_path / "mine"
    shutil.copytree(tiny_dir, folder)
    litter(folder, tmp_path / "outside")
    litter(folder / "memory", tmp_path / "outside")
    client(
        """
        import os, transformers
        from hf_evcap import EVCapForConditionalGeneration, EVCapProcessor, VisualNameMemory
        os.chdir(folder)
        model = EVCapForConditionalGeneration.from_pretrained(folder)
        processor = EVCapProcessor.from_pretrained(folder)
        model.save_pretrained(folder, push_to_hub=True, repo_id="alice/py-model")
        processor.save_pretrained(folder, push_to_hub=True, repo_id="alice/py-processor")
        transformers.pipeline("image-to-text", model=folder).push_to_hub("alice/py-pipe")
        VisualNameMemory.from_pretrained(os.path.join(folder, "memory")).push_to_hub("alice/py-memory")
        """,
        folder=str(folder),
    )
    for kind, name in (("model", "model"), ("model", "processor"), ("model", "pipe"), ("dataset", "memory")):
        files = hub.files(kind, f"alice/py-{name}")
        assert len(files) > 3
        assert not [file for file, content in files.items() if SECRET.encode() in content]
    assert set(STORES) == {"memory", "datastore"}


def test_training_pushes_the_model_alone(hub: Any, client: Any, tiny_dir: Path, tmp_path: Path) -> None:
    """Neither checkpoints with optimizer states nor training arguments nor logs with the host's name."""
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 0, 0)).save(data / f"{number}.png")
    (data / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{number}.png", "captions": ["photo {number}"]}}\n' for number in range(4))
    )
    words = ["train", "--model", str(tiny_dir), "--dataset", str(data), "--max_steps", "2", "--save_steps", "1",
             "--save_strategy", "steps", "--report_to", "none", "--disable_tqdm", "true", "--push_to_hub", "true",
             "--leave_one_out", "false"]  # fmt: skip
    for name, more in (("trained", []), ("adapted", ["--policy", "lora"])):
        out = tmp_path / name
        options = ["--output_dir", str(out), "--hub_model_id", f"alice/{name}", *more]
        assert client("from hf_evcap.cli.main import main\nresult = main(words)", words=[*words, *options]) == 0
        assert (out / "checkpoint-2" / "optimizer.pt").is_file()
        files = set(hub.files("model", f"alice/{name}"))
        weights = {"model.safetensors", "config.json", "modeling_evcap.py", "memory/memory_config.json"}
        assert files >= (weights if name == "trained" else {"adapter_model.safetensors", "adapter_config.json"})
        kept = [file for file in files if "checkpoint-" in file or "optimizer" in file or file.endswith(".bin")]
        assert kept == [] and not {"trainer_state.json", "train_results.json"} & files
    titles = hub.titles("model", "alice/trained")
    assert titles[-1] == "End of training" and "Training in progress, step 1" in titles
