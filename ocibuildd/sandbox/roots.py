"""A chain's root file system where the kernel's overlayfs can't be had: by fuse-overlayfs, or as a copy.

*fuse*: a program serves the mount.  It marks directories that replace others in its own way: :func:`translate` makes
an upper directory what overlayfs would have left.

*copy*: the chain is put together as files.  What a step leaves is a *whole* root (a file ``whole`` stands beside it),
below which nothing of the chain shows, and whose layer is found by comparing it with the chain's root.

Everything here may take seconds.
"""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Sequence

from .. import syscalls
from ..errors import Unsupported
from . import mounts, trees

PROGRAM = "fuse-overlayfs"
DEVICE = "/dev/fuse"
OPAQUE = "user.overlay.opaque"
WHITEOUT = "user.overlay.whiteout"
FUSE_MARKS = "user.fuseoverlayfs."
FUSE_OPAQUE = FUSE_MARKS + "opaque"
WHOLE = b"whole"
MESSAGE = 2000
"""Bytes of what the program says that are told."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def fuse_problem() -> str:
    """Why fuse-overlayfs can't be used, "" when it may be."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not installed"
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{DEVICE}: {error.strerror}"
    return ""


# --- fuse -------------------------------------------------------------------------------------------


def fuse(
    state: bytes, lowers: Sequence[bytes], *, upper: bytes = b"", work: bytes = b"", attributes: int = 0
) -> int:
    """A detached mount by fuse-overlayfs; arguments as :func:`mounts.overlay` has them.

    The program ends with the mount; it is an orphan, whom process 1 (nsd) reaps.  Raises Unsupported."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise Unsupported(f"overlay: {PROGRAM} is not installed", hint="install fuse-overlayfs")
    place = os.path.join(state, b"tmp", b"fuse-" + uuid.uuid4().hex.encode())
    os.mkdir(place, 0o700)
    try:
        # Names are relative to the state directory: tree ids have neither ":" nor ",".
        names = [os.path.relpath(path, state) for path in reversed(lowers)]
        options = b"lowerdir=" + b":".join(names)
        if upper:
            options += b",upperdir=" + os.path.relpath(upper, state) + b",workdir=" + os.path.relpath(work, state)
        arguments = [program.encode(), b"-o", options, place]
        status, said = _spawned(arguments)
        if status != 0:
            raise Unsupported(
                f"overlay: {PROGRAM} ended with {status}: {said}", hint='set [sandbox] overlay = "copy"',
            )
        fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            return mounts.bind(fd, attributes if upper else attributes | syscalls.MOUNT_ATTR_RDONLY)
        finally:
            os.close(fd)
            syscalls.umount2(place, syscalls.MNT_DETACH)
    finally:
        os.rmdir(place)


def _spawned(arguments: list[bytes]) -> tuple[int, str]:
    """Wait until the program has gone to the background: its status, and the last that it said."""
    said = os.memfd_create("stderr", os.MFD_CLOEXEC)
    try:
        pid = os.posix_spawn(
            arguments[0], arguments, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            file_actions=[(os.POSIX_SPAWN_DUP2, said, 2)],
        )
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, " ".join(os.pread(said, MESSAGE, 0).decode(errors="replace").split())
    finally:
        os.close(said)


def translate(upper: bytes) -> None:
    """Make what fuse-overlayfs left in an upper directory what overlayfs would have.  Raises OSError."""
    for fd, entries in trees.walk(upper):
        files = [os.fsencode(entry.name) for entry in entries if not entry.is_dir(follow_symlinks=False)]
        before = os.fstat(fd)
        reserved = [name for name in files if name.startswith(b".wh.")]
        for name in reserved:
            os.unlink(name, dir_fd=fd)
        if FUSE_OPAQUE in os.listxattr(fd):
            os.setxattr(fd, OPAQUE, b"y")
        for mark in os.listxattr(fd):
            if mark.startswith(FUSE_MARKS):
                os.removexattr(fd, mark)
        for name in files:
            if name not in reserved:
                _unmark(fd, name)
        if reserved:
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))


def _unmark(parent: int, name: bytes) -> None:
    if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        return  # others can't have attributes of users
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        for mark in os.listxattr(fd):
            if mark.startswith(FUSE_MARKS):
                os.removexattr(fd, mark)
    finally:
        os.close(fd)


# --- copy -------------------------------------------------------------------------------------------


def whole(tree: bytes) -> bool:
    """Is a tree's directory a whole root?"""
    return os.path.lexists(os.path.join(os.path.dirname(tree), WHOLE))


def mark_whole(tree: bytes) -> None:
    """Say so."""
    flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
    os.close(os.open(os.path.join(os.path.dirname(tree), WHOLE), flags, 0o600))


def cut(stack: Sequence[bytes]) -> list[bytes]:
    """What of a chain shows: from its topmost whole root on.  Lowest first."""
    for at in range(len(stack) - 1, 0, -1):
        if whole(stack[at]):
            return list(stack[at:])
    return list(stack)


def compose(stack: Sequence[bytes], target: bytes, *, link: bool) -> None:
    """Put a chain together in an existing directory.

    link: files are hard links into the trees (for a root that nobody writes to); else copies.  Raises OSError."""
    root = os.open(target, _DIRECTORY)
    try:
        for path in stack:
            tree = os.open(path, _DIRECTORY)
            try:
                _merge(tree, root, link, {})
                _attributes(tree, root)
            finally:
                os.close(tree)
    finally:
        os.close(root)


Seen = dict[tuple[int, int], str]
"""(st_dev, st_ino) of a file with several names: where its copy is."""


def _merge(source: int, target: int, link: bool, seen: Seen) -> None:
    """What a directory of a tree makes of the same directory of the root."""
    with os.scandir(source) as entries:
        for entry in entries:
            name, info = entry.name, entry.stat(follow_symlinks=False)
            if _is_whiteout(source, name, info):
                _clear(target, name)
            elif stat.S_ISDIR(info.st_mode):
                _merge_directory(source, target, name, link, seen)
            else:
                _clear(target, name)
                _place(source, target, name, info, link, seen)


def _merge_directory(
    source: int, target: int, name: str, link: bool, seen: Seen
) -> None:
    below = os.open(name, _DIRECTORY, dir_fd=source)
    try:
        there = _mode(target, name)
        if there is not None and (not stat.S_ISDIR(there) or _xattr(below, OPAQUE) == b"y"):
            _clear(target, name)
            there = None
        if there is None:
            os.mkdir(name, 0o700, dir_fd=target)
        into = os.open(name, _DIRECTORY, dir_fd=target)
        try:
            _merge(below, into, link, seen)
            _attributes(below, into)
        finally:
            os.close(into)
    finally:
        os.close(below)


def _place(
    source: int, target: int, name: str, info: os.stat_result, link: bool, seen: Seen
) -> None:
    """Anything but a directory."""
    if link:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        return
    key = (info.st_dev, info.st_ino)
    if info.st_nlink > 1 and key in seen:
        os.link(seen[key], name, dst_dir_fd=target, follow_symlinks=False)
        return
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    elif stat.S_ISREG(info.st_mode):
        _copy(source, target, name)
    elif stat.S_ISFIFO(info.st_mode):
        os.mkfifo(name, 0o600, dir_fd=target)
    else:
        return  # sockets and devices: no layer has them
    os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
    if not stat.S_ISLNK(info.st_mode):
        os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
    if stat.S_ISREG(info.st_mode):
        _copy_xattrs(source, target, name)
    os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)
    if info.st_nlink > 1:
        seen[key] = os.path.join(os.readlink(f"/proc/self/fd/{target}"), name)


def _copy(source: int, target: int, name: str) -> None:
    reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    create = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(reading, "rb") as reader, open(os.open(name, create, 0o600, dir_fd=target), "wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _copy_xattrs(source: int, target: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    reading = os.open(name, flags, dir_fd=source)
    try:
        found = os.listxattr(reading)
        if found:
            writing = os.open(name, flags, dir_fd=target)
            try:
                for key in found:
                    os.setxattr(writing, key, os.getxattr(reading, key))
            finally:
                os.close(writing)
    finally:
        os.close(reading)


def _attributes(source: int, target: int) -> None:
    """Of a directory, when what is in it is there."""
    info = os.fstat(source)
    os.fchown(target, info.st_uid, info.st_gid)
    os.fchmod(target, stat.S_IMODE(info.st_mode))
    wanted = {key: os.getxattr(source, key) for key in os.listxattr(source) if key != OPAQUE}
    for key in os.listxattr(target):
        if key not in wanted:
            os.removexattr(target, key)
    for key, value in wanted.items():
        os.setxattr(target, key, value)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _is_whiteout(parent: int, name: str, info: os.stat_result) -> bool:
    if stat.S_ISCHR(info.st_mode):
        return info.st_rdev == 0
    if not stat.S_ISREG(info.st_mode) or info.st_size:
        return False
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return _xattr(fd, WHITEOUT) is not None
    finally:
        os.close(fd)


def _xattr(fd: int, name: str) -> bytes | None:
    try:
        return os.getxattr(fd, name)
    except OSError:
        return None


def _mode(parent: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _clear(parent: int, name: str) -> None:
    """Remove a name with all below it, if it is there."""
    mode = _mode(parent, name)
    if mode is None:
        return
    if not stat.S_ISDIR(mode):
        os.unlink(name, dir_fd=parent)
        return
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        os.fchmod(fd, 0o700)
        for below in os.listdir(fd):
            _clear(fd, below)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)

