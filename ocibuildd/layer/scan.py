"""A selection that was walked once, for the job that packs it: its files aren't listed, looked at or hashed again.

The job still sees for each file that it reads that it is the one that was selected (inode, times).  Between processes
of ours only: ``marshal`` is no format for strangers.  Per file: 140 bytes and its path.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import InvalidArgument
from .fingerprints import UNKNOWN, key
from .select import BATCH, Found, Match
from .status import Status, restore

_FIELDS: Final = struct.Struct("<QQQqqIQIIqQ32s")
_AFTER_KEY: Final = struct.Struct("<IQIIqQ32s")
_new: Callable[..., Any] = tuple.__new__
"""Half the time of calling the class."""


@dataclass(slots=True)
class Scan:
    """``select.Selector``'s matches, and the directories among them that have xattrs.

    digest: of a fingerprint (``Fingerprints.plain``), for ``dump``.  listed, hidden: the selector's, for ``recall``;
    they don't go along."""

    matches: list[Match] = field(default_factory=list)
    marked: set[bytes] = field(default_factory=set)
    digest: Callable[[bytes], bytes | None] = lambda _: None
    listed: list[tuple[bytes, list[Found]]] = field(default_factory=list)
    hidden: dict[int, set[bytes]] = field(default_factory=dict)

    def dump(self) -> bytes:
        # ``place`` and ``name`` of what lies below a match follow from its path and ``rel``.
        return marshal.dumps((
            sorted(self.marked),
            [
                (
                    match.base, match.path, self._pack([match.status]),
                    [found[:3] for found in match.lead],
                    self._pack([found[3] for found in match.lead]),
                    [found[:3] for found in match.files[:1]],
                    b"\0".join([found[0] for found in match.files[1:]]),
                    self._pack([found[3] for found in match.files]),
                )
                for match in self.matches
            ],
        ))  # fmt: skip

    def _pack(self, found: list[Status]) -> bytearray:
        known, rest = self.digest, _AFTER_KEY.pack
        packed = bytearray()
        for status in found:
            fingerprint = key(status)
            packed += fingerprint
            packed += rest(*status[5:11], known(fingerprint) or UNKNOWN)
        return packed

    @classmethod
    def load(cls, data: bytes) -> Scan:
        """From what ``dump`` gave."""
        marked, matches = marshal.loads(data)  # noqa: S302 - main's own bytes
        return cls(
            [
                Match(base, path, _statuses(status)[0], _found(lead, b"", path, led),
                      _found(first, names, path, packed))
                for base, path, status, lead, led, first, names, packed in matches
            ],
            set(marked),
        )  # fmt: skip

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
            self.write(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def write(self, fd: int) -> bytes:
        """``dump``'s bytes into an open, empty file; they are given back."""
        dump = self.dump()
        view = memoryview(dump)
        while view:
            view = view[os.write(fd, view) :]
        return dump


def stamp(matches: Iterable[Match]) -> str:
    """A digest of the inodes and times of selected files: while it is the same, so are they."""
    total = hashlib.sha256()
    for match in matches:
        for at in range(0, len(match.files), BATCH):
            total.update(b"".join([
                key(found[3]) + found[0] for found in match.files[at : at + BATCH]
                if not stat.S_ISDIR(found[3].st_mode)
            ]))  # fmt: skip
    return total.hexdigest()


def _statuses(packed: bytes) -> list[Status]:
    same: dict[int, int] = {}
    return [restore(fields, same) for fields in _FIELDS.iter_unpack(packed)]


def _found(
    lead: list[tuple[bytes, bytes, bytes]], names: bytes, top: bytes, packed: bytes
) -> list[Found]:
    """``lead``: of the first ones (rel, place, name); ``names``: paths of the others below ``top``."""
    statuses = _statuses(packed)
    out = [_new(Found, (*three, status)) for three, status in zip(lead, statuses, strict=False)]
    if len(statuses) == len(out):
        return out
    prefix = top + b"/" if top else b""
    last = b""
    for rel, status in zip(names.split(b"\0"), statuses[len(out) :], strict=True):
        place, _, name = (prefix + rel).rpartition(b"/")
        if place == last:
            place = last  # one object for all of a directory
        last = place
        out.append(_new(Found, (rel, place, name, status)))
    return out
