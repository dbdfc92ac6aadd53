"""A Hub on loopback and client processes that know it as `HF_ENDPOINT`. Nothing of the client is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_client import Client
from hub_server import HubServer
from public_parts import serve, write_parts
from tiny_smallcap import make_model, make_processor


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """The server; every test uses repos of its own."""
    server = HubServer()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Plans of faults do not reach the next test."""
    yield
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").faults.clear()


@pytest.fixture(scope="session")
def environment_of(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, str]]:
    """Makes the environment of a client process; without `home` it has an empty cache of its own."""

    def make(home: str | os.PathLike | None = None, **more: str) -> dict[str, str]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        return {
            **variables,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home or tmp_path_factory.mktemp("home")),
            "HF_TOKEN": "hf_alice",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "30",
            "OMP_NUM_THREADS": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            **more,
        }

    return make


@pytest.fixture(scope="session")
def client(environment_of: Callable[..., dict[str, str]]) -> Iterator[Client]:
    """A client with hf_evcap installed."""
    started = Client(environment_of())
    yield started
    started.close()


@pytest.fixture(scope="session")
def public_parts(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models that are on the Hub under the names of public ones."""
    parts = write_parts(tmp_path_factory.mktemp("parts"))
    for name, folder in parts.items():
        serve(hub, name, folder)
    return parts


@pytest.fixture(scope="session")
def smallcap_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random SmallCap with its processor and datastore. Tests must not change it."""
    folder = tmp_path_factory.mktemp("smallcap")
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder
