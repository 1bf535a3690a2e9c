"""Builds in a loop against a collector that never rests: none misses what it held, the ceiling holds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_life import Victim

SECONDS = float(os.environ.get("OCIBUILD_GC_SECONDS", "15"))
MINUTES = 180.0
CEILING = 64 << 20
STEP = 4 << 20
DOCKERFILE = """\
FROM busybox AS made
ARG N
RUN head -c 4000000 /dev/urandom > /one && echo $N
FROM busybox
ARG N
COPY --from=made /one /one
RUN head -c 1000000 /dev/urandom > /two && test -s /one && echo $N
RUN wc -c /one /two && echo $N
"""


def loop(victim: Victim, number: int, end: float, failures: list[Any], built: list[int]) -> None:
    turn = 0
    while time.monotonic() < end or turn < 2:
        event = victim.build(0, build_args={"N": f"{number}-{turn % 5}"}, reproducible=False)
        if event["type"] != "build.done":
            failures.append(event)
        built[number] += 1
        turn += 1


def collect(victim: Victim, end: float, sizes: list[int]) -> None:
    while time.monotonic() < end:
        victim.call("POST", "/v1/gc", {})
        sizes.append(int(victim.call("GET", "/v1/df")["total"]))
        time.sleep(1)


def found(victim: Victim) -> list[Any]:
    """What the store's check finds."""
    return list(victim.call("POST", "/v1/system/check", {})["findings"])


def builds_against_collections(victim: Victim, seconds: float) -> list[Any]:
    """Gives what the store's check finds afterwards."""
    end = time.monotonic() + seconds
    failures: list[Any] = []
    sizes: list[int] = []
    built = [0] * 4
    threads = [
        threading.Thread(target=loop, args=(victim, n, end, failures, built)) for n in range(4)
    ]
    threads.append(threading.Thread(target=collect, args=(victim, end, sizes)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert min(built) > 1, built
    assert max(sizes) <= CEILING + 2 * STEP, (max(sizes), CEILING)
    time.sleep(3)  # what goes on behind ends; asking the check itself until it is content would hide what it mends
    return [*found(victim), *found(victim)]


@pytest.fixture(scope="module")
def victim(
    make_daemon: Callable[..., Any], busybox_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Victim:
    config = (
        f"[gc]\nceiling = {CEILING}\nballast = 65536\ninterval = 1\n"
        "[[gc.policy]]\nall = true\nmax_used_space = 20000000\n"
    )
    victim = Victim(make_daemon(config, start=False), tmp_path_factory.mktemp("gc") / "c")
    (victim.context / "Dockerfile").write_text(DOCKERFILE)
    victim.start()
    victim.daemon.ok("import", "--change", "ENV PATH=/bin", busybox_tar, "busybox")
    return victim


def test_no_build_misses_what_it_held(victim: Victim) -> None:
    assert builds_against_collections(victim, SECONDS) == []


@pytest.mark.slow
def test_no_build_misses_what_it_held_for_minutes(victim: Victim) -> None:
    assert builds_against_collections(victim, MINUTES) == []
