"""A tar of any compression as plain files of this user: an uploaded build context.

Names are clamped to the directory (``./``, ``../``, absolute ones), as Docker takes contexts; nothing is followed
out of it.  Owners, special mode bits and xattrs other than user.* are not kept: a context's files are 0:0 in an
image anyway.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..errors import InvalidArgument
from . import paths, tar
from .apply import plain_umask, write_data
from .source import LayerSource
from .tree import Tree


def unpack(
    source_fd: int, dir_fd: int, *, limits: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Unpack into the directory ``dir_fd``: {"files", "bytes", "skipped" (devices), "newest" (mtime of an entry, in
    seconds; 0 for none)}.

    Raises InvalidArgument (not a tar, or a damaged one), TooLarge, OSError."""
    files = size = skipped = newest = 0
    with plain_umask(), LayerSource(source_fd, limits) as source:
        tree = Tree(dir_fd, None)
        try:
            for entry in tar.entries(
                source, max_entries=source.max_entries, max_name=source.max_name
            ):
                path = paths.clean(entry.name, clamp=True)
                newest = max(newest, entry.mtime_ns)
                if path and entry.type in (
                    tar.REGULAR,
                    tar.DIRECTORY,
                    tar.SYMLINK,
                    tar.LINK,
                    tar.FIFO,
                ):
                    files += 1
                    if entry.type == tar.REGULAR:
                        size += entry.real
                        _file(source, tree, entry, path)
                    else:
                        _other(tree, entry, path)
                else:
                    skipped += bool(path)
                    source.skip(entry.size + -entry.size % tar.BLOCK)
            tree.finish()
        finally:
            tree.close()
        source.finish()
    return {"files": files, "bytes": size, "skipped": skipped, "newest": newest // 10**9}


def _file(source: LayerSource, tree: Tree, entry: tar.Entry, path: bytes) -> None:
    mode = entry.mode & 0o777
    fd = tree.create(path, mode | 0o600)
    try:
        write_data(source, entry, fd)
        if mode & 0o600 != 0o600:
            os.fchmod(fd, mode)
        tree.finish_file(fd, path, mode, 0, 0, entry.mtime_ns, {})
        for key, value in entry.xattrs.items():
            if key.startswith(b"user."):
                _xattr(fd, key, value)
    finally:
        os.close(fd)


def _xattr(fd: int, key: bytes, value: bytes) -> None:
    try:
        os.setxattr(fd, key, value)
    except OSError:
        return  # no support, or no room: contexts don't hang on it


def _other(tree: Tree, entry: tar.Entry, path: bytes) -> None:
    """Anything but a regular file."""
    if entry.type == tar.DIRECTORY:
        tree.put_directory(path, entry.mode, 0, 0, entry.mtime_ns)
    elif entry.type == tar.SYMLINK:
        tree.symlink(path, entry.link, 0, 0, entry.mtime_ns)
    elif entry.type == tar.FIFO:
        tree.fifo(path, entry.mode & 0o777 | 0o600, 0, 0, entry.mtime_ns)
    else:
        try:
            tree.link(path, paths.clean(entry.link, clamp=True))
        except FileNotFoundError as error:
            raise InvalidArgument(
                f"tar: {path!r}: a hard link to {entry.link!r}, which doesn't exist (yet)",
            ) from error
