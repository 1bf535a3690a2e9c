"""The command line against a real daemon: what no fake can show."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, heard, until

Context = Callable[..., Path]


def test_a_cache_mount_goes_out_and_comes_in_under_another_id(
    daemon: Any, context: Context, tmp_path: Path
) -> None:
    mount = "FROM busybox\nRUN --mount=type=cache,target=/c,id={} {}\n"
    daemon.ok("build", context(Dockerfile=mount.format("out", "echo kept > /c/f")))
    daemon.ok("cache", "export", "-o", tmp_path / "c.tar", "out")
    daemon.ok("cache", "import", "in", tmp_path / "c.tar")
    assert {"/in", "/out"} <= set(daemon.ok("cache", "mounts", "-q").out.split())
    path = context(Dockerfile=mount.format("in", "cat /c/f && echo more >> /c/f"))
    assert "kept" in daemon.ok("build", "--progress=plain", path).text
    daemon.ok("cache", "clear", "in", "out")
    assert not {"/in", "/out"} & set(daemon.ok("cache", "mounts", "-q").out.split())


def test_a_failed_step_can_be_entered_as_it_was(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nENV A=b\nWORKDIR /w\nRUN echo left > f; exit 3\n")
    failed = daemon("build", path)
    assert failed.code == 3
    assert "ocibuild debug" in failed.err
    inside = daemon.ok("debug", "--", "sh", "-c", "cat f; echo $A; pwd; echo mine > f")
    assert inside.out == "left\nb\n/w\n"
    assert daemon.ok("debug", "--", "cat", "f").out == "left\n"
    daemon.ok("builder", "prune", "-af")
    gone = daemon("debug", "--", "cat", "f")
    assert gone.code == 125
    assert "nothing is kept" in gone.err


def test_input_signals_and_statuses_reach_a_sandbox(daemon: Any) -> None:
    done = daemon("run", "-i", "busybox", "sh", stdin=b"echo from stdin; echo err >&2; exit 7\n")
    assert (done.code, done.out, done.err) == (7, "from stdin\n", "err\n")
    assert daemon("run", "busybox", "/no/such/program").code == 127
    assert daemon("run", "no-such-image").code == 125
    sleeping = daemon.background("run", "busybox", "sh", "-c", "echo begun; exec sleep 600")
    heard(sleeping, "begun")
    sleeping.send_signal(signal.SIGTERM)
    sleeping.communicate(timeout=PATIENCE)
    assert sleeping.returncode == 143


def test_a_terminal_inside_is_a_terminal(daemon: Any) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["ocibuild", "run", "-it", "--rm", "busybox", "sh", "-c", "test -t 0 && test -t 1 && echo yes-$((40+2))"],
        env=daemon.env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )
    os.close(slave)
    said = b""
    while True:
        try:
            data = os.read(master, 1000)
        except OSError:
            break
        said += data
    os.close(master)
    assert process.wait(PATIENCE) == 0, said
    assert b"yes-42" in said


def test_interrupting_a_build_cancels_it(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN echo begun; sleep 60\n")
    client = daemon.background("build", "--progress=plain", path)
    heard(client, "begun\n")
    assert daemon.ok("ps", "-q").out.split()
    client.send_signal(signal.SIGINT)
    out, _ = client.communicate(timeout=PATIENCE)
    assert client.returncode == 130
    assert "cancelled" in out
    assert daemon.ok("ps", "-q").out == ""


def test_outputs_without_a_destination_come_on_standard_output(
    daemon: Any, context: Context, tmp_path: Path
) -> None:
    path = context(Dockerfile="FROM scratch\nCOPY f /f\n", f="data")
    with (tmp_path / "o.tar").open("wb") as out:
        subprocess.run(
            ["ocibuild", "build", "-q", "-o", "-", str(path)], env=daemon.env, stdout=out, check=True
        )
    listing = subprocess.run(
        ["tar", "tf", str(tmp_path / "o.tar")], capture_output=True, text=True, check=True
    )
    assert listing.stdout.split() == ["f"]


def test_explain_diff_verify_and_a_trace_tell_of_a_build(
    daemon: Any, context: Context, tmp_path: Path
) -> None:
    path = context(Dockerfile="FROM busybox\nCOPY f /f\nRUN cat /f > /g\n", f="one")
    daemon.ok("build", "-t", "real/tell", "--trace", tmp_path / "t.json", path)
    assert len(json.loads((tmp_path / "t.json").read_text())["traceEvents"]) > 2
    (path / "f").write_text("two!")
    daemon.ok("build", "-t", "real/tell", path)
    assert "f" in daemon.ok("explain").out
    assert daemon.ok("diff", "real/tell").out == "A /g\n"
    differs = daemon("verify", "--progress=quiet", "real/tell")
    assert differs.code == 1
    assert "changed /g" in differs.out  # its time
    daemon.ok("build", "--reproducible", "-t", "real/tell", path)
    assert "reproduced" in daemon.ok("verify", "--progress=quiet", "real/tell").out


def test_a_check_builds_nothing_and_ends_badly_when_it_finds_something(
    daemon: Any, context: Context
) -> None:
    builds = daemon.ok("images", "-aq").out
    found = daemon("build", "--check", context(Dockerfile="FROM busybox\nMAINTAINER me\n"))
    assert found.code == 1
    assert "MaintainerDeprecated" in found.out
    targets = daemon.ok("build", "--call=targets", context(Dockerfile="FROM busybox AS one\n"))
    assert "one" in targets.out
    assert daemon.ok("images", "-aq").out == builds


def test_a_reload_takes_settings_over_and_keeps_them_when_the_file_is_bad(
    make_daemon: Callable[..., Any],
) -> None:
    daemon = make_daemon()
    config = daemon.root / "ocibuildd.toml"

    def grace() -> str:
        return str(daemon.ok("info", "-f", "{{.settings.grace}}").out.strip())

    config.write_text("[daemon]\ngrace = 7\n")
    daemon.process.send_signal(signal.SIGHUP)
    until("the new setting", lambda: grace() == "7.0")
    config.write_text("[daemon]\ngrace = 'for ever'\n")
    daemon.process.send_signal(signal.SIGHUP)
    assert until("the refusal", lambda: "kept as it was" in daemon.log)
    assert grace() == "7.0"


@pytest.mark.parametrize("argv", [["images"], ["history", "busybox"], ["system", "df", "-v"], ["info"],
                                  ["doctor"], ["ps", "-a"], ["system", "check"], ["gc", "--explain"]])
def test_each_look_at_the_daemon_prints_something(daemon: Any, argv: list[str]) -> None:
    done = daemon(*argv)
    assert done.code in (0, 1)
    assert done.out
    assert "Traceback" not in done.err
