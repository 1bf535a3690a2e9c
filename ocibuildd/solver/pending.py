"""Cache records on their way to the disk: read as if they were there, written a few at a time.

A commit waits for the disk; twenty steps a second need not do so twenty times.  What a crash loses is
work done in the last moment, never a record without its layers (those are durable before).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from ..ports import CacheIndex, Record

DELAY = 0.2
"""Seconds that a record may wait for others."""


class Index(CacheIndex, Protocol):
    """``store.Records``, as the solver sees it."""

    def preimage(self, key: str) -> str:
        """What is kept beside a record; "" if unknown."""
        ...


class PendingRecords:
    """A CacheIndex in front of the store's.  Used from the loop's thread."""

    def __init__(self, records: Index, transaction: Callable[[], AbstractContextManager[None]]):
        self._records = records
        self._transaction = transaction
        self._waiting: dict[str, Record] = {}
        self._timer: asyncio.TimerHandle | None = None

    def get(self, key: str) -> Record | None:
        """``ports.CacheIndex.get``."""
        return self._waiting.get(key) or self._records.get(key)

    def seen(self, op: str) -> bool:
        """``ports.CacheIndex.seen``."""
        return any(record.op == op for record in self._waiting.values()) or self._records.seen(op)

    def nearest(self, selector: str) -> Record | None:
        """``ports.CacheIndex.nearest``."""
        for record in reversed(self._waiting.values()):
            if record.selector == selector:
                return record
        return self._records.nearest(selector)

    def preimage(self, key: str) -> str:
        """``Index.preimage``."""
        waiting = self._waiting.get(key)
        return self._records.preimage(key) if waiting is None else waiting.preimage

    def put(self, records: Iterable[Record]) -> None:
        """These are true from now on, and durable within DELAY, or at ``flush``."""
        for record in records:
            self._waiting.pop(record.key, None)
            self._waiting[record.key] = record
        if self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self.flush)

    def flush(self) -> None:
        """Write what waits, in one commit.  Raises what the store raises; then nothing waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, {}
        if waiting:
            with self._transaction():
                for record in waiting.values():
                    self._records.put(record)
