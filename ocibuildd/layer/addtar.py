"""ADD of an archive: its entries, moved below the destination, become entries of the layer as they stream by.

The rules are BuildKit's (solver/llbsolver/file/unpack_root.go): an entry replaces what is there unless both are
directories; symlinks of its parents are followed with the destination as their root; parents that the archive doesn't
list are root's, 0755; devices are passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ..errors import BuildError, InvalidArgument
from . import paths, tar
from .emit import Emitter
from .plan import Node, Plan
from .sink import SEGMENT_MAX
from .source import LayerSource


def is_archive(fd: int) -> bool:
    """Whether a file is a tar with at least one entry, by its content, perhaps compressed.  Leaves the offset at 0."""
    try:
        with LayerSource(fd, {"bytes": 8 << 20}) as source:
            return next(tar.entries(source), None) is not None
    except (BuildError, ValueError):
        return False
    finally:
        os.lseek(fd, 0, os.SEEK_SET)


class ArchiveAdder:
    """One archive on its way below ``dest``.  Owns ``fd``.

    Symlinks that the archive made, or that are in the destination, are followed with ``dest`` as their root, as if the
    archive were unpacked in a chroot there.  ``chown``: the owner of all members, None = as the archive says."""

    def __init__(self, fd: int, dest: bytes, chown: tuple[int, int] | None):
        self.fd = fd
        self.dest = dest
        self.chown = chown
        self._links: dict[bytes, bytes] = {}
        self._files: set[bytes] = set()

    def close(self) -> None:
        os.close(self.fd)

    def write(self, emitter: Emitter, plan: Plan, known: set[bytes]) -> None:
        """Write the entries.  ``known``: directories that the layer has already; it grows."""
        with LayerSource(self.fd) as source:
            for entry in tar.entries(
                source, max_entries=source.max_entries, max_name=source.max_name
            ):
                path = paths.clean(entry.name, clamp=True)
                if not path or entry.type in (tar.CHAR, tar.BLOCK_DEVICE):
                    source.skip(entry.size + -entry.size % tar.BLOCK)
                    continue  # the destination keeps its own mode
                full = self._place(plan, known, path)
                self._parents(emitter, plan, known, paths.split(full)[0])
                if entry.type == tar.LINK:
                    target = self._place(plan, known, paths.clean(entry.link, clamp=True))
                    self._link_target(emitter, plan, full, target)
                    self._entry(emitter, source, entry, full, known, target)
                else:
                    self._entry(emitter, source, entry, full, known)

    def _full(self, parent: bytes, name: bytes) -> bytes:
        return b"/".join(part for part in (self.dest, parent, name) if part)

    def _place(self, plan: Plan, known: set[bytes], path: bytes) -> bytes:
        """Where a member lands: the symlinks of its parents followed, its own name as it is."""

        def readlink(path: bytes) -> bytes | None:
            full = self._full(path, b"")
            if full in self._links:
                return self._links[full]
            return None if full in self._files or full in known else plan.readlink(full)

        parent, name = paths.split(path)
        return self._full(paths.resolve(readlink, parent), name)

    def _link_target(self, emitter: Emitter, plan: Plan, full: bytes, target: bytes) -> None:
        """A hard link's target is in the layer: a file of the base is taken into it, as link(2) on an overlay does."""
        node = plan.nodes.get(target)
        if target in self._files or (
            node is not None and node.changed and node.kind != tar.DIRECTORY
        ):
            return
        status = plan.below(target)
        if status is None or not stat.S_ISREG(status.st_mode):
            raise InvalidArgument(
                f"/{os.fsdecode(full)}: a hard link to /{os.fsdecode(target)}, where neither the archive (yet) nor "
                "the destination has a file"
            )
        uid, gid = plan.owners.of(status)
        parent, name = paths.split(target)
        directory = plan.base.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            emitter.file(
                target,
                directory,
                name,
                status.st_mode & 0o7777,
                uid,
                gid,
                status.st_mtime_ns,
                status,
                tree=True,
            )
        finally:
            os.close(directory)
        self._files.add(target)

    def _parents(self, emitter: Emitter, plan: Plan, known: set[bytes], path: bytes) -> None:
        """The directories above an entry that the layer lacks: as the base has them, or 0755."""
        if not path or path in known:
            return
        self._parents(emitter, plan, known, paths.split(path)[0])
        node = plan.nodes.get(path)
        status = plan.below(path) if node is None else None
        if (
            path in self._files
            or (node is not None and node.kind != tar.DIRECTORY)
            or (status is not None and not stat.S_ISDIR(status.st_mode))
        ):
            raise InvalidArgument(
                f"/{os.fsdecode(path)}: not a directory, and the archive has files below it"
            )
        known.add(path)
        if node is None and status is None:
            node = Node(tar.DIRECTORY, 0o755, 0, 0, plan.now_ns)
        elif node is None:
            assert status is not None
            uid, gid = plan.owners.of(status)
            node = Node(tar.DIRECTORY, status.st_mode & 0o7777, uid, gid, status.st_mtime_ns)
        emitter.entry(path, tar.DIRECTORY, node.mode, node.uid, node.gid, node.mtime_ns)

    def _entry(
        self,
        emitter: Emitter,
        source: LayerSource,
        entry: tar.Entry,
        full: bytes,
        known: set[bytes],
        target: bytes = b"",
    ) -> None:
        uid, gid = self.chown or (entry.uid, entry.gid)
        xattrs = {
            key: value
            for key, value in entry.xattrs.items()
            if key == b"security.capability"
            or (key.startswith(b"user.") and not key.startswith(b"user.overlay."))
        }
        self._links.pop(full, None)
        self._files.discard(full)
        if entry.type == tar.DIRECTORY:
            known.add(full)
            emitter.entry(full, tar.DIRECTORY, entry.mode, uid, gid, entry.mtime_ns, xattrs=xattrs)
            return
        known.discard(full)
        self._files.add(full)
        if entry.type == tar.SYMLINK:
            self._links[full] = entry.link
            emitter.symlink(full, entry.link, uid, gid, entry.mtime_ns)
        elif entry.type == tar.LINK:
            emitter.entry(full, tar.LINK, entry.mode, uid, gid, entry.mtime_ns, link=target)
        elif entry.type == tar.FIFO:
            emitter.entry(full, tar.FIFO, entry.mode, uid, gid, entry.mtime_ns)
        else:
            self._data(emitter, source, entry, full, uid, gid, xattrs)

    def _data(
        self,
        emitter: Emitter,
        source: LayerSource,
        entry: tar.Entry,
        full: bytes,
        uid: int,
        gid: int,
        xattrs: dict[bytes, bytes],
    ) -> None:
        pieces = _logical(source, entry)
        if entry.real <= SEGMENT_MAX:
            emitter.entry(
                full,
                tar.REGULAR,
                entry.mode,
                uid,
                gid,
                entry.mtime_ns,
                xattrs=xattrs,
                data=b"".join(pieces),
            )
        else:
            emitter.stream(full, entry.real, entry.mode, uid, gid, entry.mtime_ns, xattrs, pieces)
        source.skip(-entry.size % tar.BLOCK)


def _logical(source: LayerSource, entry: tar.Entry) -> Iterator[bytes | memoryview]:
    """The bytes of a file as it is read, holes as zeros."""
    at = 0
    for offset, length in entry.sparse if entry.sparse is not None else [(0, entry.size)]:
        while at < offset:
            count = min(offset - at, SEGMENT_MAX)
            yield bytes(count)
            at += count
        yield from source.views(length)
        at += length
    while at < entry.real:
        count = min(entry.real - at, SEGMENT_MAX)
        yield bytes(count)
        at += count
