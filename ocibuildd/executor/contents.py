"""Checksums of local contexts, with what is known of unchanged files: one stat a file.

The fingerprints (device, inode, size, mtime, ctime → digest) are a file a directory.  Small directories are looked at
in a thread of main's, which is faster by the fork; large ones by a job of nsd, so that main's memory and its GIL
stay out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast
from weakref import WeakValueDictionary

from ..layer.checksum import checksum
from ..layer.fingerprints import RECORD, Fingerprints
from ..layer.scan import Scan
from ..layer.select import Source
from ..ports import Checksum, CopySpec, Nsd, SourceDir
from ..runtime import in_thread
from .kept import KeptSegments, forget_oldest
from .source import Directory

SMALL: Final = 3000 * RECORD
"""Bytes of fingerprints of a directory that main looks at itself.  One that isn't known yet may be any size."""


MAX_DIRECTORIES: Final = 256
"""Directories whose files are remembered."""


class ScanFile:
    """A scan that a job wrote; ``layer.scan.Scan.memfd`` in another form."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("scan")

    def memfd(self) -> int:
        """The descriptor, the caller's from now on."""
        fd, self.fd = self.fd, -1
        return fd

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class LocalContents:
    """Checksums for one daemon.  directory: where fingerprints are kept between its lives."""

    def __init__(self, directory: Path, nsd: Nsd):
        self._directory = directory
        self._nsd = nsd
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.kept = KeptSegments(directory / "segments")

    async def checksum(self, directory: Directory, source: SourceDir, spec: CopySpec) -> Checksum:
        """Of a selection of a directory's files.  Raises what ``layer.select.checksum`` raises."""
        if not directory.path:
            args = {"source": source, "copy": spec}
            return cast("Checksum", await self._nsd.call("checksum", args, [directory.fd]))
        key = _name(directory)
        path = self._directory / key
        async with self._locks.setdefault(key, asyncio.Lock()):
            size = _size(path)
            if 0 < size <= SMALL:
                return await in_thread(_local, directory, source, spec, path)
            found = await self._by_job(directory, source, spec, path)
        if not size:
            with contextlib.suppress(OSError):
                forget_oldest(self._directory, MAX_DIRECTORIES)
        return found

    async def _by_job(
        self, directory: Directory, source: SourceDir, spec: CopySpec, path: Path
    ) -> Checksum:
        scan = ScanFile()
        with _replacing(path) as (remember, keep):
            fds = [directory.fd, scan.fd, remember]
            local = {"scan": 1, "remember": 2}
            known = -1
            with contextlib.suppress(FileNotFoundError):
                known = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                local["known"] = len(fds)
                fds.append(known)
            try:
                args = {"source": source, "copy": spec, "local": local}
                found: dict[str, Any] = await self._nsd.call("checksum", args, fds)
            finally:
                if known >= 0:
                    os.close(known)
            if found.pop("changed"):
                keep()
        found["scan"] = scan
        return cast("Checksum", found)


def _size(path: Path) -> int:
    """Of a file that is used now; 0: there is none."""
    try:
        os.utime(path)
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[tuple[int, Callable[[], None]]]:
    """(descriptor of a new file, what puts it in the place of ``path``); it is gone otherwise."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        yield fd, lambda: os.replace(temporary, path)
    finally:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _name(directory: Directory) -> str:
    return hashlib.sha256(directory.path.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _local(
    directory: Directory, source: SourceDir, spec: CopySpec, path: Path
) -> Checksum:
    # Read each time (some milliseconds for 20,000 files) rather than kept: an idle daemon is small.
    known = Fingerprints.load(path)
    files = Source(
        fd=directory.fd, paths=tuple(source["paths"]), ignore=tuple(source.get("ignore", ())),
        remote=source.get("remote", False),
    )
    scan = Scan()
    found = checksum(files, spec, fingerprints=known, scan=scan)
    found["scan"] = scan
    if known.changed:
        known.save(path)
    return found
