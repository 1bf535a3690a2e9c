"""Builds: what was asked, what came of it, where the event log is."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .db import Database, Row
from .failpoints import hit

_COLUMNS = "id, status, name, request, started, ended, result, error"
RUNNING = "running"


@dataclass(frozen=True, slots=True)
class Build:
    """A row of ``builds``.  status: running | done | failed | cancelled | interrupted (the daemon ended
    under it).  request: a summary without secrets; result, error: as ``build.done`` and ``build.failed``
    carry them.  ended: 0.0 while it runs."""

    id: str
    status: str
    name: str
    request: Mapping[str, Any]
    started: float
    ended: float
    result: Mapping[str, Any]
    error: Mapping[str, Any]


def _build(row: Row) -> Build:
    request, result, error = (msgspec.json.decode(row[n]) for n in (3, 6, 7))
    return Build(row[0], row[1], row[2], request, row[4], row[5], result, error)


class Builds:
    """Builds by id."""

    def __init__(self, state: Path, db: Database):
        self._state = state
        self._db = db

    def new(self, build: str, name: str, request: Mapping[str, Any], now: float | None = None) -> Path:
        """A build begins; gives its directory (0700, made), where ``events.jsonl`` is to be."""
        directory = self.directory(build)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        started = time.time() if now is None else now
        hit("build.before-row")
        encoded = msgspec.json.encode(request).decode()
        self._db.put("builds", (build, RUNNING, name, encoded, started, 0.0, "{}", "{}"))
        return directory

    def directory(self, build: str) -> Path:
        return self._state / "builds" / build

    def events(self, build: str) -> Path:
        """Its event log."""
        return self.directory(build) / "events.jsonl"

    def finish(
        self, build: str, status: str, *, result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None, now: float | None = None,
    ) -> None:
        """It has ended.  No error if there is no such build."""
        before = self.get(build)
        if before is None:
            return
        hit("build.before-finish")
        self._db.put(
            "builds",
            (
                build, status, before.name, msgspec.json.encode(before.request).decode(), before.started,
                time.time() if now is None else now, msgspec.json.encode(result or {}).decode(),
                msgspec.json.encode(error or {}).decode(),
            ),
        )

    def get(self, build: str) -> Build | None:
        row = self._db.one(f"SELECT {_COLUMNS} FROM builds WHERE id = ?", (build,))
        return None if row is None else _build(row)

    def find(self, prefix: str) -> list[Build]:
        """By the beginning of the id; at most two, so that ambiguity shows."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM builds WHERE id >= ? AND id < ? LIMIT 2", (prefix, prefix + "\x7f")
        )
        return [_build(row) for row in rows]

    def recent(self, limit: int = 100, before: float = 0.0) -> list[Build]:
        """Newest first; ``before``: only those that started earlier (for paging), 0 = all."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM builds WHERE started < ? ORDER BY started DESC, id LIMIT ?",
            (before or 1e18, limit),
        )
        return [_build(row) for row in rows]

    def latest(self) -> Build | None:
        """The build that started last."""
        found = self.recent(1)
        return found[0] if found else None

    def interrupted(self, now: float | None = None) -> list[str]:
        """At start: builds that ran when the daemon ended; marks and gives them."""
        ids = [row[0] for row in self._db.all("SELECT id FROM builds WHERE status = ?", (RUNNING,))]
        error = {
            "code": "interrupted", "message": "the daemon ended while the build ran",
            "hint": "run the build again: what it had finished is cached",
        }
        with self._db.transaction():
            for build in ids:
                self.finish(build, "interrupted", error=error, now=now)
        return ids

    def expired(self, keep: int, max_age: float, now: float) -> list[str]:
        """Ended builds beyond the newest ``keep``, or that ended more than ``max_age`` seconds ago
        (0 = no limit)."""
        rows = self._db.all(
            "SELECT id, ended FROM builds WHERE status != ? ORDER BY started DESC", (RUNNING,)
        )
        return [
            row[0] for place, row in enumerate(rows)
            if place >= keep or (max_age and row[1] < now - max_age)
        ]

    def remove(self, build: str) -> None:
        """Delete a build and its log."""
        hit("build.before-delete")
        self._db.delete("builds", build)
        shutil.rmtree(self.directory(build), ignore_errors=True)
