"""Intermediate images, failed steps and `explain`, as people meet them at the command line."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import heard, until

Context = Callable[..., Path]
DOCKERFILE = """\
FROM busybox
ENV COLOUR=green
WORKDIR /work
RUN echo first > first && head -c 5000 /dev/zero > zeros
COPY f /f
RUN rm first && echo more >> /f
"""


@pytest.fixture(scope="module")
def own(make_daemon: Callable[..., Any], busybox_tar: Path) -> Iterator[Any]:
    """A daemon in which only this module's builds are."""
    daemon = make_daemon()
    daemon.ok("import", "--change", 'CMD ["sh"]', "--change", "ENV PATH=/bin", busybox_tar, "busybox")
    return daemon


def steps(daemon: Any, image: str) -> dict[str, str]:
    """Instruction → id of the image after it."""
    lines = daemon.ok("history", "--format", "json", "--no-trunc", image).out.splitlines()
    return {line["CreatedBy"]: line["ID"] for line in map(json.loads, lines)}


def step(daemon: Any, image: str, word: str) -> str:
    return next(ident for text, ident in steps(daemon, image).items() if word in text)


@pytest.fixture(scope="module")
def image(own: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("c")
    (path / "Dockerfile").write_text(DOCKERFILE)
    (path / "f").write_text("f")
    own.ok("build", "-t", "inter/app", path)
    return "inter/app"


def test_images_a_lists_every_step(own: Any, image: str) -> None:
    few = own.ok("images", "-q").out.split()
    every = own.ok("images", "-a", "-q").out.split()
    assert len(every) >= len(few) + 4
    assert image in own.ok("images").out


def test_every_step_can_be_run(own: Any, image: str) -> None:
    after = step(own, image, "echo first")
    run = own.ok("run", "--rm", after, "sh", "-c", "pwd; cat first; echo $COLOUR; test ! -e /f")
    assert run.out.split() == ["/work", "first", "green"]


def test_a_step_can_be_named_and_tagged(own: Any, image: str) -> None:
    own.ok("tag", step(own, image, "COPY"), "inter/copied")
    assert own.ok("run", "inter/copied", "cat", "/f").out == "f"


def in_terminal(daemon: Any, args: list[str], lines: list[str], end: str, seconds: float = 20) -> str:
    """Run ``ocibuild`` in a pseudo-terminal, type lines, and give what was shown."""
    pid, master = pty.fork()
    if not pid:
        os.execvpe("ocibuild", ["ocibuild", *args], daemon.env)
    shown, deadline, todo = b"", time.monotonic() + seconds, list(lines)
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 0.2)[0]:
                if todo and (b"# " in shown or b"$ " in shown):
                    os.write(master, todo.pop(0).encode() + b"\n")
                continue
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
    finally:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(master)
    assert end in shown.decode(errors="replace"), shown
    assert os.waitstatus_to_exitcode(status) == 0, shown
    return shown.decode(errors="replace")


def test_run_it_gives_a_terminal_in_a_step(own: Any, image: str) -> None:
    after = step(own, image, "echo first")
    shown = in_terminal(own, ["run", "-it", after], ["tty; cat first", "exit"], "first")
    assert "/dev/" in shown
    assert "not a tty" not in shown


FAILS = """\
FROM busybox
ENV COLOUR=blue
WORKDIR /here
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/fast \
    --mount=type=bind,from=busybox,source=/etc,target=/mnt \
    export INNER=1; echo left > behind; echo kept > /cache/kept; exit 3
"""


def test_debug_enters_the_step_that_failed(own: Any, context: Context) -> None:
    failed = own("build", "-t", "inter/fails", context(Dockerfile=FAILS))
    assert failed.code != 0
    assert "ocibuild debug" in failed.text
    script = "pwd; cat behind; echo $COLOUR; cat /cache/kept; head -1 /mnt/passwd; mount"
    build = json.loads(own.ok("builds", "inspect").out)["id"]
    inside = own.ok("debug", build, "--", "sh", "-c", script)
    lines = inside.out.splitlines()
    assert lines[:4] == ["/here", "left", "blue", "kept"]
    assert lines[4].startswith("root:")
    assert " /fast " in inside.out


def test_debug_gives_a_terminal(own: Any, context: Context) -> None:
    assert own("build", context(Dockerfile="FROM busybox\nRUN echo here > /here; false\n")).code
    in_terminal(own, ["debug"], ["cat /here; tty", "exit"], "/dev/")


def test_the_images_before_a_failed_step_are_there(own: Any, context: Context) -> None:
    text = "FROM busybox\nRUN echo unusual-step > /u\nRUN false\n"
    assert own("build", context(Dockerfile=text)).code

    def steps() -> list[str]:
        every = own.ok("images", "-a", "-q", "--no-trunc").out.split()[:3]
        return [own.ok("history", "--no-trunc", image).out for image in every]

    assert until("its image", lambda: any("unusual-step" in text for text in steps()))


def test_diff_lists_what_a_step_did_with_sizes(own: Any, image: str) -> None:
    last = own.ok("diff", "--size", image).out.splitlines()
    assert any(line.startswith("D /work/first") for line in last)
    assert any(line.startswith("C /f") and "6" in line for line in last)
    both = own.ok("diff", "--size", "busybox", step(own, image, "echo first")).out
    assert "A /work/zeros" in both
    assert "5kB" in both.replace(" ", "") or "5.0" in both or "5,000" in both or "5000" in both, both


def test_history_tree_shows_branches(own: Any, image: str) -> None:
    tree = own.ok("history", "--tree", image)
    assert "COPY" in tree.out
    assert "echo first" in tree.out


def test_shared_layers_count_once(own: Any, image: str) -> None:
    own.ok("tag", image, "inter/again")
    before = df(own)
    own.ok("tag", step(own, image, "COPY"), "inter/third")
    assert df(own) == before


def df(daemon: Any) -> int:
    return int(json.loads(daemon.ok("system", "df", "--format", "json").out)["layers"])


# --- explain -----------------------------------------------------------------------------------


def explained(daemon: Any, path: Path, *options: str) -> str:
    """Build in plain progress; what it and `explain` say."""
    shown = daemon.ok("build", "--progress=plain", *options, path).text
    return str(shown + "\n" + daemon.ok("explain").out)


def test_explain_names_what_changed(own: Any, context: Context) -> None:
    base = "FROM busybox\nARG WHO=a\nCOPY d /d\nRUN echo $WHO > /who\n"
    path = context(Dockerfile=base, **{"d/one": "1", "d/two": "2"})
    assert "never ran before" in explained(own, path)
    first = json.loads(own.ok("builds", "inspect").out)["id"]
    hit = explained(own, path)
    assert "CACHED" in hit
    assert first in own.ok("explain").out
    (path / "d" / "one").write_text("changed")
    assert "d/one" in explained(own, path) or "/one" in own.ok("explain").out
    (path / "d" / "three").write_text("3")
    text = explained(own, path)
    assert "three" in text
    assert "added" in text
    (path / "d" / "two").unlink()
    text = explained(own, path)
    assert "two" in text
    assert "removed" in text
    os.chmod(path / "d" / "one", 0o700)
    text = explained(own, path)
    assert "one" in text
    assert "mode" in text


def test_explain_names_arguments_instructions_and_options(own: Any, context: Context) -> None:
    base = "FROM busybox\nARG WHO=a\nRUN echo args $WHO > /who\nRUN cat /who\n"
    path = context(Dockerfile=base)
    explained(own, path)
    text = explained(own, path, "--build-arg", "WHO=b")
    assert "WHO" in text
    assert "parent" in text or "echo args" in text
    (path / "Dockerfile").write_text(base.replace("cat /who", "cat -n /who"))
    text = explained(own, path, "--build-arg", "WHO=b")
    assert "cat -n /who" in text
    assert "--no-cache" in explained(own, path, "--no-cache")


def test_explain_names_the_rule_that_evicted(own: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN echo to be evicted > /evicted\n")
    explained(own, path)
    own.ok("builder", "prune", "-a", "-f")
    text = explained(own, path)
    assert "its record was removed from the cache at 20" in text
    assert "by prune" in text


def test_an_evicted_step_says_so_though_another_of_its_kind_is_there(
    own: Any, context: Context
) -> None:
    path = context(Dockerfile="FROM busybox\nARG N=1\nRUN echo $N of a kind > /f\n")
    own.ok("build", path)
    own.ok("builder", "prune", "-a", "-f")
    own.ok("build", "--build-arg", "N=2", path)
    assert "its record was removed from the cache at 20" in explained(own, path)


def test_explain_takes_an_image_and_a_steps_number_and_marks_what_failed(
    own: Any, context: Context
) -> None:
    own.ok("build", "-t", "told", context(Dockerfile="FROM busybox\nRUN echo a\nRUN echo b > /b\n"))
    bad = context(Dockerfile="FROM busybox\nRUN echo 2 of 3\nRUN exit 9\n")
    assert own("build", bad).code == 9
    assert "echo b > /b" in own.ok("explain", "told").out
    (line,) = [line for line in own.ok("explain", "3").out.splitlines() if line[0] != " "]
    assert line.startswith("FAILED [3/3] RUN exit 9")
    assert "no step 'RUN nowhere'" in own("explain", "RUN nowhere").text


# --- early cutoff, sharing, cancelling ----------------------------------------------------------


def test_a_step_with_the_same_output_lets_the_rest_be_cached(own: Any, context: Context) -> None:
    base = "FROM busybox\nCOPY f /in\nRUN sort /in > /out && rm /in\nRUN cat /out > /copy\nRUN wc /copy\n"
    path = context(Dockerfile=base.replace("COPY f /in\nRUN sort /in", "RUN --mount=type=bind,target=/c sort /c/f")
                   .replace(" && rm /in", ""), f="b\na\n")
    own.ok("build", path)
    (path / "f").write_text("a\nb\n")
    text = own.ok("build", "--progress=plain", path).text
    assert text.count("CACHED") == 2, text


def test_identical_work_of_two_builds_runs_once(own: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN --mount=type=cache,id=once,target=/c echo x >> /c/runs; sleep 1; cat /proc/sys/kernel/random/uuid > /id\n")
    two = [own.background("build", "-q", path) for _ in range(2)]
    ids = {build.communicate(timeout=60)[0].strip() for build in two}
    assert [build.returncode for build in two] == [0, 0]
    assert len(ids) == 1
    counted = context(Dockerfile="FROM busybox\nRUN --mount=type=cache,id=once,target=/c wc -l < /c/runs\n")
    assert " 1\n" in own.ok("build", "--progress=plain", counted).text


def test_a_cancelled_build_takes_down_only_its_own_work(own: Any, context: Context) -> None:
    path = context(Dockerfile="FROM busybox\nRUN echo begun; sleep 3; cat /proc/sys/kernel/random/uuid > /shared\n")
    first = own.ok("build", "--detach", path).out.strip()
    second = own.background("build", "--progress=plain", "-t", "inter/shared", path)
    heard(second, "begun\n")
    own.ok("cancel", first)
    assert json.loads(own.ok("builds", "inspect", first).out)["state"] == "cancelled"
    text = second.communicate(timeout=60)[0]
    assert second.returncode == 0, text
    alone = own.ok("build", "--detach", context(Dockerfile="FROM busybox\nRUN echo begun; sleep 6000\n")).out.strip()
    until("its step runs", lambda: "begun\n" in own.ok("logs", alone).text)
    own.ok("cancel", alone)
    assert json.loads(own.ok("builds", "inspect", alone).out)["state"] == "cancelled"
