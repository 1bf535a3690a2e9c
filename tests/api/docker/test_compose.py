"""docker-compose 1.29 as a client: what it asks of POST /build by itself, without the docker CLI."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from docker_engine import Engine
from fixtures import Daemon

pytestmark = pytest.mark.skipif(
    not shutil.which("docker-compose"), reason="docker-compose (Debian's 1.29) is not installed"
)

DOCKERFILE = """\
FROM busybox AS made
ARG WORD
COPY . /all
RUN echo "said $WORD"; ls /all; grep h.test /etc/hosts
FROM made
RUN false
"""
COMPOSE = """\
version: "3.4"
services:
  app:
    image: api/compose:1
    build:
      context: .
      dockerfile: other.Dockerfile
      target: TARGET
      args: {WORD: by compose}
      labels: {who: compose}
      shm_size: 32m
      network: none
      extra_hosts: ["h.test:192.0.2.7"]
"""


def composed(daemon: Daemon, path: Path, target: str) -> subprocess.CompletedProcess[str]:
    """``docker-compose build`` of one service."""
    (path / "docker-compose.yml").write_text(COMPOSE.replace("TARGET", target))
    (path / "other.Dockerfile").write_text(DOCKERFILE)
    (path / ".dockerignore").write_text("hidden\n*.yml\n*Dockerfile\n.d*\n")
    for name in ("seen", "hidden"):
        (path / name).write_text(name)
    env = {
        "PATH": os.environ["PATH"], "HOME": str(path), "LANG": "C.UTF-8",
        "DOCKER_HOST": f"unix://{daemon.socket}", "COMPOSE_DOCKER_CLI_BUILD": "0",
    }  # fmt: skip
    command = ["docker-compose", "--ansi", "never", "build", "--no-cache"]
    return subprocess.run(command, cwd=path, env=env, capture_output=True, text=True, timeout=120)


def test_compose_builds_a_service_with_all_that_it_can_say(
    daemon: Daemon, engine: Engine, tmp_path: Path
) -> None:
    done = composed(daemon, tmp_path, "made")
    assert done.returncode == 0, done.stderr
    assert "said by compose\nseen\n192.0.2.7\th.test\n" in done.stdout
    assert done.stdout.endswith("Successfully tagged api/compose:1\n")
    config = json.loads(engine("GET", "/images/api/compose:1/json").body)["Config"]
    assert config["Labels"] == {"who": "compose"}


@pytest.mark.parametrize(
    ("target", "said"),
    [("nosuch", "failed to reach build target nosuch in Dockerfile"),
     ("'1'", "The command '/bin/sh -c false' returned a non-zero code: 1")],
)  # fmt: skip
def test_a_build_that_fails_is_the_failure_of_compose_in_the_daemons_words(
    daemon: Daemon, tmp_path: Path, target: str, said: str
) -> None:
    done = composed(daemon, tmp_path, target)
    assert done.returncode == 1
    assert said in done.stderr
