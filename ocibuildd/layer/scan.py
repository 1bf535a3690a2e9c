"""A selection that was walked once, handed to the job that packs it: its files aren't listed and looked at again.

The job still sees for each file that it reads that it is the one that was selected (inode, times).  Between processes
of ours only: ``marshal`` is no format for strangers.
"""

from __future__ import annotations

import marshal
import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from ..errors import InvalidArgument
from .select import Found, Match


class Status(NamedTuple):
    """What of ``os.stat_result`` goes along, by the same names."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_blocks: int
    st_rdev: int


_new = tuple.__new__


@dataclass(slots=True)
class Scan:
    """``select.Selector``'s matches, and the directories among them that have xattrs."""

    matches: list[Match] = field(default_factory=list)
    marked: set[bytes] = field(default_factory=set)

    def dump(self) -> bytes:
        return marshal.dumps((
            sorted(self.marked),
            [
                (
                    match.base, match.path, _fields(match.status),
                    [(rel, place, name, _fields(status)) for rel, place, name, status in match.lead],
                    [(rel, place, name, _fields(status)) for rel, place, name, status in match.files],
                )
                for match in self.matches
            ],
        ))  # fmt: skip

    @classmethod
    def load(cls, data: bytes) -> Scan:
        """From what ``dump`` gave."""
        marked, matches = marshal.loads(data)  # noqa: S302 - main's own bytes
        return cls(
            [
                Match(base, path, _status(status), _found(lead), _found(files))
                for base, path, status, lead, files in matches
            ],
            set(marked),
        )

    @classmethod
    def read(cls, fd: int) -> Scan:
        """From the whole of an open file."""
        size = os.fstat(fd).st_size
        data = os.pread(fd, size, 0)
        if len(data) != size:
            raise InvalidArgument(f"a scan of {size} bytes: {len(data)} were read")
        return cls.load(data)

    def memfd(self) -> int:
        """A descriptor of a file in memory with ``dump``'s bytes, the caller's to close."""
        fd = os.memfd_create("scan")
        try:
            view = memoryview(self.dump())
            while view:
                view = view[os.write(fd, view) :]
        except BaseException:
            os.close(fd)
            raise
        return fd


def _fields(status: os.stat_result) -> tuple[int, ...]:
    return (
        *status[:7], status.st_mtime_ns, status.st_ctime_ns, status.st_blocks, status.st_rdev,
    )  # fmt: skip


def _status(fields: tuple[int, ...]) -> os.stat_result:
    return cast("os.stat_result", _new(cast("Any", Status), fields))


def _found(files: list[tuple[bytes, bytes, bytes, tuple[int, ...]]]) -> list[Found]:
    return [
        _new(Found, (rel, place, name, _new(cast("Any", Status), fields)))
        for rel, place, name, fields in files
    ]
