"""A stream into a file, uncompressed where that is asked for; nothing of it stays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager

from ..errors import TooLarge
from ..layer import compress
from ..runtime import in_thread
from ..store import Store
from ..store.blobs import Writer, disk_error

MAX_ARCHIVE = 256 << 30
READ = 1 << 20
ADMITTED = 16 << 20
"""Bytes of a stream of unknown length that may come before the store is asked whether there is room."""
Source = AsyncIterable[bytes] | int
"""A stream, or a descriptor of a regular file (read from its start; it stays the caller's)."""


@asynccontextmanager
async def spooled(store: Store, source: Source) -> AsyncIterator[Writer]:
    """An ingest file with all that ``source`` gives; gone at the end unless it was committed.

    Raises NoSpace, TooLarge.
    """
    with contextlib.ExitStack() as rooms, store.blobs.writer(trusted=True) as writer:
        if isinstance(source, int):
            rooms.enter_context(await store.admit(os.fstat(source).st_size))
            await in_thread(_copy, source, writer.fd)
        else:
            size = admitted = 0
            async for data in source:
                size += len(data)
                if size > MAX_ARCHIVE:
                    raise TooLarge(f"archive: more than {MAX_ARCHIVE:,} bytes")
                _write(writer.fd, data)
                if size - admitted >= ADMITTED:
                    rooms.enter_context(await store.admit(size - admitted))
                    admitted = size
        yield writer


@asynccontextmanager
async def plain(store: Store, writer: Writer) -> AsyncIterator[int]:
    """A descriptor of the same archive without compression.  Raises InvalidArgument, TooLarge, NoSpace."""
    if compress.detect(os.pread(writer.fd, compress.MAGIC_SIZE, 0)) == "none":
        yield writer.fd
        return
    with store.blobs.writer(trusted=True) as other:
        await in_thread(_decompress, writer.fd, other.fd)
        yield other.fd


def _copy(source: int, target: int) -> None:
    offset = 0
    try:
        while count := os.copy_file_range(source, target, 1 << 30, offset, offset):
            offset += count
    except OSError:
        while data := os.pread(source, READ, offset):  # another file system
            _write(target, data)
            offset += len(data)


def _decompress(source: int, target: int) -> None:
    size = 0
    for data in compress.decompress(_pieces(source)):
        size += len(data)
        if size > MAX_ARCHIVE:
            raise TooLarge(f"archive: more than {MAX_ARCHIVE:,} bytes")
        _write(target, data)


def _pieces(fd: int) -> Iterator[bytes]:
    offset = 0
    while data := os.pread(fd, READ, offset):
        offset += len(data)
        yield data


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise disk_error(error, "archive") from error
