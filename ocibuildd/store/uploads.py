"""Registry pushes: where an interrupted upload went on, and which repository is known to have a blob."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..model.digest import Digest
from .db import Database

MAX_AGE = 24 * 3600.0
"""Registries forget unfinished uploads; so do we."""
MAX_REPOSITORIES = 8
"""Candidates for a cross-repository mount: more are never tried."""
MAX_DISTRIBUTION = 200_000
"""Rows; the oldest go first (``trim``)."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload under way.  location: the session's URL as the registry gave it; offset: bytes it has."""

    registry: str
    repository: str
    digest: Digest
    location: str
    offset: int
    updated: float


class Uploads:
    """Uploads by (registry, repository, digest)."""

    def __init__(self, db: Database):
        self._db = db

    def get(self, registry: str, repository: str, digest: Digest) -> Upload | None:
        row = self._db.one(
            "SELECT location, offset, updated FROM uploads"
            " WHERE registry = ? AND repository = ? AND digest = ? AND updated > ?",
            (registry, repository, digest, time.time() - MAX_AGE),
        )
        return None if row is None else Upload(registry, repository, digest, *row)

    def put(self, registry: str, repository: str, digest: Digest, location: str, offset: int) -> None:
        """The session goes on here."""
        self._db.run(
            "INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?, ?, ?)",
            (registry, repository, str(digest), location, offset, time.time()),
        )

    def remove(self, registry: str, repository: str, digest: Digest) -> None:
        """It is done, or the registry no longer knows it."""
        self._db.run(
            "DELETE FROM uploads WHERE registry = ? AND repository = ? AND digest = ?",
            (registry, repository, digest),
        )

    # --- distribution ---------------------------------------------------------------------------------

    def saw(self, registry: str, repository: str, digests: list[Digest]) -> None:
        """That repository has these blobs or manifests (pushed, pulled from, or found by HEAD): one commit."""
        now = time.time()
        with self._db.transaction():
            for digest in digests:
                self._db.run(
                    "INSERT OR REPLACE INTO distribution VALUES (?, ?, ?, ?)",
                    (str(digest), registry, repository, now),
                )

    def has(self, registry: str, repository: str, digest: Digest) -> bool:
        """Was it seen there?"""
        found = self._db.one(
            "SELECT 1 FROM distribution WHERE digest = ? AND registry = ? AND repository = ?",
            (digest, registry, repository),
        )
        return found is not None

    def seen_in(self, registry: str, digest: Digest) -> list[str]:
        """Repositories of the registry that had the blob, latest first: hints, not facts."""
        rows = self._db.all(
            "SELECT repository FROM distribution WHERE digest = ? AND registry = ?"
            " ORDER BY seen DESC LIMIT ?",
            (digest, registry, MAX_REPOSITORIES),
        )
        return [row[0] for row in rows]

    def missed(self, registry: str, repository: str, digest: Digest) -> None:
        """It doesn't have it after all."""
        self._db.run(
            "DELETE FROM distribution WHERE digest = ? AND registry = ? AND repository = ?",
            (digest, registry, repository),
        )

    def trim(self) -> None:
        """Forget stale uploads and the oldest hints."""
        self._db.run("DELETE FROM uploads WHERE updated < ?", (time.time() - MAX_AGE,))
        self._db.run(
            "DELETE FROM distribution WHERE seen < (SELECT seen FROM distribution ORDER BY seen DESC"
            " LIMIT 1 OFFSET ?)",
            (MAX_DISTRIBUTION,),
        )
