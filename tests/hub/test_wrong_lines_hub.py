"""Command lines that name what the Hub does not give: one line each, one request or two, and no retries."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hub_client import Client
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


SAY = """
import contextlib, io
from hf_evcap.cli.main import main
errors = io.StringIO()
with contextlib.redirect_stderr(errors):
    status = main(words)
result = [status, errors.getvalue()]
"""


def said(client: Client, line: str) -> str:
    """The one line that a process says to a wrong one."""
    start = time.perf_counter()
    status, error = client(SAY, words=line.format(photo=PHOTO, tiny=TINY).split())
    assert status == 1 and len(error.splitlines()) == 1, error
    assert time.perf_counter() - start < 20  # no retries, which took 70 s
    return error


@pytest.fixture(scope="module")
def lost(
    environment_of: Callable[..., dict[str, str]], portal: str, nobody: str, tmp_path_factory: Any
) -> Iterator[Any]:
    """Processes that reach a login page, nobody, and that may not ask."""
    home = tmp_path_factory.mktemp("home")
    started = {
        "portal": Client(environment_of(home, HF_ENDPOINT=portal)),
        "nobody": Client(environment_of(home, HF_ENDPOINT=nobody)),
        "offline": Client(environment_of(home, HF_HUB_OFFLINE="1")),
    }
    yield {**started, "home": home}
    for client in started.values():
        client.close()


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
def test_what_is_not_on_the_hub(line: str, parts: list[str], repos: HubServer, client: Client) -> None:
    before = len(repos.requests)
    error = said(client, line)
    assert all(part in error for part in parts), error
    assert len(repos.requests) - before <= 2


@pytest.mark.parametrize(
    ("line", "method"),
    [
        ("caption {photo} --model alice/wrong-lines-model", "HEAD"),
        ("evaluate --dataset alice/wrong-lines-table --output x", "GET"),
    ],
)
def test_gated_repos_and_refused_tokens(line: str, method: str, repos: HubServer, client: Client) -> None:
    repos.fail(method, "alice/wrong-lines", status=403, code="GatedRepo")
    error = said(client, line)
    assert "is gated: ask for access on http" in error and "alice/wrong-lines" in error and "hf auth login" in error
    repos.fail(method, "alice/wrong-lines", status=401)
    assert "hf auth login" in said(client, line)
    repos.fail(method, "alice/wrong-lines", status=503)
    assert "answered with status 503" in said(client, line)


@pytest.mark.parametrize(
    "line", ["caption {photo} --model a/b", "memory info a/b", "evaluate --dataset a/b --output x"]
)
def test_a_login_page_and_nobody_answer(line: str, lost: Any, portal: str, nobody: str) -> None:
    error = said(lost["portal"], line)
    assert "a/b" in error and portal in error and "login page" in error
    error = said(lost["nobody"], line)
    assert "no folder 'a/b'" in error and nobody in error and "could not be reached" in error
    assert "HF_HUB_OFFLINE" in said(lost["offline"], line)


def test_what_is_in_the_cache_serves_where_the_hub_is_not_reached(
    hub: HubServer, lost: Any, environment_of: Callable[..., dict[str, str]]
) -> None:
    """And nothing else is asked for then, with retries."""
    name = "alice/wrong-lines-memory"
    repo = Repo("dataset", name)
    files = {"memory_config.json": Blob((Path(TINY) / "memory" / "memory_config.json").read_bytes(), False)}
    repo.branches["main"] = repo.store(files, "files", None)
    hub.repos["dataset", name] = repo
    fetch = f"from huggingface_hub import snapshot_download\nresult = snapshot_download({name!r}, repo_type='dataset')"
    online = Client(environment_of(lost["home"]))
    folder = online(fetch)
    online.close()
    check = f"from hf_evcap.cli.sources import check_store\ncheck_store({name!r})\n{fetch}"
    start = time.perf_counter()
    assert lost["nobody"](check) == folder
    assert time.perf_counter() - start < 20
