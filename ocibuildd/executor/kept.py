"""What was compressed before needn't be compressed again: the last layer of each COPY from a local context.

A layer is compressed by segments (``layer.sink``); here is kept, for each instruction over the same directories, which
layer it made last and where its segments are in the blob: a file each.  Without it a layer is the same bytes, later; so
nothing is synced, and a file that is damaged is none (as is a segment: its checksum is in the index).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..model.digest import Digest
from ..ports import CopySpec, Output

MAX_LAYERS = 64
"""Layers that are remembered; an index is 32 bytes a segment, of 256 KiB and more."""
MAX_BYTES = 1 << 20
"""Of one file: more than ``layer.sink.MAX_KEPT`` segments take in base64."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The layer that an instruction made last, and its index (base64, as nsd gave it)."""

    digest: Digest
    segments: str


class KeptSegments:
    """Least recently used first out.  directory: of these files alone, made where it is missing."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, signature: str) -> Kept | None:
        path = self._directory / signature
        try:
            with path.open("rb") as file:
                head, _, segments = file.read(MAX_BYTES).partition(b"\n")
            digest, _, checksum = head.decode("ascii").partition(" ")
            if int(checksum, 16) != zlib.crc32(segments):
                return None
            os.utime(path)
            return Kept(Digest(digest), segments.decode("ascii"))
        except (OSError, ValueError):
            return None

    def put(self, signature: str, digest: Digest, segments: str) -> None:
        """A disk that is full is no error: there is nothing kept then."""
        path = self._directory / signature
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            data = segments.encode("ascii")
            temporary.write_bytes(b"%b %08x\n%b" % (digest.encode("ascii"), zlib.crc32(data), data))
            temporary.replace(path)
            forget_oldest(self._directory, MAX_LAYERS)


def forget_oldest(directory: Path, most: int, most_bytes: int = 1 << 62) -> None:
    """Leave ``most`` files of ``most_bytes`` in a directory, the last that were written or used.  Raises OSError."""
    with os.scandir(directory) as found:
        files = [(item.stat(), item.name) for item in found if item.is_file()]
    files.sort(key=lambda file: (file[0].st_mtime_ns, file[1]), reverse=True)
    total = 0
    for number, (status, name) in enumerate(files):
        total += status.st_size
        if number >= most or total > most_bytes:
            (directory / name).unlink(missing_ok=True)


def signature(places: Sequence[tuple[str, Sequence[str]]], spec: CopySpec, output: Output) -> str:
    """What makes two packs versions of one another: directories and paths, instruction, settings.

    "" when it isn't all from local directories."""
    if not places or not all(path for path, _ in places):
        return ""
    text = repr((
        [(path, list(paths)) for path, paths in places],
        sorted((key, value) for key, value in spec.items() if key != "epoch"),
        sorted(output.items(), key=lambda item: item[0]),
    ))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
