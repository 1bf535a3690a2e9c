"""Where a layer's tar comes from: read, hashed, decompressed and hashed again in two threads beside the reader's.

Limits hold while streaming: nothing is allocated for bytes that a limit forbids.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Final, Self

from ..errors import InvalidArgument, TooLarge
from . import compress

MAX_BYTES: Final = 256 << 30
"""Decompressed bytes of one layer."""
MAX_ENTRIES: Final = 10_000_000
MAX_NAME: Final = 4096
MAX_RATIO: Final = 250
"""Decompressed to compressed bytes, judged once there are ``RATIO_FROM`` decompressed ones.  Deflate can reach 1,032,
real layers of that size stay under 50."""
RATIO_FROM: Final = 1 << 30
READ: Final = 1 << 20
AHEAD: Final = 8
"""Pieces (of a mebibyte or so) that may wait for their reader."""


class LayerSource:
    """An archive of any known compression on a descriptor (a file or a pipe, read from its present offset).

    ``read`` and ``view`` give the tar; ``finish`` reads to the very end and makes ``digest``, ``size`` (of the bytes as
    they came), ``diff_id`` and ``tar_size`` true.  Raises InvalidArgument (damaged), TooLarge, OSError."""

    def __init__(self, fd: int, limits: Mapping[str, int] | None = None):
        limits = limits or {}
        self.max_bytes = limits.get("bytes") or MAX_BYTES
        self.max_entries = limits.get("entries") or MAX_ENTRIES
        self.max_name = limits.get("name") or MAX_NAME
        self.max_ratio = limits.get("ratio") or MAX_RATIO
        self.size = 0
        self.tar_size = 0
        self._fd = fd
        self._blob = hashlib.sha256()
        self._tar = hashlib.sha256()
        self._chunk = b""
        self._at = 0
        self._ended = False
        self._stop = False
        self._pipe: queue.Queue[bytes | BaseException | None] = queue.Queue(AHEAD)
        self._hashes: queue.Queue[bytes | None] = queue.Queue(AHEAD)
        sys.setswitchinterval(0.0005)
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._produce, self._hash)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def digest(self) -> str:
        return "sha256:" + self._blob.hexdigest()

    @property
    def diff_id(self) -> str:
        return "sha256:" + self._tar.hexdigest()

    # --- the reader's thread

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end."""
        at = self._at
        end = at + size
        if end <= len(self._chunk):
            self._at = end
            return self._chunk[at:end]
        parts = [self._chunk[at:]]
        size -= len(parts[0])
        while size and self._next():
            parts.append(self._chunk[:size])
            self._at = len(parts[-1])
            size -= self._at
        return b"".join(parts)

    def views(self, size: int) -> Iterator[memoryview]:
        """``size`` bytes as pieces of what is in memory already.

        Raises InvalidArgument when the archive ends first."""
        while size:
            if self._at == len(self._chunk) and not self._next():
                raise InvalidArgument(
                    f"tar: the archive is cut off: {size} bytes of a file are missing"
                )
            piece = memoryview(self._chunk)[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def view(self, size: int) -> memoryview | None:
        """``size`` bytes where they lie together in memory and more follows (take ``views`` else)."""
        at = self._at
        end = at + size
        if end >= len(self._chunk):
            return None
        self._at = end
        return memoryview(self._chunk)[at:end]

    def skip(self, size: int) -> None:
        for _ in self.views(size):
            pass

    def finish(self) -> None:
        """Read what follows the archive's end (it belongs to the digests)."""
        while self._next():
            pass
        for thread in self._threads:
            thread.join()

    def close(self) -> None:
        """Let the threads go, wherever they are (one that is stuck reading a pipe ends with the process)."""
        self._stop = True
        while not self._ended:
            try:
                item = self._pipe.get(timeout=0.2)
            except queue.Empty:
                break
            self._ended = item is None or isinstance(item, BaseException)

    def _next(self) -> bool:
        if self._ended:
            self._chunk, self._at = b"", 0
            return False
        item = self._pipe.get()
        if item is None or isinstance(item, BaseException):
            self._ended = True
            self._chunk, self._at = b"", 0
            if item is not None:
                raise item
            return False
        self._chunk, self._at = item, 0
        return True

    # --- the other threads

    def _produce(self) -> None:
        end: BaseException | None = None
        try:
            for data in compress.decompress(self._raw()):
                if not data:
                    continue
                self.tar_size += len(data)
                self._check()
                self._hashes.put(data)
                self._pipe.put(data)
                if self._stop:
                    break
        except BaseException as error:  # noqa: BLE001 - it is raised again in the reader's thread
            end = error
        self._hashes.put(None)
        self._pipe.put(end)

    def _raw(self) -> Iterator[bytes]:
        while data := os.read(self._fd, READ):
            self.size += len(data)
            self._blob.update(data)
            yield data

    def _check(self) -> None:
        if self.tar_size > self.max_bytes:
            raise TooLarge(f"layer: more than {self.max_bytes} bytes decompressed")
        if self.tar_size > RATIO_FROM and self.tar_size > self.max_ratio * self.size:
            raise TooLarge(
                f"layer: {self.size} bytes became {self.tar_size}: more than {self.max_ratio} to one",
                hint="a decompression bomb, most likely",
            )

    def _hash(self) -> None:
        while (data := self._hashes.get()) is not None:
            self._tar.update(data)
