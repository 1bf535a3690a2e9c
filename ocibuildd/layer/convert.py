"""A layer's bytes in another compression: the tar, and so its diff id, stays what it is."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from isal import isal_zlib

from ..errors import Corrupt
from ..ports import Output, Packed
from . import compress
from .source import LayerSource

SEGMENT: Final = 1 << 20
"""Bytes of the tar that are compressed by themselves: fixed, so that the result doesn't depend on threads."""
IN_FLIGHT: Final = 8


def recompress(
    source_fd: int, output_fd: int, output: Output, *, expect_diff_id: str = "",
    limits: Mapping[str, int] | None = None,
) -> Packed:  # fmt: skip
    """Read a layer of any compression from ``source_fd``, write it to ``output_fd`` as ``output`` says.

    ``entries`` and ``content`` are not computed.  Raises Corrupt (another diff id), InvalidArgument, TooLarge.
    """
    blob = hashlib.sha256()
    written = crc = 0
    local = threading.local()

    def pack(data: bytes) -> bytes:
        codec = getattr(local, "codec", None)
        if codec is None:
            codec = local.codec = compress.codec(output["compression"], output["level"])
        packed: bytes = codec.segment(data)
        return packed

    def write(data: bytes) -> None:
        nonlocal written
        blob.update(data)
        view = memoryview(data)
        while view:
            count = os.write(output_fd, view)
            written += count
            view = view[count:]

    with LayerSource(source_fd, limits) as source, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        write(compress.prologue(output["compression"]))
        under_way: deque[Future[bytes]] = deque()
        for data in _segments(source):
            crc = isal_zlib.crc32(data, crc)
            under_way.append(pool.submit(pack, data))
            if len(under_way) >= IN_FLIGHT:
                write(under_way.popleft().result())
        while under_way:
            write(under_way.popleft().result())
        source.finish()
    if expect_diff_id and source.diff_id != expect_diff_id:
        raise Corrupt(f"layer: diff id {source.diff_id}, expected {expect_diff_id}")
    write(compress.epilogue(output["compression"], crc, source.tar_size))
    return Packed(
        empty=False, digest="sha256:" + blob.hexdigest(), size=written, diff_id=source.diff_id,
        tar_size=source.tar_size, content="", entries=0,
    )  # fmt: skip


def _segments(source: LayerSource) -> Iterator[bytes]:
    while data := source.read(SEGMENT):
        yield data
