"""Small work on directory trees by descriptor: throwing one away, copying one."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

MAX_LEVELS = 64
"""Directories of one tree that are open at a time: a build step may have made thousands below one another."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def discard(path: bytes) -> None:
    """Remove a directory of ours and all below it, whatever modes it has (overlayfs makes ``work`` 000).

    What can't be removed stays, for the next start."""
    parent, name = os.path.split(path)
    try:
        above = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _discard(above, name)
    finally:
        os.close(above)


def _discard(above: int, name: bytes) -> None:
    # What lies deeper than MAX_LEVELS is moved up to the first level, under a name that nobody could foresee.
    levels: list[tuple[bytes, int, list[bytes]]] = []
    fresh, moved = b".deep-%s-" % os.urandom(8).hex().encode(), 0
    _enter(levels, above, name)
    while levels:
        own, fd, below = levels[-1]
        if not below:
            os.close(fd)
            levels.pop()
            with contextlib.suppress(OSError):
                os.rmdir(own, dir_fd=levels[-1][1] if levels else above)
        elif len(levels) < MAX_LEVELS:
            _enter(levels, fd, below.pop())
        else:
            moved += 1
            with contextlib.suppress(OSError):
                os.rename(below.pop(), fresh + b"%d" % moved, src_dir_fd=fd, dst_dir_fd=levels[0][1])
                levels[0][2].append(fresh + b"%d" % moved)


def _enter(levels: list[tuple[bytes, int, list[bytes]]], above: int, name: bytes) -> None:
    """Open a directory and unlink all in it that is none."""
    try:
        os.chmod(name, 0o700, dir_fd=above)
        fd = os.open(name, _DIRECTORY, dir_fd=above)
    except OSError:
        return
    below: list[bytes] = []
    levels.append((name, fd, below))
    with contextlib.suppress(OSError):
        for found in map(os.fsencode, os.listdir(fd)):
            try:
                os.unlink(found, dir_fd=fd)
            except OSError:  # EISDIR, as a rule
                below.append(found)


def discard_all(paths: Sequence[bytes]) -> None:
    """:func:`discard` for several."""
    for path in paths:
        discard(path)


ENTRY = 512
"""What a name costs at least: an inode and its place in a directory."""


@dataclass(slots=True)
class _Level:
    """A directory on the way down.  fd: -1 while it is closed; inode: what must be found when it is opened again."""

    fd: int
    inode: tuple[int, int]
    below: list[str]


def walk(path: bytes) -> Generator[tuple[int, Iterator[os.DirEntry[str]]]]:
    """Each directory of a tree as a descriptor (while it is at hand) and its entries, however deep it is.

    No symlink is followed, and nobody who moves directories meanwhile can lead the walk out of the tree; what
    comes and goes may be left out."""
    levels: list[_Level] = []
    try:
        found = _open(path)
        while found is not None or levels:
            if found is not None:
                levels.append(found)
                if len(levels) > MAX_LEVELS:
                    _close(levels[-1 - MAX_LEVELS])
                entries = _entries(found)
                yield found.fd, entries
                for _ in entries:  # those that nobody wanted to see: directories are noted on the way
                    pass
            last = levels[-1]
            found = _open(last.below.pop(), last.fd) if last.below else None
            if found is None and not last.below:
                levels.pop()
                if levels and levels[-1].fd < 0:
                    _reopen(levels[-1], last.fd)
                _close(last)
    finally:
        for level in levels:
            _close(level)


def _open(name: bytes | str, above: int | None = None) -> _Level | None:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=above)
    except OSError:
        return None
    info = os.fstat(fd)
    return _Level(fd, (info.st_dev, info.st_ino), [])


def _close(level: _Level) -> None:
    if level.fd >= 0:
        os.close(level.fd)
        level.fd = -1


def _reopen(level: _Level, below: int) -> None:
    """Go up from a directory to the one that it was found in, unless it has been moved: then that is lost."""
    above = _open("..", below) if below >= 0 else None
    if above is not None and above.inode == level.inode:
        level.fd = above.fd
        return
    level.below = []
    if above is not None:
        _close(above)


def _entries(level: _Level) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(level.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    level.below.append(entry.name)
                yield entry
    except OSError:
        return


def size(path: bytes, stop_at: int) -> int:
    """Bytes on disk below ``path``; counting ends soon after ``stop_at`` is passed.

    Names that come and go meanwhile don't keep the others from being counted."""
    total = 0
    with contextlib.closing(walk(path)) as directories:
        for _, entries in directories:
            for entry in entries:
                total += max(_blocks(entry), ENTRY)
                if total > stop_at:
                    return total
    return total


def _blocks(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return 0


def copy_below(source: int, target: int) -> None:
    """Copy what a directory holds into another: owners, modes, mtimes, links; special files are left out.

    Raises OSError."""
    with os.scandir(source) as entries:
        for entry in entries:
            info = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                os.mkdir(entry.name, 0o700, dir_fd=target)
                _copy_directory(source, target, entry.name)
            elif stat.S_ISLNK(info.st_mode):
                os.symlink(os.readlink(entry.name, dir_fd=source), entry.name, dir_fd=target)
            elif stat.S_ISREG(info.st_mode):
                _copy_file(source, target, entry.name)
            else:
                continue
            _copy_attributes(target, entry.name, info)


def _copy_directory(source: int, target: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    below = os.open(name, flags, dir_fd=source)
    try:
        into = os.open(name, flags, dir_fd=target)
        try:
            copy_below(below, into)
        finally:
            os.close(into)
    finally:
        os.close(below)


def _copy_file(source: int, target: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        open(os.open(name, flags, dir_fd=source), "rb") as reader,
        open(os.open(name, create, 0o600, dir_fd=target), "wb") as writer,
    ):
        shutil.copyfileobj(reader, writer, 1 << 20)


def _copy_attributes(target: int, name: str, info: os.stat_result) -> None:
    os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
    times = (info.st_atime_ns, info.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)
