"""A daemon that the command line starts by itself, for real."""

from __future__ import annotations

import os
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
    """A home whose daemon ends by itself after two idle seconds."""
    with tempfile.TemporaryDirectory(prefix="ocibuild-start-") as name:
        root = Path(name)
        (root / ".config" / "ocibuildd").mkdir(parents=True)
        (root / ".config" / "ocibuildd" / "ocibuildd.toml").write_text("[daemon]\nidle_timeout = 2\n")
        (root / "run").mkdir(mode=0o700)
        yield root


def client(home: Path, *argv: str) -> subprocess.Popen[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}
    return subprocess.Popen(
        [str(BIN / "ocibuild"), *argv], env=environ, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def test_several_clients_at_once_start_one_daemon_which_ends_when_idle(home: Path) -> None:
    clients = [client(home, "info", "-f", "{{.pid}}") for _ in range(3)]
    said = [each.communicate(timeout=60) for each in clients]
    assert [each.returncode for each in clients] == [0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    pid = int(said[0][0])
    until("its idle end", lambda: not Path(f"/proc/{pid}").exists())
    assert not (home / "run" / "ocibuildd" / "ocibuildd.sock").exists()
    log = (home / ".local" / "state" / "ocibuildd" / "ocibuildd.log").read_text()
    assert '"message": "ended"' in log


def test_a_daemon_that_cannot_start_says_why_through_the_client(home: Path) -> None:
    (home / ".config" / "ocibuildd" / "ocibuildd.toml").write_text("[daemno]\n")
    failed = client(home, "images")
    out, err = failed.communicate(timeout=60)
    assert (failed.returncode, out) == (1, "")
    assert "unknown key daemno" in err
    assert "did you mean 'daemon'" in err
