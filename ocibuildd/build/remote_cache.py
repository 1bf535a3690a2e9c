"""The cache elsewhere: records and layers of a build in a registry, an OCI layout or the image itself.

A cache is an OCI manifest: its config lists records (what a key's work gave) and layers, its layers are
the blobs.  Importing reads manifest and config, nothing more; a layer is fetched when something runs on
it, reads from it or ships it.  ``inline`` puts the same list into the image's own config.

Trust: what a cache says is believed as the registry's images are.  Keys can't be checked; every byte of a
layer is, by its digest and diff id.
"""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from ..errors import BuildError, Corrupt, InvalidArgument
from ..executor.image import name_of
from ..executor.unpack import Unpacker
from ..export.options import flag
from ..model.digest import Digest
from ..model.oci import MANIFEST_TYPES, Descriptor, Index
from ..model.reference import Reference
from ..model.request import CacheSpec
from ..ports import LayerId, Record, Registry
from ..registry.layout import Layout
from ..registry.protocol import parse_document
from ..runtime import in_thread
from ..store import Store
from ..store.leases import Lease

CONFIG_TYPE = "application/vnd.ocibuildd.cache.config.v1+json"
INLINE_FIELD = "ocibuildd.cache.v1"
MAX_CONFIG = 64 << 20
BUILDKIT = "application/vnd.buildkit."
FOREIGN = "what docker or another builder built is a cache for that builder only: write one of ours with --cache-to"
MAX_RECORDS = 100_000
MAX_PREIMAGES = 16 << 20
"""Bytes of preimages that are exported; beyond, records go without (they can't be explained then)."""


class CachedLayer(msgspec.Struct, frozen=True):
    """A layer as a cache lists it."""

    diff_id: str
    digest: str
    size: int
    media_type: str
    tar_size: int = 0
    content: str = ""


class CachedRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A record.  ``chain``: indexes into the cache's layers, lowest first."""

    key: str
    chain: tuple[int, ...]
    identity: str = ""
    value: str = ""
    op: str = ""
    selector: str = ""
    kind: str = "regular"
    description: str = ""
    cost: float = 0.0
    created: float = 0.0
    preimage: str = ""


class CacheConfig(msgspec.Struct, frozen=True):
    """The config of a cache."""

    v: int
    layers: tuple[CachedLayer, ...]
    records: tuple[CachedRecord, ...]


Fetch = Callable[[Digest, int], Awaitable[None]]


class Imported:
    """Records of remote caches, for one build.  Nothing of them is kept but what was used."""

    def __init__(self, store: Store, unpacker: Unpacker):
        self._store = store
        self._unpacker = unpacker
        self._records: dict[str, tuple[CacheConfig, CachedRecord]] = {}
        self._ops: set[str] = set()
        self._provided: dict[Digest, Callable[[], Awaitable[None]]] = {}
        self.used: dict[str, Record] = {}

    def add(self, config: CacheConfig, fetch: Fetch) -> None:
        """Records that are there now.  Raises Corrupt for a list that doesn't fit itself."""
        if config.v != 1 or len(config.records) > MAX_RECORDS:
            raise Corrupt(f"cache: version {config.v} with {len(config.records):,} records")
        for record in config.records:
            if any(not 0 <= index < len(config.layers) for index in record.chain):
                raise Corrupt("cache: a record names a layer that isn't listed")
            self._records.setdefault(record.key, (config, record))
            if record.op:
                self._ops.add(record.op)
        for layer in config.layers:
            digest, size = Digest(layer.digest), layer.size

            def provide(digest: Digest = digest, size: int = size) -> Awaitable[None]:
                return fetch(digest, size)

            self._provided[digest] = provide
            self._unpacker.providers[digest] = provide

    def get(self, key: str) -> Record | None:
        """As a record of ours: its layers get rows, their bytes stay where they are."""
        found = self._records.get(key)
        if found is None:
            return None
        config, record = found
        parent: LayerId = 0
        chain: list[LayerId] = []
        try:
            for index in record.chain:
                layer = config.layers[index]
                row = self._store.layers.ensure(
                    parent, diff_id=Digest(layer.diff_id), digest=Digest(layer.digest),
                    size=layer.size, media_type=layer.media_type,
                )
                parent = row.id
                chain.append(parent)
        except ValueError:
            return None
        made = Record(
            record.key, tuple(chain), record.value, record.preimage, record.cost, record.created,
            "remote cache", record.identity, record.selector, record.op, record.kind, record.description,
        )
        self.used[key] = made
        return made

    def seen(self, op: str) -> bool:
        """``ports.CacheIndex.seen``."""
        return op in self._ops

    def keep(self) -> None:
        """What was used and is here now becomes ours: the next build needs no remote cache."""
        whole = [record for record in self.used.values() if all(map(self._here, record.chain))]
        if whole:
            with self._store.transaction():
                for record in whole:
                    self._store.records.put(record)

    def _here(self, layer: LayerId) -> bool:
        digest = self._store.layers.get(layer).digest
        return digest is not None and self._store.blobs.has(digest)

    def close(self) -> None:
        for digest, provide in self._provided.items():
            if self._unpacker.providers.get(digest) is provide:
                del self._unpacker.providers[digest]


@dataclass(slots=True)
class RemoteCaches:
    """Reads and lists caches for one build."""

    store: Store
    registry: Registry
    auth: Mapping[str, Any]
    lease: Lease

    async def load(self, specs: Sequence[CacheSpec], imported: Imported) -> list[str]:
        """Import all that can be; gives a warning for each that can't (a build goes on without)."""
        outcomes = await asyncio.gather(
            *(self._load(spec, imported) for spec in specs), return_exceptions=True
        )
        warnings = []
        for spec, outcome in zip(specs, outcomes, strict=True):
            if isinstance(outcome, BuildError | msgspec.MsgspecError | ValueError | OSError):
                name = spec.attrs.get("ref") or spec.attrs.get("src") or spec.type
                hint = outcome.hint if isinstance(outcome, BuildError) else ""
                told = outcome.message if isinstance(outcome, BuildError) else outcome
                warnings.append(f"cache {name}: {told}: not imported" + (f" ({hint})" if hint else ""))
            elif isinstance(outcome, BaseException):
                raise outcome
        return warnings

    async def _load(self, spec: CacheSpec, imported: Imported) -> None:
        source, reference = self._source(spec)

        async def fetch(digest: Digest, size: int) -> None:
            descriptor = Descriptor("application/octet-stream", digest, size)
            room = await self.store.admit(size, lease=self.lease)
            with room, self.store.blobs.writer() as writer:
                async for part in source.blob(reference, descriptor, auth=self.auth):
                    writer.write(part)
                await in_thread(writer.seal, digest, size)
                writer.commit(digest, size)
            self.lease.add(blobs=(digest,))

        # As dockerd does: an image that is here needn't be asked for, if there is a cache in it.
        here = None if spec.type == "local" else self._image_here(reference)
        for data in [here] if here else await self._listings(source, reference):
            imported.add(msgspec.json.decode(data, type=CacheConfig), fetch)

    def _image_here(self, reference: Reference) -> bytes | None:
        """The cache in the local image of that name."""
        name = self.store.images.resolve(name_of(reference))
        try:
            return extract(self.store.blobs.read(name.image, MAX_CONFIG)) if name else None
        except BuildError:
            return None

    async def _listings(self, source: Registry, reference: Reference) -> list[bytes]:
        """The configs of a cache, or of the caches in an image; of all platforms, where it is an index.
        Raises Corrupt where there is none."""
        what = f"cache {reference.familiar}"
        fetched = await source.resolve(reference, auth=self.auth)
        document = parse_document(fetched.data, fetched.media_type, what)
        manifests = [document]
        if isinstance(document, Index):
            entries = [entry for entry in document.manifests if entry.media_type in MANIFEST_TYPES]
            if len(entries) < len(document.manifests):
                raise Corrupt("it is a cache of another builder, or no image", hint=FOREIGN)
            named = [replace(reference, tag=None, digest=entry.digest) for entry in entries]
            answers = [await source.resolve(one, auth=self.auth) for one in named]
            manifests = [parse_document(one.data, one.media_type, what) for one in answers]
        found = []
        for manifest in manifests:
            if isinstance(manifest, Index) or manifest.config is None:
                continue
            if manifest.config.size > MAX_CONFIG:
                raise Corrupt(f"its config has {manifest.config.size:,} bytes, at most {MAX_CONFIG:,} are read")
            parts = source.blob(reference, manifest.config, auth=self.auth)
            data = b"".join([part async for part in parts])
            if manifest.config.media_type == CONFIG_TYPE:
                found.append(data)
            elif manifest.config.media_type.startswith(BUILDKIT):
                raise Corrupt("it is a cache of BuildKit", hint=FOREIGN)
            elif INLINE_FIELD.encode() in data:
                found.append(extract(data))
        if not found:
            raise Corrupt("the image has no cache in it", hint=FOREIGN)
        return found

    def _source(self, spec: CacheSpec) -> tuple[Registry, Reference]:
        if spec.type == "local":
            path = spec.attrs.get("src", "")
            if not path.startswith("/"):
                raise InvalidArgument(f"cache {path!r}: src is to be an absolute path")
            digest = spec.attrs.get("digest")
            reference = Reference(
                "layout.invalid", "cache", spec.attrs.get("tag") or (None if digest else "latest"),
                Digest(digest) if digest else None,
            )
            return Layout.at(Path(path)), reference
        return registry_of(spec, self.registry), parse_ref(spec)

    def listing(self, records: Sequence[Record]) -> tuple[CacheConfig, list[LayerId]]:
        """Records and their layers as a cache's config, and which layers these are, in its order."""
        numbers: dict[LayerId, int] = {}
        listed: list[CachedRecord] = []
        preimages = 0
        for record in records:
            chain = tuple(numbers.setdefault(layer, len(numbers)) for layer in record.chain)
            preimage = record.preimage or self.store.records.preimage(record.key)
            preimages += len(preimage)
            listed.append(CachedRecord(
                record.key, chain, record.identity, record.value, record.op, record.selector,
                record.kind, record.description, record.cost, record.created,
                preimage if preimages < MAX_PREIMAGES else "",
            ))
        rows = self.store.layers.chain(list(numbers)) if numbers else []
        layers = tuple(
            CachedLayer(str(row.diff_id), str(row.digest), row.size, row.media_type, row.tar_size,
                        row.content)
            for row in rows
        )
        return CacheConfig(1, layers, tuple(listed)), list(numbers)


def registry_of(spec: CacheSpec, registry: Registry) -> Registry:
    """The client for a registry cache: one that may be insecure, where the cache says so."""
    lax = flag(spec.attrs, "registry.insecure")
    return registry.lenient(parse_ref(spec).domain) if lax else registry


def parse_ref(spec: CacheSpec) -> Reference:
    """The reference of a registry cache.  Raises InvalidArgument."""
    try:
        return Reference.parse(spec.attrs.get("ref", "")).with_default_tag()
    except ValueError as error:
        raise InvalidArgument(f"cache: ref {spec.attrs.get('ref', '')!r}: {error}") from None


def inject(config: bytes, cache: CacheConfig) -> bytes:
    """An image config with a cache in it (``inline``): without preimages, deflated."""
    bare = msgspec.structs.replace(cache, records=tuple(
        msgspec.structs.replace(record, preimage="") for record in cache.records
    ))
    packed = base64.b64encode(zlib.compress(msgspec.json.encode(bare), 6)).decode()
    body: dict[str, Any] = msgspec.json.decode(config)
    return msgspec.json.encode({**body, INLINE_FIELD: packed})


def extract(config: bytes) -> bytes:
    """The cache in an image config.  Raises Corrupt where there is none, or a bomb."""
    body: dict[str, Any] = msgspec.json.decode(config)
    packed = body.get(INLINE_FIELD)
    if not isinstance(packed, str):
        raise Corrupt("the image has no cache in it")
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(base64.b64decode(packed, validate=True), MAX_CONFIG)
    except (ValueError, zlib.error) as error:
        raise Corrupt(f"the image's cache can't be read: {error}") from None
    if inflater.unconsumed_tail:
        raise Corrupt(f"the image's cache: more than {MAX_CONFIG:,} bytes")
    if not inflater.eof:
        raise Corrupt("the image's cache is cut off")
    return data


__all__ = ["Imported", "RemoteCaches", "extract", "inject", "parse_ref"]
