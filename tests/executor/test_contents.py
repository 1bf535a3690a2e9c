"""Checksums of local contexts, by a job of a real nsd and by main."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ocibuildd.errors import InvalidArgument
from ocibuildd.executor import contents
from ocibuildd.executor.contents import LocalContents
from ocibuildd.executor.source import Directory, open_directory
from ocibuildd.layer.scan import Scan
from ocibuildd.runtime import in_thread
from ocibuildd.sandbox import launch

SPEC: Any = {
    "dest": "/", "chown": "", "chmod": "", "link": False, "parents": False, "exclude": [], "unpack": None,
    "is_add": False, "epoch": 0,
}


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[tuple[LocalContents, Directory]]:
    """Contents, and the directory ``tmp_path/context`` of three files."""
    for name in ("context", "state", "prints"):
        (tmp_path / name).mkdir(mode=0o700)
    for name in ("a", "b", "c"):
        (tmp_path / "context" / name).write_text(name)
    time.sleep(0.12)  # else they might be written once more in the same tick, and aren't remembered
    path = str(tmp_path / "context")
    nsd = await launch.start(tmp_path / "state", config={"network": False})
    try:
        directory = Directory(open_directory(path, "context"), path=path)
        yield LocalContents(tmp_path / "prints", nsd), directory
        directory.close()
    finally:
        await nsd.close()


async def ask(local: tuple[LocalContents, Directory]) -> tuple[dict[str, Any], Scan]:
    here, directory = local
    found: Any = await here.checksum(directory, {"paths": ["."], "fd": 0}, SPEC)
    fd = found.pop("scan").memfd()
    try:
        return found, Scan.read(fd)
    finally:
        os.close(fd)


def files(scan: Scan) -> list[Any]:
    found = [each for match in scan.matches for each in match.files]
    return [(*each[:3], getattr(each.status, "digest", None)) for each in found]


async def test_main_and_a_job_find_the_same(
    local: tuple[LocalContents, Directory], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, scan = await ask(local)
    by_main, other = await ask(local)  # it is known now, and small
    monkeypatch.setattr(contents, "SMALL", 0)
    by_job, last = await ask(local)
    assert first == by_main == by_job
    assert files(scan) == files(other) == files(last)


async def test_a_job_leaves_nothing_but_fingerprints(
    local: tuple[LocalContents, Directory], tmp_path: Path
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    await ask(local)
    await ask(local)
    assert len(os.listdir("/proc/self/fd")) == before
    assert [path.suffix for path in (tmp_path / "prints").iterdir()] == [""]


async def test_a_job_reads_nothing_that_the_user_may_not(
    local: tuple[LocalContents, Directory], tmp_path: Path
) -> None:
    (tmp_path / "context" / "b").chmod(0)
    with pytest.raises(InvalidArgument, match="b: permission denied"):
        await ask(local)


@pytest.fixture
def remembering(local: tuple[LocalContents, Directory], tmp_path: Path) -> tuple[LocalContents, Directory]:
    """The same, with selections remembered as a whole."""
    here, directory = local
    return LocalContents(tmp_path / "prints", here._nsd, tmp_path / "selections"), directory


@pytest.mark.parametrize("small", [0, contents.SMALL])
async def test_an_unchanged_selection_is_recalled_with_its_scan(
    remembering: tuple[LocalContents, Directory], monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(contents, "SMALL", small)
    first, scan = await ask(remembering)
    here, directory = remembering
    found: Any = await here.checksum(directory, {"paths": ["."], "fd": 0}, SPEC)
    assert isinstance(found.pop("scan"), contents.RememberedScan)
    again, other = await ask(remembering)
    assert found == again == first
    assert files(other) == files(scan)


@pytest.mark.parametrize("small", [0, contents.SMALL])
async def test_a_changed_selection_is_walked_again(
    remembering: tuple[LocalContents, Directory], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: int
) -> None:
    monkeypatch.setattr(contents, "SMALL", small)
    first, _ = await ask(remembering)
    (tmp_path / "context" / "b").write_text("another")
    second, scan = await ask(remembering)
    assert second["digest"] != first["digest"]
    assert any(status.st_size == 7 for status in (each[3] for match in scan.matches for each in match.files))


async def test_a_damaged_scan_is_none_and_its_digest_stays(
    remembering: tuple[LocalContents, Directory], tmp_path: Path
) -> None:
    first, _ = await ask(remembering)
    (memory,) = (tmp_path / "selections").iterdir()
    data = memory.read_bytes()
    memory.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    here, directory = remembering
    found: Any = await here.checksum(directory, {"paths": ["."], "fd": 0}, SPEC)
    assert found.pop("scan").memfd() == -1
    assert found == first


async def test_recalling_leaves_no_descriptor_behind(remembering: tuple[LocalContents, Directory]) -> None:
    await ask(remembering)
    before = len(os.listdir("/proc/self/fd"))
    await ask(remembering)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_oldest_go_when_they_are_too_many_or_too_large(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_bytes(bytes(10))
        os.utime(tmp_path / str(number), (number, number))
    contents.forget_oldest(tmp_path, 4, 35)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]


async def test_the_descriptor_of_a_scan_is_known_to_who_closes_it_though_the_step_was_cancelled() -> None:
    begun, going = threading.Event(), threading.Event()

    class Slow:
        def memfd(self) -> int:
            begun.set()
            going.wait(60)
            return 1234

    taken: list[int] = []
    opening = asyncio.create_task(in_thread(contents.opened, Slow(), taken))
    while not begun.is_set():
        await asyncio.sleep(0)
    opening.cancel()
    going.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert taken == [1234]
