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


def shape(text: str) -> list[str]:
    """What is printed, with ids blotted out and without the order of a step's two streams."""
    lines = [re.sub(r"\b[0-9a-f]{12}\b", "ID", line) for line in text.split("\n")]
    return [line.replace("\x1b[91m", "").replace("\x1b[0m", "") for line in lines if line.strip()]


def test_each_line_is_the_one_that_dockerd_prints(docker: Any, dockerfile: Files) -> None:
    path = dockerfile(FULL, **{"sub/f": "x"})
    lines = shape(docker.ok("build", "--no-cache", "-t", "cap/lines", path).out)
    assert sorted(lines[1:]) == sorted(
        [
            *("Step 1/7 : FROM busybox", " ---> ID"),
            *("Step 2/7 : ARG A=1", " ---> Running in ID", "Removing intermediate container ID", " ---> ID"),
            *("Step 3/7 : ENV X=$A", " ---> Running in ID", "Removing intermediate container ID", " ---> ID"),
            *('Step 4/7 : RUN echo "out $X"; echo err >&2', " ---> Running in ID", "out 1", "err"),
            *("Removing intermediate container ID", " ---> ID"),
            *("Step 5/7 : COPY sub /sub", " ---> ID"),
            *("Step 6/7 : LABEL k=v", " ---> Running in ID", "Removing intermediate container ID", " ---> ID"),
            *('Step 7/7 : CMD ["sh"]', " ---> Running in ID", "Removing intermediate container ID", " ---> ID"),
            *("Successfully built ID", "Successfully tagged cap/lines:latest"),
        ]
    )  # fmt: skip
    assert lines[0].startswith("Sending build context to Docker daemon ")


def test_a_failing_build_ends_after_what_ran(docker: Any, dockerfile: Files) -> None:
    done = docker("build", dockerfile("FROM busybox\nRUN exit 3\n"))
    assert done.code == 3
    expected = ["Step 1/2 : FROM busybox", " ---> ID", "Step 2/2 : RUN exit 3", " ---> Running in ID"]
    assert shape(done.out)[1:] == expected
    assert done.err.endswith("\nThe command '/bin/sh -c exit 3' returned a non-zero code: 3\n")


def test_labels_and_tags_of_the_command_line_come_last(docker: Any, dockerfile: Files) -> None:
    path = dockerfile("FROM busybox\nENV L=1\n")
    out = docker.ok("build", "--label", "zz=1", "-t", "cap/one", "-t", "cap/two:x", path).out
    assert "Step 3/3 : LABEL zz=1\n" in out
    assert out.endswith("Successfully tagged cap/one:latest\nSuccessfully tagged cap/two:x\n")


def test_a_dockerfile_on_stdin_goes_with_a_context(docker: Any, dockerfile: Files) -> None:
    path = dockerfile("FROM nosuch\n", f="here\n")
    text = b"FROM busybox\nCOPY . /all\nRUN cat /all/f; ls -a /all\n"
    out = docker.ok("build", "--no-cache", "-f", "-", path, stdin=text).out
    assert "\nhere\n" in out
    assert ".dockerfile." not in out.split("Running in")[1]


def test_security_options_are_refused_as_by_dockerd(docker: Any, dockerfile: Files) -> None:
    done = docker("build", "--security-opt", "label=x", dockerfile("FROM busybox\n"))
    assert done.code == 1
    assert done.err.endswith(
        "Error response from daemon: The daemon on this platform does not support setting security options on build\n"
    )


def test_arguments_before_the_first_from_are_steps(docker: Any, dockerfile: Files) -> None:
    out = docker.ok("build", dockerfile("ARG B=busybox\nFROM $B\nENV first=1\n")).out
    assert "\nStep 1/3 : ARG B=busybox\nStep 2/3 : FROM $B\n ---> " in out
    assert "\nStep 3/3 : ENV first=1\n" in out


def test_an_unknown_target_is_named(docker: Any, dockerfile: Files) -> None:
    done = docker("build", "--target", "0x", dockerfile("FROM busybox\n"))
    assert done.code == 1
    assert "Error response from daemon: failed to reach build target 0x in Dockerfile\n" in done.err


def test_squash_and_cache_from_are_taken(docker: Any, dockerfile: Files) -> None:
    path = dockerfile("FROM busybox\nRUN echo a > /a\nRUN echo b > /b\n")
    docker.ok("build", "--squash", "--cache-from", "busybox", "-t", "cap/squashed", path)
    layers = json.loads(docker.ok("inspect", "cap/squashed").out)[0]["RootFS"]["Layers"]
    assert len(layers) == 2
    assert "Using cache" not in docker.ok("build", "--cache-from", "nosuch", path).out


def test_what_the_client_cannot_fetch_fails_there(docker: Any) -> None:
    done = docker("build", "https://127.0.0.1:1/x.tar.gz")
    assert done.code == 1
    assert "unable to download remote context" in done.err


def test_buildkit_without_buildx_is_the_clients_error(docker: Any, dockerfile: Files) -> None:
    asked = type(docker)(docker.program, {**docker.env, "DOCKER_BUILDKIT": "1"})
    done = asked("build", dockerfile("FROM busybox\n"))
    if done.code == 0:
        pytest.skip("the docker CLI has buildx")
    assert "buildx component is missing or broken" in done.err
