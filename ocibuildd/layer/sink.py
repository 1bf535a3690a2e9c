"""Where a layer's tar goes: hashed, compressed, hashed again and written, in one pass over several threads.

The caller's thread gathers entries into segments; one thread hashes the tar (and the content), some compress
segments, one hashes and writes the result in order.  hashlib, isal and zlib release the GIL.  A layer of one
segment starts no thread.
"""

from __future__ import annotations

import hashlib
import os
import queue
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from isal import isal_zlib

from .. import syscalls
from ..ports import Output, Packed
from . import compress, tar
from .fingerprints import UNKNOWN

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

SEGMENT_MIN: Final = 256 << 10
"""A segment ends at an entry once it has so many bytes and the entry's name says so (see ``_ends_at``)."""
SEGMENT_MAX: Final = 1 << 20
"""A segment has no more bytes than this and one small entry; big files are cut at multiples of it."""
IN_FLIGHT: Final = 2
"""Segments a compressing thread between the caller and the file: twice as many mebibytes, at most."""
WRITEBACK: Final = 4 << 20
"""Bytes after which the kernel is told to begin to write: whoever syncs the file has little to wait for."""
MAX_KEPT: Final = 8192
"""Segments in an index: layers of up to some gigabytes."""
_PLACE = struct.Struct("<16sQII")
THREADS: Final = 4
"""Compressing threads, at most."""


@dataclass(slots=True)
class Segment:
    """One stretch of the tar on its way: ``ready`` is set when ``packed`` holds its compressed bytes.

    ``data`` goes once it is ``hashed`` and ``ready``: a segment that waits for its turn to be written is small.
    ``key``: what its bytes follow from, then a digest of that; b"": nobody knows (a big file without a known digest).
    ``file``: the hash of a big file, whose next ``body`` bytes the segment begins with; ``last``: no more follow."""

    data: bytes
    identity: bytes
    packed: bytes = b""
    key: bytes = b""
    file: Hash | None = None
    body: int = 0
    last: bool = False
    hashed: bool = False
    ready: threading.Event = field(default_factory=threading.Event)

    def forget(self) -> None:
        """Whoever is the last of hash and compression lets the bytes go."""
        if self.hashed and self.ready.is_set():
            self.data = b""


class Reuse:
    """Compressed segments of an earlier layer, by digest of what their tar bytes follow from (headers, digests of
    files): what didn't change is copied.

    ``index``: {16-byte key: (offset, size, crc32 of the compressed bytes)}; ``blob_fd``: that layer, None for none.
    After a run, ``made`` is the index of the layer just written, ``kept`` how many segments were copied."""

    def __init__(
        self, index: dict[bytes, tuple[int, int, int]] | None = None, blob_fd: int | None = None
    ):
        self.index = index or {}
        self.blob_fd = blob_fd
        self.made: dict[bytes, tuple[int, int, int]] = {}
        self.kept = 0

    @classmethod
    def load(cls, data: bytes, blob_fd: int | None, output: Output) -> Reuse:
        """From what ``dump`` gave for the layer ``blob_fd``; of other settings or damaged, there is nothing to keep."""
        head = _settings(output)
        if not data.startswith(head) or (len(data) - len(head)) % _PLACE.size:
            return cls()
        places = _PLACE.iter_unpack(data[len(head) :])
        return cls({key: (offset, size, crc) for key, offset, size, crc in places}, blob_fd)

    def dump(self, output: Output) -> bytes:
        """The index of the layer just written: 32 bytes a segment; b"" when there are more than ``MAX_KEPT``."""
        if len(self.made) > MAX_KEPT:
            return b""
        return _settings(output) + b"".join(
            _PLACE.pack(key, *place) for key, place in self.made.items()
        )

    def find(self, key: bytes) -> bytes | None:
        """The compressed bytes of a segment; None where it isn't known, or was damaged since."""
        place = self.index.get(key)
        if place is None or self.blob_fd is None:
            return None
        data = os.pread(self.blob_fd, place[1], place[0])
        return data if len(data) == place[1] and isal_zlib.crc32(data) == place[2] else None


def _settings(output: Output) -> bytes:
    return f"segments 3 {output['compression']} {output['level']}\n".encode()


class LayerSink:
    """Writes one layer to ``fd`` (from its present offset; it may be a pipe).

    ``add`` entries, ``begin``/``data``/``end`` big ones, then ``close``.  After an error, ``abort``."""

    def __init__(
        self,
        fd: int,
        output: Output,
        *,
        threads: int = 0,
        reuse: Reuse | None = None,
        content: bool = True,
    ):
        self._fd = fd
        self._output = output
        self._codec = compress.codec(output["compression"], output["level"])
        self._threads = threads or min(THREADS, os.cpu_count() or 1)
        self._reuse = reuse
        self._content = hashlib.sha256() if content else None
        self._tar = hashlib.sha256()
        self._blob = hashlib.sha256()
        self._crc = 0
        self._parts: list[bytes] = []
        self._identity: list[bytes] = []
        self._key: list[bytes] = []
        self._file: Hash | None = None
        self._place = (b"", 0)
        self._size = 0
        self._total = 0
        self._written = 0
        self._handed_over = 0
        self._entries = 0
        self._started: list[threading.Thread] = []
        self._free = threading.Semaphore(IN_FLIGHT * self._threads)
        self._queues: list[queue.SimpleQueue[Segment | None]] = []
        self._failed: BaseException | None = None

    # --- the caller's thread

    def add(
        self, header: bytes, identity: bytes, data: bytes = b"", digest: bytes = UNKNOWN
    ) -> None:
        """One whole entry of at most ``SEGMENT_MAX`` bytes of data.  ``identity`` is what the content digest has of it
        (all but its times), beside ``digest`` (``data_digest`` of the data, where the caller has it already)."""
        if self._size >= SEGMENT_MIN and (self._size >= SEGMENT_MAX or _ends_at(identity)):
            self._flush()
        self._entries += 1
        parts = self._parts
        parts.append(header)
        self._identity.append(identity)
        self._key.append(header)
        self._size += len(header)
        if data:
            size = len(data)
            parts.append(data)
            if self._content is not None:
                if digest == UNKNOWN:
                    digest = data_digest(hashlib.sha256(data))
                self._identity.append(digest)
                self._key.append(digest)
            pad = -size % 512
            if pad:
                parts.append(bytes(pad))
            self._size += size + pad

    def begin(self, header: bytes, identity: bytes, digest: bytes = UNKNOWN) -> None:
        """A big entry; its ``data`` follows in pieces, all but the last of them of ``SEGMENT_MAX`` bytes."""
        self.add(header, identity)
        known = digest != UNKNOWN
        if known:
            self._identity.append(digest)
        self._flush()
        self._file = hashlib.sha256() if not known and self._content is not None else None
        self._place = (digest if known else b"", 0)

    def data(self, data: bytes) -> None:
        digest, at = self._place
        if digest:
            self._key.append(b"%b%d %d\n" % (digest, at, len(data)))
        self._place = (digest, at + len(data))
        self._parts.append(data)
        self._size += len(data)
        if self._size >= SEGMENT_MAX:
            self._flush()

    def end(self, size: int) -> None:
        """The end of a big entry of ``size`` bytes."""
        pad = -size % 512
        if pad:
            self._parts.append(bytes(pad))
            self._size += pad
        self._flush()
        if self._file is not None:
            self._queues[0].put(Segment(b"", b"", file=self._file, last=True))
            self._file = None

    def close(self, *, keep_empty: bool = False) -> Packed:
        """Finish.  Raises what a thread failed with (OSError of the write, say).

        Without entries nothing is written and the result is ``empty``, unless ``keep_empty``."""
        if not self._entries and not keep_empty:
            return Packed(
                empty=True, digest="", size=0, diff_id="", tar_size=0, content="", entries=0
            )
        self._parts.append(tar.END)
        self._key.append(tar.END)
        self._size += len(tar.END)
        if self._started:
            self._flush()
            for pipe in self._queues:
                pipe.put(None)
            self._join()
        else:
            segment = self._take()
            self._begin_output()
            self._hash(segment)
            self._compress(segment, self._codec)
            segment.ready.set()
            self._store(segment)
        self._write(compress.epilogue(self._output["compression"], self._crc, self._total))
        return Packed(
            empty=False,
            digest="sha256:" + self._blob.hexdigest(),
            size=self._written,
            diff_id="sha256:" + self._tar.hexdigest(),
            tar_size=self._total,
            content="sha256:" + self._content.hexdigest() if self._content else "",
            entries=self._entries,
        )

    def abort(self) -> None:
        """Stop the threads; what was written is no layer."""
        self._failed = self._failed or RuntimeError("aborted")
        for pipe in self._queues:
            pipe.put(None)
        for thread in self._started:
            thread.join()

    def _take(self) -> Segment:
        data = b"".join(self._parts)
        segment = Segment(data, b"".join(self._identity), file=self._file)
        if self._file is not None:
            segment.body = len(self._parts[0])
        elif self._reuse is not None and self._content is not None:
            segment.key = b"".join(self._key)
        self._parts, self._identity, self._key, self._size = [], [], [], 0
        self._total += len(data)
        return segment

    def _flush(self) -> None:
        if not self._size:
            return
        if not self._started:
            self._start()
        self._free.acquire()
        if self._failed is not None:
            raise self._failed
        segment = self._take()
        for pipe in self._queues[:3]:
            pipe.put(segment)

    def _join(self) -> None:
        for thread in self._started:
            thread.join()
        if self._failed is not None:
            raise self._failed

    # --- the other threads

    def _start(self) -> None:
        sys.setswitchinterval(
            0.0005
        )  # a compressing thread must not wait 5 ms for the GIL after each segment
        hashes, work, store = (queue.SimpleQueue[Segment | None]() for _ in range(3))
        self._queues = [hashes, work, store] + [work] * (self._threads - 1)
        self._begin_output()
        targets: list[Callable[[], None]] = [
            lambda: self._loop(hashes, self._hash),
            lambda: self._loop(store, self._store),
        ]
        targets += [lambda: self._compress_loop(work)] * self._threads
        for target in targets:
            thread = threading.Thread(target=target, daemon=True)
            self._started.append(thread)
            thread.start()

    def _loop(
        self, pipe: queue.SimpleQueue[Segment | None], action: Callable[[Segment], None]
    ) -> None:
        while (segment := pipe.get()) is not None:
            try:
                if self._failed is None:
                    action(segment)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
                self._failed = self._failed or error
            if action == self._store:
                self._free.release()

    def _compress_loop(self, pipe: queue.SimpleQueue[Segment | None]) -> None:
        codec = compress.codec(self._output["compression"], self._output["level"])
        while (segment := pipe.get()) is not None:
            try:
                if self._failed is None:
                    self._compress(segment, codec)
            except BaseException as error:  # noqa: BLE001 - it is raised again in the caller's thread
                self._failed = self._failed or error
            segment.ready.set()
            segment.forget()

    def _hash(self, segment: Segment) -> None:
        self._tar.update(segment.data)
        if self._output["compression"] == "gzip":
            self._crc = isal_zlib.crc32(segment.data, self._crc)
        if self._content is not None:
            self._content.update(segment.identity)
            if segment.file is not None:
                segment.file.update(memoryview(segment.data)[: segment.body])
                if segment.last:
                    self._content.update(data_digest(segment.file))
        segment.hashed = True
        segment.forget()

    def _compress(self, segment: Segment, codec: compress.Codec) -> None:
        if self._reuse is None or not segment.key:
            segment.packed = codec.segment(segment.data)
        else:
            segment.key = hashlib.sha256(segment.key).digest()[:16]
            kept = self._reuse.find(segment.key)
            segment.packed = codec.segment(segment.data) if kept is None else kept
            self._reuse.kept += kept is not None

    def _store(self, segment: Segment) -> None:
        segment.ready.wait()
        if self._failed is not None:
            return
        if self._reuse is not None and segment.key:
            self._reuse.made[segment.key] = (
                self._written,
                len(segment.packed),
                isal_zlib.crc32(segment.packed),
            )
        self._write(segment.packed)
        segment.packed = b""

    def _begin_output(self) -> None:
        self._write(compress.prologue(self._output["compression"]))

    def _write(self, data: bytes) -> None:
        self._blob.update(data)
        view = memoryview(data)
        while view:
            count = os.write(self._fd, view)
            self._written += count
            view = view[count:]
        if self._written - self._handed_over >= WRITEBACK and self._handed_over >= 0:
            self._write_back()

    def _write_back(self) -> None:
        start, self._handed_over = self._handed_over, self._written
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            syscalls.begin_writeback(self._fd, end - (self._written - start), self._written - start)
        except OSError:
            self._handed_over = -1  # a pipe, or a file system without it


def data_digest(hasher: Hash) -> bytes:
    """What stands for a regular file's bytes in content digests: their SHA-256 with its last bit cleared (the bit is a
    mark in ``fingerprints``)."""
    digest = hasher.digest()
    return digest if not digest[-1] & 1 else digest[:-1] + bytes([digest[-1] - 1])


def identity(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    link: bytes,
    xattrs: Mapping[bytes, bytes] | None,
) -> bytes:
    """What the content digest has of an entry: all but its times; where ``size`` isn't 0, its data's digest follows."""
    more = b""
    if xattrs:
        more = b"".join(
            b"%d %d %b%b" % (len(key), len(xattrs[key]), key, xattrs[key]) for key in sorted(xattrs)
        )
    return b"%b\0%b%o %d %d %d %d %d\0%b%b" % (
        name,
        kind,
        mode,
        uid,
        gid,
        size,
        len(link),
        len(more),
        link,
        more,
    )


def _ends_at(identity: bytes) -> bool:
    """Whether an entry begins a segment: decided by its name, so that after an inserted, changed or removed file the
    segments fall into step with the earlier ones again."""
    return zlib.crc32(identity.partition(b"\0")[0]) & 3 == 0
