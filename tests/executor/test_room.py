"""A step is stopped before it fills the disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ocibuildd.errors import NoSpace
from ocibuildd.executor import room
from ocibuildd.store.space import Disk, Space


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setattr(room, "INTERVAL", 0.001)
    made = Space(tmp_path, lambda: 0)
    made.configure(floor=100)
    return made


def free(space: Space, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(space, "disk", lambda: Disk(1000, size))


async def test_a_step_gives_its_outcome_where_there_is_room(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(space, monkeypatch, 50)
    assert await room.while_there_is_room(space, asyncio.sleep(0.01, "done")) == "done"


async def test_a_step_is_stopped_when_the_disk_runs_low(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    async def step() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    free(space, monkeypatch, 49)
    with pytest.raises(NoSpace, match="the step was stopped"):
        await room.while_there_is_room(space, step())
    assert ended == [True]


async def test_a_cancelled_step_has_ended_before_its_caller(space: Space) -> None:
    ended, begun = [], asyncio.Event()

    async def step() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.005)
            ended.append(True)
            raise

    task = asyncio.ensure_future(room.while_there_is_room(space, step()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
