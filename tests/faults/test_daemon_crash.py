"""kill -9 of the daemon, at named points and at moments that nobody chose: nothing committed is lost."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon_life import VARIANTS, Victim

import ocibuildd

SOURCES = Path(ocibuildd.__file__).parent
POINTS = sorted(
    {
        name
        for path in SOURCES.rglob("*.py")
        for name in re.findall(r'\bhit\("([a-z.-]+)"\)', path.read_text())
    }
)
USUAL = """
    blob.after-rename blob.before-row build.before-finish builds.before-finish commit.after-diff
    commit.after-seal commit.before-diff copy.after-pack copy.before-pack db.before-commit
    gc.after-barrier gc.before-commit image.after-row name.before-row publish.before-rows
    pull.after-layer pull.before-rows push.after-blob push.after-manifest push.before-blob
    push.before-manifest record.after-row record.before-delete run.after-layer run.after-sandbox
    run.before-sandbox solve.after-records solve.before-records tree.before-trash blob.before-fsync
    trash.before-unlink
""".split()
MORE = """
    blob.after-dir-fsync build.before-row cache-mount.before-row db.after-commit
    gc.after-slice image.before-delete layer.after-row tree.before-row
""".split()
RANDOM_KILLS = 25
MANY_KILLS = 500


@pytest.fixture(scope="module")
def victim(
    make_daemon: Callable[..., object], busybox_tar: Path, registry: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Victim]:  # fmt: skip
    """One daemon that dies many times."""
    victim = Victim(make_daemon(start=False), tmp_path_factory.mktemp("crash") / "c", registry)
    victim.daemon.config = "[gc]\nballast = 65536\n"
    victim.start()
    victim.daemon.ok("import", "--change", "ENV PATH=/bin", busybox_tar, "busybox")
    victim.life(3)
    yield victim


def test_there_are_many_points() -> None:
    assert len(POINTS) >= 60
    assert {*USUAL, *MORE} <= set(POINTS)
    assert len(USUAL) >= 30


@pytest.mark.parametrize(
    "point", [*USUAL, *(pytest.param(point, marks=pytest.mark.slow) for point in MORE)]
)
def test_a_kill_at_a_named_point_loses_nothing(victim: Victim, point: str) -> None:
    if victim.daemon.process is None:
        victim.start()
    victim.arming.write_text(f"{point}:{1 + len(point) % 2}")
    assert victim.until_dead(3), f"{point} is never passed"
    victim.start()
    victim.prove(again=0)


def kill_at_random(victim: Victim, kills: int, seed: int) -> int:
    """So many kills of one daemon, each with its proof; gives how many were proven."""
    moments, proven = random.Random(seed), 0
    for number in range(kills):
        if victim.daemon.process is None:
            victim.start()
        victim.cut_after(moments.choice([0.01, 0.05, 0.2, 0.5]) * (0.2 + moments.random()), number)
        victim.start()
        victim.prove(again=number % VARIANTS)
        proven += 1
    return proven


def test_kills_at_random_moments_lose_nothing(victim: Victim) -> None:
    assert kill_at_random(victim, RANDOM_KILLS, 11) == RANDOM_KILLS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_hundreds_of_kills_lose_nothing(victim: Victim, seed: int) -> None:
    assert kill_at_random(victim, MANY_KILLS // 5, 1000 + seed) == MANY_KILLS // 5
