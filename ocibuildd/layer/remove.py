"""Deletes trees."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .tree import remove_below


def remove(paths: Sequence[str | bytes]) -> dict[str, int]:
    """Delete files and directories by absolute path, whatever their modes; those that are gone are no error.

    {"files": names removed, "bytes": disk space given back}.  Raises OSError."""
    files = size = 0
    for path in paths:
        parent, name = os.path.split(os.path.normpath(os.fsencode(path)))
        try:
            parent_fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            count, total = _one(parent_fd, name)
        finally:
            os.close(parent_fd)
        files += count
        size += total
    return {"files": files, "bytes": size}


def _one(parent_fd: int, name: bytes) -> tuple[int, int]:
    try:
        return remove_below(parent_fd, name)
    except FileNotFoundError:
        return 0, 0
    except OSError as error:
        if isinstance(error, NotADirectoryError) or error.errno == 40:  # ELOOP: a symlink
            status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            os.unlink(name, dir_fd=parent_fd)
            return 1, status.st_blocks * 512
        raise
