"""The event log of a build: append, replay, follow (the events themselves: ``model.events``).

The log is a file, one JSON object a line; nothing of it stays in memory but where every 64th event
begins.  Readers follow it by offset, so any number of slow clients costs nothing and a client that
comes late, or comes back, sees exactly what the first one saw.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..model.events import TERMINAL, Event

INDEX_EVERY = 64
READ_SIZE = 256 << 10

_encode = msgspec.json.Encoder().encode
_SURROGATE = re.compile("[\ud800-\udfff]")


def _line(event: Event) -> bytes:
    """An event as it stands in the log.  File names may hold bytes that are no text (lone surrogates in Python's
    strings): JSON has no form for them."""
    try:
        return _encode(event) + b"\n"
    except UnicodeEncodeError:
        return _encode(_readable(event)) + b"\n"


def _readable(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_readable(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    return value


class EventLog:
    """One build's log.  Appending is synchronous and cheap (one write); use from the loop only."""

    def __init__(self, path: Path):
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self._index = [0]
        self._size = 0
        self._waiters: set[asyncio.Future[None]] = set()
        self.count = 0
        self.closed = False
        self.path = path

    def append(self, kind: str, /, **fields: Any) -> Event:
        """Add an event; empty fields (None, "", (), {}) are left out.  A full disk loses the event,
        never the build."""
        event: Event = {"n": self.count, "t": round(time.time(), 4), "type": kind}
        event.update((k, v) for k, v in fields.items() if v is not None and v not in ("", (), [], {}))
        if self.closed:
            return event
        line = _line(event)
        try:
            os.pwrite(self._fd, line, self._size)
        except OSError:
            return event
        self._size += len(line)
        self.count += 1
        if self.count % INDEX_EVERY == 0:
            self._index.append(self._size)
        if kind in TERMINAL:
            self.close()
        self._wake()
        return event

    def close(self) -> None:
        """No more events; followers end once they have read all."""
        self.closed = True
        self._wake()

    def release(self) -> None:
        """Give the descriptor back.  Followers must be gone."""
        self.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def follow(self, since: int = 0, *, wait: bool = True) -> AsyncIterator[bytes]:
        """Whole lines from event ``since`` on, as they come; ends with the build.

        With ``wait`` False: what is there now."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            slot = min(max(since, 0) // INDEX_EVERY, len(self._index) - 1)
            offset, skip = self._index[slot], max(since, 0) - slot * INDEX_EVERY
            while True:
                data = _whole_lines(fd, offset, self._size)
                if data:
                    offset += len(data)
                    data, skip = _skip_lines(data, skip)
                    if data:
                        yield data
                elif self.closed or not wait:
                    return
                else:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
        finally:
            os.close(fd)


def _whole_lines(fd: int, offset: int, end: int) -> bytes:
    """What stands between two offsets, cut after the last newline; longer lines are read whole."""
    want = READ_SIZE
    while offset < end:
        data = os.pread(fd, min(want, end - offset), offset)
        cut = data.rfind(b"\n") + 1
        if cut or not data or len(data) < want:
            return data[:cut]
        want *= 4
    return b""


def _skip_lines(data: bytes, skip: int) -> tuple[bytes, int]:
    at = 0
    while skip and at < len(data):
        at = data.index(b"\n", at) + 1
        skip -= 1
    return data[at:], skip


def last_event(data: bytes, since: int, at: float, error: Mapping[str, Any]) -> bytes:
    """What the log of a build lacks whose daemon ended under it: ``data`` is all of it from ``since`` on."""
    event = {"n": max(since, 0) + data.count(b"\n"), "t": round(at, 4), "type": "build.failed", "error": dict(error)}
    return _encode(event) + b"\n"


def replay(path: Path, since: int = 0) -> bytes:
    """A finished build's log from event ``since`` on.  Raises FileNotFoundError."""
    data, _ = _skip_lines(path.read_bytes(), max(since, 0))
    return data
