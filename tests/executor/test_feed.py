"""A file that grows, fed to a job."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from ocibuildd.errors import NoSpace
from ocibuildd.executor import feed as module
from ocibuildd.executor.feed import Feed


async def read_all(fd: int) -> bytes:
    """What a job reads until the end."""

    def read() -> bytes:
        with open(os.dup(fd), "rb") as file:
            return file.read()

    return await asyncio.to_thread(read)


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "blob", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


async def test_a_job_gets_all_that_is_written_while_it_runs(file):
    feed: Feed[bytes] = Feed(file)
    feed.start(read_all)
    for number in range(5):
        os.write(file, bytes([number]) * 700_000)
        feed.available((number + 1) * 700_000)
        await asyncio.sleep(0)
    got = await feed.finish()
    assert len(got) == 3_500_000 and got[::700_000] == bytes(range(5))


async def test_a_disk_that_is_full_ends_the_job_and_is_told(file, monkeypatch):
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(module.os, "fsync", full)
    feed: Feed[None] = Feed(file)
    feed.start(lambda _fd: asyncio.sleep(60))
    with pytest.raises(NoSpace):
        await feed.finish()
    assert feed.stopped
