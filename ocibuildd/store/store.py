"""A state directory, opened: its parts, and what they do together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from ..model.digest import Digest
from ..ports import Lease
from . import recover
from .blobs import Blobs
from .builds import Builds
from .cache_mounts import CacheMounts
from .db import Database
from .gc import finish
from .images import Images
from .layers import Layers
from .leases import Held, Leases
from .lock import Lock
from .policy import Policy
from .records import Records
from .schema import MIGRATIONS
from .snapshots import Trees
from .sources import Sources
from .space import Admit, Reservation, Space, Told
from .sweep import Outcome, collecting
from .uploads import Uploads

DIRECTORIES = (
    "blobs/sha256", "blobs/sha512", "ingest", "quarantine", "trees", "cache", "builds", "trash",
)


def read_boot_id() -> str:
    """This boot's id; trees that weren't synced before another one are not to be trusted."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


class Store:
    """The parts of an open store.  Made by :meth:`open`; used from one thread.

    blobs, layers, trees, records, images (with names and indexes), builds, leases, cache_mounts, sources,
    uploads, space.
    """

    blobs: Blobs
    layers: Layers
    trees: Trees
    records: Records
    images: Images
    builds: Builds
    cache_mounts: CacheMounts
    sources: Sources
    uploads: Uploads
    space: Space

    def __init__(self, path: Path, lock: Lock, db: Database, boot_id: str):
        self.path = path
        self.lock = lock
        self.db = db
        self.boot_id = boot_id
        self.held = Held()
        self.leases = Leases(self.held)
        self.blobs = Blobs(path, db, self.held)
        self.layers = Layers(db, self.held)
        self.trees = Trees(path, db, boot_id)
        self.records = Records(db, self.held)
        self.images = Images(db, self.held)
        self.builds = Builds(path, db)
        self.cache_mounts = CacheMounts(path, db)
        self.sources = Sources(db)
        self.uploads = Uploads(db)
        self.blobs.on_lost = self._lost
        self.space = Space(path, lambda: self.used)
        self.admit: Admit = self._admit
        """Room for so many bytes before they are written (``Space.reserve``); where the store is maintained,
        collected if need be (``Maintenance.admit``).  Raises NoSpace."""
        self.recovered = recover.Report()

    @classmethod
    def open(cls, path: Path, *, boot_id: str = "", ballast: int = 0) -> Store:
        """Open or create a state directory; mend what a crash left (``recovered`` says what).

        boot_id: for tests, "" = this boot's.  ballast: bytes to keep aside for a full disk, 0 = none.
        Raises Conflict (another daemon has it), NoSpace, BuildError (read-only, a newer schema).
        """
        recover.make_directories(path, DIRECTORIES)
        lock = Lock(path)
        try:
            clean = recover.take_marker(path)
            db, report = recover.open_database(path, clean=clean, schema=len(MIGRATIONS))
            try:
                store = cls(path, lock, db, boot_id or read_boot_id())
                store.recovered = report
                recover.sweep(store, report, clean=clean)
                store.space.make_ballast(ballast)
            except BaseException:
                db.close()
                raise
        except BaseException:
            lock.release()
            raise
        return store

    def _lost(self, digest: Digest, why: str) -> None:
        """What stands on a layer whose blob is lost is no cache hit any more: it is made again."""
        with self.transaction():
            for layer in self.layers.by_digest(digest):
                for key in self.records.using(layer.id):
                    self.records.remove(key, rule="damage", why=f"a layer of it is lost: blob {digest.short} {why}")

    async def _admit(
        self, size: int = 0, *, lease: Lease | None = None, told: Told | None = None  # noqa: ARG002 - nobody waits
    ) -> Reservation:
        return self.space.reserve(size)

    @property
    def used(self) -> int:
        """Bytes of blobs, trees and cache mounts, by their rows."""
        return self.blobs.bytes + self.trees.bytes + self.cache_mounts.bytes

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are one commit; see ``Database.transaction``."""
        with self.db.transaction():
            yield

    def collect(self, policies: Sequence[Policy] = (), *, now: float | None = None) -> Outcome:
        """A collection at once, for tests and tools; the daemon's is ``Maintenance.collect``.  What was
        trees is left in the trash (``Outcome.trees``)."""
        return finish(collecting(self, policies, now=now))

    def close(self) -> None:
        """An orderly end: the next start needs no search.  Idempotent."""
        if self.lock.fd < 0:
            return
        for writer in list(self.blobs.writers):
            writer.abort()
        self.db.close()
        if self.db.journal is not None:
            self.db.journal.close()
        if not self.db.damaged:
            with contextlib.suppress(OSError):
                recover.put_marker(self.path)
        self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


