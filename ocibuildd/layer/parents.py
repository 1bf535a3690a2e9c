"""Parent directories that a layer has no entries for: what they are is told by the layers below it.

All layers of an image are applied at once, each without knowing the others; such parents are then made 0755, 0:0
(``Applied.parents``).  ``inherit`` makes them what they are below, once that is there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from .. import syscalls
from . import paths

MAX_PARENTS = 100_000
"""Paths that an answer carries."""
_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_SYMLINKS
_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)


def inherit(tree_fd: int, root_fd: int, parents: Iterable[bytes], *, squash: bool = False) -> bool:
    """Give the tree's directories ``parents`` the owner, mode, xattrs and mtime of those in the merged root.

    False: one of them is a symlink there, so what is in it belongs elsewhere, and the layer has to be applied
    over its lowers.  A parent that isn't there stays as it is.  Raises OSError."""
    for path in sorted(parents):
        try:
            model = syscalls.openat2(root_fd, path, os.O_PATH | os.O_NOFOLLOW, 0, _RESOLVE)
        except OSError as error:
            if error.errno not in _NOTHING:
                raise
            continue
        try:
            status = os.fstat(model)
        finally:
            os.close(model)
        if stat.S_ISLNK(status.st_mode):
            return False
        if stat.S_ISDIR(status.st_mode):
            _one(tree_fd, root_fd, path, status, squash)
    return True


def _one(tree_fd: int, root_fd: int, path: bytes, status: os.stat_result, squash: bool) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    directory = syscalls.openat2(tree_fd, path, flags, 0, _RESOLVE)
    try:
        if not squash:
            os.fchown(directory, status.st_uid, status.st_gid)
        os.fchmod(directory, status.st_mode & 0o7777)
        model = syscalls.openat2(root_fd, path, flags, 0, _RESOLVE)
        try:
            _xattrs(model, directory)
        finally:
            os.close(model)
        os.utime(directory, ns=(status.st_mtime_ns, status.st_mtime_ns))
    finally:
        os.close(directory)


def _xattrs(model: int, directory: int) -> None:
    """user.*, but overlayfs' own marks: they say how the model lies on what is below itself."""
    try:
        names = os.listxattr(model)
    except OSError:
        return
    for name in names:
        if name.startswith("user.") and not name.startswith("user.overlay."):
            os.setxattr(directory, name, os.getxattr(model, name))


def told(parents: Iterable[bytes]) -> list[str]:
    """As an answer carries them."""
    return [os.fsdecode(path) for path in parents][:MAX_PARENTS]


def asked(parents: Iterable[str]) -> list[bytes]:
    """The inverse, every path clean."""
    return [paths.clean(os.fsencode(path), clamp=True) for path in parents]
