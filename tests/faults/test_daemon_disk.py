"""The daemon's disk is full, fails or is read-only; it has no descriptors left: a clear error, and it lives."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_life import Victim
from patience import until

SIZE = 96 << 20
TMPFS = 'mount -t tmpfs -o size=$1,mode=700 tmpfs "$2" && shift 2 && exec "$@"'


def in_own_mounts(directory: Path, size: int) -> list[str]:
    """The beginning of a command that sees a small disk of its own at ``directory``."""
    script = ["sh", "-c", TMPFS, "sh", str(size), str(directory)]
    if os.geteuid() == 0:
        return ["unshare", "--mount", *script]
    return ["unshare", "--user", "--map-root-user", "--map-auto", "--mount", *script]


@pytest.fixture(scope="module")
def small(
    make_daemon: Callable[..., Any], busybox_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A daemon whose state is on a disk of 96 MB."""
    daemon = make_daemon("[gc]\nballast = 4194304\n", start=False)
    (daemon.root / "state").mkdir(mode=0o700)
    before = in_own_mounts(daemon.root / "state", SIZE)
    tried = subprocess.run([*before, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")
    daemon.before = before
    daemon.start()
    daemon.ok("import", "--change", "ENV PATH=/bin", busybox_tar, "busybox")
    yield daemon
    daemon.stop()


FILLS = "FROM busybox\nRUN head -c 300000000 /dev/urandom > /big\n"
COPIES = "FROM busybox\nCOPY big /big\n"


@pytest.mark.parametrize("dockerfile", [FILLS, COPIES], ids=["run", "copy"])
def test_a_full_disk_fails_the_build_and_nothing_else(
    small: Any, tmp_path: Path, dockerfile: str
) -> None:
    (tmp_path / "Dockerfile").write_text(dockerfile)
    with (tmp_path / "big").open("wb") as file:
        for _ in range(SIZE // (1 << 20) + 8):
            file.write(os.urandom(1 << 20))
    failed = small("build", "--progress=plain", tmp_path)
    assert failed.code != 0
    assert "space" in failed.text.lower() or "disk" in failed.text.lower(), failed.text
    assert small("version").code == 0
    small.ok("builder", "prune", "-a", "-f")
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo fits > /small\n")
    # What the failed step wrote is deleted in the background.
    until("a build that fits", lambda: small("build", "--no-cache", tmp_path).code == 0)
    assert small("system", "check").code == 0


# --- errors at one write ----------------------------------------------------------------------

POINTS = ["blob.write", "blob.before-fsync", "db.before-commit", "commit.after-diff", "commit.after-seal"]


@pytest.fixture(scope="module")
def victim(
    make_daemon: Callable[..., Any], busybox_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Victim:
    victim = Victim(make_daemon(start=False), tmp_path_factory.mktemp("disk") / "c")
    victim.start()
    victim.daemon.ok("import", "--change", "ENV PATH=/bin", busybox_tar, "busybox")
    victim.built(0, "app:0")
    return victim


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("action", ["enospc", "eio"])
def test_a_write_that_fails_is_the_builds_failure_only(
    victim: Victim, point: str, action: str
) -> None:
    victim.call("POST", "/v1/prune", {"what": "builds", "all": True})
    victim.arming.write_text(f"{point}={action}")
    try:
        event = victim.build(1)
    finally:
        victim.arming.unlink()
    assert event["type"] in ("build.failed", "build.done"), event
    if event["type"] == "build.failed":
        assert "internal error" not in event["error"]["message"], event
    victim.prove(again=0)


# --- no descriptors, no writing ---------------------------------------------------------------


def test_few_descriptors_fail_clearly_and_the_daemon_lives(victim: Victim, tmp_path: Path) -> None:
    process = victim.daemon.process
    assert process is not None
    limits = subprocess.run(
        ["prlimit", "--pid", str(process.pid), "--nofile=64:"], capture_output=True, check=False
    )
    if limits.returncode:
        pytest.skip("prlimit may not be used here")
    lines = "".join(f"FROM busybox AS s{n}\nRUN echo {n} > /f\n" for n in range(30))
    copies = "".join(f"COPY --from=s{n} /f /f{n}\n" for n in range(30))
    (tmp_path / "Dockerfile").write_text(f"{lines}FROM busybox\n{copies}")
    tried = victim.daemon("build", tmp_path)
    assert tried.code == 0 or "internal error" not in tried.text, tried.text
    subprocess.run(["prlimit", "--pid", str(process.pid), "--nofile=1024:"], check=True)
    victim.prove(again=0)


def test_a_read_only_state_directory_is_refused_at_start(make_daemon: Callable[..., Any]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    daemon = make_daemon(start=False)
    (daemon.root / "state").mkdir(mode=0o500)
    with pytest.raises(AssertionError, match="ended at once"):
        daemon.start()
    daemon.process = None
    assert "Traceback" not in daemon.log
    assert str(daemon.root / "state") in daemon.log
    shutil.rmtree(daemon.root / "state")
