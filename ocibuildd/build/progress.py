"""The event log of a build: append, replay, follow (the events themselves: ``model.events``).

The log is a file, one JSON object a line; nothing of it stays in memory but where every 64th event
begins.  Readers follow it by offset, so any number of slow clients costs nothing and a client that
comes late, or comes back, sees exactly what the first one saw.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from ..model.events import TERMINAL, Event

INDEX_EVERY = 64
READ_SIZE = 256 << 10
STEP_LOG_LIMIT = 16 << 20
"""Bytes of output that are kept of one step; what comes after is counted, not kept."""
MASK = "***"
MIN_SECRET = 4
"""Shorter secrets are not masked: they would tear holes into innocent text."""
TAIL_LINES = 40
TAIL_LINE_LENGTH = 2000

_encode = msgspec.json.Encoder().encode


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
        line = _encode(event) + b"\n"
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


def replay(path: Path, since: int = 0) -> bytes:
    """A finished build's log from event ``since`` on.  Raises FileNotFoundError."""
    data, _ = _skip_lines(path.read_bytes(), max(since, 0))
    return data


class StepLog:
    """The output of one step on its way into event logs: decoded, masked, bounded; keeps its tail."""

    def __init__(self, secrets: tuple[str, ...] = (), limit: int = STEP_LOG_LIMIT):
        self._decoders = {n: codecs.getincrementaldecoder("utf-8")("replace") for n in (1, 2)}
        self._held = {1: "", 2: ""}
        self._secrets = tuple(sorted((s for s in secrets if len(s) >= MIN_SECRET), key=len, reverse=True))
        self._limit = limit
        self._size = 0
        self._tail: list[str] = [""]

    def feed(self, stream: int, data: bytes, *, final: bool = False) -> str:
        """The text to log now ("" = nothing yet).  ``final``: the stream has ended."""
        text = self._held[stream] + self._decoders[stream].decode(data, final)
        text, self._held[stream] = self._mask(text, final=final)
        return self._bounded(text)

    def _mask(self, text: str, *, final: bool) -> tuple[str, str]:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        if final or not self._secrets:
            return text, ""
        held = 0
        for secret in self._secrets:
            for size in range(min(len(secret) - 1, len(text)), held, -1):
                if text.endswith(secret[:size]):
                    held = size
                    break
        return (text[:-held], text[-held:]) if held else (text, "")

    def _bounded(self, text: str) -> str:
        if not text:
            return ""
        self._remember(text)
        left = self._limit - self._size
        self._size += len(text)
        if left <= 0:
            return ""
        if len(text) <= left:
            return text
        return f"{text[:left]}\n[output clipped: {self._limit >> 20} MiB a step are kept]\n"

    def _remember(self, text: str) -> None:
        lines = text[-TAIL_LINES * TAIL_LINE_LENGTH:].split("\n")
        lines[0] = (self._tail[-1] + lines[0])[-TAIL_LINE_LENGTH:]
        self._tail = [*self._tail[:-1], *lines][-TAIL_LINES - 1:]

    @property
    def tail(self) -> list[str]:
        """The last lines, for error messages."""
        lines = [line[:TAIL_LINE_LENGTH].rstrip("\r") for line in self._tail]
        return [line for line in lines if line][-TAIL_LINES:]
