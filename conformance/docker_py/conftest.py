"""Drives docker-py against a daemon of its own; run with ``pytest conformance/docker_py``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import (  # noqa: F401
    Daemon,
    busybox_tar,
    context,
    daemon,
    end_daemons,
    make_daemon,
    registry,
)

sys.path.insert(0, str(Path(__file__).parent))
from building import build

docker = pytest.importorskip("docker", reason="docker-py is not installed")
TIMEOUT = 60


@pytest.fixture
def api(daemon: Daemon) -> Iterator[Any]:  # noqa: F811
    """The low-level client, which negotiates its version as by default."""
    client = docker.APIClient(base_url=f"unix://{daemon.socket}", version="auto", timeout=TIMEOUT)
    yield client
    client.close()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Any]:  # noqa: F811
    """The object-oriented client."""
    found = docker.DockerClient(base_url=f"unix://{daemon.socket}", version="auto", timeout=TIMEOUT)
    yield found
    found.close()


@pytest.fixture
def run(daemon: Daemon) -> Callable[..., str]:  # noqa: F811
    """What a command prints in an image."""
    return lambda image, *command: daemon.ok("run", image, *command).out


@pytest.fixture
def remote(api: Any, registry: str) -> Iterator[str]:  # noqa: F811
    """An image that is in the registry only: ``HOST:PORT/hello:latest``."""
    name = f"{registry}/hello"
    for message in build(api, "FROM scratch\nCOPY a /a\n", tag=name, files={"a": b"hello" * 999}):
        assert "error" not in message, message
    pushed = list(api.push(name, tag="latest", stream=True, decode=True))
    assert not any("error" in message for message in pushed), pushed
    api.remove_image(name, force=True)
    yield f"{name}:latest"
    for image in api.images(name, quiet=True):
        api.remove_image(image, force=True)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Write files below a directory: ``tree({"a/b": "text"})``."""

    def write(files: dict[str, str], root: str = "context") -> Path:
        for name, text in files.items():
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / root

    return write
