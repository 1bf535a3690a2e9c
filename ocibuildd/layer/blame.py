"""In what two root file systems differ: for ``verify``, which blames a file and says why."""

from __future__ import annotations

import os
import stat
from typing import Any, Final

from .diff import same_bytes
from .owners import Owners, read_xattrs
from .walk import Change, changes

MAX_BLAMED: Final = 10_000
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def blame(root_a: int | None, root_b: int, *, every_byte: bool = False) -> dict[str, Any]:
    """{"changes": [[kind, path, size, words], …]}, at most ``MAX_BLAMED``.

    kind, path, size: as ``compare.compare`` has them; words: what of it differs, of type, mode, owner, link, device,
    xattrs, content, time; [] where it is on one side only.  every_byte: of files whose times are the same too."""
    found: list[list[Any]] = []
    for change in changes(root_a, root_b, Owners(), every_byte=every_byte):
        status = change.after or change.before
        assert status is not None
        both = change.before is not None and change.after is not None
        words = differing(change) if both else []
        if both and not words:
            continue
        kind = "changed" if both else "added" if change.before is None else "removed"
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        found.append([kind, "/" + os.fsdecode(change.path), size, words])
        if len(found) >= MAX_BLAMED:
            break
    return {"changes": found}


def differing(change: Change) -> list[str]:
    """What differs in a file that is on both sides."""
    one, other = change.before, change.after
    assert one is not None
    assert other is not None
    if stat.S_IFMT(one.st_mode) != stat.S_IFMT(other.st_mode):
        return ["type"]
    words = []
    if stat.S_IMODE(one.st_mode) != stat.S_IMODE(other.st_mode):
        words.append("mode")
    if (one.st_uid, one.st_gid) != (other.st_uid, other.st_gid):
        words.append("owner")
    if one.st_rdev != other.st_rdev:
        words.append("device")
    if stat.S_ISLNK(one.st_mode):
        targets = [os.readlink(change.name, dir_fd=fd) for fd in change.directory]
        words += ["link"] if targets[0] != targets[1] else []
    elif stat.S_ISREG(one.st_mode) or stat.S_ISDIR(one.st_mode):
        words += _inside(change, one, other)
    if one.st_mtime_ns != other.st_mtime_ns and not stat.S_ISDIR(one.st_mode):
        words.append("time")
    return words


def _inside(change: Change, one: os.stat_result, other: os.stat_result) -> list[str]:
    first = os.open(change.name, _FLAGS, dir_fd=change.directory[0])
    try:
        second = os.open(change.name, _FLAGS, dir_fd=change.directory[1])
        try:
            words = []
            if read_xattrs(first, Owners(), tree=True) != read_xattrs(second, Owners(), tree=True):
                words.append("xattrs")
            regular = stat.S_ISREG(one.st_mode)
            if regular and (one.st_size != other.st_size or not same_bytes(first, second)):
                words.append("content")
            return words
        finally:
            os.close(second)
    finally:
        os.close(first)
