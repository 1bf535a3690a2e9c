"""kill -9 in a store's life: at every named point, and at moments that nobody chose."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from crash import Ledger, cut, prove

from ocibuildd import store as package
from ocibuildd.store import Store

SOURCES = Path(package.__file__).parent.glob("*.py")
POINTS = sorted({name for path in SOURCES for name in re.findall(r'\bhit\("([a-z.-]+)"\)', path.read_text())})
AT_START = {"recover.before-rebuild", "recover.before-rename", "recover.before-tree", "recover.before-adopt"}
RANDOM_KILLS = 500
MANY_KILLS = 5_000


def test_there_are_many_points() -> None:
    assert len(POINTS) >= 40


@pytest.mark.parametrize("point", [point for point in POINTS if point not in AT_START])
def test_a_kill_at_a_named_point_loses_nothing(state: Path, point: str) -> None:
    ledger = Ledger()
    if point != "db.migrate":
        assert not cut(state, ledger, rounds=3, seed=1)
    for seed, count in enumerate((1, 3)):
        if cut(state, ledger, point=f"{point}:{count}", rounds=40, seed=seed):
            prove(state, ledger)
        else:
            assert count > 1, f"{point} is never passed"
    assert not cut(state, ledger, rounds=1)
    prove(state, ledger)


@pytest.mark.parametrize("point", sorted(AT_START))
def test_a_kill_during_recovery_loses_nothing(state: Path, point: str) -> None:
    ledger = Ledger()
    cut(state, ledger, point="db.before-commit:60", rounds=40)
    if point in ("recover.before-rebuild", "recover.before-rename"):
        (state / "store.db").write_bytes(b"nonsense" * 1000)
    elif point == "recover.before-tree":
        with Store.open(state) as store:
            store.db.run("UPDATE trees SET boot = 'another', synced = 0")
    else:
        from ocibuildd.model.digest import Digest

        (state / "blobs" / "sha256" / Digest.of(b"stray").hex).write_bytes(b"stray")
    assert cut(state, ledger, point=point, rounds=1)
    prove(state, ledger)


def test_a_kill_amid_the_rebuilding_of_the_database_loses_nothing(state: Path) -> None:
    ledger = Ledger()
    cut(state, ledger, point="db.before-commit:60", rounds=40)
    for count in range(1, 8):
        (state / "store.db").write_bytes(b"nonsense" * 1000)
        assert cut(state, ledger, point=f"db.before-commit:{count}", rounds=1)
        prove(state, ledger)


def kill_at_random(state: Path, count: int, seed: int) -> int:
    """So many kills of one store, each after some milliseconds; gives the operations in all."""
    moments = random.Random(seed)
    ledger = Ledger()
    for number in range(count):
        seconds = moments.choice([0.004, 0.01, 0.02, 0.05]) * (0.5 + moments.random())
        assert cut(state, ledger, seconds=seconds, seed=seed + number)
        prove(state, ledger)
        if len(ledger.records) > 40 or len(ledger.names) > 10:
            cut(state, ledger, rounds=0)  # its collections keep the store small
    return ledger.operations


def test_kills_at_random_moments_lose_nothing(state: Path) -> None:
    assert kill_at_random(state, RANDOM_KILLS, 7) > RANDOM_KILLS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_thousands_of_kills_lose_nothing(state: Path, seed: int) -> None:
    assert kill_at_random(state, MANY_KILLS // 5, 1000 * seed) > MANY_KILLS // 5
