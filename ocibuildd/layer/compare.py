"""What differs between two root file systems: for people (``ocibuild diff``), or as a layer."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from typing import Any, Final

from ..ports import Output, Packed
from . import tar
from .diff import write_node
from .emit import Emitter
from .owners import Owners, read_xattrs
from .sink import LayerSink
from .walk import Change, changes, names

MAX_CHANGES: Final = 200_000


def compare(root_a: int | None, root_b: int) -> dict[str, Any]:
    """{"changes": [[kind, path, size], …], "more": how many were left out}.

    kind: added | changed | removed; path: absolute; size: bytes of a regular file (of the old one when removed).
    All that was below a removed or added directory is listed too."""
    found: list[list[Any]] = []
    more = 0
    for kind, path, status in _listed(root_a, root_b):
        if len(found) >= MAX_CHANGES:
            more += 1
            continue
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        found.append([kind, "/" + os.fsdecode(path), size])
    return {"changes": found, "more": more}


def _listed(root_a: int | None, root_b: int) -> Iterator[tuple[str, bytes, os.stat_result]]:
    for change in changes(root_a, root_b, Owners()):
        if change.after is None and change.before is not None:
            yield "removed", change.path, change.before
        elif change.after is not None:
            yield "added" if change.before is None else "changed", change.path, change.after
        before = change.before
        if (
            before is not None
            and stat.S_ISDIR(before.st_mode)
            and (change.after is None or not stat.S_ISDIR(change.after.st_mode))
        ):
            yield from _removed(change.directory[0], change.name, change.path)


def _removed(parent: int, name: bytes, path: bytes) -> Iterator[tuple[str, bytes, os.stat_result]]:
    todo = [
        (
            path,
            os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
            ),
        )
    ]
    try:
        while todo:
            path, fd = todo.pop()
            try:
                for child, status in names(fd).items():
                    yield "removed", path + b"/" + child, status
                    if stat.S_ISDIR(status.st_mode):
                        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                        todo.append((path + b"/" + child, os.open(child, flags, dir_fd=fd)))
            finally:
                os.close(fd)
    finally:
        for _, fd in todo:
            os.close(fd)


def diff_roots(
    root_fd: int,
    root: int | None,
    output_fd: int,
    output: Output,
    *,
    shift: int = 0,
    squash: bool = False,
    skip: Collection[bytes] = (),
) -> Packed:
    """The layer that turns ``root`` into ``root_fd`` (two whole roots: where there is no overlayfs).

    The same rules as ``diff.diff_tree``; it costs a walk over both."""
    sink = LayerSink(output_fd, output)
    try:
        _Writer(Emitter(sink, Owners(shift, squash), output), root_fd, frozenset(skip)).run(root)
        return sink.close()
    except BaseException:
        sink.abort()
        raise


class _Writer:
    def __init__(self, emitter: Emitter, root_fd: int, skip: frozenset[bytes]):
        self.emitter = emitter
        self.root_fd = root_fd
        self.skip = skip
        self._written: set[bytes] = {b""}

    def run(self, root: int | None) -> None:
        for change in changes(root, self.root_fd, self.emitter.owners):
            if any(
                change.path == path or change.path.startswith(path + b"/") for path in self.skip
            ):
                continue
            self._parents(change.path)
            self._change(change)

    def _change(self, change: Change) -> None:
        if change.after is None:
            self.emitter.whiteout(change.path)
        elif stat.S_ISDIR(change.after.st_mode):
            self._directory(change.path)
        elif not stat.S_ISSOCK(change.after.st_mode):
            write_node(self.emitter, change.path, change.directory[1], change.name, change.after)

    def _parents(self, path: bytes) -> None:
        parent = path.rpartition(b"/")[0]
        if parent not in self._written:
            self._parents(parent)
            self._directory(parent)

    def _directory(self, path: bytes) -> None:
        self._written.add(path)
        fd = os.open(
            path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.root_fd
        )
        try:
            status = os.fstat(fd)
            uid, gid = self.emitter.owners.of(status)
            self.emitter.entry(
                path,
                tar.DIRECTORY,
                status.st_mode & 0o7777,
                uid,
                gid,
                status.st_mtime_ns,
                xattrs=read_xattrs(fd, self.emitter.owners, tree=True),
            )
        finally:
            os.close(fd)
