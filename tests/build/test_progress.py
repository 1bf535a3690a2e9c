"""The event log: append, replay, follow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocibuildd.build.progress import INDEX_EVERY, READ_SIZE, EventLog, replay


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    opened = EventLog(tmp_path / "events.jsonl")
    yield opened
    opened.release()


async def numbers(log: EventLog, since: int = 0, *, wait: bool = True) -> list[int]:
    data = b"".join([part async for part in log.follow(since, wait=wait)])
    return [json.loads(line)["n"] for line in data.splitlines()]


def test_empty_fields_are_left_out(log: EventLog) -> None:
    event = log.append("vertex.done", vertex="1", cached=None, reason="", usage={}, seconds=0)
    assert set(event) == {"n", "t", "type", "vertex", "seconds"}


async def test_names_that_are_no_text_are_shown_as_well_as_they_can_be(log: EventLog) -> None:
    log.append("vertex.done", reason="a\udcff was added", trace=[{"file\udcfe": ("\udcfd", 1)}])
    event = json.loads(replay(log.path, 0))
    assert (event["reason"], event["trace"]) == ("a\ufffd was added", [{"file\ufffd": ["\ufffd", 1]}])


@pytest.mark.parametrize("since", [0, 1, INDEX_EVERY - 1, INDEX_EVERY, INDEX_EVERY + 1, 199, 200, 500])
async def test_replay_begins_where_it_is_told(log: EventLog, since: int) -> None:
    for number in range(200):
        log.append("vertex.log", vertex=str(number))
    assert await numbers(log, since, wait=False) == list(range(since, 200))
    assert [json.loads(x)["n"] for x in replay(log.path, since).splitlines()] == list(range(since, 200))


async def test_followers_see_every_event_and_end_with_the_build(log: EventLog) -> None:
    log.append("build.started", id="x")
    followers = [asyncio.ensure_future(numbers(log)) for _ in range(3)]
    for _ in range(50):
        log.append("vertex.log", vertex="0", data="x" * 100)
        await asyncio.sleep(0)
    log.append("build.done")
    late = await numbers(log, 10)
    assert [await each for each in followers] == [list(range(52))] * 3
    assert late == list(range(10, 52))


async def test_a_line_longer_than_a_read_comes_whole(log: EventLog) -> None:
    log.append("vertex.log", data="x" * (READ_SIZE * 2))
    log.append("build.done")
    assert await numbers(log) == [0, 1]


async def test_nothing_is_added_after_the_end(log: EventLog) -> None:
    log.append("build.failed", error={"code": "x"})
    log.append("vertex.log", vertex="0")
    assert await numbers(log) == [0]
