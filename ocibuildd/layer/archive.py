"""A whole root file system as one tar (``-o type=tar``) or as plain files (``-o type=local``)."""

from __future__ import annotations

import os
import stat

from .. import syscalls
from ..ports import Output
from . import compare as _compare
from .apply import plain_umask
from .owners import Owners
from .walk import changes

PLAIN: Output = {"compression": "none", "level": -1, "clamp": None}
_NEVER = 1 << 100
"""After every time, in nanoseconds."""


def archive(
    root_fd: int,
    output_fd: int,
    *,
    shift: int = 0,
    squash: bool = False,
    clamp: int | None = None,
) -> dict[str, int]:
    """Write a tar of everything below ``root_fd``, sorted; {"entries", "bytes"} (of the tar)."""
    output: Output = {**PLAIN, "clamp": clamp}
    packed = _compare.diff_roots(root_fd, None, output_fd, output, shift=shift, squash=squash)
    if packed["empty"]:
        os.write(output_fd, bytes(1024))  # two zero blocks: a tar of nothing
        return {"entries": 0, "bytes": 1024}
    return {"entries": packed["entries"], "bytes": packed["tar_size"]}


def export(root_fd: int, dir_fd: int, *, clamp: int | None = None) -> dict[str, int]:
    """Copy everything below ``root_fd`` into the directory ``dir_fd``, as files of this process's user.

    Modes (without set-id bits), times and symlinks are kept, hard links become copies; what can't be owned or made by
    a user (devices, sockets) is left out.  Existing files are replaced, other files stay.  Nothing is followed.
    clamp: seconds since the epoch that no time may pass."""
    count = size = 0
    latest = _NEVER if clamp is None else clamp * 10**9
    with plain_umask():
        times: list[tuple[bytes, int]] = []
        for change in changes(None, root_fd, Owners()):
            status = change.after
            if status is None:
                continue
            count += 1
            parent = _parent(dir_fd, change.path)
            try:
                mtime_ns = min(status.st_mtime_ns, latest)
                if stat.S_ISDIR(status.st_mode):
                    _directory(parent, change.name, status)
                    times.append((change.path, mtime_ns))
                else:
                    size += _other(parent, change.name, change.directory[1], status, mtime_ns)
            finally:
                os.close(parent)
        for path, mtime_ns in reversed(times):
            parent = _parent(dir_fd, path)
            try:
                _set_time(parent, path.rpartition(b"/")[2], mtime_ns)
            finally:
                os.close(parent)
    return {"entries": count, "bytes": size}


def _parent(dir_fd: int, path: bytes) -> int:
    """The directory that holds ``path``, no symlink followed."""

    parent = path.rpartition(b"/")[0]
    return syscalls.openat2(
        dir_fd,
        parent or b".",
        os.O_RDONLY | os.O_DIRECTORY,
        0,
        syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS,
    )


def _directory(parent: int, name: bytes, status: os.stat_result) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)
    os.chmod(name, status.st_mode & 0o777 | 0o700, dir_fd=parent)


def _other(parent: int, name: bytes, source: int, status: os.stat_result, mtime_ns: int) -> int:
    mode = status.st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISFIFO(mode)):
        return 0
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        pass
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=parent)
    elif stat.S_ISFIFO(mode):
        os.mkfifo(name, mode & 0o777, dir_fd=parent)
    else:
        _copy(parent, name, source, mode)
    _set_time(parent, name, mtime_ns)
    return status.st_size if stat.S_ISREG(mode) else 0


def _set_time(parent: int, name: bytes, mtime_ns: int) -> None:
    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)


def _copy(parent: int, name: bytes, source: int, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    try:
        writing = os.open(name, flags, mode & 0o777, dir_fd=parent)
        try:
            while os.sendfile(writing, reading, None, 1 << 30):
                pass
        finally:
            os.close(writing)
    finally:
        os.close(reading)
