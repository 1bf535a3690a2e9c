"""Small work on directory trees by descriptor: throwing one away, copying one."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence


def discard(path: bytes) -> None:
    """Remove a directory of ours and all below it, whatever modes it has (overlayfs makes ``work`` 000).

    What can't be removed stays, for the next start."""
    try:
        for parent, names, _, fd in os.fwalk(path, topdown=True, follow_symlinks=False):
            os.fchmod(fd, 0o700)
            for name in names:
                try:
                    os.chmod(name, 0o700, dir_fd=fd)
                except OSError:
                    continue
            del parent
    except OSError:
        pass
    shutil.rmtree(path, ignore_errors=True)


def discard_all(paths: Sequence[bytes]) -> None:
    """:func:`discard` for several."""
    for path in paths:
        discard(path)


ENTRY = 512
"""What a name costs at least: an inode and its place in a directory."""


def size(path: bytes, stop_at: int) -> int:
    """Bytes on disk below ``path``; counting ends soon after ``stop_at`` is passed.

    Names that come and go meanwhile don't keep the others from being counted."""
    total, todo = 0, [path]
    while todo and total <= stop_at:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    total += max(_blocks(entry), ENTRY)
                    if total > stop_at:
                        break
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(os.path.join(path, os.fsencode(entry.path)))
        except OSError:
            continue
    return total


def _blocks(entry: os.DirEntry[bytes]) -> int:
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
