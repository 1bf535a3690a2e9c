"""Drives the real docker CLI against a daemon of its own; run with ``pytest conformance/docker_cli``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures import (  # noqa: F401
    Daemon,
    Result,
    busybox_tar,
    context,
    daemon,
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


@pytest.fixture
def dockerfile(context: Callable[..., Path]) -> Callable[..., Path]:  # noqa: F811
    """A context with a Dockerfile of the given text."""
    return lambda text, **files: context(Dockerfile=text, **files)
