"""A daemon that the command line starts by itself, for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import until

BIN = Path(sys.executable).parent


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of one's own."""
    with tempfile.TemporaryDirectory(prefix="ocibuild-start-") as name:
        root = Path(name)
        (root / ".config" / "ocibuildd").mkdir(parents=True)
        (root / "run").mkdir(mode=0o700)
        yield root


def client(home: Path, *argv: str) -> subprocess.Popen[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
    return subprocess.Popen(
        [str(BIN / "ocibuild"), *argv], env=environ, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def configure(home: Path, text: str) -> None:
    (home / ".config" / "ocibuildd" / "ocibuildd.toml").write_text(text)


def started(home: Path, clients: int) -> set[int]:
    """Process ids of the daemons that so many clients at once are answered by."""
    asking = [client(home, "info", "-f", "{{.pid}}") for _ in range(clients)]
    said = [each.communicate(timeout=120) for each in asking]
    assert [each.returncode for each in asking] == [0] * clients, said
    return {int(out) for out, _ in said}


def ends(pid: int) -> None:
    until(f"the end of {pid}", lambda: not Path(f"/proc/{pid}").exists())


def test_several_clients_at_once_start_one_daemon(home: Path) -> None:
    pids = started(home, 3)
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        ends(pid)
    assert len(pids) == 1


def test_a_daemon_that_a_client_started_ends_when_idle(home: Path) -> None:
    configure(home, "[daemon]\nidle_timeout = 2\n")
    (pid,) = started(home, 1)
    ends(pid)
    assert not (home / "run" / "ocibuildd" / "ocibuildd.sock").exists()
    log = (home / ".local" / "state" / "ocibuildd" / "ocibuildd.log").read_text()
    assert '"message": "ended"' in log


def test_a_log_that_cant_be_written_is_said(home: Path) -> None:
    (home / ".local").write_text("no directory\n")
    failed = client(home, "images")
    _, err = failed.communicate(timeout=60)
    assert failed.returncode == 1
    assert err.startswith("ERROR: the daemon can't be started: its log ")


def test_who_points_docker_at_a_daemon_that_is_not_there_is_told(home: Path) -> None:
    asked = client(home, "context", "docker")
    out, err = asked.communicate(timeout=60)
    assert out == f"export DOCKER_HOST=unix://{home}/run/ocibuildd/ocibuildd.sock\n"
    assert "`ocibuild start` starts one" in err


def test_a_daemon_that_cannot_start_says_why_through_the_client(home: Path) -> None:
    configure(home, "[daemno]\n")
    failed = client(home, "images")
    out, err = failed.communicate(timeout=60)
    assert (failed.returncode, out) == (1, "")
    assert "unknown key daemno" in err
    assert "did you mean 'daemon'" in err
