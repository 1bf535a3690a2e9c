"""Cache mounts (``RUN --mount=type=cache``): directories that outlive builds.

``<state>/cache/<hash>/data``; the daemon makes the outer directory, the job that mounts it makes ``data``
with the mount's mode and owner.  An id is never part of a path: its hash is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from ..errors import Conflict
from .db import Database, Row
from .failpoints import hit

VARIANT = "\0"
"""Stands in an id before what else tells one mount of that id from another: mode and owner, what it begins with."""
Sharing = Literal["shared", "private", "locked"]
MAX_PRIVATE = 1_000
"""Parallel private directories of one id; more is a mistake somewhere."""


@dataclass(frozen=True, slots=True)
class CacheMount:
    """A row of ``cache_mounts``.  size: bytes when it was last measured."""

    hash: str
    id: str
    sharing: str
    size: int
    created: float
    last_used: float
    uses: int
    in_use: int
    path: Path

    @property
    def name(self) -> str:
        """The id without what tells its variants apart."""
        return self.id.partition(VARIANT)[0]

    @property
    def variant(self) -> str:
        """What tells it from others of its name, for people."""
        return self.id.partition(VARIANT)[2].replace(VARIANT, ", ")


_COLUMNS = "hash, id, sharing, size, created, last_used, uses"


class Grip:
    """A cache mount in use.  ``path``: the directory to mount.  ``release`` when the step has ended
    (idempotent; also a context manager)."""

    def __init__(self, owner: CacheMounts, name: str, path: Path):
        self._owner: CacheMounts | None = owner
        self.hash = name
        self.path = path

    def release(self) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.released(self.hash)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class CacheMounts:
    """Cache mounts by id.  ``bytes``: what all of them took when last measured."""

    def __init__(self, state: Path, db: Database):
        self._state = state
        self._db = db
        self._users: dict[str, int] = {}
        self._exclusive: set[str] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self.stale: set[str] = set()
        """Used since they were last measured, by hash."""
        row = db.one("SELECT coalesce(sum(size), 0) FROM cache_mounts")
        self.bytes: int = row[0] if row else 0

    async def acquire(self, cache_id: str, sharing: Sharing = "shared") -> Grip:
        """The directory of an id, as BuildKit shares it: shared = with anybody; locked = wait until
        nobody has it, then alone; private = one that nobody has, a further one if need be.

        A step with several cache mounts must acquire them in the order of their ids, lest two steps wait
        for each other.
        """
        while (grip := self.try_acquire(cache_id, sharing)) is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
        return grip

    def try_acquire(self, cache_id: str, sharing: Sharing = "shared") -> Grip | None:
        """As ``acquire``; None where it would wait."""
        for number in range(MAX_PRIVATE):
            name = self._hash(cache_id, number if sharing == "private" else 0)
            free = not self._users.get(name)
            if free or (sharing == "shared" and name not in self._exclusive):
                return self._take(name, cache_id, sharing)
            if sharing != "private":
                return None
        raise Conflict(f"cache mount {cache_id!r}: {MAX_PRIVATE} private copies are in use")

    def _take(self, name: str, cache_id: str, sharing: Sharing) -> Grip:
        directory = self._state / "cache" / name
        directory.mkdir(mode=0o700, exist_ok=True)
        now = time.time()
        before = self.get(name)
        created, size, uses = (before.created, before.size, before.uses) if before else (now, 0, 0)
        hit("cache-mount.before-row")
        self._db.put("cache_mounts", (name, cache_id, sharing, size, created, now, uses + 1))
        self._users[name] = self._users.get(name, 0) + 1
        if sharing != "shared":
            self._exclusive.add(name)
        return Grip(self, name, directory / "data")

    def released(self, name: str) -> None:
        """One user less (``Grip.release`` calls it)."""
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name]
            self._exclusive.discard(name)
        self.stale.add(name)
        self._db.on_write()  # maintenance measures it
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def in_use(self, name: str) -> bool:
        return bool(self._users.get(name))

    def get(self, name: str) -> CacheMount | None:
        """By hash."""
        row = self._db.one(f"SELECT {_COLUMNS} FROM cache_mounts WHERE hash = ?", (name,))
        return None if row is None else self._mount(row)

    def find(self, cache_id: str) -> list[CacheMount]:
        """By id; several where it was used privately in parallel."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM cache_mounts WHERE id = ? ORDER BY created, hash", (cache_id,)
        )
        return [self._mount(row) for row in rows]

    def named(self, name: str) -> list[CacheMount]:
        """By id, with all its variants (other modes, owners and beginnings), or by hash."""
        rows = self._db.all(
            f"SELECT {_COLUMNS} FROM cache_mounts WHERE hash = ?1 OR id = ?1 OR (id > ?2 AND id < ?3)"
            " ORDER BY id, created",
            (name, f"{name}{VARIANT}", f"{name}\x01"),
        )
        return [self._mount(row) for row in rows]

    def all(self) -> list[CacheMount]:
        """All of them, by id."""
        rows = self._db.all(f"SELECT {_COLUMNS} FROM cache_mounts ORDER BY id, created")
        return [self._mount(row) for row in rows]

    def set_size(self, name: str, size: int) -> None:
        """Its measured bytes (``Maintenance.measure``)."""
        before = self.get(name)
        if before is not None and before.size != size:
            self._db.run("UPDATE cache_mounts SET size = ? WHERE hash = ?", (size, name))
            self.bytes += size - before.size

    def forget(self, name: str) -> int:
        """Delete the row; gives the bytes.  Then ``trash``.  Raises Conflict while it is in use."""
        if self.in_use(name):
            raise Conflict(f"cache mount {name}: in use by {self._users[name]} step(s)")
        before = self.get(name)
        if before is None:
            return 0
        hit("cache-mount.before-delete")
        self._db.delete("cache_mounts", name)
        self.bytes -= before.size
        return before.size

    def trash(self, name: str) -> Path | None:
        """Rename out of the way, after the row is gone.  None = no such directory, or it came again."""
        if self.in_use(name) or self.get(name) is not None:
            return None
        target = self._state / "trash" / f"cache-{name}-{time.time_ns()}"
        hit("cache-mount.before-trash")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._state / "cache" / name, target)
            return target
        return None

    @staticmethod
    def _hash(cache_id: str, number: int) -> str:
        text = f"{cache_id}\0{number}" if number else cache_id
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:40]

    def _mount(self, row: Row) -> CacheMount:
        path = self._state / "cache" / row[0] / "data"
        return CacheMount(*(*row, self._users.get(row[0], 0), path))

