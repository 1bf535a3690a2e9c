"""Drives the real docker CLI against a daemon of its own; run with ``pytest conformance/docker_cli``."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures import (  # noqa: F401
    Daemon,
    Result,
    busybox_tar,
    context,
    daemon,
    end_daemons,
    free_port,
    make_daemon,
    registry,
)


@dataclass
class Docker:
    """The docker CLI pointed at a daemon's socket."""

    program: str
    env: dict[str, str]

    def __call__(
        self, *args: str | Path, stdin: bytes | None = None, timeout: float = 120
    ) -> Result:
        done = subprocess.run(
            [self.program, *map(str, args)],
            env=self.env,
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL if stdin is None else None,
        )
        return Result(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def ok(self, *args: str | Path, stdin: bytes | None = None) -> Result:
        done = self(*args, stdin=stdin)
        assert done.code == 0, f"docker {' '.join(map(str, args))}: exit {done.code}\n{done.text}"
        return done


@pytest.fixture(scope="session")
def docker(daemon: Daemon) -> Docker:  # noqa: F811
    program = os.environ.get("DOCKER_CLI") or shutil.which("docker")
    if not program:
        pytest.skip("the docker CLI is not installed")
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(daemon.root / "home"),
        "DOCKER_HOST": f"unix://{daemon.socket}",
        "DOCKER_BUILDKIT": "0",
        "DOCKER_CLI_HINTS": "false",
    }
    return Docker(program, env)


USER, PASSWORD = "user", "pa:ss"


@pytest.fixture(scope="session")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A docker-registry that wants a name and a password: ``127.0.0.1:PORT``."""
    root, port = tmp_path_factory.mktemp("closed"), free_port()
    users = subprocess.run(
        ["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, check=True
    ).stdout
    (root / "users").write_bytes(users)
    (root / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {root}/users}}}}\n"
        f'http: {{addr: "127.0.0.1:{port}"}}\n'
    )
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(root / "config.yml")], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, (root / "log").read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def signed_in(docker: Docker, closed_registry: str) -> Iterator[str]:
    """The closed registry's name, with the CLI signed in to it."""
    docker.ok("login", "-u", USER, "--password-stdin", closed_registry, stdin=PASSWORD.encode())
    yield closed_registry
    docker.ok("logout", closed_registry)


@pytest.fixture
def dockerfile(context: Callable[..., Path]) -> Callable[..., Path]:  # noqa: F811
    """A context with a Dockerfile of the given text."""
    return lambda text, **files: context(Dockerfile=text, **files)
