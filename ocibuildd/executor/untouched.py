"""Did a step change nothing?  Answered in microseconds where it is plain, so that no diff need be made."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

MAX_DIRECTORIES = 16
"""More of them copied up, and the diff is to tell."""
OVERLAY = "user.overlay."
OPAQUE = "user.overlay.opaque"
WHOLE = "whole"
"""Beside a tree that is a whole root file system (hosts without an overlay): it says nothing of changes."""


def untouched(upper: Path, lowers: Sequence[Path]) -> bool:
    """True: the upper directory holds nothing but directories that are as they were below.

    Places for mounts (/etc/hosts) are made and taken away again around a step; their parents stay behind,
    copied up.  False where it isn't plain.  lowers: lowest first."""
    if (upper.parent / WHOLE).exists():
        return False
    pending, count = [""], 0
    try:
        while pending:
            path = pending.pop()
            with os.scandir(upper / path) as entries:
                names = list(entries)
            for entry in names:
                count += 1
                if count > MAX_DIRECTORIES or not entry.is_dir(follow_symlinks=False):
                    return False
                below = f"{path}/{entry.name}" if path else entry.name
                if not _same(upper / below, (lower / below for lower in reversed(lowers))):
                    return False
                pending.append(below)
    except OSError:
        return False
    return True


def _same(mine: Path, theirs: Iterable[Path]) -> bool:
    """Is a directory as the topmost one below it?"""
    now = os.lstat(mine)
    xattrs = _xattrs(mine)
    if OPAQUE in os.listxattr(mine, follow_symlinks=False):
        return False
    for path in theirs:
        try:
            before = os.lstat(path)
        except FileNotFoundError:
            continue
        return (
            stat.S_ISDIR(before.st_mode)
            and (now.st_mode, now.st_uid, now.st_gid, now.st_mtime_ns)
            == (before.st_mode, before.st_uid, before.st_gid, before.st_mtime_ns)
            and xattrs == _xattrs(path)
        )
    return False


def _xattrs(path: Path) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False) if not name.startswith(OVERLAY)
    }
