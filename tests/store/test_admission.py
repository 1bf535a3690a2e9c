"""Who waits for room: for whom, how it is told, and what the waiting costs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from filler import Filler
from patience import eventually

from ocibuildd.errors import NoSpace
from ocibuildd.store import Store
from ocibuildd.store.maintenance import Maintenance
from ocibuildd.store.sweep import Outcome


async def nothing(_: Sequence[Path]) -> None:
    """Removes nothing: there are no trees."""


class Counting(Maintenance):
    """How often the store was surveyed for room."""

    looks = 0

    async def make_room(self, size: int = 0) -> Outcome:
        self.looks += 1
        return await super().make_room(size)


@pytest.fixture
def maintenance(store: Store, monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_PAUSE", 0.001)
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_PATIENCE", 60.0)
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_AGAIN", 600.0)
    store.space.configure(ceiling=100)
    return Counting(store, nothing)


async def test_who_waits_for_room_is_told_once_and_when_it_goes_on(
    store: Store, fill: Filler, maintenance: Counting
) -> None:
    told: list[str] = []
    with store.leases.new("the other") as other:
        other.add(layers=[fill.layer("x" * 90)])
        waiting = asyncio.ensure_future(maintenance.admit(50, told=told.append))
        await eventually("it is told", lambda: bool(told))
        other.release()
        (await waiting).release()
    assert [text.split(":")[0] for text in told] == ["waiting for room", "there is room"]
    assert "1 other build or transfer may give some back" in told[0]


async def test_who_need_not_wait_is_told_nothing(store: Store, fill: Filler, maintenance: Counting) -> None:
    told: list[str] = []
    fill.record("r", fill.layer("x" * 90))
    with await maintenance.admit(50, told=told.append):
        assert told == []


async def test_a_build_does_not_wait_for_its_own_leases(
    store: Store, fill: Filler, maintenance: Counting
) -> None:
    with store.leases.new("build") as build, store.leases.new("steps of it", of=build) as steps:
        steps.add(layers=[fill.layer("x" * 90)])
        build.add(layers=[fill.layer("y")])
        assert (store.held.others(build), store.held.others(steps), store.held.others(None)) == (0, 0, 1)
        with pytest.raises(NoSpace):
            await asyncio.wait_for(maintenance.admit(50, lease=build), 60)


async def test_nobody_waits_for_a_build_that_holds_nothing(store: Store, maintenance: Counting) -> None:
    with store.leases.new("queued"), store.leases.new("mine") as mine:
        assert store.held.passing == 2
        assert store.held.others(mine) == 0


async def test_a_lease_of_another_work_alone_is_waited_for(store: Store, fill: Filler) -> None:
    with store.leases.new("the other") as other, store.leases.new("mine") as mine:
        with store.leases.new("steps of the other", of=other) as steps:
            steps.add(layers=[fill.layer("x")])
            assert store.held.others(mine) == 1
        assert store.held.others(mine) == 0


async def test_who_waits_looks_for_what_may_go_only_when_something_was_let_go(
    store: Store, fill: Filler, maintenance: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[int] = []
    reserve = store.space.reserve
    monkeypatch.setattr(store.space, "reserve", lambda size: (turns.append(size), reserve(size))[1])
    small = store.leases.new("a small one")
    small.add(layers=[fill.layer("y")])
    with store.leases.new("the other") as other:
        other.add(layers=[fill.layer("x" * 90)])
        waiting = asyncio.ensure_future(maintenance.admit(50))
        await eventually("it has waited", lambda: len(turns) > 20)
        assert maintenance.looks == 3
        small.release()
        await eventually("it has looked", lambda: maintenance.looks == 4)
        other.release()
        (await waiting).release()
    assert maintenance.looks == 5


async def test_who_waits_looks_again_after_a_while_all_the_same(
    store: Store, fill: Filler, maintenance: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocibuildd.store.maintenance.ADMIT_AGAIN", 0.0)
    image = fill.image("i", fill.layer("x" * 40), name="app")
    with store.leases.new("the other") as other:
        other.add(layers=[fill.layer("y" * 45)])
        waiting = asyncio.ensure_future(maintenance.admit(50))
        await eventually("it has looked", lambda: maintenance.looks > 3)
        store.images.remove(image)
        (await waiting).release()
    assert maintenance.looks > 3
