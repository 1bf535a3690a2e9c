"""Compressors and decompressors for layers.

Compression is by *segments*: stretches of the tar that are compressed by themselves, so that they can be compressed
in any number of threads with the same bytes as the result, and so that the bytes of an unchanged segment can be kept.
A gzip layer is still one ordinary gzip member (RFC 1952): deflate blocks of one segment after another, each ended by
a sync flush.  A zstd layer is a frame per segment (RFC 8878, 3: frames may be concatenated).

Level -1 of gzip is ISA-L's level 1: on a tar of /usr 300 to 400 MB/s a core, against 25 of zlib 6, for 12 to 25 %
more bytes; ISA-L's level 2 is a little smaller and slower, its level 3 half as fast for 3 % less.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from isal import igzip_lib, isal_zlib

from ..errors import InvalidArgument, TooLarge
from ..ports import Compression

if TYPE_CHECKING:
    import zstandard  # a mebibyte in each process; few layers are zstd

GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""RFC 1952, 2.3: no name, mtime 0, no extra flags, OS unknown: the same on every machine."""
DEFLATE_END = b"\x03\0"
"""RFC 1951, 3.2.3: a last, empty block."""
MAX_WINDOW = 128 << 20
"""zstd's window and xz's memory, in bytes: what a frame may make us allocate."""
CHUNK = 1 << 20
"""Bytes that a decompressor gives at a time, about."""
ZSTD_PIECE = 4096
"""Bytes of zstd that are fed at a time."""

_ISAL_LEVELS = {-1: 1, 1: 1, 2: 2, 3: 3}
FEW = 8
"""Bytes of a segment that are compressed by themselves: enough for a first entry in ISA-L's hash table, and so few
that all of them fall to its code for the end of the input."""


class Codec(Protocol):
    """Compresses one segment at a time; one object a thread."""

    def segment(self, data: bytes) -> bytes: ...


class _Isal:
    """On x86-64 the main loop of ISA-L's levels 1 and 2 (2.31 and later) begins a stream by putting position 2 into
    a bucket that it works out from a register which then holds the *address* of the stream.  What comes out
    is right, but a match here or there is lost or found by where in memory the compressor is: in one of
    some thousand segments.  The code for the end of the input has no such flaw, so it is made to begin the stream.
    """

    def __init__(self, level: int):
        self.level = level

    def segment(self, data: bytes) -> bytes:
        deflate = isal_zlib.compressobj(self.level, isal_zlib.DEFLATED, -15)
        parts = []
        view = memoryview(data)
        for part in (view[:FEW], view[FEW:]):
            parts.append(deflate.compress(part))
            parts.append(deflate.flush(isal_zlib.Z_SYNC_FLUSH))
        return b"".join(parts)


class _Zlib:
    def __init__(self, level: int):
        self.level = level

    def segment(self, data: bytes) -> bytes:
        deflate = zlib.compressobj(self.level, zlib.DEFLATED, -15)
        return deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)


class _Zstd:
    def __init__(self, level: int):
        import zstandard

        self.compressor = zstandard.ZstdCompressor(level=level)

    def segment(self, data: bytes) -> bytes:
        return self.compressor.compress(data)


class _Plain:
    def segment(self, data: bytes) -> bytes:
        return data


def codec(compression: Compression, level: int) -> Codec:
    """A compressor.  gzip: -1 (default) or 0 to 9; zstd: -1 (its level 3) or 1 to 19.  Raises InvalidArgument."""
    if compression == "none":
        return _Plain()
    if compression == "zstd" and (level == -1 or 1 <= level <= 19):
        return _Zstd(3 if level == -1 else level)
    if compression == "gzip" and -1 <= level <= 9:
        return _Isal(_ISAL_LEVELS[level]) if level in _ISAL_LEVELS else _Zlib(level)
    raise InvalidArgument(
        f"compression {compression!r} level {level}: expected gzip -1 to 9, zstd -1 to 19, or none"
    )


def prologue(compression: Compression) -> bytes:
    """What stands before the first segment."""
    return GZIP_HEADER if compression == "gzip" else b""


def epilogue(compression: Compression, crc: int, size: int) -> bytes:
    """What stands after the last segment: for gzip the end of deflate, CRC-32 and size of the tar."""
    if compression != "gzip":
        return b""
    return DEFLATE_END + crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


# --- decompression -----------------------------------------------------------------------------------


class _Decoder(Protocol):
    """What bz2's, lzma's and isal's decompressor objects have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


_MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
)
MAGIC_SIZE = 6


def detect(head: bytes) -> str:
    """gzip, zstd, bzip2, xz or none, by the first ``MAGIC_SIZE`` bytes.  A skippable zstd frame counts as zstd."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F:  # RFC 8878, 3.1.2
        return "zstd"
    return "none"


_ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # stubs: an instance


def _errors(kind: str) -> tuple[type[Exception], ...]:
    """What a decompressor raises for damaged data."""
    if kind == "zstd":
        import zstandard

        return (zstandard.ZstdError,)
    return (_ISAL_ERROR, OSError, lzma.LZMAError, EOFError)


def _decoder(kind: str) -> _Decoder:
    if kind == "gzip":
        decoder: _Decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        return decoder
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW)


def decompress(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The decompressed stream, in pieces of ``CHUNK`` bytes or so; the kind is told by the first bytes.

    Several members or frames follow one another; what isn't one, after the first, is ignored (as GNU gzip does;
    its bytes were hashed by whoever read them).  Raises InvalidArgument for damaged or truncated data, TooLarge for
    a window over ``MAX_WINDOW``."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= MAGIC_SIZE:
            break
    kind = detect(head)

    def rest() -> Iterator[bytes]:
        yield head
        yield from chunks

    try:
        if kind == "none":
            yield from rest()
        elif kind == "zstd":
            yield from _zstd(rest())
        else:
            yield from _members(kind, rest())
    except _errors(kind) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        text = str(error)
        if "memory usage limit" in text or "too much memory" in text:
            raise TooLarge(f"{kind}: a window of more than {MAX_WINDOW} bytes") from error
        raise InvalidArgument(f"{kind}: damaged data: {text}") from error


def _members(kind: str, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Members of gzip, bzip2 or xz, one after another."""
    decoder = _decoder(kind)
    fresh = True
    done = 0
    for data in chunks:
        while data or not decoder.needs_input:
            if decoder.eof:
                data = decoder.unused_data or data
                if kind == "xz" or not data.strip(b"\0"):
                    data = data.lstrip(b"\0")  # stream padding
                if not data:
                    break
                if detect(data) != kind and len(data) >= MAGIC_SIZE:
                    _drain(chunks)
                    return
                decoder, fresh, done = _decoder(kind), True, done + 1
            out = decoder.decompress(data, CHUNK)
            data = b""
            fresh = False
            if out:
                yield out
            if decoder.eof:
                data = decoder.unused_data
                if not data:
                    break
    if not decoder.eof and not fresh:
        raise InvalidArgument(f"{kind}: the data is truncated")


def _drain(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


def _zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Frames of zstd, one after another.

    The decoder has no bound on what one call gives, so it is fed by pieces: a piece of ``ZSTD_PIECE`` bytes holds
    at most a thousand blocks of 128 KiB (RFC 8878, 3.1.1.2.4)."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    decoder: zstandard.ZstdDecompressionObj | None = None
    first = True
    rest = b""
    ready: list[bytes] = []
    size = 0
    for data in chunks:
        for at in range(0, len(data), ZSTD_PIECE):
            rest += data[at : at + ZSTD_PIECE]
            while rest:
                if decoder is None:
                    if len(rest) < 4:
                        break
                    if not first and detect(rest) != "zstd":
                        yield b"".join(ready)
                        _drain(chunks)
                        return
                    decoder, first = decompressor.decompressobj(), False
                out = decoder.decompress(rest)
                rest = b""
                if decoder.eof:
                    rest, decoder = decoder.unused_data, None
                ready.append(out)
                size += len(out)
                if size >= CHUNK:
                    yield b"".join(ready)
                    ready, size = [], 0
    yield b"".join(ready)
    if decoder is not None:
        raise InvalidArgument("zstd: the data is truncated")
