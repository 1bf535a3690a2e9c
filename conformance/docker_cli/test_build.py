"""docker build, as with dockerd: stream, exit status, flags."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Files = Callable[..., Path]
FULL = """\
FROM busybox
ARG A=1
ENV X=$A
RUN echo "out $X"; echo err >&2
COPY sub /sub
LABEL k=v
CMD ["sh"]
"""


def test_build_prints_what_the_classic_builder_prints(docker: Any, dockerfile: Files) -> None:
    path = dockerfile(FULL, **{"sub/f": "x", ".dockerignore": "ignored\n", "ignored": "y"})
    done = docker.ok(
        "build", "--no-cache", "--build-arg", "A=3", "--build-arg", "NOVAL", "-t", "cap/one", path
    )
    for number, text in enumerate(FULL.splitlines(), 1):
        assert f"Step {number}/7 : {text}\n" in done.out
    assert "out 3\n" in done.out
    assert "\x1b[91merr\n\x1b[0m" in done.out
    assert "One or more build-args [NOVAL] were not consumed" in done.out
    assert re.search(
        r"Successfully built [0-9a-f]{12}\nSuccessfully tagged cap/one:latest\n\Z", done.out
    )
    assert len(re.findall(r"^ ---> [0-9a-f]{12}$", done.out, re.MULTILINE)) == 7


def test_a_second_build_says_using_cache_for_each_step(docker: Any, dockerfile: Files) -> None:
    path = dockerfile("FROM busybox\nENV A=1\nRUN touch a\nRUN touch b\n")
    docker.ok("build", path)
    assert docker.ok("build", path).out.count(" ---> Using cache\n") == 3


def test_the_exit_status_of_a_failing_step_is_the_clis(docker: Any, dockerfile: Files) -> None:
    done = docker("build", dockerfile("FROM busybox\nRUN exit 3\n"))
    assert done.code == 3
    assert "The command '/bin/sh -c exit 3' returned a non-zero code: 3" in done.err


def test_a_bad_instruction_is_refused_before_anything_is_streamed(
    docker: Any, dockerfile: Files
) -> None:
    done = docker("build", dockerfile("FROM busybox\nBOGUS x\n"))
    assert done.code == 1
    assert re.search(
        r"Error response from daemon: dockerfile parse error (on )?line 2: unknown instruction: BOGUS",
        done.err,
    )


def test_an_unknown_target_is_refused(docker: Any, dockerfile: Files) -> None:
    done = docker("build", "--target", "nope", dockerfile("FROM busybox\n"))
    assert done.code == 1
    assert "nope" in done.err


def test_quiet_prints_the_id_alone(docker: Any, dockerfile: Files, tmp_path: Path) -> None:
    iid = tmp_path / "iid"
    done = docker.ok("build", "-q", "--iidfile", iid, dockerfile("FROM busybox\nRUN echo quiet\n"))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", done.out)
    assert iid.read_text() == done.out  # the CLI writes what it prints


def test_a_dockerfile_outside_the_context_is_read_and_not_copied(
    docker: Any, dockerfile: Files, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = dockerfile("FROM scratch\n", f="x")
    other = tmp_path_factory.mktemp("outside") / "Other"
    other.write_text("FROM busybox\nCOPY . /all\nRUN ls -a /all\n")
    done = docker.ok("build", "--no-cache", "-f", other, path)
    assert ".dockerfile." not in done.out.split("Running in")[1]


def test_a_dockerfile_on_stdin_and_a_tar_on_stdin(docker: Any) -> None:
    assert (
        "from stdin"
        in docker.ok("build", "--no-cache", "-", stdin=b"FROM busybox\nRUN echo from stdin\n").out
    )
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode=mode) as archive:  # type: ignore[call-overload]
            data = f"FROM busybox\nRUN echo in a {mode}\n".encode()
            info = tarfile.TarInfo("Dockerfile")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        assert f"in a {mode}" in docker.ok("build", "--no-cache", "-", stdin=body.getvalue()).out


def test_many_options_at_once(docker: Any, dockerfile: Files) -> None:
    path = dockerfile("FROM busybox AS one\nRUN grep h /etc/hosts\nFROM one AS two\nRUN exit 1\n")
    done = docker.ok(
        "build",
        "--no-cache",
        "--rm=false",
        "--force-rm",
        "--add-host",
        "h.example:1.2.3.4",
        "--network",
        "none",
        "--target",
        "one",
        "--label",
        "zz=1",
        "--memory",
        "100m",
        "--shm-size",
        "64m",
        "--ulimit",
        "nofile=1024:2048",
        "--compress",
        "-t",
        "cap/two:x",
        "-t",
        "cap/three",
        path,
    )
    assert "1.2.3.4" in done.out
    assert "Successfully tagged cap/two:x" in done.out
    assert json.loads(docker.ok("inspect", "cap/two:x").out)[0]["Config"]["Labels"] == {"zz": "1"}


def test_mounts_and_heredocs_work_although_the_classic_builder_had_none(
    docker: Any, dockerfile: Files
) -> None:
    text = "FROM busybox\nRUN --mount=type=tmpfs,target=/t <<EOF\ntouch /t/x\nls /t\nEOF\n"
    assert "x\n" in docker.ok("build", "--no-cache", dockerfile(text)).out


def test_a_killed_client_cancels_the_build(docker: Any, dockerfile: Files) -> None:
    client = subprocess.Popen(
        [docker.program, "build", str(dockerfile("FROM busybox\nRUN sleep 4242\n"))],
        env=docker.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def running() -> bool:
        listing = subprocess.run(
            ["ps", "-eo", "args"], capture_output=True, text=True, check=True
        ).stdout
        return any(line.startswith("sleep 4242") for line in listing.splitlines())

    deadline = time.monotonic() + 15
    while not running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running()
    client.send_signal(signal.SIGKILL)
    client.wait()
    deadline = time.monotonic() + 3
    while running() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running()
