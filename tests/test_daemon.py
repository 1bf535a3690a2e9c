from __future__ import annotations

import json
import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ocibuildd.config import Config, GcConfig, GcPolicy, parse
from ocibuildd.daemon import logs, notify, options, parts, sockets
from ocibuildd.errors import BuildError, Conflict, Denied


def test_options_win_over_nothing_and_take_both_forms() -> None:
    found = options.parse(["--state-dir", "/s", "--socket=/x/y", "--auto", "--idle-timeout", "5"])
    assert isinstance(found, options.Options)
    assert (found.state_dir, found.socket, found.auto, found.idle_timeout) == ("/s", "/x/y", True, "5")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--stat-dir", "x"], "did you mean --state-dir?"),
        (["--socket"], "needs a value"),
        (["--log-level", "loud"], "expected one of debug"),
        (["--idle-timeout", "soon"], "expected seconds"),
        (["extra"], "unknown option extra"),
    ],
)
def test_bad_options_are_refused(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert options.parse(argv) == 2
    assert words in capsys.readouterr().err


def test_version_and_help_end_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert options.parse(["--version"]) == 0
    assert options.parse(["--help"]) == 0
    assert "--state-dir" in capsys.readouterr().out


def test_check_config_names_the_file_and_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[daemon]\nsokcet = 'x'\n")
    done = subprocess.run(
        [sys.executable, "-m", "ocibuildd.daemon", "--check-config", "--config", str(path)],
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 2
    assert "daemon.sokcet" in done.stderr
    assert "did you mean 'socket'" in done.stderr


def test_the_socket_is_in_the_runtime_directory() -> None:
    assert sockets.socket_path("", {"XDG_RUNTIME_DIR": "/r"}, 7) == Path("/r/ocibuildd/ocibuildd.sock")
    assert sockets.socket_path("", {}, 0) == Path("/run/ocibuildd/ocibuildd.sock")
    assert sockets.socket_path("unix:///a/b", {}, 7) == Path("/a/b")
    without = sockets.socket_path("", {"HOME": "/h"}, 4_000_000)
    assert without == Path("/h/.local/share/ocibuildd/run/ocibuildd.sock")


def test_client_and_daemon_agree_where_the_socket_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from ocibuild import start

    monkeypatch.delenv("OCIBUILD_HOST", raising=False)
    for environ in ({"XDG_RUNTIME_DIR": "/r"}, {"HOME": "/h"}, {"HOME": "/h", "XDG_DATA_HOME": "/d"}):
        for uid in (0, os.geteuid(), 4_000_000):
            theirs = sockets.socket_path("", environ, uid)
            assert start.runtime_dir(environ, uid) + "/ocibuildd.sock" == str(theirs)


def test_the_state_directory_follows_the_data_home_and_the_service_manager() -> None:
    assert sockets.state_directory("", {"HOME": "/h"}) == Path("/h/.local/share/ocibuildd")
    assert sockets.state_directory("", {"XDG_DATA_HOME": "/d"}) == Path("/d/ocibuildd")
    assert sockets.state_directory("", {"STATE_DIRECTORY": "/s:/t"}) == Path("/s")
    assert sockets.state_directory("/x", {"STATE_DIRECTORY": "/s"}) == Path("/x")


def test_a_new_socket_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "d.sock"
    with sockets.listen(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run" / "d.sock"
    sockets.listen(path).close()
    with sockets.listen(path), pytest.raises(Conflict, match="another daemon"):
        sockets.listen(path)


def test_a_file_in_the_sockets_place_stays(tmp_path: Path) -> None:
    path = tmp_path / "run" / "d.sock"
    path.parent.mkdir(mode=0o700)
    path.write_text("mine")
    with pytest.raises(Conflict, match="something else"):
        sockets.listen(path)
    assert path.read_text() == "mine"


def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    with pytest.raises(Denied, match="others could replace"):
        sockets.listen(tmp_path / "run" / "d.sock")


def test_a_socket_path_may_be_longer_than_the_kernel_takes(tmp_path: Path) -> None:
    from ocibuild.http import Connection

    path = tmp_path / ("d" * 120) / "d.sock"
    with sockets.listen(path) as listening:
        Connection(str(path)).close()
        sockets.remove(path, listening)
    with pytest.raises(BuildError):
        sockets.listen(tmp_path / "s" / ("x" * 300))


def test_sockets_are_taken_from_the_service_manager_by_its_own_child_only() -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("\0ocibuildd-test-" + os.urandom(4).hex())
        listening.listen()
        script = (
            "import os, sys; from ocibuildd.daemon import notify;"
            "os.environ['LISTEN_PID'] = sys.argv[1] if sys.argv[1] != 'me' else str(os.getpid());"
            "found = notify.inherited_sockets(os.environ); notify.forget(os.environ);"
            "print(len(found), [os.get_inheritable(s.fileno()) for s in found], 'LISTEN_FDS' in os.environ)"
        )
        for who, said in (("me", "1 [False] False"), ("1", "0 [] False")):
            done = subprocess.run(
                [sys.executable, "-c", f"import os; os.dup2({listening.fileno()}, 3); {script}", who],
                env={**os.environ, "LISTEN_FDS": "1"}, pass_fds=[listening.fileno()],
                capture_output=True, text=True, check=True,
            )
            assert done.stdout.strip() == said


def test_notifications_are_datagrams_also_to_abstract_sockets() -> None:
    name = "ocibuildd-test-" + os.urandom(4).hex()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        notifier = notify.Notifier({"NOTIFY_SOCKET": "@" + name, "WATCHDOG_USEC": "4000000"})
        assert notifier.watchdog == 4.0
        notifier.ready("a\nREADY=0")
        assert manager.recv(100) == b"READY=1\nSTATUS=a READY=0"
        notifier.reloading()
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")


def test_without_a_service_manager_nothing_is_said() -> None:
    notifier = notify.Notifier({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"})
    notifier.alive()
    assert notifier.watchdog == 0.0


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord("ocibuildd.x", logging.INFO, "", 0, message, (), None)


def test_a_log_line_stays_one_line_whatever_is_in_it() -> None:
    hostile = "image \n<3>forged \x1b[2J \x9b31m"
    line = logs.JsonFormatter(journal=True).format(_record(hostile))
    assert line.startswith("<6>{")
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line[3:])["message"] == hostile
    plain = logs.PlainFormatter().format(_record(hostile))
    assert "\n" not in plain
    assert "\x1b" not in plain
    assert "\x9b" not in plain


def test_shares_of_the_disk_become_bytes() -> None:
    config = Config(gc=GcConfig(policy=(GcPolicy(max_used_space="10%", keep_duration=5.0),)))
    assert parts.policies(config, 1000)[0].max_used_space == 100
    assert parts.policies(Config(gc=GcConfig(enabled=False)), 1000) == ()
    assert parts.policies(Config(), 1000)


def test_settings_of_builds_come_from_the_configuration() -> None:
    text = b'[limits]\nmemory = "1g"\nstep_timeout = "1m"\n[network]\ndns = ["1.2.3.4"]\n'
    settings = parts.build_settings(parse(text))
    assert settings.limits == {"memory": 1 << 30, "timeout": 60}
    assert settings.dns == {"servers": ["1.2.3.4"]}
