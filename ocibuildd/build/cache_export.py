"""``--cache-to``: the records of a build and their layers, to a registry, a layout or into the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import InvalidArgument
from ..executor.unpack import Unpacker
from ..export.image import layer_blob
from ..export.layout import Packaged, oci_layout, write_directory
from ..export.push import Pusher
from ..model.graph import Vertex
from ..model.oci import MEDIA_MANIFEST, Descriptor, Manifest, encode
from ..model.reference import Reference
from ..model.request import CacheSpec
from ..ports import Emit, Record, Registry, Result
from ..runtime import in_thread
from ..solver import cache
from ..solver.job import Job
from ..store import Store
from ..store.leases import Lease
from .publish import PinnedBlobs
from .remote_cache import CONFIG_TYPE, CacheConfig, Imported, RemoteCaches, parse_ref, registry_of

ARTIFACT_TYPE = "application/vnd.ocibuildd.cache.v1"


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of the records that a build stood on or made: all of them, and those of the target's own chain."""

    all: tuple[str, ...]
    target: tuple[str, ...]


def keys_of(job: Job, results: Mapping[int, Result], target: int | None) -> Keys:
    """What is to be exported for a solved build."""
    wanted = _below(job.vertices, target)
    everything, own = [], []
    for index, trace in sorted(job.traces.items()):
        if trace.preimage is None:
            continue
        same = cache.identity_key(results[index].identity, job.variant)
        everything += [trace.key, same]
        own += [trace.key, same] if index in wanted else []
    others = sorted(job.used - set(everything))
    return Keys((*everything, *others), (*own, *others))


def _below(vertices: Sequence[Vertex], target: int | None) -> set[int]:
    """The target and what its root file system stands on."""
    found: set[int] = set()
    while target is not None and target not in found:
        found.add(target)
        inputs = vertices[target].inputs
        target = inputs[0] if inputs else None
    return found


@dataclass(slots=True)
class CacheExporter:
    """One build's. ``registry`` and ``auth``: for caches that are pushed."""

    store: Store
    registry: Registry
    unpacker: Unpacker
    auth: Mapping[str, Any]
    lease: Lease
    imported: Imported | None = None

    def listing(self, keys: Keys, mode: str) -> CacheConfig:
        """The cache's config.  mode: min | max.  Raises InvalidArgument."""
        return RemoteCaches(self.store, self.registry, self.auth, self.lease).listing(
            self._records(keys, mode)
        )[0]

    def _records(self, keys: Keys, mode: str) -> list[Record]:
        if mode not in ("min", "max"):
            raise InvalidArgument(f"cache-to: mode {mode!r}: min or max is wanted")
        found = []
        for key in keys.all if mode == "max" else keys.target:
            record = self.store.records.get(key)
            if record is None and self.imported is not None:
                record = self.imported.used.get(key)
            if record is not None:
                found.append(record)
        return found

    async def export(self, spec: CacheSpec, keys: Keys, emit: Emit) -> None:
        """Write or push one cache.  Raises InvalidArgument and what registries and disks raise."""
        caches = RemoteCaches(self.store, self.registry, self.auth, self.lease)
        listed, chain = caches.listing(self._records(keys, spec.attrs.get("mode", "min")))
        rows = self.store.layers.chain(chain)
        self.lease.add(layers=chain)
        for row in rows:
            await self.unpacker.obtain(row)
        layers = [layer_blob(row) for row in rows]
        data = msgspec.json.encode(listed)
        config = Descriptor(CONFIG_TYPE, _digest(self.store, data, self.lease), len(data))
        descriptors = tuple(
            Descriptor(row.media_type, layer.digest, layer.size)
            for row, layer in zip(rows, layers, strict=True)
        )
        manifest = encode(Manifest(
            schema_version=2, media_type=MEDIA_MANIFEST, artifact_type=ARTIFACT_TYPE, config=config,
            layers=descriptors,
        ))
        if spec.type == "registry":
            client = registry_of(spec, self.registry)
            pusher = Pusher(self.store.blobs, client, parse_ref(spec), auth=self.auth, emit=emit)
            try:
                await pusher.image(manifest, MEDIA_MANIFEST, config=config, layers=descriptors)
            finally:
                await pusher.close()
            return
        path = spec.attrs.get("dest", "")
        if not path.startswith("/"):
            raise InvalidArgument(f"cache-to {path!r}: dest is to be an absolute path")
        name = Reference("layout.invalid", "cache", spec.attrs.get("tag", "latest"))
        packaged = Packaged(manifest, MEDIA_MANIFEST, data, tuple(layers), (name,))
        members = oci_layout([packaged])
        with PinnedBlobs(self.store.blobs, {layer.digest for layer in layers}) as blobs:
            await in_thread(write_directory, members, blobs, Path(path))


def _digest(store: Store, data: bytes, lease: Lease) -> Any:
    digest = store.blobs.put(data)
    lease.add(blobs=(digest,))
    return digest
