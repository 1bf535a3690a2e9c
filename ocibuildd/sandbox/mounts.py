"""File systems and mounts of sandboxes, over the descriptor-based mount API (Linux 5.2 and later).

Paths of an image are resolved by descriptor only: component by component with ``openat2``, inside a
root, without magic links; mounts are attached to descriptors.  (CVE-2021-30465, CVE-2025-52881.)
"""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from .. import syscalls
from ..errors import InvalidArgument, Unsupported
from ..syscalls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY

MAX_LOWERS = 500
"""OVL_MAX_STACK of overlayfs."""

MAX_SYMLINKS = 40
"""As the kernel's own MAXSYMLINKS."""

IMPASSABLE = frozenset({
    errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
})
"""What an image is to blame for when a path can't be had in it; ELOOP: also a link of the kernel's, in /proc."""

OPTION_BYTES = 4095
"""mount(2) cuts its options there, silently."""

PRIVATE = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC


_base = b""
_old = False
"""This kernel's overlayfs knows no ``lowerdir+`` (and says so in the kernel's log at each attempt)."""


def work_in(directory: bytes) -> None:
    """Make ``directory`` the current one: overlay's options then name what is below it by short relative paths.

    They fit where options have a limit, and /proc/mounts of a sandbox tells nothing of this host's paths."""
    global _base
    os.chdir(directory)
    _base = directory.rstrip(b"/") + b"/"


def overlay(
    lowers: Sequence[bytes], *, upper: bytes = b"", work: bytes = b"", attributes: int = 0
) -> int:
    """A detached overlay mount; ``lowers`` are absolute paths, lowest first (as in a chain).

    Without ``upper`` it is read-only.  With it: ``volatile`` (nothing is synced at unmount: the store
    syncs trees itself).  ``userxattr`` always: without it removing a lower directory gives EIO in a user
    namespace.  Raises Unsupported for too many layers, OSError with the kernel's own words.
    """
    global _old
    if len(lowers) > MAX_LOWERS or not lowers:
        raise Unsupported(f"overlay of {len(lowers)} layers: 1 to {MAX_LOWERS} are possible")
    names = [path.removeprefix(_base) for path in reversed(lowers)]
    upper, work = upper.removeprefix(_base), work.removeprefix(_base)
    if not upper:
        attributes |= MOUNT_ATTR_RDONLY
    if _old:
        return overlay_by_options(names, upper, work, attributes)
    fd = syscalls.fsopen("overlay")
    try:
        for name in names:
            syscalls.fsconfig_string(fd, "lowerdir+", name)
        if upper:
            syscalls.fsconfig_string(fd, "upperdir", upper)
            syscalls.fsconfig_string(fd, "workdir", work)
        for flag in _flags(upper):
            syscalls.fsconfig_flag(fd, flag)
        syscalls.fsconfig_create(fd)
        return syscalls.fsmount(fd, attributes)
    except OSError as error:
        said = syscalls.fs_log(fd)
        failed = OSError(error.errno, f"overlay: {error.strerror}{' (' + said + ')' if said else ''}")
        if error.errno != errno.EINVAL:
            raise failed from None
        try:  # an older kernel knows no ``lowerdir+``, and may not say so
            mount = overlay_by_options(names, upper, work, attributes)
        except OSError:
            raise failed from None
        _old = True
        return mount
    finally:
        os.close(fd)


def _flags(upper: bytes) -> tuple[str, ...]:
    return ("userxattr", "volatile") if upper else ("userxattr", "ro")


def overlay_by_options(names: Sequence[bytes], upper: bytes, work: bytes, attributes: int) -> int:
    """The same with mount(2), for Linux before 6.7 (``lowerdir+`` is newer): top layer first, all below one directory.

    Raises Unsupported where the options pass a page: the kernel would cut them silently."""
    escaped = [re.sub(rb"([:,\\])", rb"\\\1", name) for name in names]
    options = b",".join(flag.encode() for flag in _flags(upper)) + b",lowerdir=" + b":".join(escaped)
    if upper:
        options += b",upperdir=" + upper + b",workdir=" + work
    if len(options) > OPTION_BYTES:
        raise Unsupported(
            f"overlay of {len(names)} layers: their options have {len(options)} bytes, {OPTION_BYTES} are possible",
            hint="Linux 6.7 and later take 500 layers",
        )
    place = os.path.join(_base, b"tmp", b"overlay-" + uuid.uuid4().hex.encode())
    os.mkdir(place, 0o700)
    try:
        syscalls.mount("overlay", place, "overlay", 0 if upper else syscalls.MS_RDONLY, options)
        fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            return bind(fd, attributes)
        finally:
            os.close(fd)
            syscalls.umount2(place, syscalls.MNT_DETACH)
    finally:
        os.rmdir(place)


def filesystem(fstype: str, options: dict[str, str], attributes: int, *flags: str) -> int:
    """A detached mount of a virtual file system (proc, sysfs, tmpfs, devpts, mqueue)."""
    fd = syscalls.fsopen(fstype)
    try:
        for key, value in options.items():
            syscalls.fsconfig_string(fd, key, value)
        for flag in flags:
            syscalls.fsconfig_flag(fd, flag)
        syscalls.fsconfig_create(fd)
        return syscalls.fsmount(fd, attributes)
    finally:
        os.close(fd)


def bind(fd: int, attributes: int = 0, *, recursive: bool = False) -> int:
    """A detached copy of what ``fd`` (any descriptor in our mount namespace) shows."""
    flags = syscalls.OPEN_TREE_CLONE | (syscalls.AT_RECURSIVE if recursive else 0)
    copy = syscalls.open_tree(fd, b"", flags)
    if attributes:
        try:
            syscalls.mount_setattr(copy, attributes, recursive=recursive)
        except OSError:
            os.close(copy)
            raise
    return copy


def attach(mount_fd: int, target_fd: int) -> None:
    """Put a detached mount on the file or directory ``target_fd`` and close it."""
    try:
        syscalls.move_mount(mount_fd, target_fd)
    finally:
        os.close(mount_fd)


def device(path: str, major: int, minor: int) -> int:
    """A path descriptor of a host's device node, checked to be that device (CVE-2025-31133)."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    info = os.fstat(fd)
    if not stat.S_ISCHR(info.st_mode) or info.st_rdev != os.makedev(major, minor):
        os.close(fd)
        raise Unsupported(f"{path}: not the character device {major}:{minor}")
    return fd


# --- in-root resolution --------------------------------------------------------------------------------


@dataclass(slots=True)
class Made:
    """Something that was made so that a mount has a place: removed again if nobody used it.

    parent: path descriptor of its directory.  inode: (st_dev, st_ino) of the thing.
    before, after: the directory's mtime in ns before and after it was made."""

    parent: int
    name: bytes
    inode: tuple[int, int]
    is_dir: bool
    before: int
    after: int


class Resolver:
    """Finds and makes paths inside one root by descriptors; what it makes is in ``made``."""

    def __init__(self, root: int):
        self.root = root
        self.made: list[Made] = []
        self.virtual: set[int] = set()
        """Devices (st_dev) of /proc and /sys: their links are never followed, nothing is made there."""

    def find(self, path: bytes, flags: int = os.O_PATH) -> int:
        """Open an existing path, as if the root were /.  Raises OSError."""
        return syscalls.open_in_root(self.root, path.lstrip(b"/") or b".", flags)

    def ensure(self, path: bytes, *, is_dir: bool, mode: int = 0o755, keep: bool = False) -> int:
        """A path descriptor of ``path``; missing parts are made (directories 0755 root:root).

        A dangling symlink is followed inside the root, and its target made.  keep: not a placeholder.
        Raises InvalidArgument when it is no directory and should be (or the other way round), or when the image has
        links or file systems on the way that allow no such path; OSError.
        """
        try:
            try:
                fd = self.find(path)
            except FileNotFoundError:
                fd = self._walk(path, is_dir=is_dir, mode=mode, keep=keep)
        except OSError as error:
            if error.errno not in IMPASSABLE:
                raise
            raise InvalidArgument(f"{os.fsdecode(path)}: in the image: {os.strerror(error.errno)}") from None
        found_dir = stat.S_ISDIR(os.fstat(fd).st_mode)
        if found_dir != is_dir:
            os.close(fd)
            raise InvalidArgument(
                f"{os.fsdecode(path)}: {'a directory' if found_dir else 'no directory'} in the image, "
                f"{'a directory' if is_dir else 'a file'} wanted"
            )
        return fd

    def _walk(self, path: bytes, *, is_dir: bool, mode: int, keep: bool) -> int:
        stack = [os.open(b".", os.O_PATH | os.O_CLOEXEC, dir_fd=self.root)]
        todo = [part for part in reversed(path.split(b"/")) if part not in {b"", b"."}]
        links = 0
        try:
            while todo:
                part = todo.pop()
                if part == b"..":
                    if len(stack) > 1:
                        os.close(stack.pop())
                    continue
                fd = self._step(stack[-1], part, is_dir or bool(todo), mode, keep=keep)
                info = os.fstat(fd)
                if not stat.S_ISLNK(info.st_mode):
                    stack.append(fd)
                    continue
                if info.st_dev in self.virtual:
                    os.close(fd)
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                links += 1
                target = os.readlink(b"", dir_fd=fd)
                os.close(fd)
                if links > MAX_SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                if target.startswith(b"/"):
                    while len(stack) > 1:
                        os.close(stack.pop())
                todo.extend(p for p in reversed(target.split(b"/")) if p not in {b"", b"."})
            return os.dup(stack[-1])
        finally:
            for fd in stack:
                os.close(fd)

    def _step(self, parent: int, name: bytes, is_dir: bool, mode: int, *, keep: bool) -> int:
        # One component: no symlink is followed, so nothing can lead out of the root; magic links
        # (/proc/self/fd/7) are symlinks too and are only ever read as text.
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            pass
        before = os.stat(b".", dir_fd=parent).st_mtime_ns
        if is_dir:
            os.mkdir(name, mode, dir_fd=parent)
        else:
            create = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            os.close(os.open(name, create, 0o644, dir_fd=parent))
        fd = os.open(name, flags, dir_fd=parent)
        if not keep:
            info = os.fstat(fd)
            after = os.stat(b".", dir_fd=parent).st_mtime_ns
            self.made.append(
                Made(os.dup(parent), name, (info.st_dev, info.st_ino), is_dir, before, after)
            )
        return fd


def remove_placeholders(made: Sequence[Made]) -> None:
    """Remove what was made for mounts, newest first, if it is still ours and still empty.

    Everything goes by the parent's descriptor and follows nothing, so that a step which replaced
    a parent by a symlink gains nothing (CVE-2024-23652).  The parent's mtime is set back when nobody
    else changed the directory.
    """
    for item in reversed(made):
        try:
            info = os.stat(item.name, dir_fd=item.parent, follow_symlinks=False)
            if (info.st_dev, info.st_ino) != item.inode:
                continue
            parent = os.stat(b".", dir_fd=item.parent)
            if item.is_dir:
                os.rmdir(item.name, dir_fd=item.parent)
            elif stat.S_ISREG(info.st_mode) and info.st_size == 0 and info.st_nlink == 1:
                os.unlink(item.name, dir_fd=item.parent)
            else:
                continue
            if parent.st_mtime_ns == item.after:
                times = (parent.st_atime_ns, item.before)
                os.utime(b".", ns=times, dir_fd=item.parent, follow_symlinks=False)
        except OSError:
            continue  # in use by the step now, or gone: not ours any more
