"""The units are valid, as tight as a builder can be, and activation by socket works for real."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "systemd").glob("*/*.service"))
BIN = Path(sys.executable).parent


def need(program: str) -> str:
    path = shutil.which(program)
    if not path:
        pytest.skip(f"{program} is not installed")
    return path


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[Path], Path]:
    """A unit as it would be installed: with its socket beside it, and a program that exists."""

    def install(unit: Path) -> Path:
        for file in unit.parent.glob("ocibuildd*.*"):
            text = re.sub(r"ExecStart=\S*ocibuildd", f"ExecStart={BIN}/ocibuildd", file.read_text())
            (tmp_path / file.name).write_text(
                text.replace("ExecReload=kill", "ExecReload=/bin/kill")
            )
        return tmp_path / unit.name

    return install


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.parent.name}-{unit.name}")
def test_a_unit_passes_systemds_own_check(unit: Path, installed: Callable[[Path], Path]) -> None:
    scope = ["--user"] if unit.parent.name == "user" else []
    done = subprocess.run(
        [need("systemd-analyze"), *scope, "verify", "--man=no", str(installed(unit))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )
    ours = [line for line in done.stderr.splitlines() if "ocibuildd" in line]
    assert ours == []


@pytest.mark.parametrize(("name", "most"), [("ocibuildd", 6.6), ("ocibuildd-hardened", 4.5)])
def test_a_system_unit_is_as_tight_as_it_can_be(name: str, most: float) -> None:
    unit = ROOT / "systemd" / "system" / f"{name}.service"
    done = subprocess.run(
        [need("systemd-analyze"), "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    score = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert score, done.stderr
    assert float(score[1]) <= most


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.parent.name}-{unit.name}")
def test_no_unit_carries_what_takes_the_subordinate_ids_away(unit: Path) -> None:
    text = unit.read_text()
    options = {
        line.partition("=")[0]
        for line in text.splitlines()
        if "=" in line and not line.startswith("#")
    }
    masks_proc = {
        "ProtectKernelTunables",
        "ProtectControlGroups",
        "ProtectProc",
        "ProcSubset",
        "PrivateUsers",
    }
    assert not options & masks_proc
    if unit.parent.name == "user":
        assert not options & {"PrivateTmp", "ProtectSystem", "ProtectHome", "NoNewPrivileges"}
    elif "NoNewPrivileges=yes" not in text:
        implied = {
            "PrivateDevices",
            "ProtectClock",
            "RestrictNamespaces",
            "SystemCallFilter",
            "LockPersonality",
            "RestrictSUIDSGID",
        }
        assert not options & implied


def test_a_daemon_started_by_its_socket_answers_and_ends_when_idle(
    make_daemon: Callable[..., Any],
) -> None:
    daemon = make_daemon("[daemon]\nidle_timeout = 2\n", start=False)
    (daemon.root / "run").mkdir(mode=0o700)
    (daemon.root / "ocibuildd.toml").write_text(daemon.config)
    environment = [f"--setenv={name}={value}" for name, value in daemon.env.items()]
    with (daemon.root / "daemon.log").open("wb") as log:
        activator = subprocess.Popen(
            [
                need("systemd-socket-activate"),
                "-l",
                str(daemon.socket),
                *environment,
                str(BIN / "ocibuildd"),
                "--config",
                str(daemon.root / "ocibuildd.toml"),
                "--state-dir",
                str(daemon.root / "state"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    try:
        until("its socket", daemon.socket.exists)
        # The first connection waits in the socket's queue until the daemon has started.
        assert daemon("version").code == 0, daemon.log
        assert activator.wait(PATIENCE) == 0, daemon.log
    finally:
        if activator.poll() is None:
            os.killpg(activator.pid, signal.SIGKILL)
            activator.wait()


def test_ready_and_stopping_are_told_to_the_service_manager(
    make_daemon: Callable[..., Any], tmp_path: Path
) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(PATIENCE)
        daemon = make_daemon(NOTIFY_SOCKET=str(tmp_path / "notify"))
        said = notify.recv(4096).decode()
        while "READY=1" not in said:
            said = notify.recv(4096).decode()
        daemon.process.send_signal(signal.SIGHUP)
        while "RELOADING=1" not in said:
            said = notify.recv(4096).decode()
        assert "MONOTONIC_USEC=" in said
        daemon.process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in said:
            said = notify.recv(4096).decode()
        assert daemon.process.wait(PATIENCE) == 0
        daemon.process = None
