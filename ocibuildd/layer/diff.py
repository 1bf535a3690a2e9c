"""What a step changed, as a layer: overlayfs' upper directory into a tar (image-spec, layer.md, "Creating").

As BuildKit does it: directories that were only copied up on the way to a change, and files that were copied up but not
changed, are no changes; the parents of every change are in the layer, with their metadata.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ..ports import Output, Packed
from . import paths, tar
from .apply import OPAQUE, WHITEOUT
from .emit import Emitter
from .owners import Owners, read_xattrs
from .sink import LayerSink

COMPARE = 1 << 20
"""Bytes compared at a time."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def diff_tree(
    upper_fd: int,
    root: int | None,
    output_fd: int,
    output: Output,
    *,
    shift: int = 0,
    squash: bool = False,
    skip: Collection[bytes] = (),
) -> Packed:
    """Write the layer that ``upper_fd`` (an upper directory, no longer in use) is over ``root`` (what lay below it).

    ``skip``: paths (relative) that are left out with all below them, and as a parent don't count as a change.
    Nothing is written when nothing changed."""
    sink = LayerSink(output_fd, output)
    try:
        differ = _Differ(sink, Owners(shift, squash), output, frozenset(skip))
        differ.run(upper_fd, root)
        return sink.close()
    except BaseException:
        sink.abort()
        raise


@dataclass(slots=True)
class _Level:
    """A directory on the way down.  ``base``: the same directory below, -1 where there is none."""

    path: bytes
    fd: int
    base: int
    status: os.stat_result | None
    written: bool
    names: Iterator[bytes]


class _Differ:
    def __init__(self, sink: LayerSink, owners: Owners, output: Output, skip: frozenset[bytes]):
        self.emitter = Emitter(sink, owners, output)
        self.owners = owners
        self.skip = skip
        self.levels: list[_Level] = []

    def run(self, upper_fd: int, root: int | None) -> None:
        fd = os.open(b".", _DIRECTORY, dir_fd=upper_fd)
        base = -1 if root is None else os.open(b".", _DIRECTORY, dir_fd=root)
        self.levels.append(_Level(b"", fd, base, None, True, _names(fd)))
        try:
            while self.levels:
                level = self.levels[-1]
                name = next(level.names, None)
                if name is None:
                    self._leave()
                else:
                    path = level.path + b"/" + name if level.path else name
                    if path not in self.skip:
                        self._entry(level, name, path)
        finally:
            while self.levels:
                self._leave()

    def _leave(self) -> None:
        level = self.levels.pop()
        os.close(level.fd)
        if level.base >= 0:
            os.close(level.base)

    def _entry(self, level: _Level, name: bytes, path: bytes) -> None:
        status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
        before = _stat(level.base, name)
        if stat.S_ISDIR(status.st_mode):
            self._directory(level, name, path, status, before)
        elif is_mark(status, level.fd, name):
            if before is not None:
                self._parents()
                self.emitter.whiteout(path)
        elif not stat.S_ISSOCK(status.st_mode) and (
            before is None or not same_file(status, before, level.fd, level.base, name, self.owners)
        ):
            self._parents()
            write_node(self.emitter, path, level.fd, name, status)

    def _directory(
        self,
        level: _Level,
        name: bytes,
        path: bytes,
        status: os.stat_result,
        before: os.stat_result | None,
    ) -> None:
        fd = os.open(name, _DIRECTORY, dir_fd=level.fd)
        base = -1
        if before is not None and stat.S_ISDIR(before.st_mode):
            base = os.open(name, _DIRECTORY, dir_fd=level.base)
        below = _Level(path, fd, base, status, False, _names(fd))
        opaque = base >= 0 and is_opaque(fd)
        if opaque or base < 0 or not self._same_directory(status, before, fd, base):
            self._parents()
            self._write(below)
        self.levels.append(below)
        if opaque:
            os.close(base)
            below.base = -1  # nothing below shows through: all that is here is new
            self.emitter.opaque(path)

    def _same_directory(
        self,
        status: os.stat_result,
        before: os.stat_result | None,
        fd: int,
        base: int,
    ) -> bool:
        return (
            before is not None
            and same_metadata(status, before)
            and (
                read_xattrs(fd, self.owners, tree=True) == read_xattrs(base, self.owners, tree=True)
            )
        )

    def _parents(self) -> None:
        """Write the directories above, where they aren't written yet."""
        for level in self.levels:
            if not level.written:
                self._write(level)

    def _write(self, level: _Level) -> None:
        status = level.status
        level.written = True
        if status is not None:
            uid, gid = self.owners.of(status)
            self.emitter.entry(
                level.path,
                tar.DIRECTORY,
                status.st_mode & 0o7777,
                uid,
                gid,
                status.st_mtime_ns,
                xattrs=read_xattrs(level.fd, self.owners, tree=True),
            )


def write_node(
    emitter: Emitter, path: bytes, dir_fd: int, name: bytes, status: os.stat_result
) -> None:
    """Anything but a directory, as it is in a tree.  Sockets and device nodes are left out."""
    uid, gid = emitter.owners.of(status)
    mode = status.st_mode & 0o7777
    if stat.S_ISREG(status.st_mode):
        mtime_ns = status.st_mtime_ns
        if not emitter.hard_link(path, status, uid, gid, mode, mtime_ns):
            emitter.file(path, dir_fd, name, mode, uid, gid, mtime_ns, status, tree=True)
    elif stat.S_ISLNK(status.st_mode):
        emitter.symlink(path, os.readlink(name, dir_fd=dir_fd), uid, gid, status.st_mtime_ns)
    elif stat.S_ISFIFO(status.st_mode):
        emitter.entry(path, tar.FIFO, mode, uid, gid, status.st_mtime_ns)


def _names(fd: int) -> Iterator[bytes]:
    return iter(sorted(map(os.fsencode, os.listdir(fd))))


def _stat(dir_fd: int, name: bytes) -> os.stat_result | None:
    if dir_fd < 0:
        return None
    try:
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return None if paths.is_whiteout(status) else status


def is_mark(status: os.stat_result, dir_fd: int, name: bytes) -> bool:
    """Whether overlayfs takes it for a whiteout (either form)."""
    if paths.is_whiteout(status):
        return True
    if status.st_size or not stat.S_ISREG(status.st_mode):
        return False
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return False
    try:
        os.getxattr(fd, WHITEOUT)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, OPAQUE) == b"y"
    except OSError:
        return False


def same_metadata(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid, one.st_rdev) == (
        other.st_mode,
        other.st_uid,
        other.st_gid,
        other.st_rdev,
    )


def same_file(
    one: os.stat_result,
    other: os.stat_result,
    one_dir: int,
    other_dir: int,
    name: bytes,
    owners: Owners,
    *,
    every_byte: bool = False,
) -> bool:
    """Whether a copied-up file is still what it was: metadata, size, time to the nanosecond, xattrs; where the times
    may have been cut to seconds (a tar without fractions), or for ``every_byte``, the bytes."""
    if (
        not same_metadata(one, other)
        or one.st_size != other.st_size
        or one.st_mtime_ns != other.st_mtime_ns
    ):
        return False
    if stat.S_ISLNK(one.st_mode):
        return os.readlink(name, dir_fd=one_dir) == os.readlink(name, dir_fd=other_dir)
    if not stat.S_ISREG(one.st_mode):
        return True
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    first = os.open(name, flags, dir_fd=one_dir)
    try:
        second = os.open(name, flags, dir_fd=other_dir)
        try:
            if read_xattrs(first, owners, tree=True) != read_xattrs(second, owners, tree=True):
                return False
            exact = not every_byte and bool(one.st_mtime_ns % 1_000_000_000)
            return exact or same_bytes(first, second)
        finally:
            os.close(second)
    finally:
        os.close(first)


def same_bytes(first: int, second: int) -> bool:
    while True:
        data = os.read(first, COMPARE)
        if data != os.read(second, COMPARE):
            return False
        if not data:
            return True
