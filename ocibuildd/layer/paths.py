"""Names in archives and images: cleaned, and symlinks followed as if a directory were the root.

What comes out here is a *name*.  Files are opened by directory descriptors without following links, or by openat2,
so that a name that lies can't lead out of its root.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable

from .. import syscalls
from ..errors import InvalidArgument
from .status import AnyStatus

MAX_LINKS = 255
"""Symlinks on one path, as in securejoin implementations (the kernel stops at 40)."""


_UNCLEAN = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)")


def clean(name: bytes, *, clamp: bool) -> bytes:
    """A member's name as a relative path without "", "." and ".."; b"" is the root.

    A leading "/" goes.  ``clamp``: ".." at the root stays at the root, else it raises InvalidArgument."""
    short = name[2:] if name.startswith(b"./") else name
    short = short.strip(b"/")
    if not _UNCLEAN.search(short):
        return short
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part != b"..":
            parts.append(part)
        elif parts:
            parts.pop()
        elif not clamp:
            raise InvalidArgument(f"{os.fsdecode(name)!r}: a path that leaves the root")
    return b"/".join(parts)


def split(path: bytes) -> tuple[bytes, bytes]:
    """(parent, last component)."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def resolve(readlink: Callable[[bytes], bytes | None], path: bytes, *, last: bool = True) -> bytes:
    """Follow the symlinks of a path within its root, ``..`` clamped; components that don't exist stay as they are.

    ``readlink`` gives the target of a path whose parents hold no symlink, None for all else.
    ``last``: follow the last component too.  Raises InvalidArgument for a loop."""
    done: list[bytes] = []
    todo = path.split(b"/")[::-1]
    links = 0
    while todo:
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            if done:
                done.pop()
            continue
        done.append(part)
        if not last and not any(part not in (b"", b".") for part in todo):
            break
        target = readlink(b"/".join(done))
        if target is None:
            continue
        links += 1
        if links > MAX_LINKS:
            raise InvalidArgument(f"{os.fsdecode(path)!r}: too many symbolic links")
        done.pop()
        if target.startswith(b"/"):
            done.clear()
        todo.extend(target.split(b"/")[::-1])
    return b"/".join(done)


class Root:
    """Look-ups in a merged root (None: scratch); a whiteout device counts as nothing."""

    __slots__ = ("fd",)

    def __init__(self, fd: int | None):
        self.fd = fd

    def open(self, path: bytes, flags: int) -> int:
        """Open without following any symlink.  Raises OSError (ELOOP where there is one)."""
        if self.fd is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        resolve_flags = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
        if not flags & os.O_NOFOLLOW:
            resolve_flags |= syscalls.RESOLVE_NO_SYMLINKS
        return syscalls.openat2(self.fd, path or b".", flags, 0, resolve_flags)

    def stat(self, path: bytes) -> os.stat_result | None:
        """lstat; parents aren't followed when they are symlinks out of the root."""
        if self.fd is None:
            return None
        try:
            fd = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (
                errno.ENOENT,
                errno.ENOTDIR,
                errno.ELOOP,
                errno.EXDEV,
                errno.ENAMETOOLONG,
            ):
                return None
            raise
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return None if is_whiteout(status) else status

    def readlink(self, path: bytes) -> bytes | None:
        """The target of a symlink, None for anything else."""
        if self.fd is None:
            return None
        try:
            fd = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return os.readlink(
                b"", dir_fd=fd
            )  # readlinkat(2): "" reads the link that the descriptor is
        except OSError:
            return None
        finally:
            os.close(fd)

    def resolve(self, path: bytes, *, last: bool = True) -> bytes:
        return resolve(self.readlink, path, last=last)

    def read(self, path: bytes, limit: int) -> bytes | None:
        """A small regular file, symlinks followed within the root; None where there is none (a FIFO, say)."""
        if self.fd is None:
            return None
        try:
            fd = syscalls.open_in_root(self.fd, path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            with open(fd, "rb", closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(fd)


def is_whiteout(status: AnyStatus) -> bool:
    """Overlayfs' mark of a removed name: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
