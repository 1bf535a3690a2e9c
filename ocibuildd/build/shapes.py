"""A build's images in the shapes that its outputs want: manifests, indexes, layers compressed anew."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..export.image import (
    DOCKER,
    EMPTY_GZIP,
    OCI,
    Composed,
    Entry,
    LayerBlob,
    MediaTypes,
    index_bytes,
    manifest_bytes,
    recompressed,
    types_for,
)
from ..export.options import Shape
from ..image.rootfs import recompress
from ..model.digest import Digest
from ..model.graph import Plan
from ..model.oci import Descriptor
from ..ports import Compression, Nsd
from ..store import Store
from ..store.leases import Lease
from .outcome import MadeImage

COMPRESSING = 2
"""Layers of a build that are compressed anew at once."""


@dataclass(frozen=True, slots=True)
class Ready:
    """One platform's image with its manifest."""

    plan: Plan
    final: MadeImage
    images: Sequence[MadeImage]
    manifest: bytes
    types: MediaTypes

    @property
    def digest(self) -> Digest:
        return Digest.of(self.manifest)


@dataclass(frozen=True, slots=True)
class Formed:
    """All platforms of a build in one shape.  index: None where there is one platform.

    annotations: of whatever descriptor points to it."""

    ready: tuple[Ready, ...]
    index: bytes | None = None
    index_type: str = OCI.index
    annotations: dict[str, str] = field(default_factory=dict)

    @property
    def descriptor(self) -> Descriptor:
        """Of the index, or of the one manifest."""
        data = self.index if self.index is not None else self.ready[0].manifest
        kind = self.index_type if self.index is not None else self.ready[0].types.manifest
        return Descriptor(kind, Digest.of(data), len(data), annotations=self.annotations)

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest


class Former:
    """Forms what one build made; what is formed once is kept.  The lease holds new blobs."""

    def __init__(
        self, store: Store, nsd: Nsd, lease: Lease,
        made: Sequence[tuple[Plan, MadeImage, Sequence[MadeImage]]],
    ):
        self._store = store
        self._nsd = nsd
        self._lease = lease
        self._made = tuple(made)
        self._formed: list[tuple[Shape, Formed]] = []
        self._layers: dict[tuple[Digest, Compression, int], LayerBlob] = {}

    async def form(self, shape: Shape) -> Formed:
        """Raises NotFound (a layer's blob is gone), NoSpace, Corrupt."""
        for known, formed in self._formed:
            if known == shape:
                return formed
        ready = [await self._ready(shape, *each) for each in self._made]
        formed = self._together(shape, ready)
        self._formed.append((shape, formed))
        return formed

    async def _ready(
        self, shape: Shape, plan: Plan, final: MadeImage, images: Sequence[MadeImage]
    ) -> Ready:
        if shape.compression is not None:
            composed = await self._compressed(final.composed, shape.compression, shape.level)
            final = replace(final, composed=composed)
        types = types_for([layer.compression for layer in final.composed.layers], oci=shape.oci)
        own = shape.annotations.at("manifest", str(plan.platform))
        return Ready(plan, final, images, manifest_bytes(final.composed, types, own), types)

    @staticmethod
    def _together(shape: Shape, ready: Sequence[Ready]) -> Formed:
        about = shape.annotations
        descriptors = [about.at("manifest-descriptor", str(each.plan.platform)) for each in ready]
        if len(ready) == 1:
            return Formed(tuple(ready), annotations=descriptors[0])
        types = OCI if any(each.types is OCI for each in ready) else DOCKER
        entries = [
            Entry(each.manifest, each.final.composed.platform, each.types.manifest, own)
            for each, own in zip(ready, descriptors, strict=True)
        ]
        index = index_bytes(entries, types, about.at("index"))
        return Formed(tuple(ready), index, types.index, about.at("index-descriptor"))

    # --- layers ---------------------------------------------------------------------------------

    async def _compressed(self, composed: Composed, kind: Compression, level: int) -> Composed:
        slots = asyncio.Semaphore(COMPRESSING)
        others = {layer.digest: layer for layer in composed.layers if layer.compression != kind}

        async def one(layer: LayerBlob) -> LayerBlob:
            async with slots:
                return await self._layer(layer, kind, level)

        made = await asyncio.gather(*(one(layer) for layer in others.values()))
        return recompressed(composed, dict(zip(others, made, strict=True)))

    async def _layer(self, layer: LayerBlob, kind: Compression, level: int) -> LayerBlob:
        key = (layer.digest, kind, level)
        if key not in self._layers:
            if layer.data is not None:
                self._lease.add(blobs=(self._store.blobs.put(EMPTY_GZIP),))
            fd = self._store.blobs.open(layer.digest)
            try:
                blob = await recompress(self._store, self._nsd, fd, layer.diff_id, kind, level)
            finally:
                os.close(fd)
            self._lease.add(blobs=(blob.digest,))
            self._layers[key] = blob
        return self._layers[key]
