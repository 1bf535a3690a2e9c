"""What outside things were found to be: tags, HTTP validators, git refs.  Answers with a time of asking,
so that the caller decides what is fresh."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from .db import Database

SourceKind = Literal["tag", "http", "git"]
MAX_ROWS = 50_000
"""The oldest go first (``trim``)."""


@dataclass(frozen=True, slots=True)
class Source:
    """value: what was found (JSON; hints: they keep no blobs).  fetched: when; a time in the
    future (the clock went back) means now."""

    kind: str
    key: str
    value: Any
    fetched: float

    def age(self, now: float | None = None) -> float:
        """Seconds, never negative."""
        return max(0.0, (time.time() if now is None else now) - self.fetched)


class Sources:
    """Sources by (kind, key)."""

    def __init__(self, db: Database):
        self._db = db

    def get(self, kind: SourceKind, key: str) -> Source | None:
        """One indexed select."""
        row = self._db.one("SELECT value, fetched FROM sources WHERE kind = ? AND key = ?", (kind, key))
        return None if row is None else Source(kind, key, msgspec.json.decode(row[0]), row[1])

    def put(self, kind: SourceKind, key: str, value: object, fetched: float | None = None) -> None:
        """Insert or replace; ``value`` is anything that JSON can say."""
        self._db.run(
            "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?)",
            (kind, key, msgspec.json.encode(value).decode(), time.time() if fetched is None else fetched),
        )

    def remove(self, kind: SourceKind, key: str) -> None:
        self._db.run("DELETE FROM sources WHERE kind = ? AND key = ?", (kind, key))

    def clear(self) -> None:
        """Forget all: everything is asked again."""
        self._db.run("DELETE FROM sources")

    def trim(self, oldest: float = 0.0) -> None:
        """Forget what was fetched before ``oldest``, and the oldest rows over MAX_ROWS."""
        self._db.run("DELETE FROM sources WHERE fetched < ?", (oldest,))
        self._db.run(
            "DELETE FROM sources WHERE fetched < (SELECT fetched FROM sources ORDER BY fetched DESC"
            " LIMIT 1 OFFSET ?)",
            (MAX_ROWS,),
        )
