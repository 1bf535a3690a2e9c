"""Checksums of local contexts: in main's own threads, with what is known of unchanged files.

nsd can't be asked for them cheaply: the fingerprints (device, inode, size, mtime, ctime → digest) live
here, and with them a checksum is one stat a file."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from pathlib import Path
from typing import cast
from weakref import WeakValueDictionary

from ..layer.checksum import checksum
from ..layer.fingerprints import Fingerprints
from ..layer.scan import Scan
from ..layer.select import Source
from ..ports import Checksum, CopySpec, Nsd, SourceDir
from ..runtime import in_thread
from .kept import KeptSegments
from .source import Directory


class LocalContents:
    """Checksums for one daemon.  directory: where fingerprints are kept between its lives."""

    def __init__(self, directory: Path, nsd: Nsd):
        self._directory = directory
        self._nsd = nsd
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.kept = KeptSegments()

    def fingerprints(self, directory: Directory) -> int:
        """A descriptor of what is remembered of a directory's files, the caller's to close; -1: nothing is."""
        if directory.path:
            with contextlib.suppress(OSError):
                return os.open(self._directory / _name(directory), os.O_RDONLY | os.O_CLOEXEC)
        return -1

    async def checksum(self, directory: Directory, source: SourceDir, spec: CopySpec) -> Checksum:
        """Of a selection of a directory's files.  Raises what ``layer.select.checksum`` raises."""
        if not directory.path:
            found = await self._nsd.call("checksum", {"source": source, "copy": spec}, [directory.fd])
            return cast("Checksum", found)
        key = _name(directory)
        async with self._locks.setdefault(key, asyncio.Lock()):
            return await in_thread(_local, directory, source, spec, self._directory / key)


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
