"""Waiting for what must come, on a machine as slow and as busy as it likes."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 30.0
"""Seconds that nothing takes; only what never comes is waited for so long."""
TICK = 0.02
"""Seconds between two looks."""


def until(what: str, condition: Callable[[], T]) -> T:
    """Look until the answer is true, and give it; what never comes is called ``what``."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(TICK)
    return found


async def eventually(what: str, condition: Callable[[], T]) -> T:
    """``until``, while a loop goes on."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(TICK)
    return found


def _ticks(seconds: float) -> Iterator[None]:
    """So many looks of TICK, each as long as this machine takes for a process: whoever is to end in time
    has to wait for the processor as that process does, so that a busy machine's second is a longer one."""
    for _ in range(round(seconds / TICK)):
        yield
        subprocess.run(["true"], check=True)


def within(seconds: float, condition: Callable[[], object]) -> bool:
    """Whether it comes true in so many seconds of a machine that has time for it."""
    for _ in _ticks(seconds):
        if condition():
            return True
        time.sleep(TICK)
    return bool(condition())


async def soon(seconds: float, condition: Callable[[], object]) -> bool:
    """``within``, while a loop goes on."""
    for _ in _ticks(seconds):
        if condition():
            return True
        await asyncio.sleep(TICK)
    return bool(condition())


def heard(process: subprocess.Popen[str], *texts: str) -> str:
    """Read what a client in the background says until it has said all of it."""
    assert process.stdout is not None
    said = ""
    while not all(text in said for text in texts):
        line = process.stdout.readline()
        assert line, f"it ended without {texts}: {said}"
        said += line
    return said
