"""Walks over merged roots: one, or two side by side."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from .diff import same_file, same_metadata
from .owners import Owners, read_xattrs
from .paths import is_whiteout

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def names(fd: int) -> dict[bytes, os.stat_result]:
    """What a directory holds, sorted; -1 holds nothing."""
    found: dict[bytes, os.stat_result] = {}
    if fd >= 0:
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not is_whiteout(status):
                found[name] = status
    return found


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: ``before`` or ``after`` is None where the path is on one side only.

    ``directory`` holds the descriptors of the parent on both sides (-1: none), valid until the next change.
    A directory that differs comes before what it holds, one that went comes alone."""

    path: bytes
    name: bytes
    before: os.stat_result | None
    after: os.stat_result | None
    directory: tuple[int, int]


def changes(
    before_fd: int | None, after_fd: int, owners: Owners, *, every_byte: bool = False
) -> Iterator[Change]:
    """Differences between two roots (None: an empty one), in walking order.  every_byte: files of the same time and
    size are read too."""
    first = -1 if before_fd is None else os.open(b".", _DIRECTORY, dir_fd=before_fd)
    second = os.open(b".", _DIRECTORY, dir_fd=after_fd)
    stack = [(b"", (first, second), _pairs(first, second))]
    try:
        while stack:
            path, fds, pairs = stack[-1]
            pair = next(pairs, None)
            if pair is None:
                stack.pop()
                _close(fds)
                continue
            name, before, after = pair
            full = path + b"/" + name if path else name
            below = _enter(fds, name, before, after)
            if (
                after is None
                or before is None
                or not _same(name, before, after, fds, below, owners, every_byte)
            ):
                yield Change(full, name, before, after, fds)
            if below[1] >= 0:
                stack.append((full, below, _pairs(*below)))
    finally:
        for _, fds, _ in stack:
            _close(fds)


def _pairs(
    first: int,
    second: int,
) -> Iterator[tuple[bytes, os.stat_result | None, os.stat_result | None]]:
    one, other = names(first), names(second)
    for name in sorted(one.keys() | other.keys()):
        yield name, one.get(name), other.get(name)


def _enter(
    fds: tuple[int, int],
    name: bytes,
    before: os.stat_result | None,
    after: os.stat_result | None,
) -> tuple[int, int]:
    """Descriptors of a directory on both sides; (-1, -1) where the later side has none."""
    if after is None or not stat.S_ISDIR(after.st_mode):
        return -1, -1
    both = before is not None and stat.S_ISDIR(before.st_mode)
    return (
        os.open(name, _DIRECTORY, dir_fd=fds[0]) if both else -1,
        os.open(name, _DIRECTORY, dir_fd=fds[1]),
    )


def _same(
    name: bytes,
    before: os.stat_result,
    after: os.stat_result,
    fds: tuple[int, int],
    below: tuple[int, int],
    owners: Owners,
    every_byte: bool,
) -> bool:
    if stat.S_ISDIR(after.st_mode):
        return (
            below[0] >= 0
            and same_metadata(before, after)
            and (
                read_xattrs(below[0], owners, tree=True) == read_xattrs(below[1], owners, tree=True)
            )
        )
    if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
        return True
    return same_file(before, after, fds[0], fds[1], name, owners, every_byte=every_byte)


def _close(fds: tuple[int, int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
