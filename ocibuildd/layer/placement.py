"""Where on the disk a new tree begins.

ext4 puts a directory near its parent, so that trees made one after another share their block groups with trees just
deleted; and there each new inode costs a walk over all that were deleted within the last minutes (fs/ext4/ialloc.c,
``recently_deleted``): tens of seconds of processor time for one image.  Below a directory with chattr(1)'s attribute
T each new directory counts as a hierarchy of its own and goes to a block group with room, by its name's hash.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import uuid

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_apart(path: bytes, nursery: bytes) -> None:
    """Make the directory ``path``, if it isn't there, far from others; ``nursery``: a directory on its file system.

    Raises OSError."""
    if os.path.isdir(path):
        return
    with contextlib.suppress(OSError):  # other file systems have no such attribute
        _mark(nursery)
    born = os.path.join(nursery, b"tree-" + uuid.uuid4().hex.encode())
    os.mkdir(born, 0o700)
    os.rename(born, path)


def _mark(directory: bytes) -> None:
    fd = os.open(directory, _DIRECTORY)
    try:
        flags = struct.unpack("i", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))[0]
        if not flags & FS_TOPDIR_FL:
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("i", flags | FS_TOPDIR_FL))
    finally:
        os.close(fd)
