"""Contexts that clients send: files of the build service until the build that names them has read them."""

from __future__ import annotations

import os
import re
import secrets
import time
from pathlib import Path

from ..errors import NotFound, TooLarge
from ..store.blobs import disk_error

TTL = 3600.0
"""Seconds after which an upload that no build asked for is deleted."""
_ID = re.compile(r"[0-9a-f]{32}\Z")


class Upload:
    """One on its way in.  ``close`` when all was written; ``abort`` otherwise (harmless after close)."""

    def __init__(self, path: Path, limit: int):
        self.id = path.name
        self._path = path
        self._limit = limit
        self._size = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append.  Raises TooLarge, NoSpace; the upload is then aborted."""
        self._size += len(data)
        if self._size > self._limit:
            self.abort()
            raise TooLarge(f"context: more than {self._limit:,} bytes",
                           hint="a .dockerignore file leaves out what isn't needed")
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self.abort()
            raise disk_error(error, "context upload") from error

    def close(self) -> None:
        """It is whole."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def abort(self) -> None:
        """Nothing remains of an unfinished one."""
        if self._fd >= 0:
            self.close()
            self._path.unlink(missing_ok=True)


class Uploads:
    """The directory of uploads; emptied at start."""

    def __init__(self, directory: Path, limit: int):
        self._directory = directory
        self._limit = limit
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in directory.iterdir():
            left.unlink()

    def new(self) -> Upload:
        """Begin one."""
        self._expire()
        return Upload(self._directory / secrets.token_hex(16), self._limit)

    def path(self, name: str) -> Path:
        """The file of an upload.  Raises NotFound; an id is never taken for a path."""
        path = self._directory / name
        if not _ID.match(name) or not path.is_file():
            raise NotFound(f"upload {name[:64]!r}: no such upload", hint="send the context again")
        return path

    def remove(self, name: str) -> None:
        """Idempotent."""
        if _ID.match(name):
            (self._directory / name).unlink(missing_ok=True)

    def _expire(self) -> None:
        now = time.time()
        for path in self._directory.iterdir():
            if now - path.stat().st_mtime > TTL:
                path.unlink(missing_ok=True)
