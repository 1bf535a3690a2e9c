"""Blobs: content by digest (``ports.BlobStore``).

In: ingest file → fsync → digest and size checked → rename → directory fsync → row.  A failed fsync is the
end of that ingest (the kernel may have dropped the pages and will not say so twice).  Out: row → trash.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Self

from ..errors import BuildError, Corrupt, NoSpace, NotFound, TooLarge
from ..model.digest import Digest
from .db import Database
from .failpoints import hit
from .leases import Held

log = logging.getLogger(__name__)

CHUNK = 1 << 20
READ_LIMIT = 8 << 20
LARGE = 256 << 10
"""Bytes from which on deleting a file takes notably longer than renaming it."""


def disk_error(error: OSError, what: str) -> BuildError | OSError:
    """The project's error for a write that failed, or the same again."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"{what}: {os.strerror(error.errno)}", hint="free some space, or run `ocibuild prune`"
        )
    if error.errno == errno.EROFS:
        return BuildError(f"{what}: the file system is read-only", hint="remount it, check the disk")
    if error.errno == errno.EIO:
        return Corrupt(f"{what}: the disk failed to store it (EIO)", hint="check the disk")
    return error


def hash_file(fd: int, algorithm: str) -> tuple[str, int]:
    """Hex digest and size of what a descriptor holds, from its start.  *Thread-safe*."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    offset = 0
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    while count := os.preadv(fd, [buffer], offset):
        hasher.update(view[:count])
        offset += count
    return hasher.hexdigest(), offset


class Writer:
    """``ports.BlobWriter``.  Also a context manager that aborts what wasn't committed.

    ``fd`` is open for reading and writing.  Where ``write`` got all the bytes they were hashed on the way;
    where a job wrote through ``fd``, commit hashes the file, unless the writer was made with
    ``trusted=True``: then a job of our own reports the digest, and only the size is checked.
    """

    def __init__(self, store: Blobs, path: Path, *, trusted: bool):
        self._store = store
        self.path = path
        self._trusted = trusted
        self.written = 0
        self._hasher = hashlib.sha256(usedforsecurity=False)
        self.sealed: tuple[Digest, int] | None = None
        """Its file has its name, and only the row is missing."""
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append.  Raises NoSpace, Corrupt (EIO); the writer is then aborted."""
        view = memoryview(data)
        try:
            hit("blob.write")
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError as error:
            self.abort()
            raise disk_error(error, f"ingest {self.path.name}") from error
        self._hasher.update(data)
        self.written += len(data)

    def seal(self, digest: Digest, size: int) -> None:
        """All of commit but the row.  *Thread-safe*: ``await in_thread(w.seal, digest, size)``, then
        ``commit`` with the same arguments costs only the row.  Raises as commit."""
        if self.sealed == (digest, size):
            return
        try:
            self._check(digest, size)
            hit("blob.before-fsync")
            os.fsync(self.fd)
            hit("blob.after-fsync")
            self._store.place(self, digest, size)
            hit("blob.after-rename")
            _sync_directory(self._store.file(digest).parent)
            hit("blob.after-dir-fsync")
        except OSError as error:
            self._give_up()
            raise disk_error(error, f"blob {digest}") from error
        except BuildError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        """At once, unless the database must be asked first (this may be a thread): then at ``abort``."""
        if self.sealed is None:
            self.abort()

    def _check(self, digest: Digest, size: int) -> None:
        found = os.fstat(self.fd).st_size
        if found != size:
            raise Corrupt(f"blob {digest}: {found:,} bytes, expected {size:,}")
        if self._trusted:
            return
        if self.written == size and digest.algorithm == "sha256":
            actual = self._hasher.hexdigest()
        else:
            actual, _ = hash_file(self.fd, digest.algorithm)
        if actual != digest.hex:
            raise Corrupt(f"blob {digest}: its content has digest {digest.algorithm}:{actual}")

    def commit(self, digest: Digest, size: int) -> None:
        """The blob is there, for good (in a transaction: once it stands).  Raises Corrupt (digest or size
        differ, EIO), NoSpace."""
        self.seal(digest, size)
        self._store.add_sealed(digest, size)
        self._close()

    def abort(self) -> None:
        """Nothing remains; harmless after commit."""
        if self.fd >= 0:
            self._close()
            if self.sealed is not None:  # it has its name already, but nobody's row
                self._store.delete_unknown(self.sealed[0])
                return
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self._store.writers.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


class Blobs:
    """``ports.BlobStore`` in ``<state>/blobs``.  ``bytes``: what all of them take, kept in step."""

    def __init__(self, state: Path, db: Database, held: Held):
        self._state = state
        self._trash, self._directory = str(state / "trash"), str(state / "blobs")
        self._db = db
        self._held = held
        self._names = itertools.count()
        self.writers: set[Writer] = set()
        self._placing = threading.Lock()
        """Held while a file gets its name or loses it: writers seal in threads."""
        self.on_lost: Callable[[Digest, str], object] = lambda _digest, _why: None
        """Told of each blob that should be there and isn't any more."""
        row = db.one("SELECT coalesce(sum(size), 0) FROM blobs")
        self.bytes: int = row[0] if row else 0

    def file(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self._state / "blobs" / digest.algorithm / digest.hex

    def has(self, digest: Digest) -> bool:
        """One indexed select.  Whoever asks wants it: a collection under way leaves it."""
        self._held.note(blobs=(digest,))
        return self._db.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is not None

    def size(self, digest: Digest) -> int:
        """Bytes.  Raises NotFound."""
        row = self._db.one("SELECT size FROM blobs WHERE digest = ?", (digest,))
        if row is None:
            raise NotFound(f"blob {digest}: not in the store")
        return int(row[0])

    def open(self, digest: Digest) -> int:
        """A read-only descriptor, the caller's to close; the size is checked here, the digest by whoever
        reads it (``verify`` does so).  Raises NotFound, Corrupt (and quarantines)."""
        size = self.size(digest)
        self._held.note(blobs=(digest,))
        try:
            fd = os.open(self.file(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.forget(digest)
            self.on_lost(digest, "its file is gone")
            raise NotFound(f"blob {digest}: its file is gone") from None
        found = os.fstat(fd).st_size
        if found != size:
            os.close(fd)
            self.quarantine(digest, f"{found:,} bytes, expected {size:,}")
            raise Corrupt(f"blob {digest}: {found:,} bytes, expected {size:,} (now in quarantine)")
        return fd

    def read(self, digest: Digest, limit: int = READ_LIMIT) -> bytes:
        """A small blob, verified again.  Raises NotFound, Corrupt (and quarantines), TooLarge."""
        size = self.size(digest)
        if size > limit:
            raise TooLarge(f"blob {digest}: {size:,} bytes, at most {limit:,} can be read at once")
        fd = self.open(digest)
        try:
            data = b""
            while len(data) < size and (part := os.pread(fd, size - len(data), len(data))):
                data += part
        except OSError as error:
            self.quarantine(digest, str(error))
            raise Corrupt(f"blob {digest}: can't be read: {error.strerror}") from error
        finally:
            os.close(fd)
        if hashlib.new(digest.algorithm, data, usedforsecurity=False).hexdigest() != digest.hex:
            self.quarantine(digest, "digest differs")
            raise Corrupt(f"blob {digest}: damaged on the disk (now in quarantine)")
        return data

    def put(self, data: bytes) -> Digest:
        """A small blob from memory; free where it is there already."""
        digest = Digest.of(data)
        if not self.has(digest):
            with self.writer() as writer:
                writer.write(data)
                writer.commit(digest, len(data))
        return digest

    def put_many(self, items: list[bytes], *, sync: bool = True) -> list[Digest]:
        """Several small blobs with one directory sync and one commit (configs of intermediate images).

        sync: False for what can be made again and whose loss is noticed when it is read (a blob is
        verified then): nobody waits for the disk."""
        digests = [Digest.of(data) for data in items]
        fresh = {d: data for d, data in zip(digests, items, strict=True) if not self.has(d)}
        if not fresh:
            return digests
        writers: list[Writer] = []
        try:
            for digest, data in fresh.items():
                writer = self.writer()
                writers.append(writer)
                writer.write(data)
                if sync:
                    os.fsync(writer.fd)
                hit("blob.many-after-fsync")
                self.place(writer, digest, len(data))
            if sync:
                _sync_directory(self._state / "blobs" / "sha256")
            with self._db.transaction():
                for writer, (digest, data) in zip(writers, fresh.items(), strict=True):
                    writer.commit(digest, len(data))
        except OSError as error:
            raise disk_error(error, f"{len(fresh)} blobs") from error
        finally:
            for writer in writers:
                writer.abort()
        return digests

    def writer(self, *, trusted: bool = False) -> Writer:
        """An ingest.  See Writer for ``trusted``.  Raises NoSpace."""
        path = self._state / "ingest" / f"{os.getpid()}-{next(self._names)}"
        try:
            writer = Writer(self, path, trusted=trusted)
        except OSError as error:
            raise disk_error(error, f"ingest {path.name}") from error
        self.writers.add(writer)
        return writer

    def place(self, writer: Writer, digest: Digest, size: int) -> None:
        """Give a writer's file its name; it is ``sealed`` then.  *Thread-safe*.  Raises OSError."""
        with self._placing:
            os.rename(writer.path, self.file(digest))
            writer.sealed = (digest, size)

    def add_row(self, digest: Digest, size: int) -> None:
        """The file is in its place: let it be known."""
        self._held.note(blobs=(digest,))
        if self._db.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is None:
            hit("blob.before-row")
            self._db.put("blobs", (str(digest), size, time.time()))
            self._grow(size)
            hit("blob.after-row")

    def add_sealed(self, digest: Digest, size: int) -> None:
        """``add_row`` for a file that came just now: it goes again if the transaction is rolled back."""
        self.add_row(digest, size)
        self._db.after_commit(lambda: None, lambda: self.delete_unknown(digest))

    def delete_unknown(self, digest: Digest) -> None:
        """Delete the blob's file if there is no row for it, nor a writer about to add one."""
        with self._placing:
            if not self.wanted(digest):
                with contextlib.suppress(FileNotFoundError):
                    self.file(digest).unlink()

    def wanted(self, digest: Digest) -> bool:
        """Is there a row for it, or a writer that has placed its file and is about to add one?"""
        if any(writer.sealed and writer.sealed[0] == digest for writer in list(self.writers)):
            return True
        return self._db.one("SELECT 1 FROM blobs WHERE digest = ?", (digest,)) is not None

    def forget(self, digest: Digest) -> int:
        """Delete the row; gives the size that it had (0: there was none).  The file stays."""
        row = self._db.one("SELECT size FROM blobs WHERE digest = ?", (digest,))
        if row is None:
            return 0
        self._db.delete("blobs", str(digest))
        self._grow(-int(row[0]))
        return int(row[0])

    def _grow(self, size: int) -> None:
        self.bytes += size

        def undo() -> None:
            self.bytes -= size

        self._db.after_commit(lambda: None, undo)

    def trash_forgotten(self, digest: Digest, size: int = LARGE) -> bool:
        """Second half of a removal, after the row is gone: a rename, fast and final; the trash is emptied
        later.  A file of a small ``size`` is deleted at once, which takes no longer.
        False if the blob has come in again meanwhile and stays."""
        # Texts: thousands go at once, and a Path costs more than the rename.
        target = f"{self._trash}/blob-{digest.hex[:32]}-{time.time_ns()}"
        source = f"{self._directory}/{digest.algorithm}/{digest.hex}"
        with self._placing:
            if self.wanted(digest):
                return False
            hit("blob.before-trash")
            with contextlib.suppress(FileNotFoundError):
                if size < LARGE:
                    os.unlink(source)
                else:
                    os.rename(source, target)
        return True

    def verify(self, digest: Digest) -> str:
        """What is wrong with the blob's file, "" = nothing.  *Thread-safe*."""
        try:
            fd = os.open(self.file(digest), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return "its file is gone"
        except OSError as error:
            return f"can't be opened: {error.strerror}"
        try:
            actual, size = hash_file(fd, digest.algorithm)
        except OSError as error:
            return f"can't be read: {error.strerror}"
        finally:
            os.close(fd)
        return "" if actual == digest.hex else f"damaged: {size:,} bytes with digest {actual[:12]}…"

    def quarantine(self, digest: Digest, why: str) -> None:
        """Put a damaged blob aside: from now on it is missing, which is a cache miss or a pull."""
        log.warning("blob %s: %s: put into quarantine", digest, why)
        self.forget(digest)
        target = self._state / "quarantine" / f"{digest.hex}-{int(time.time())}"
        with self._placing:
            if not self.wanted(digest):  # else another writer has put a whole one in its place already
                with contextlib.suppress(OSError):
                    os.rename(self.file(digest), target)
        self.on_lost(digest, why)

    def suspect(self, error: BuildError) -> None:
        """A reader found a blob damaged and named it (``details["blob"]``): look, and put it aside."""
        named = error.details.get("blob")
        if isinstance(named, str) and (problem := self.verify(Digest(named))):
            self.quarantine(Digest(named), problem)

    def all_digests(self, after: str = "", count: int = 1_000) -> list[tuple[Digest, int]]:
        """(digest, size) in order of digest, a page at a time."""
        rows = self._db.all(
            "SELECT digest, size FROM blobs WHERE digest > ? ORDER BY digest LIMIT ?", (after, count)
        )
        return [(Digest(row[0]), int(row[1])) for row in rows]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_file(blobs: Blobs, digest: Digest) -> IO[bytes]:
    """The blob as a file object."""
    return os.fdopen(blobs.open(digest), "rb")
