"""The few asyncio helpers that several packages share."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def until_done(future: asyncio.Future[T], on_cancel: Callable[[], object] | None = None) -> T:
    """Wait for a future that must not be abandoned, however often the caller is cancelled.

    Each cancellation calls ``on_cancel`` (which should hurry the work along) and waiting goes on;
    the first CancelledError is raised once the future is done.  ``asyncio.shield`` in a loop loses
    the future at the second cancellation; this does not.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
            if on_cancel is not None:
                on_cancel()
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # it was seen: no "exception was never retrieved"
        raise cancelled
    return future.result()


async def in_thread(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking ``func`` in the loop's thread pool; a cancelled caller still waits for its end."""
    loop = asyncio.get_running_loop()
    call: Callable[[], T] = functools.partial(func, *args, **kwargs)
    return await until_done(loop.run_in_executor(None, call))


def spawn(tasks: set[asyncio.Task[Any]], task: asyncio.Task[Any]) -> asyncio.Task[Any]:
    """Keep a strong reference to a background task in its owner's set until it ends."""
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
