"""What was compressed before needn't be compressed again: the last layer of each COPY from a local context.

A layer is compressed by segments (``layer.sink``); here is kept, for each instruction over the same directories, which
layer it made last and where its segments are in the blob.  In memory only: without it a layer is the same bytes, later.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ..model.digest import Digest
from ..ports import CopySpec, Output

MAX_LAYERS = 64
"""Layers that are remembered; an index is 32 bytes a segment, of 256 KiB and more."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The layer that an instruction made last, and its index (base64, as nsd gave it)."""

    digest: Digest
    segments: str


class KeptSegments:
    """Least recently used first out."""

    def __init__(self) -> None:
        self._layers: OrderedDict[str, Kept] = OrderedDict()

    def get(self, signature: str) -> Kept | None:
        kept = self._layers.get(signature)
        if kept is not None:
            self._layers.move_to_end(signature)
        return kept

    def put(self, signature: str, digest: Digest, segments: str) -> None:
        self._layers[signature] = Kept(digest, segments)
        self._layers.move_to_end(signature)
        while len(self._layers) > MAX_LAYERS:
            self._layers.popitem(last=False)


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
