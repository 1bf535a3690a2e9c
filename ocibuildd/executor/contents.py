"""Checksums of local contexts, with what is known of unchanged files: one stat a file.

The fingerprints (device, inode, size, mtime, ctime → digest) are a file a directory.  Small directories are looked at
in a thread of main's, which is faster by the fork; large ones by a job of nsd, so that main's memory and its GIL
stay out of it.  A selection as a whole is remembered too (``layer.recall``), a file each: where nothing changed, as in
most rebuilds, it is known after a third of that work.
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

from ..layer import recall
from ..layer.checksum import checksum
from ..layer.fingerprints import RECORD, Fingerprints, now
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
MAX_SELECTIONS: Final = 128
"""Selections that are remembered as a whole: some 200 bytes a file."""
SELECTIONS_BYTES: Final = 256 << 20


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


class RememberedScan:
    """The scan in a memory; its descriptor becomes this object's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def memfd(self) -> int:
        """A copy of it, the caller's; -1: it is damaged."""
        place = recall.scan_at(self._fd)
        if place is None:
            return -1
        at, left = place
        fd = os.memfd_create("scan")
        try:
            while left:
                done = os.sendfile(fd, self._fd, at, left)
                at, left = at + done, left - done
        except BaseException:
            os.close(fd)
            raise
        return fd

    def __del__(self) -> None:
        os.close(self._fd)


def opened(scan: Any, into: list[int]) -> int:
    """``scan.memfd()``, put into the list of what is to be closed before anybody can be cancelled who waits for it.
    *Thread-safe*."""
    fd: int = scan.memfd()
    if fd >= 0:
        into.append(fd)
    return fd


class LocalContents:
    """Checksums for one daemon.  directory: where fingerprints are kept between its lives; selections: where selections
    are (made where it is missing; None: they aren't)."""

    def __init__(self, directory: Path, nsd: Nsd, selections: Path | None = None):
        self._directory = directory
        self._nsd = nsd
        self._selections = selections
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.kept = KeptSegments(directory / "segments")
        if selections is not None:
            selections.mkdir(mode=0o700, exist_ok=True)

    async def checksum(self, directory: Directory, source: SourceDir, spec: CopySpec) -> Checksum:
        """Of a selection of a directory's files.  Raises what ``layer.select.checksum`` raises."""
        if not directory.path:
            args = {"source": source, "copy": spec}
            return cast("Checksum", await self._nsd.call("checksum", args, [directory.fd]))
        key = _name(directory)
        path = self._directory / key
        memory = None if self._selections is None else self._selections / _selection(key, source, spec)
        async with self._locks.setdefault(key, asyncio.Lock()):
            size, new = _size(path), memory is not None and not _size(memory)
            if 0 < size <= SMALL:
                found = await in_thread(_local, directory, source, spec, path, memory)
            else:
                found = await self._by_job(directory, source, spec, path, memory)
        with contextlib.suppress(OSError):
            if not size:
                forget_oldest(self._directory, MAX_DIRECTORIES)
            if new and self._selections is not None:
                forget_oldest(self._selections, MAX_SELECTIONS, SELECTIONS_BYTES)
        return found

    async def _by_job(
        self, directory: Directory, source: SourceDir, spec: CopySpec, path: Path, memory: Path | None
    ) -> Checksum:
        scan = ScanFile()
        with contextlib.ExitStack() as stack:
            remember, keep = stack.enter_context(_replacing(path))
            fds = [directory.fd, scan.fd, remember]
            local = {"scan": 1, "remember": 2}
            keep_memory = None
            if memory is not None:
                local["memory"] = len(fds)
                fd, keep_memory = stack.enter_context(_replacing(memory))
                fds.append(fd)
            for name, known in (("known", path), ("remembered", memory)):
                fd = -1 if known is None else stack.enter_context(_opened(known))
                if fd >= 0:
                    local[name] = len(fds)
                    fds.append(fd)
            args = {"source": source, "copy": spec, "local": local}
            found: dict[str, Any] = await self._nsd.call("checksum", args, fds)
            if found.pop("changed"):
                keep()
            if found.pop("kept") and keep_memory is not None:
                keep_memory()
            if found.pop("recalled"):
                found["scan"] = RememberedScan(os.dup(fds[local["remembered"]]))
            else:
                found["scan"] = scan
        return cast("Checksum", found)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor for reading; -1: there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


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


def _selection(directory: str, source: SourceDir, spec: CopySpec) -> str:
    """What a selection's memory is called: all that decides what is selected, and where."""
    asked = (directory, list(source["paths"]), list(source.get("ignore", ())), list(spec["exclude"]), spec["parents"])
    return hashlib.sha256(repr(asked).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _local(
    directory: Directory, source: SourceDir, spec: CopySpec, path: Path, memory: Path | None
) -> Checksum:
    files = Source(
        fd=directory.fd, paths=tuple(source["paths"]), ignore=tuple(source.get("ignore", ())),
        remote=source.get("remote", False),
    )
    if memory is not None:
        with _opened(memory) as fd:
            found = None if fd < 0 else recall.recall(fd, files, spec)
            if found is not None:
                found["scan"] = RememberedScan(os.dup(fd))
                return found
    # Read each time (some milliseconds for 20,000 files) rather than kept: an idle daemon is small.
    known = Fingerprints.load(path)
    scan, started = Scan(), now()
    found = checksum(files, spec, fingerprints=known, scan=scan)
    if memory is not None:
        with _replacing(memory) as (fd, keep):
            if recall.remember(fd, started, found, scan, scan.dump()):
                keep()
    found["scan"] = scan
    if known.changed:
        known.save(path)
    return found
