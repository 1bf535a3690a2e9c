"""Files on disk as entries of a layer."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

from ..errors import InvalidArgument, TooLarge
from ..ports import Output
from . import tar
from .fingerprints import UNKNOWN
from .owners import Owners, has_xattrs, read_xattrs
from .sink import SEGMENT_MAX, LayerSink, identity
from .status import AnyStatus

MAX_PATH: Final = 4096
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GIGA = 1_000_000_000


class Emitter:
    """Writes entries to a sink.  Paths are relative, without a slash at the end."""

    def __init__(self, sink: LayerSink, owners: Owners, output: Output):
        self.sink = sink
        self.owners = owners
        clamp = output["clamp"]
        self._clamp = None if clamp is None else clamp * _GIGA
        self._links: dict[tuple[int, int, int], bytes] = {}
        self.bytes = 0

    def time(self, mtime_ns: int) -> int:
        return mtime_ns if self._clamp is None else min(mtime_ns, self._clamp)

    def entry(
        self,
        path: bytes,
        kind: bytes,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        *,
        link: bytes = b"",
        xattrs: Mapping[bytes, bytes] | None = None,
        data: bytes = b"",
    ) -> None:
        """An entry whose data, if any, is at hand (at most ``SEGMENT_MAX`` bytes)."""
        _check(path)
        self._add(path, kind, mode, uid, gid, mtime_ns, link, xattrs, data)

    def _add(
        self,
        path: bytes,
        kind: bytes,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        link: bytes = b"",
        xattrs: Mapping[bytes, bytes] | None = None,
        data: bytes = b"",
    ) -> None:
        name = path + b"/" if kind == tar.DIRECTORY else path
        size = len(data)
        self.bytes += size
        self.sink.add(
            tar.header(name, kind, mode, uid, gid, size, self.time(mtime_ns), link, xattrs),
            identity(path, kind, mode, uid, gid, size, link, xattrs),
            data,
        )

    def hard_link(
        self,
        path: bytes,
        status: AnyStatus,
        uid: int,
        gid: int,
        mode: int,
        mtime_ns: int,
        group: int = 0,
    ) -> bool:
        """Write a link to an earlier entry of the same inode (and group); else remember this one and say False."""
        if status.st_nlink < 2:
            return False
        first = self._links.setdefault((group, status.st_dev, status.st_ino), path)
        if first == path:
            return False
        self.entry(path, tar.LINK, mode, uid, gid, mtime_ns, link=first)
        return True

    def file(
        self,
        path: bytes,
        dir_fd: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        status: AnyStatus,
        digest: bytes = UNKNOWN,
        *,
        tree: bool,
    ) -> None:
        """A regular file, as ``status`` has it.  Raises InvalidArgument when it isn't so any more.

        digest: ``sink.data_digest`` of its bytes, where it is known and the file has no xattrs."""
        fd = os.open(name, _OPEN, dir_fd=dir_fd)
        try:
            size = status.st_size
            xattrs = None
            if digest == UNKNOWN and has_xattrs(fd):
                xattrs = read_xattrs(fd, self.owners, tree=tree)
            if size > SEGMENT_MAX:
                self._big(path, fd, status, mode, uid, gid, mtime_ns, xattrs, digest)
            else:
                data = os.read(fd, size + 1)
                if len(data) != size:
                    data = _again(fd, data, size, path)
            after = os.fstat(fd)
            if after.st_ctime_ns != status.st_ctime_ns or after.st_ino != status.st_ino:
                raise InvalidArgument(
                    f"/{os.fsdecode(path)}: its source changed while it was read",
                    hint="something writes to the build context during the build",
                )
        finally:
            os.close(fd)
        if size <= SEGMENT_MAX:  # as in ``entry``, without its calls: this is the hot path
            if len(path) > MAX_PATH or b".wh." in path:
                _check(path)
            if self._clamp is not None and mtime_ns > self._clamp:
                mtime_ns = self._clamp
            self.bytes += size
            self.sink.add(
                tar.header(path, tar.REGULAR, mode, uid, gid, size, mtime_ns, b"", xattrs),
                identity(path, tar.REGULAR, mode, uid, gid, size, b"", xattrs),
                data,
                digest,
            )

    def _big(
        self,
        path: bytes,
        fd: int,
        status: AnyStatus,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        xattrs: Mapping[bytes, bytes] | None,
        digest: bytes,
    ) -> None:
        size = status.st_size
        _check(path)
        self.sink.begin(
            tar.header(path, tar.REGULAR, mode, uid, gid, size, self.time(mtime_ns), b"", xattrs),
            identity(path, tar.REGULAR, mode, uid, gid, size, b"", xattrs),
            digest,
        )
        self.bytes += size
        sparse = status.st_blocks * 512 < size
        at = 0
        hole_until = -1
        while at < size:
            wanted = min(SEGMENT_MAX, size - at)
            if sparse and at >= hole_until:
                hole_until = _next_data(fd, at, size)
            if sparse and at + wanted <= hole_until:
                self.sink.data(bytes(wanted))  # nothing is stored here
            else:
                self.sink.data(_read(fd, at, wanted, path))
            at += wanted
        self.sink.end(size)

    def stream(
        self,
        path: bytes,
        size: int,
        mode: int,
        uid: int,
        gid: int,
        mtime_ns: int,
        xattrs: Mapping[bytes, bytes] | None,
        pieces: Iterable[bytes | memoryview],
    ) -> None:
        """A big regular file that comes in pieces."""
        _check(path)
        self.sink.begin(
            tar.header(path, tar.REGULAR, mode, uid, gid, size, self.time(mtime_ns), b"", xattrs),
            identity(path, tar.REGULAR, mode, uid, gid, size, b"", xattrs),
        )
        self.bytes += size
        ready: list[bytes | memoryview] = []
        room = SEGMENT_MAX
        for piece in pieces:
            view = memoryview(piece)
            while len(view) >= room:
                ready.append(view[:room])
                self.sink.data(b"".join(ready))
                view, ready, room = view[room:], [], SEGMENT_MAX
            ready.append(view)
            room -= len(view)
        self.sink.data(b"".join(ready))
        self.sink.end(size)

    def symlink(self, path: bytes, target: bytes, uid: int, gid: int, mtime_ns: int) -> None:
        self.entry(path, tar.SYMLINK, 0o777, uid, gid, mtime_ns, link=target)

    def whiteout(self, path: bytes) -> None:
        """image-spec, layer.md, "Whiteouts": an empty file; mode and time are the same always."""
        parent, _, name = path.rpartition(b"/")
        self._add((parent + b"/" if parent else b"") + b".wh." + name, tar.REGULAR, 0, 0, 0, 0)

    def opaque(self, path: bytes) -> None:
        """image-spec, layer.md, "Opaque Whiteout"."""
        self._add(path + b"/.wh..wh..opq", tar.REGULAR, 0, 0, 0, 0)


def _check(path: bytes) -> None:
    if len(path) > MAX_PATH:
        raise TooLarge(
            f"{os.fsdecode(path[:200])}…: a path of {len(path)} bytes, at most {MAX_PATH}"
        )
    if b".wh." in path and path[path.rfind(b"/") + 1 :].startswith(b".wh."):
        # image-spec, layer.md: "Implementations SHOULD NOT create layers with files that have this prefix"
        raise InvalidArgument(
            f"/{os.fsdecode(path)}: a name that begins with .wh. can't be in a layer (it would hide another file)",
        )


def _next_data(fd: int, at: int, size: int) -> int:
    """Where data begins at or after ``at``."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        return size


def _read(fd: int, at: int, size: int, path: bytes) -> bytes:
    data = os.pread(fd, size, at)
    while len(data) < size:
        more = os.pread(fd, size - len(data), at + len(data))
        if not more:
            raise InvalidArgument(f"{os.fsdecode(path)}: became shorter while it was being read")
        data += more
    return data


def _again(fd: int, data: bytes, size: int, path: bytes) -> bytes:
    """A read that gave too little (a signal, a network file system) or too much (a file that grows)."""
    if len(data) > size:
        raise InvalidArgument(f"{os.fsdecode(path)}: grew while it was being read")
    return data + _read(fd, len(data), size - len(data), path)
