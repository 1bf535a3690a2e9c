"""Tar headers, read and written (POSIX.1-2017 pax, "ustar Interchange Format" and "pax Interchange Format";
GNU tar manual, "Basic Tar Format" and "Storing Sparse Files").  Pure: bytes in, bytes out.

Written: ustar, with a pax header only where ustar can't say it (names over 100 bytes that don't split, sizes over
8 GiB, ids over 2,097,151, times with a fraction or out of range, xattrs as ``SCHILY.xattr.``).  Read: all that GNU tar,
libarchive, Go and Python write: v7, ustar, GNU (long names, base-256 numbers, sparse 0.0 to 1.0 and old), pax.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping

from ..errors import InvalidArgument, TooLarge
from . import fields, sparse
from .fields import Source, decimal, format_time, number, parse_time

BLOCK = fields.BLOCK
MAX_EXTENSION = 1 << 20
"""Bytes of one pax header or GNU long name."""
MAX_NAME = 4096
"""Bytes of a name or link target (PATH_MAX)."""
MAX_HEADERS = 64
"""Extension headers in front of one entry."""

REGULAR, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0",
    b"1",
    b"2",
    b"3",
    b"4",
    b"5",
    b"6",
)
END = bytes(2 * BLOCK)
XATTR = b"SCHILY.xattr."

_MAX_OCTAL8 = 0o7777777
_MAX_OCTAL12 = 0o77777777777
_TAIL = b"ustar\x0000" + bytes(64) + b"0000000\0" * 2
_PREFIX = bytes(155 + 12)
_RESTS = {
    kind: (rest, sum(rest))
    for kind in (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"x", b"L", b"K", b"g")
    for rest in [kind + bytes(100) + _TAIL + _PREFIX]
}
"""What follows the checksum where there is no link target and no prefix, and the sum of its bytes."""
_NO_DATA = frozenset(b"123456")
_GIGA = 1_000_000_000


class Entry:
    """One member.  ``size``: bytes of data in the archive; ``real``: of the file (they differ when sparse).

    ``sparse`` holds [(offset, length), …] of what the data fills, None for a plain file.  ``mode`` has the
    twelve permission bits.  ``xattrs``: names without their prefix."""

    __slots__ = (
        "dev",
        "gid",
        "link",
        "mode",
        "mtime_ns",
        "name",
        "real",
        "size",
        "sparse",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        name: bytes,
        kind: bytes = REGULAR,
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        mtime_ns: int = 0,
        link: bytes = b"",
        xattrs: Mapping[bytes, bytes] | None = None,
        dev: tuple[int, int] = (0, 0),
    ):
        self.name = name
        self.type = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.size = size
        self.real = size
        self.mtime_ns = mtime_ns
        self.link = link
        self.xattrs: Mapping[bytes, bytes] = xattrs or {}
        self.dev = dev
        self.sparse: list[tuple[int, int]] | None = None

    def __repr__(self) -> str:
        return f"Entry({self.name!r}, {self.type!r}, mode={self.mode:o}, size={self.size})"


# --- writing -----------------------------------------------------------------------------------------


def _ustar(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    seconds: int,
    link: bytes = b"",
    prefix: bytes = _PREFIX,
) -> bytes:
    """A 512-byte header of fields that all fit."""
    head = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        name.ljust(100, b"\0"), mode, uid, gid, size, seconds,
    )  # fmt: skip
    if link or prefix is not _PREFIX:
        rest = b"%b%b%b%b" % (kind, link.ljust(100, b"\0"), _TAIL, prefix)
        total = sum(rest)
    else:
        rest, total = _RESTS[kind]
    # Adler-32's lower half is one plus the sum of these 148 bytes, and far faster than sum().
    total += (zlib.adler32(head) & 0xFFFF) - 1 + 256  # the checksum field counts as eight spaces
    return head + b"%06o\0 " % total + rest


def _pax_record(key: bytes, value: bytes) -> bytes:
    """``<length> <key>=<value>\\n``, where the length counts its own digits."""
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    if len(str(length)) != len(str(body)):
        length = body + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


_MTIME_HEADER = _ustar(b"PaxHeaders.0", b"x", 0o644, 0, 0, 30, 0)
_MTIME_PAD = bytes(BLOCK - 30)


def header(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime_ns: int,
    link: bytes = b"",
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """The header blocks of one member (a directory's name ends in "/").

    The common case (short names, times of this century) is made by hand: about 5 µs."""
    seconds, fraction = divmod(mtime_ns, _GIGA)
    if (
        len(name) <= 100 and not xattrs and not link and size <= _MAX_OCTAL12
        and 0 <= seconds <= _MAX_OCTAL12 and uid <= _MAX_OCTAL8 and gid <= _MAX_OCTAL8
    ):  # fmt: skip
        head = name.ljust(100, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (
            mode, uid, gid, size, seconds,
        )  # fmt: skip
        rest, total = _RESTS[kind]
        total += (zlib.adler32(head) & 0xFFFF) + 255  # as in _ustar
        if not fraction:
            return head + b"%06o\0 " % total + rest
        if (
            _GIGA <= seconds < 10 * _GIGA
        ):  # ten digits: the record is 30 bytes long, its header a constant
            record = b"30 mtime=%d.%09d\n" % (seconds, fraction)
            return _MTIME_HEADER + record + _MTIME_PAD + head + b"%06o\0 " % total + rest
    return _extended(name, kind, mode, uid, gid, size, mtime_ns, link, xattrs or {})


def _extended(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime_ns: int,
    link: bytes,
    xattrs: Mapping[bytes, bytes],
) -> bytes:
    """Header blocks with a pax header in front."""
    records: dict[bytes, bytes] = {}
    prefix = _PREFIX
    if len(name) > 100:
        split = _split(name)
        if split is None:
            records[b"path"], name = name, name[:100]
        else:
            prefix, name = split[0].ljust(155, b"\0") + bytes(12), split[1]
    if len(link) > 100:
        records[b"linkpath"], link = link, link[:100]
    if not _utf8(*records.values()):
        records = {b"hdrcharset": b"BINARY", **records}
    seconds, fraction = divmod(mtime_ns, _GIGA)
    if fraction or not 0 <= seconds <= _MAX_OCTAL12:
        records[b"mtime"] = format_time(mtime_ns)
        seconds = min(max(seconds, 0), _MAX_OCTAL12)
    if size > _MAX_OCTAL12:
        records[b"size"], size = b"%d" % size, 0
    if uid > _MAX_OCTAL8:
        records[b"uid"], uid = b"%d" % uid, 0
    if gid > _MAX_OCTAL8:
        records[b"gid"], gid = b"%d" % gid, 0
    for key in sorted(xattrs):
        records[XATTR + key] = xattrs[key]
    block = _ustar(name, kind, mode, uid, gid, size, seconds, link, prefix=prefix)
    if not records:
        return block
    data = b"".join(_pax_record(key, value) for key, value in records.items())
    return b"%b%b%b%b" % (
        _ustar(b"PaxHeaders.0", b"x", 0o644, 0, 0, len(data), 0),
        data,
        bytes(-len(data) % BLOCK),
        block,
    )


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """(prefix, name) for ustar, or None where no "/" splits it well."""
    if len(name) > 256:
        return None
    at = name.find(b"/", len(name) - 101, len(name) - 1)
    return (name[:at], name[at + 1 :]) if 0 < at <= 155 else None


def _utf8(*values: bytes) -> bool:
    try:
        for value in values:
            value.decode()
    except UnicodeDecodeError:
        return False
    return True


def padding(size: int) -> bytes:
    """What fills up the last block of ``size`` bytes of data."""
    return bytes(-size % BLOCK)


# --- reading -----------------------------------------------------------------------------------------


def entries(source: Source, *, max_entries: int = 0, max_name: int = MAX_NAME) -> Iterator[Entry]:
    """The members of an archive, in order.

    The consumer must read exactly ``entry.size`` bytes of data and the padding to 512 from ``source`` before it
    asks for the next one.  Raises InvalidArgument for what isn't a tar, TooLarge when a limit is passed."""
    count = 0
    while True:
        entry = _next(source, max_name)
        if entry is None:
            return
        count += 1
        if max_entries and count > max_entries:
            raise TooLarge(f"tar: more than {max_entries} entries")
        yield entry


def _next(source: Source, max_name: int) -> Entry | None:
    pax: dict[bytes, bytes] = {}
    parts: list[tuple[int, int]] = []
    long_name = long_link = b""
    for _ in range(MAX_HEADERS):
        block = source.read(BLOCK)
        if not block or block == END[:BLOCK]:
            _check_end(source, block, bool(pax or long_name or long_link))
            return None
        if len(block) != BLOCK:
            raise InvalidArgument(
                f"tar: {len(block)} bytes where a header of {BLOCK} was expected: the archive is cut off"
            )
        kind = block[156:157]
        if kind in b"xXgLKV" and kind != b"":
            data = _extension(source, block)
            if kind in b"xX":
                _pax(data, pax, parts)
            elif kind == b"L":
                long_name = data.rstrip(b"\0")
            elif kind == b"K":
                long_link = data.rstrip(b"\0")
            continue  # g: defaults that no layer writer relies on, as containerd ignores them; V: a label
        return _entry(source, block, pax, parts, long_name, long_link, max_name)
    raise TooLarge(f"tar: more than {MAX_HEADERS} extension headers before one entry")


def _check_end(source: Source, block: bytes, pending: bool) -> None:
    if pending:
        raise InvalidArgument("tar: the archive ends after an extension header")
    if block:
        second = source.read(BLOCK)
        if second and second.strip(b"\0"):
            raise InvalidArgument("tar: a lone zero block in the middle of the archive")


def _extension(source: Source, block: bytes) -> bytes:
    _checksum(block)
    size = number(block[124:136])
    if not 0 <= size <= MAX_EXTENSION:
        raise TooLarge(
            f"tar: an extension header of {size} bytes, at most {MAX_EXTENSION} are taken"
        )
    data = source.read(size + -size % BLOCK)
    if len(data) < size:
        raise InvalidArgument("tar: an extension header is cut off")
    return data[:size]


def _pax(data: bytes, records: dict[bytes, bytes], parts: list[tuple[int, int]]) -> None:
    """Parse pax records into ``records``, GNU 0.0 sparse pairs into ``parts``."""
    at = 0
    offset = 0
    while at < len(data):
        space = data.find(b" ", at, at + 8)
        digits = data[at:space]
        if space < 0 or not digits.isdigit():
            if not data[at:].strip(b"\0"):
                return
            raise InvalidArgument("tar: a pax record without a length")
        end = at + int(digits)
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end > len(data) or data[end - 1 : end] != b"\n" or not equals or not key:
            raise InvalidArgument("tar: a malformed pax record")
        at = end
        if key == b"GNU.sparse.offset":
            offset = decimal(value)
        elif key == b"GNU.sparse.numbytes":
            parts.append((offset, decimal(value)))
            if len(parts) > sparse.MAX_SPARSE:
                raise TooLarge(f"tar: a sparse file of more than {sparse.MAX_SPARSE} parts")
        else:
            records[key] = value


def _checksum(block: bytes) -> None:
    wanted = number(block[148:156])
    # Adler-32's lower half is one plus the sum of the bytes, modulo 65,521: ten times as fast as sum().
    unsigned = wanted + sum(block[148:156]) - 256
    if (zlib.adler32(block) - unsigned - 1) & 0xFFFF and sum(block) != unsigned:
        high = sum(1 for byte in block[:148] + block[156:] if byte > 127)
        if sum(block) - 256 * high != unsigned:  # old Sun tars summed signed characters
            raise InvalidArgument(
                "tar: a header's checksum is wrong (not a tar, or a damaged one)",
            )


_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s6s66s8s8s155s12x")
_STRICT = re.compile(rb"(?:[0-7]{7}\0){3}(?:[0-7]{11}\0){2}")


def _entry(
    source: Source, block: bytes, pax: dict[bytes, bytes], parts: list[tuple[int, int]],
    long_name: bytes, long_link: bytes, max_name: int,
) -> Entry:  # fmt: skip
    _checksum(block)
    (
        name,
        mode,
        uid,
        gid,
        size,
        seconds,
        _,
        kind,
        link,
        magic,
        _,
        major,
        minor,
        prefix,
    ) = _FIELDS.unpack(block)
    name = name.rstrip(b"\0") if name[99] else name.partition(b"\0")[0]
    if prefix[0] and magic == b"ustar\0":
        name = prefix.partition(b"\0")[0] + b"/" + name
    link = long_link or link.partition(b"\0")[0] if link[0] or long_link else b""
    octal = _octal if _STRICT.match(block, 100) else number
    entry = Entry(
        long_name or name,
        kind,
        mode=octal(mode) & 0o7777,
        uid=octal(uid),
        gid=octal(gid),
        size=octal(size),
        mtime_ns=octal(seconds) * _GIGA,
        link=link,
    )
    if kind in (b"\0", b"7"):
        entry.type = kind = REGULAR
    elif kind in b"34":
        entry.dev = (number(major), number(minor))
    if pax:
        _override(entry, pax)
    if kind[0] in _NO_DATA:
        entry.size = 0
    entry.real = entry.size
    if sparse.is_sparse(block, pax, parts):
        entry.type = REGULAR
        entry.name = pax.get(b"GNU.sparse.name", entry.name)
        entry.sparse, entry.real, entry.size = sparse.read_map(
            source, entry.name, block, pax, parts, entry.size
        )
    _sane(entry, max_name)
    if entry.type == REGULAR and entry.name.endswith(b"/"):
        entry.type = DIRECTORY  # v7 wrote directories so
    return entry


def _octal(field: bytes) -> int:
    return int(field[:-1], 8)


def _override(entry: Entry, pax: dict[bytes, bytes]) -> None:
    """What pax records say wins over the header."""
    xattrs = {}
    for key, value in pax.items():
        if key == b"mtime":
            entry.mtime_ns = parse_time(value)
        elif key == b"size":
            entry.size = decimal(value)
        elif key == b"uid":
            entry.uid = decimal(value)
        elif key == b"gid":
            entry.gid = decimal(value)
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key.startswith(XATTR):
            xattrs[key[len(XATTR) :]] = value
    entry.xattrs = xattrs


def _sane(entry: Entry, max_name: int) -> None:
    if entry.size < 0 or entry.real < 0 or entry.uid < 0 or entry.gid < 0:
        raise InvalidArgument(f"tar: {entry.name[:100]!r}: a negative size or id")
    if len(entry.name) > max_name or len(entry.link) > max_name:
        raise TooLarge(
            f"tar: {entry.name[:100]!r}…: a name of {max(len(entry.name), len(entry.link))} bytes, at most {max_name}"
        )
    if b"\0" in entry.name or b"\0" in entry.link:
        raise InvalidArgument(f"tar: {entry.name[:100]!r}: a NUL in a name")
    if entry.type[0] not in b"0123456":
        raise InvalidArgument(f"tar: {entry.name[:100]!r}: a member of unknown type {entry.type!r}")
