"""Digests of files that need not be read again, because their inode says that they didn't change.

A fingerprint is (device, inode, size, mtime, ctime) to the nanosecond.  ctime can't be set by a program, so
a file whose size and mtime were restored is seen.  git's rule for the racily clean
(Documentation/technical/racy-git.txt): a file that was written within the clock's granularity before it was
read isn't remembered, since a write a moment later could leave the same times.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .status import AnyStatus

MAGIC: Final = b"ocibuildd fingerprints 2\n"
RECORD: Final = 72
"""40 bytes of fingerprint, 32 of digest, whose last bit says that the file has xattrs that count."""
MAX_RECORDS: Final = 2_000_000
SPARE: Final = 50_000
"""Records of files that one selection doesn't ask for and the next one may."""
RACY_NS: Final = 100_000_000
"""More than the tick of any kernel's file times (1 to 10 ms)."""
COARSE_NS: Final = 2_000_000_000
"""The same for file systems that keep whole seconds (or FAT's two)."""
UNKNOWN: Final = bytes(32)
"""What stands for a digest that isn't known."""
_PACK = struct.Struct("<QQQqq").pack
_GIGA = 1_000_000_000


def key(status: AnyStatus) -> bytes:
    """A file's fingerprint.  Times after 2262 are all one: archives and file systems know later ones."""
    try:
        return _PACK(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )
    except struct.error:
        times = _near(status.st_mtime_ns), _near(status.st_ctime_ns)
        return _PACK(status.st_dev, status.st_ino, status.st_size, *times)


def _near(time_ns: int) -> int:
    return max(-(1 << 63), min(time_ns, (1 << 63) - 1))


class Fingerprints:
    """Digests by fingerprint.  One object serves many selections; not for two threads at once."""

    def __init__(self) -> None:
        self._old: dict[bytes, bytes] = {}
        self._used: dict[bytes, bytes] = {}
        self.changed = False

    @classmethod
    def load(cls, path: str | os.PathLike[str] | int) -> Fingerprints:
        """From a file (or a descriptor of one, which is closed); a missing, damaged or foreign one gives none."""
        self = cls()
        try:
            with open(path, "rb") as file:
                data = file.read(len(MAGIC) + 4 + MAX_RECORDS * RECORD + 1)
        except OSError:
            return self
        start = len(MAGIC) + 4
        body = memoryview(data)[start:]
        if data[: len(MAGIC)] != MAGIC or len(body) % RECORD or len(body) > MAX_RECORDS * RECORD:
            return self
        if _sum(body) != data[len(MAGIC) : start]:
            return self
        self._old = {
            data[at : at + 40]: data[at + 40 : at + RECORD]
            for at in range(start, len(data), RECORD)
        }
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them atomically, when something is new."""
        if not self.changed:
            return
        temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                self.write(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        self.changed = False

    def write(self, fd: int) -> None:
        """Into an open, empty file.  What nobody asked for is forgotten once it is the most."""
        if len(self._old) > 3 * len(self._used) + SPARE:
            self._old = {}
        self._old.update(self._used)
        parts = [part for record in self._old.items() for part in record]
        body = b"".join(parts)[-MAX_RECORDS * RECORD :]
        view = memoryview(MAGIC + _sum(body) + body)
        while view:
            view = view[os.write(fd, view) :]

    def get(self, fingerprint: bytes) -> bytes | None:
        value = self._used.get(fingerprint)
        if value is None:
            value = self._old.get(fingerprint)
            if value is not None:
                self._used[fingerprint] = value
        return value

    def plain(self, fingerprint: bytes) -> bytes | None:
        """The digest of a known file's bytes, where it has no xattrs (``layer.sink.data_digest`` of them)."""
        value = self._used.get(fingerprint) or self._old.get(fingerprint)
        return None if value is None or value[-1] & 1 else value

    def put(self, status: os.stat_result, value: bytes, read_at_ns: int) -> None:
        """Remember the digest of a file that was read at ``read_at_ns`` (time.time_ns() before the first byte)."""
        if settled(status, read_at_ns):
            self._used[key(status)] = value
            self.changed = True


def settled(status: AnyStatus, read_at_ns: int) -> bool:
    """Whether whatever is written from ``read_at_ns`` on gives this file other times."""
    mtime, ctime = status.st_mtime_ns, status.st_ctime_ns
    coarse = not (mtime % _GIGA or ctime % _GIGA)
    return max(mtime, ctime) + (COARSE_NS if coarse else RACY_NS) < read_at_ns


def _sum(body: bytes | memoryview) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")


def now() -> int:
    return time.time_ns()
