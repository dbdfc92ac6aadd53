"""Command lines that name what the Hub does not give: one line each, one request or two, and no retries."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hub_server import Blob, HubServer, Repo

import hf_evcap


PHOTO = str(Path(hf_evcap.__file__).parent / "assets" / "photos" / "cat.jpg")
TINY = hf_evcap.default_model()


class LoginPage(BaseHTTPRequestHandler):
    """What a network answers before one has logged in, to everything."""

    def do_GET(self) -> None:
        page = b"<html><body>Welcome to our hotel. Please log in.</body></html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(page)

    do_HEAD = do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def portal() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), LoginPage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def nobody() -> str:
    """An address at which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture(scope="module")
def run(environment_of: Callable[..., dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a wrong line in a process of its own; gives the line that it says."""
    home = tmp_path_factory.mktemp("home")

    def call(line: str, **environment: str) -> str:
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "hf_evcap.cli.main", *line.split()],
            capture_output=True, text=True, env=environment_of(home, **environment), timeout=60,
        )  # fmt: skip
        assert done.returncode == 1 and done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert time.perf_counter() - start < 15  # no retries, which took 70 s
        return done.stderr

    return call


@pytest.fixture(scope="module")
def repos(hub: HubServer) -> HubServer:
    for kind, name, files in (
        ("model", "alice/wrong-lines-model", {"config.json": b"{}"}),
        ("model", "alice/wrong-lines-notes", {"notes.txt": b"hello"}),
        ("dataset", "alice/wrong-lines-table", {"data.csv": b"a,b\n1,2\n"}),
    ):
        repo = Repo(kind, name)
        repo.branches["main"] = repo.store({path: Blob(data, False) for path, data in files.items()}, "files", None)
        hub.repos[kind, name] = repo
    return hub


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("caption {photo} --model bob/nothing", ["no folder 'bob/nothing'", "model repo", "hf auth login"]),
        ("caption {photo} --memory bob/nothing", ["no folder 'bob/nothing'", "memory", "hf auth login"]),
        ("caption {photo} --model alice/wrong-lines-notes", ["alice/wrong-lines-notes", "config.json", "no model"]),
        ("caption {photo} --model alice/wrong-lines-model --revision v9", ["alice/wrong-lines-model", "'v9'"]),
        ("memory info alice/wrong-lines-table", ["alice/wrong-lines-table", "memory_config.json"]),
        ("memory info alice/wrong-lines-table@v9", ["alice/wrong-lines-table", "'v9'"]),
        ("evaluate --dataset bob/nothing --output x", ["'bob/nothing'", "dataset"]),
        ("new evcap --encoder bob/nothing --language-model bob/none --output x", ["'bob/nothing'"]),
        ("new smallcap --encoder {tiny} --decoder gpt9 --output x", ["'gpt9'"]),
        ("train --model bob/nothing --dataset {tiny} --output x", ["'bob/nothing'"]),
    ],
)
def test_what_is_not_on_the_hub(line: str, parts: list[str], repos: HubServer, run: Callable[..., str]) -> None:
    before = len(repos.requests)
    error = run(line.format(photo=PHOTO, tiny=TINY))
    assert all(part in error for part in parts), error
    assert len(repos.requests) - before <= 2


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("caption {photo} --model alice/wrong-lines-model", "HEAD"),
        ("evaluate --dataset alice/wrong-lines-table --output x", "GET"),
    ],
)
def test_gated_repos_and_refused_tokens(line: str, method: str, repos: HubServer, run: Callable[..., str]) -> None:
    line = line.format(photo=PHOTO)
    repos.fail(method, "alice/wrong-lines", status=403, code="GatedRepo")
    error = run(line)
    assert "is gated: ask for access on http" in error and "alice/wrong-lines" in error and "hf auth login" in error
    repos.fail(method, "alice/wrong-lines", status=401)
    assert "hf auth login" in run(line)
    repos.fail(method, "alice/wrong-lines", status=503)
    assert "answered with status 503" in run(line)


@pytest.mark.parametrize(
    "line", ["caption {photo} --model a/b", "memory info a/b", "evaluate --dataset a/b --output x"]
)
def test_a_login_page_and_nobody_answer(line: str, portal: str, nobody: str, run: Callable[..., str]) -> None:
    line = line.format(photo=PHOTO)
    error = run(line, HF_ENDPOINT=portal)
    assert "a/b" in error and portal in error and "login page" in error
    error = run(line, HF_ENDPOINT=nobody)
    assert "no folder 'a/b'" in error and nobody in error and "could not be reached" in error
    error = run(line, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in error


def test_what_is_in_the_cache_serves_where_the_hub_is_not_reached(
    hub: HubServer, nobody: str, environment_of: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """Without asking for every file again, with retries."""
    memory = Path(TINY) / "memory"
    files = {
        path.relative_to(memory).as_posix(): Blob(path.read_bytes(), False)
        for path in memory.rglob("*")
        if path.is_file()
    }
    repo = Repo("dataset", "alice/wrong-lines-memory")
    repo.branches["main"] = repo.store(files, "files", None)
    hub.repos["dataset", "alice/wrong-lines-memory"] = repo
    words = [sys.executable, "-m", "hf_evcap.cli.main", "memory", "info", "alice/wrong-lines-memory"]
    printed = []
    for environment in (environment_of(tmp_path), environment_of(tmp_path, HF_ENDPOINT=nobody)):
        start = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
        assert time.perf_counter() - start < 40
    assert printed[0] == printed[1] and "rows" in printed[0]
