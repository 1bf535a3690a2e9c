"""How much work something is, without a clock: a figure that is the same on any machine at any load."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

PATIENCE = 15.0
"""Seconds of the processor's time for what must not hang; all of it takes a second or two, and minutes
where an algorithm's cost grows faster than its input."""


def calls(work: Callable[[], object]) -> int:
    """How many functions ``work`` calls, Python's and built-in ones."""
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@contextmanager
def without_hanging() -> Iterator[None]:
    """What runs inside ends within PATIENCE."""
    started = time.process_time()
    yield
    assert time.process_time() - started < PATIENCE
