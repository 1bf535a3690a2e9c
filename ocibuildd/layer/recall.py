"""What a selection's digest was, for a selection of which nothing changed since: no file is looked up by itself.

A *memory* is a file: the ``Checksum``, the directories that were listed for it with a digest of each (of names, inodes
and times), and the ``Scan``.  To recall it the paths are resolved again, each directory is listed and each file that
counts is stat'ed: where all is as it was, so is the content, by the rule of ``fingerprints``, which holds here for
directories too.  Anything else, and any damage, is no memory.

Between processes of ours only: ``marshal`` is no format for strangers.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, cast

from ..errors import BuildError
from ..ports import Checksum, CopySpec
from .fingerprints import key, settled
from .scan import Scan
from .select import Match, Selector, Source
from .status import AnyStatus, Status

MAGIC: Final = b"ocibuildd memory 1\n"
"""To be counted up with every change to what ``layer.checksum`` or ``layer.scan`` makes."""
MAX_BYTES: Final = 128 << 20
"""Of a memory: some 600,000 files.  A larger selection has none."""
_HEAD: Final = struct.Struct("<IQIQ")
"""CRC-32 and size of what is known, the same of the scan."""
_RECORD: Final = struct.Struct("<QQQqqI").pack
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_DIGEST: Final = 16


def remember(fd: int, started_ns: int, found: Checksum, scan: Scan, dump: bytes) -> bool:
    """Write a memory into an open, empty file; False where there can't be one.

    started_ns: ``fingerprints.now`` before the selection was walked.  dump: the scan's.  A selection with anything that
    was written at that time, or is hidden or missing, isn't remembered."""
    if found["missing"] or found["ignored"] or found.get("near") or found.get("links"):
        return False
    statuses = [status for match in scan.matches for status in _statuses(match)]
    digests: list[bytes] = []
    hidden: dict[int, list[str]] = {}
    for number, (_, entries) in enumerate(scan.listed):
        left_out = scan.hidden.get(number)
        if left_out:
            hidden[number] = [os.fsdecode(name) for name in left_out]
            entries = [entry for entry in entries if entry.name not in left_out]
        names = [os.fsdecode(entry.name) for entry in entries]
        these = [entry.status for entry in entries]
        if names != sorted(names):  # as ``_unchanged`` has them; other orders come of names that aren't UTF-8
            return False
        digests.append(_digest(names, these))
        statuses += these
    if not all(settled(status, started_ns) for status in statuses):
        return False
    known = marshal.dumps((
        dict(found), _shape(scan.matches), b"\0".join(path for path, _ in scan.listed), b"".join(digests), hidden,
    ))
    if len(known) + len(dump) > MAX_BYTES:
        return False
    head = _HEAD.pack(zlib.crc32(known), len(known), zlib.crc32(dump), len(dump))
    try:
        for part in (MAGIC + head, known, dump):
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view) :]
    except OSError:
        return False  # a full disk is no reason to fail
    return True


def recall(fd: int, source: Source, spec: CopySpec) -> Checksum | None:
    """The checksum of a selection, where the memory in ``fd`` (which is read from its beginning) is of it and nothing
    changed since."""
    known = _load(fd)
    if known is None:
        return None
    try:
        found, shape, paths, digests, hidden = marshal.loads(known)  # noqa: S302 - our own bytes
    except (ValueError, EOFError, TypeError):
        return None  # of another Python
    try:
        selector = Selector(source, spec, shallow=True)
        matches = list(selector.run())
        if selector.missing or selector.ignored or _shape(matches) != shape:
            return None
        directories = paths.split(b"\0") if digests else []
        if not _unchanged(selector, directories, digests, hidden):
            return None
    except (OSError, BuildError):
        return None  # something changes: who walks it will tell
    return cast("Checksum", found)


def scan_at(fd: int) -> tuple[int, int] | None:
    """(offset, size) of the scan in a memory; None where it is damaged."""
    head = _head(fd)
    if head is None:
        return None
    _, known, checksum, size = head
    offset = len(MAGIC) + _HEAD.size + known
    total, at = 0, offset
    while data := os.pread(fd, min(1 << 20, offset + size - at), at):
        total, at = zlib.crc32(data, total), at + len(data)
    return (offset, size) if at == offset + size and total == checksum else None


def _head(fd: int) -> tuple[int, int, int, int] | None:
    data = os.pread(fd, len(MAGIC) + _HEAD.size, 0)
    if len(data) != len(MAGIC) + _HEAD.size or not data.startswith(MAGIC):
        return None
    head = cast("tuple[int, int, int, int]", _HEAD.unpack_from(data, len(MAGIC)))
    return head if head[1] + head[3] <= MAX_BYTES else None


def _load(fd: int) -> bytes | None:
    head = _head(fd)
    if head is None:
        return None
    data = os.pread(fd, head[1], len(MAGIC) + _HEAD.size)
    return data if len(data) == head[1] and zlib.crc32(data) == head[0] else None


def _statuses(match: Match) -> list[Status]:
    return [match.status, *(found.status for found in match.lead)]


def _shape(matches: Iterable[Match]) -> bytes:
    """What the paths name, without what is below."""
    return repr([
        (match.base, match.path, [found[:3] for found in match.lead], _digest((), _statuses(match)))
        for match in matches
    ]).encode()  # fmt: skip


def _digest(names: Sequence[str], statuses: Iterable[AnyStatus]) -> bytes:
    """Of a directory's names, sorted, and what they are."""
    text = "\0".join(names).encode("utf-8", "surrogateescape")
    statuses, pack = list(statuses), _RECORD
    try:
        records = [
            pack(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_mode) for s in statuses
        ]
    except struct.error:  # a time after 2262
        records = [key(s) + s.st_mode.to_bytes(4, "little") for s in statuses]
    return hashlib.sha256(b"%d\0%b\0%b" % (len(names), text, b"".join(records))).digest()[:_DIGEST]


def _unchanged(
    selector: Selector, directories: list[bytes], digests: bytes, hidden: dict[int, list[str]]
) -> bool:
    """Whether each directory holds what it held.  Raises OSError where one isn't there.

    The directories' own times count too, in what is above them: of a file system that doesn't keep them (FAT's root,
    say) the names alone would do."""
    root, at, look = selector.root, 0, os.stat
    for number, directory in enumerate(directories):
        fd = root.open(directory, _DIRECTORY)
        try:
            names = os.listdir(fd)
            if number in hidden:
                left_out = set(hidden[number])
                names = [name for name in names if name not in left_out]
            names.sort()
            statuses = [look(name, dir_fd=fd, follow_symlinks=False) for name in names]
        finally:
            os.close(fd)
        if _digest(names, statuses) != digests[at : at + _DIGEST]:
            return False
        at += _DIGEST
    return at == len(digests)

