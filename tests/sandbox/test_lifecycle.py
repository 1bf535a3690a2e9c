"""What remains when a step is cancelled, main leaves or nsd is killed: nothing; and that it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from patience import eventually, soon
from sandboxes import opened

from ocibuildd import errors


def processes(marker: str) -> list[int]:
    """Processes whose command line has ``marker``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


async def gone(marker: str) -> bool:
    """Are they all gone within a second?"""
    return await soon(1, lambda: not processes(marker))


async def until(marker: str) -> None:
    """Wait until such a process runs."""
    await eventually(f"a process with {marker}", lambda: processes(marker))


@pytest.fixture
async def box(state_dir):
    box = await opened(state_dir)
    yield box
    await box.client.close()


def sleeper(seconds: str) -> str:
    """A step with children that ignore what can be ignored."""
    return f"trap '' TERM INT HUP; (setsid sh -c 'trap \"\" TERM; sleep {seconds}' &) ; sleep {seconds}; true"


async def test_cancelling_leaves_no_process(box):
    task = asyncio.create_task(box.sh(sleeper("31.41")))
    await until("31.41")
    task.cancel()
    assert await soon(1, task.done)
    assert task.cancelled()
    assert not processes("31.41")


async def test_cancelling_twice_is_cancelling(box):
    task = asyncio.create_task(box.sh(sleeper("31.42")))
    await until("31.42")
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not processes("31.42")


async def test_a_daemon_that_a_step_leaves_behind_ends_with_it(box):
    await box.sh("(setsid sleep 31.43 &); true")
    assert await gone("31.43")


async def test_a_stopped_step_can_be_cancelled(box):
    task = asyncio.create_task(box.sh("sleep 31.44 & kill -STOP $!; wait"))
    await until("31.44")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not processes("31.44")


async def test_killing_nsd_ends_its_steps_and_the_next_call_works(box):
    task = asyncio.create_task(box.sh(sleeper("31.45")))
    await until("31.45")
    before = box.client.pid
    os.kill(before, signal.SIGKILL)
    with pytest.raises(errors.Unavailable):
        await task
    assert await gone("31.45")
    assert (await box.sh("echo again")).output == "again\n"
    assert box.client.pid != before


async def test_closing_ends_everything(box):
    task = asyncio.create_task(box.sh(sleeper("31.46")))
    await until("31.46")
    pid = box.client.pid
    await box.client.close()
    with pytest.raises(errors.Unavailable):
        await task
    assert await gone("31.46")
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(errors.Unavailable):
        await box.sh("true")


async def test_cancelling_another_job_kills_it(box):
    read_end, write_end = os.pipe()
    args = {"tree": "never", "lowers": [], "expect_diff_id": "", "limits": {}}
    task = asyncio.create_task(box.client.call("apply", args, [read_end]))
    await asyncio.sleep(0.2)
    task.cancel()
    assert await soon(1, task.done)
    assert task.cancelled()
    os.close(read_end)
    os.close(write_end)


async def test_an_unknown_job_is_refused(box):
    with pytest.raises(errors.InvalidArgument):
        await box.client.call("nonsense", {})
    with pytest.raises(errors.BuildError):
        await box.client.call("remove", {"paths": 3})
    assert (await box.sh("true")).code == 0


def census(pid: int) -> tuple[int, int, int]:
    """nsd's descriptors, mounts and children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().count("\n")
    return len(os.listdir(f"/proc/{pid}/fd")), mounts, len(children)


async def steady(pid: int) -> tuple[int, int, int]:
    """The census, when it has been the same for half a second."""
    seen = [census(pid)]
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        await asyncio.sleep(0.05)
        seen.append(census(pid))
    return seen[-1]


async def test_many_steps_leave_nothing_behind(box):
    await box.sh("true")
    pid = box.client.pid
    before = await steady(pid)
    ours = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        await asyncio.gather(*(box.sh("echo hi > /f; ls /") for _ in range(3)))
    with pytest.raises(errors.BuildError):
        await box.run("true", user="nobody")
    assert await eventually("tmp is empty", lambda: os.listdir(box.state / "tmp") == [])
    assert await eventually("the census is as before", lambda: census(pid) == before)
    assert len(os.listdir("/proc/self/fd")) == ours


async def test_a_step_leaves_no_work_directory_to_whoever_hears_of_its_end(box):
    """Overlayfs leaves directories there and a mark; no process is begun for them."""
    tree = box.new_tree()
    await box.sh("true", tree=tree)
    assert os.listdir(box.upper(tree).parent) == ["fs"]


def named(pid: int) -> list[str]:
    """nsd's children of its own name."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in children if b"ocibuild" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def test_a_prepared_sandbox_is_used_and_made_again(state_dir):
    box = await opened(state_dir, keep_ready=True)
    try:
        for _ in range(3):
            assert (await box.sh("echo $$")).output == "1\n"
            assert await eventually("a prepared sandbox", lambda: named(box.client.pid))
        assert (await box.sh("echo more")).output == "more\n"
    finally:
        await box.client.close()


async def test_a_prepared_sandbox_that_nobody_takes_is_let_go(state_dir):
    box = await opened(state_dir, keep_ready=True, ready_seconds=0.3)
    try:
        seen: list[str] = []

        def prepared() -> list[str]:
            seen[:] = named(box.client.pid)
            return seen

        assert (await box.sh("echo $$")).output == "1\n"
        while not await soon(0.3, prepared):  # a busy machine may look when it has gone already
            assert (await box.sh("echo $$")).output == "1\n"
        assert len(seen) == 1
        assert await eventually("none", lambda: not named(box.client.pid))
        assert (await box.sh("echo more")).output == "more\n"
    finally:
        await box.client.close()
