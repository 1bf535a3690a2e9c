"""A step that writes until the disk is full is stopped before it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ..errors import NoSpace
from ..runtime import until_done
from ..store.space import Space

INTERVAL = 0.5
"""Seconds between two looks at the disk: one system call each."""

T = TypeVar("T")


async def while_there_is_room(space: Space, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` (a step's job) gives; it is cancelled once the disk runs low (``Space.is_low``).

    Raises NoSpace then, and what ``work`` does."""
    job = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({job}, timeout=INTERVAL))[0]:
            if space.is_low:
                raise NoSpace(
                    f"the disk ran low while the step ran: {space.disk().free:,} bytes free,"
                    f" {space.floor:,} are to be kept; the step was stopped",
                    hint="free some space, run `ocibuild prune`, or limit what a step may write"
                    " (limits.upper_bytes)",
                )
    finally:
        if not job.done():
            job.cancel()
            await until_done(asyncio.ensure_future(asyncio.wait({job})))
            if not job.cancelled():
                job.exception()  # it was seen
    return job.result()
