"""Bad input gets a clear error, and nothing is lost or left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, heard, until, within

Context = Callable[..., Path]


@pytest.mark.parametrize(
    ("dockerfile", "words"),
    [
        ("FROM busybox\nRNU true\n", ["RNU", "RUN", "Dockerfile:2"]),
        ("FROM busybox\nCOPY only-one\n", ["COPY", "Dockerfile:2"]),
        ("FROM busybox\nENV\n", ["ENV", "Dockerfile:2"]),
        ("", ["cannot be empty"]),
        ("FROM busybox\nCOPY nothing-here /x\n", ["nothing-here", "not found"]),
        ("FROM busybox\nCOPY --from=nostage /a /b\n", ["nostage"]),
        ("RUN true\n", ["no build stage"]),
    ],
)
def test_a_dockerfile_that_cannot_be_built_says_where_and_why(
    daemon: Any, context: Context, dockerfile: str, words: list[str]
) -> None:
    failed = daemon("build", "--progress=plain", context(Dockerfile=dockerfile))
    assert failed.code == 1
    for word in words:
        assert word.lower() in failed.text.lower(), failed.text


def test_a_missing_dockerfile_is_named(daemon: Any, tmp_path: Path) -> None:
    failed = daemon("build", tmp_path)
    assert failed.code == 1
    assert "Dockerfile" in failed.err
    assert str(tmp_path) in failed.err


def test_an_unknown_target_lists_what_there_is(daemon: Any, context: Context) -> None:
    failed = daemon(
        "build", "--target", "buidler", context(Dockerfile="FROM busybox AS builder\nRUN true\n")
    )
    assert failed.code == 1
    assert "builder" in failed.err


def test_a_missing_copy_source_says_which_pattern_hides_it(daemon: Any, context: Context) -> None:
    path = context(
        **{
            "Dockerfile": "FROM busybox\nCOPY app.key /\n",
            ".dockerignore": "*.key\n",
            "app.key": "k",
        }
    )
    failed = daemon("build", path)
    assert failed.code == 1
    assert "*.key" in failed.text
    assert ".dockerignore" in failed.text


def test_a_failing_step_gives_its_exit_code_its_last_lines_and_its_line(
    daemon: Any, context: Context
) -> None:
    failed = daemon(
        "build",
        "--progress=plain",
        context(Dockerfile="FROM busybox\n\nRUN echo last words; exit 42\n"),
    )
    assert failed.code == 42
    assert "last words" in failed.text
    assert "Dockerfile:3" in failed.text
    assert "^" in failed.err


def test_a_missing_interpreter_is_named(daemon: Any, context: Context) -> None:
    failed = daemon("build", context(Dockerfile='FROM busybox\nRUN ["/usr/bin/python9", "-V"]\n'))
    assert failed.code == 127
    assert "python9" in failed.err


def test_an_unreachable_registry_is_the_networks_reason_not_the_dockerfiles(
    daemon: Any, context: Context
) -> None:
    failed = daemon(
        "build",
        context(
            Dockerfile="FROM 127.0.0.1:1/alpine\nRUN apk add --update redis\nCMD redis-server\n"
        ),
    )
    assert failed.code == 1
    assert "127.0.0.1:1" in failed.err
    assert "refused" in failed.err.lower() or "connect" in failed.err.lower()


def test_a_local_image_of_another_platform_is_mentioned_when_the_registry_fails(
    daemon: Any, context: Context
) -> None:
    daemon.ok("tag", "busybox", "localhost:1/bad/box")
    path = context(Dockerfile="FROM localhost:1/bad/box\n")
    failed = daemon("build", "--platform=linux/s390x", path)
    assert failed.code == 1
    assert "the local image of that name is for linux/amd64, linux/s390x was wanted" in failed.text


def test_a_truncated_tar_on_stdin_is_refused(daemon: Any) -> None:
    failed = daemon("build", "-", stdin=b"\x1f\x8b\x08\x00" + b"\0" * 30)
    assert failed.code == 1
    assert failed.err


def test_an_unknown_flag_gets_a_suggestion(daemon: Any, tmp_path: Path) -> None:
    failed = daemon("build", "--no-cahce", tmp_path)
    assert failed.code in {1, 2, 125}
    assert "--no-cache" in failed.err


def test_an_unknown_command_gets_a_suggestion(daemon: Any) -> None:
    failed = daemon("biuld")
    assert failed.code != 0
    assert "build" in failed.err


def processes(daemon: Any) -> list[str]:
    listing = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    return [
        line
        for line in listing.splitlines()
        if "sleep 98765" in line and "ps -eo" not in line and "ocibuild" not in line
    ]


def test_ctrl_c_ends_the_build_and_everything_in_it(daemon: Any, context: Context) -> None:
    client = daemon.background(
        "build", context(Dockerfile="FROM busybox\nRUN (sleep 98765 &) ; sleep 98765\n")
    )
    until("its step runs", lambda: processes(daemon))
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=PATIENCE)
    assert client.returncode != 0
    assert within(2, lambda: processes(daemon) == [])


def test_a_killed_daemon_starts_clean_with_its_cache_whole(
    make_daemon: Callable[..., Any], busybox_tar: Path, context: Context
) -> None:
    daemon = make_daemon()
    daemon.ok("import", busybox_tar, "busybox")
    path = context(Dockerfile="FROM busybox\nRUN echo kept > /kept\nRUN sleep 98764\n")
    client = daemon.background("build", "--progress=plain", path)
    heard(client, "why: it never ran before")
    # A step's record is on the disk a moment later, and those of all when any build has ended.
    daemon.ok("build", "-", stdin=b"FROM busybox\nRUN true\n")
    os.killpg(daemon.process.pid, signal.SIGKILL)
    daemon.process.wait()
    daemon.process = None
    client.communicate(timeout=PATIENCE)
    assert client.returncode != 0
    daemon.start()
    (path / "Dockerfile").write_text("FROM busybox\nRUN echo kept > /kept\nRUN cat /kept\n")
    again = daemon.ok("build", "--progress=plain", path)
    assert "CACHED" in again.text
    assert daemon.ok("system", "check").code == 0
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 98764" not in left.replace("RUN sleep 98764", "")


def test_two_daemons_never_share_a_state_directory(make_daemon: Callable[..., Any]) -> None:
    daemon = make_daemon()
    second = subprocess.run(
        [
            "ocibuildd",
            "--state-dir",
            str(daemon.root / "state"),
            "--socket",
            str(daemon.root / "run" / "other.sock"),
        ],
        env=daemon.env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert second.returncode != 0
    assert str(daemon.process.pid) in second.stderr or "in use" in second.stderr


def test_events_of_a_failed_build_can_be_replayed(daemon: Any, context: Context) -> None:
    failed = daemon("build", "--progress=json", context(Dockerfile="FROM busybox\nRUN exit 5\n"))
    events = [json.loads(line) for line in failed.text.splitlines() if line.startswith("{")]
    assert events[-1]["type"] == "build.failed"
    assert events[-1]["error"]["details"]["exit_code"] == 5
