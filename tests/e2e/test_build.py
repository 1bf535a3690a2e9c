"""A whole build through the daemon and the CLI, as a newcomer would do it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patience import PATIENCE, heard

Context = Callable[..., Path]

MULTI_STAGE = """\
FROM busybox AS builder
WORKDIR /src
COPY in.txt .
RUN tr a-z A-Z < in.txt > /out.txt
FROM busybox AS unused
RUN exit 9
FROM busybox
ENV GREETING=hello
COPY --from=builder /out.txt /result.txt
USER app
CMD ["cat", "/result.txt"]
"""


def test_a_multi_stage_build_runs_and_its_image_does_what_it_says(
    daemon: Any, context: Context
) -> None:
    path = context(Dockerfile=MULTI_STAGE, **{"in.txt": "made without root\n"})
    built = daemon.ok("build", "-t", "e2e/multi", path)
    assert "exit 9" not in built.text
    run = daemon.ok("run", "--rm", "e2e/multi")
    assert run.out == "MADE WITHOUT ROOT\n"


def test_a_second_build_executes_nothing_and_says_cached(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nCOPY f /f\nRUN date > /when\nRUN wc -c /f\n", f="of this test alone")
    first = daemon.ok("build", "--progress=plain", "-t", "e2e/cached", path)
    assert "CACHED" not in first.text
    second = daemon.ok("build", "--progress=plain", "-t", "e2e/cached", path)
    assert second.text.count("CACHED") == 3
    assert image_id(daemon, "e2e/cached") == image_id(daemon, "e2e/cached")


def image_id(daemon: Any, name: str) -> str:
    return str(json.loads(daemon.ok("inspect", name).out)[0]["Id"])


def test_a_changed_file_runs_exactly_what_depends_on_it(daemon: Any, context: Context) -> None:
    dockerfile = "FROM busybox\nRUN echo before\nCOPY f /f\nRUN cat /f\n"
    path = context(Dockerfile=dockerfile, f="one", other="x")
    daemon.ok("build", "--progress=plain", path)
    (path / "other").write_text("not copied")
    assert daemon.ok("build", "--progress=plain", path).text.count("CACHED") == 3
    (path / "f").write_text("two")
    again = daemon.ok("build", "--progress=plain", path)
    assert again.text.count("CACHED") == 1


def test_a_touched_file_is_the_same_file(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nCOPY f /f\nRUN cat /f\n", f="same")
    daemon.ok("build", path)
    os.utime(path / "f", (1, 1))
    assert daemon.ok("build", "--progress=plain", path).text.count("CACHED") == 2


def test_a_file_changed_with_size_and_mtime_restored_is_seen(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nCOPY f /f\nRUN cat /f\n", f="left")
    daemon.ok("build", path)
    stat = (path / "f").stat()
    (path / "f").write_text("good")
    os.utime(path / "f", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert "good" in daemon.ok("build", "--progress=plain", path).text


def test_an_argument_runs_what_uses_it(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN echo first\nARG WHO=a\nRUN echo hello $WHO\n")
    assert "hello a" in daemon.ok("build", "--progress=plain", path).text
    other = daemon.ok("build", "--progress=plain", "--build-arg", "WHO=b", path).text
    assert "hello b" in other
    assert other.count("CACHED") == 1


def test_intermediate_images_are_shown_hidden_tagged_and_built_from(
    daemon: Any, context: Context
) -> None:
    path = context(Dockerfile="FROM busybox\nRUN echo one > /one\nRUN echo two > /two\nLABEL k=v\n")
    daemon.ok("build", "-t", "e2e/steps", path)
    everything = daemon.ok("images", "-a", "--no-trunc", "-q").out.split()
    shown = daemon.ok("images", "--no-trunc", "-q").out.split()
    hidden = [image for image in everything if image not in shown]
    assert len(hidden) >= 2
    history = daemon.ok("history", "--no-trunc", "e2e/steps").out
    assert "echo one > /one" in history
    step = next(
        word
        for line in history.splitlines()
        if "echo one" in line
        for word in line.split()
        if len(word) >= 12
    )
    daemon.ok("tag", step.removeprefix("sha256:")[:12], "e2e/step-one")
    assert daemon.ok("run", "--rm", "e2e/step-one", "cat", "/one").out == "one\n"
    assert daemon("run", "--rm", "e2e/step-one", "cat", "/two").code == 1


def test_labels_targets_iidfile_and_quiet_do_as_docker(
    daemon: Any, context: Context, tmp_path: Path
) -> None:
    path = context(Dockerfile="FROM busybox AS a\nRUN echo a\nFROM a AS b\nRUN exit 3\n")
    iid = tmp_path / "iid"
    done = daemon.ok("build", "-q", "--target", "a", "--label", "x=y", "--iidfile", iid, path)
    assert done.out.strip() == iid.read_text().strip()
    assert done.out.startswith("sha256:")
    assert json.loads(daemon.ok("inspect", done.out.strip()).out)[0]["Config"]["Labels"] == {
        "x": "y"
    }


def test_a_dockerfile_on_stdin_builds_without_a_context(daemon: Any) -> None:
    built = daemon.ok(
        "build",
        "--progress=plain",
        "-t",
        "e2e/stdin",
        "-",
        stdin=b"FROM busybox\nRUN echo from stdin\n",
    )
    assert "from stdin" in built.text


def test_a_tar_on_stdin_is_a_context(daemon: Any, context: Context) -> None:
    import io
    import tarfile

    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        for name, data in {
            "Dockerfile": b"FROM busybox\nCOPY f /f\nRUN cat /f\n",
            "f": b"in a tar\n",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    built = daemon.ok("build", "--progress=plain", "-", stdin=body.getvalue())
    assert "in a tar" in built.text


def test_dockerignore_hides_a_file_from_copy(daemon: Any, context: Context) -> None:
    path = context(
        **{
            "Dockerfile": "FROM busybox\nCOPY . /all\nRUN ls /all\n",
            ".dockerignore": "secret*\n!secret.ok\n",
            "secret.txt": "s",
            "secret.ok": "o",
        }
    )
    text = daemon.ok("build", "--progress=plain", path).text
    assert "secret.ok" in text
    assert "secret.txt" not in text


def test_independent_stages_run_at_the_same_time(daemon: Any, context: Context) -> None:
    # Each waits for the other's start: one after the other would never end.
    stage = "FROM busybox AS {0}\nRUN --mount=type=cache,target=/c,id=meet touch /c/{0} && for i in $(seq 600); do [ -e /c/{1} ] && exit 0; sleep 0.1; done; exit 1\n"
    path = context(
        Dockerfile=stage.format("a", "b")
        + stage.format("b", "a")
        + "FROM busybox\nCOPY --from=a /bin/sh /a\nCOPY --from=b /bin/sh /b\n"
    )
    built = daemon.ok("build", "--progress=plain", path)
    assert "0 of 4 steps cached" in built.text


def test_progress_json_is_one_event_a_line(daemon: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN echo hello json\n")
    lines = daemon.ok("build", "--progress=json", path).text.splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert events[-1]["type"] == "build.done"
    assert [event["n"] for event in events] == sorted(event["n"] for event in events)


def test_a_build_survives_the_daemon_being_asked_to_end(
    make_daemon: Callable[..., Any], busybox_tar: Path, context: Context
) -> None:
    daemon = make_daemon()
    daemon.ok("import", busybox_tar, "busybox")
    path = context(Dockerfile="FROM busybox\nRUN echo begun && sleep 2 && echo drained\n")
    client = daemon.background("build", "--progress=plain", path)
    heard(client, "begun\n")
    daemon.stop()
    out, _ = client.communicate(timeout=PATIENCE)
    assert client.returncode == 0, out
    assert "drained\n" in out
