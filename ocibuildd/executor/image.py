"""Images into the store: resolve a reference for a platform, download its layers and unpack them meanwhile.

    puller = ImagePuller(store, nsd, registry)
    image = await puller.resolve("debian:12", platform)     → ResolvedImage (manifest and config only)
    chain = await puller.fetch(image, lease=lease, emit=emit)    → layer ids, lowest first: leased, unpacked
    lowers = await puller.unpacker.ensure_trees(chain)           → tree ids (for chains from anywhere)

A layer goes from the connection to the ingest file, and from that file's page cache (splice) into an ``apply`` job.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from ..errors import BuildError, Corrupt, InvalidArgument, NoSpace, NotFound, RegistryError
from ..model.digest import Digest
from ..model.oci import (
    MEDIA_INDEX,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    decode_config,
)
from ..model.reference import Reference
from ..model.request import RegistryAuth
from ..ports import Emit, Fetched, Layer, LayerId, Lease, Nsd, Registry
from ..registry.layout import OCI_LAYOUT, parse_layout
from ..registry.protocol import MAX_CONFIG, check_json, parse_document
from ..runtime import in_thread
from ..store import Store
from ..store.blobs import disk_error, hash_file
from ..store.failpoints import hit
from ..store.images import Image, StoredIndex
from .feed import Feed
from .heal import made_whole
from .platforms import choose, matches, platform_of
from .unpack import Unpacked, Unpacker, first_cause

Auths = Mapping[str, RegistryAuth]
STATUS_EVERY = 0.1
"""Seconds between two status events of one layer."""
HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What a reference means for a platform.

    reference: as asked for, normalised; None for an image named by its id.  digest: of the platform's manifest (of
    the config, if there is none).  id: config digest.  target: what the tag leads to, the index where there is
    one.  local: it is in the store, with ``chain``.  blobs: manifest, config and index as received.
    warnings: for the person who asked.
    """

    reference: Reference | None
    digest: Digest
    id: Digest
    platform: Platform
    config: ImageConfig
    manifest: Manifest | None = None
    media_type: str = ""
    target: Digest | None = None
    index: Index | None = None
    local: bool = False
    chain: tuple[LayerId, ...] = ()
    blobs: tuple[bytes, ...] = ()
    warnings: tuple[str, ...] = ()
    source: ImagePuller | None = None
    """Who fetches it, where that isn't the puller that was asked (OCI layouts)."""


class ImagePuller:
    """Pulls images.  One for the daemon."""

    def __init__(
        self, store: Store, nsd: Nsd, registry: Registry, unpacker: Unpacker | None = None
    ) -> None:
        self.store = store
        self.registry = registry
        self._nsd = nsd
        self.unpacker = unpacker or Unpacker(store, nsd)

    # --- resolve ------------------------------------------------------------------------------

    async def resolve(
        self,
        name: str | Reference,
        platform: Platform,
        *,
        pull: bool | str = False,
        auth: Auths | None = None,
    ) -> ResolvedImage:
        """What ``name`` (a reference, ``oci-layout://DIRECTORY[:tag][@digest]``, or the id of a local image or
        a prefix of one) means now.

        pull: False or "missing" = a local image of that name and platform is used as it is; "newer" = the
        registry is asked, and when it is down or limits requests the local image is used with a
        warning; True or "always" = the registry is asked and its failure is an error.
        Raises InvalidArgument, NotFound, RegistryError, Unauthorized, Denied, Corrupt, TooLarge, Unsupported.
        """
        if isinstance(name, str) and name.startswith(OCI_LAYOUT):
            layout, handle = parse_layout(name)
            source = ImagePuller(self.store, self._nsd, layout, self.unpacker)
            image = await source._remote(handle, platform, None, None)
            return replace(image, reference=None, source=source)
        reference, local = self._local(name, platform)
        if local is not None and (pull in (False, "missing") or reference is None):
            return await made_whole(self, local, platform, auth)
        assert reference is not None
        try:
            return await self._remote(reference, platform, auth, local)
        except RegistryError as error:
            if local is None or pull in (True, "always"):
                raise
            return replace(local, warnings=(f"{error.message}: the local image {reference.familiar} is used",))

    def _local(
        self, name: str | Reference, platform: Platform
    ) -> tuple[Reference | None, ResolvedImage | None]:
        text = name if isinstance(name, str) else ""
        reference: Reference | None = None
        try:
            reference = Reference.parse(text) if isinstance(name, str) else name
            reference = reference.with_default_tag()
        except ValueError as error:
            if not is_id(text):
                raise InvalidArgument(str(error)) from None
        if reference is not None and (found := self.local(reference, platform)):
            return reference, found
        if is_id(text):
            images = self.store.images.find(text.removeprefix("sha256:"))
            if len(images) > 1:
                raise InvalidArgument(f"image id {text}: more than one image begins with it")
            if images and (found := self._of_store(None, images[0], None)):
                return None, found
        if reference is None:
            raise NotFound(f"no such image: {text}")
        return reference, None

    def local(self, reference: Reference, platform: Platform) -> ResolvedImage | None:
        """The local image of that name for that platform, if it is whole."""
        name = self.store.images.resolve(name_of(reference))
        if name is None:
            return None
        candidates = [name.image]
        if name.target is not None and (index := self.store.images.get_index(name.target)):
            candidates += [image for _, _, image in index.manifests if image is not None]
        for candidate in candidates:
            image = self.store.images.get(candidate)
            found = self._of_store(reference, image, name.target) if image else None
            if found is not None and matches(platform, found.platform):
                return found
        return None

    def _of_store(
        self, reference: Reference | None, image: Image, target: Digest | None
    ) -> ResolvedImage | None:
        """A stored image as resolved; None where something of it is gone."""
        try:
            config = decode_config(self.store.blobs.read(image.id, MAX_CONFIG))
            layers = self.store.layers.chain(image.chain)
        except (NotFound, Corrupt, ValueError):
            return None
        if not all(self._is_here(layer) for layer in layers):
            return None
        return ResolvedImage(
            reference, image.manifest or image.id, image.id, config.platform, config,
            media_type=image.media_type, target=target or image.manifest, local=True,
            chain=image.chain,
        )  # fmt: skip

    def _is_here(self, layer: Layer) -> bool:
        """Is there a tree, or a blob to make one from?"""
        if layer.tree or self.store.layers.pending(layer.id):
            return True
        if layer.digest is not None and self.store.blobs.has(layer.digest):
            return True
        return layer.diff_id is not None and self.store.layers.with_blob(layer.diff_id) is not None

    async def _remote(
        self,
        reference: Reference,
        platform: Platform,
        auth: Auths | None,
        local: ResolvedImage | None,
    ) -> ResolvedImage:
        if local is not None and local.target is not None:
            head = await self.registry.head(reference, auth=auth)
            if head is not None and head.digest == local.target:
                return local
        fetched = await self.registry.resolve(reference, auth=auth)
        what = f"image {reference.familiar}"
        document = parse_document(fetched.data, fetched.media_type, what)
        blobs = [fetched.data]
        index, manifest_of = None, fetched
        if isinstance(document, Index):
            index = document
            manifest_of = await self._entry(reference, choose(index, platform, what), auth)
            blobs.append(manifest_of.data)
            document = parse_document(manifest_of.data, manifest_of.media_type, what)
        if isinstance(document, Index) or document.config is None:
            raise RegistryError(f"{what}: an index inside an index is not supported")
        data = await self._small(reference, document.config, auth)
        config = read_config(data, document, what)
        blobs.append(data)
        if index is None and not matches(platform, config.platform):
            raise NotFound(f"{what}: is for {config.platform}, expected {platform}")
        return ResolvedImage(
            reference, manifest_of.digest, document.config.digest, platform_of(config), config, document,
            manifest_of.media_type, fetched.digest, index, blobs=tuple(blobs),
        )  # fmt: skip

    async def _entry(self, reference: Reference, entry: Descriptor, auth: Auths | None) -> Fetched:
        """A manifest that an index names: from the store, or from the registry by digest."""
        if self.store.blobs.has(entry.digest):
            with contextlib.suppress(BuildError):
                return Fetched(entry.digest, entry.media_type, self.store.blobs.read(entry.digest))
        fetched = await self.registry.resolve(replace(reference, digest=entry.digest), auth=auth)
        if len(fetched.data) != entry.size:
            raise Corrupt(
                f"manifest {entry.digest}: {len(fetched.data):,} bytes, expected {entry.size:,}"
            )
        return fetched

    async def _small(
        self, reference: Reference, descriptor: Descriptor, auth: Auths | None
    ) -> bytes:
        """A config's bytes."""
        if descriptor.size > MAX_CONFIG:
            raise InvalidArgument(
                f"config {descriptor.digest}: {descriptor.size:,} bytes, the limit is {MAX_CONFIG:,}"
            )
        if self.store.blobs.has(descriptor.digest):
            with contextlib.suppress(BuildError):
                return self.store.blobs.read(descriptor.digest, MAX_CONFIG)
        parts = self.registry.blob(reference, descriptor, auth=auth)
        return b"".join([data async for data in parts])

    # --- fetch --------------------------------------------------------------------------------

    async def fetch(
        self,
        image: ResolvedImage,
        *,
        lease: Lease,
        auth: Auths | None = None,
        emit: Emit | None = None,
        tag: bool = True,
    ) -> tuple[LayerId, ...]:
        """Bring an image into the store, its layers unpacked, and let ``lease`` hold it.

        tag: let its reference name it here, as ``docker pull`` does.  What is here already is not asked for
        again.  Raises as ``resolve`` and ``Unpacker.apply``.
        """
        if image.source is not None:
            own = replace(image, source=None)
            return await image.source.fetch(own, lease=lease, auth=auth, emit=emit, tag=tag)
        lease.add(layers=image.chain, blobs=(image.id,))
        if image.local:
            return image.chain
        async with self.unpacker.lock(("image", image.digest)):
            chain = await self.layers(image, lease, auth, emit)
            self._record(image, chain, lease, tag=tag)
        return chain

    async def layers(
        self, image: ResolvedImage, lease: Lease, auth: Auths | None, emit: Emit | None
    ) -> tuple[LayerId, ...]:
        assert image.manifest is not None
        lease.add(blobs=[descriptor.digest for descriptor in image.manifest.layers])
        return await _Pull(self, image, lease, auth, emit).run()

    def _record(
        self, image: ResolvedImage, chain: tuple[LayerId, ...], lease: Lease, *, tag: bool
    ) -> None:
        """The rows: image, index and name, in one commit."""
        store = self.store
        hit("pull.before-rows")
        lease.add(blobs=store.blobs.put_many(list(image.blobs)))
        layers = store.layers.chain(chain)
        with store.transaction():
            store.images.put(
                Image(
                    id=image.id, manifest=image.digest, media_type=image.media_type, chain=chain,
                    created=seconds(image.config.created),
                    size=sum(layer.tar_size or layer.size for layer in layers),
                    platform=str(image.platform), labels=image.config.config.labels or {},
                )
            )  # fmt: skip
            if image.index is not None and image.target is not None:
                store.images.put_index(stored_index(store, image.target, image.index))
            if tag and image.reference is not None:
                store.images.tag(name_of(image.reference), image.id, image.target)
                store.uploads.saw(image.reference.domain, image.reference.path, [image.target or image.digest])


class _Pull:
    """The layers of one image on their way."""

    def __init__(
        self, puller: ImagePuller, image: ResolvedImage, lease: Lease, auth: Auths | None,
        emit: Emit | None,
    ) -> None:  # fmt: skip
        assert image.manifest is not None
        self.puller, self.store, self.image = puller, puller.store, image
        self.lease, self.auth, self.emit = lease, auth, emit
        self.descriptors = image.manifest.layers
        self.diff_ids = image.config.rootfs.diff_ids
        self.made: dict[int, Unpacked] = {}
        self.half: dict[LayerId, Unpacked] = {}

    async def run(self) -> tuple[LayerId, ...]:
        done: list[LayerId] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._layer(i)) for i in range(len(self.descriptors))]
                for position, task in enumerate(tasks):
                    await task
                    done.append(self._row(position, done[-1] if done else 0))
            await self.puller.unpacker.ensure_trees(done, self.emit, self.half)
        except BaseExceptionGroup as group_error:
            raise first_cause(group_error) from None
        finally:
            for made in (*self.made.values(), *self.half.values()):
                self.puller.unpacker.discard(made.tree)
        return tuple(done)

    def _row(self, position: int, parent: LayerId) -> LayerId:
        """The layer's row, once all below it have theirs."""
        descriptor, diff_id = self.descriptors[position], self.diff_ids[position]
        layer = self.store.layers.ensure(
            parent, diff_id=diff_id, digest=descriptor.digest, size=descriptor.size,
            media_type=descriptor.media_type,
        )  # fmt: skip
        hit("pull.after-layer")
        self.lease.add(layers=(layer.id,))
        made = self.made.pop(position, None)
        if made is not None and not layer.tree and (made.standalone or position == 0):
            self.puller.unpacker.name(layer, made)
        elif made is not None and not layer.tree:
            self.half[layer.id] = made
        elif made is not None:
            self.puller.unpacker.discard(made.tree)
        return layer.id

    async def _layer(self, position: int) -> None:
        descriptor, diff_id = self.descriptors[position], self.diff_ids[position]
        async with self.puller.unpacker.lock(descriptor.digest):
            if self.store.blobs.has(descriptor.digest):
                self._status(descriptor, descriptor.size, "exists")
                return
            unpacked = any(layer.tree for layer in self.store.layers.by_diff_id(diff_id))
            wanted = None if unpacked else diff_id
            try:
                made = await self._stream(descriptor, wanted, mirrors=True)
            except Corrupt:
                # Bytes spoilt on the way, or by a mirror: once more, from the registry itself.
                made = await self._stream(descriptor, wanted, mirrors=False)
            if made is not None:
                self.made[position] = made
            self._status(descriptor, descriptor.size, "done")

    async def _stream(
        self, descriptor: Descriptor, diff_id: Digest | None, *, mirrors: bool
    ) -> Unpacked | None:
        """Download one layer; with ``diff_id``, unpack it meanwhile."""
        room = await self.store.admit(
            descriptor.size, lease=self.lease, told=lambda text: self._status(descriptor, 0, text)
        )
        with room, self.store.blobs.writer(trusted=True) as writer:
            feed: Feed[Unpacked] | None = None
            made: Unpacked | None = None
            try:
                if diff_id is not None:
                    feed = Feed(writer.fd)
                    feed.start(lambda f: self.puller.unpacker.apply(f, diff_id, over=descriptor != self.descriptors[0]))
                await self._download(descriptor, writer.fd, feed, mirrors=mirrors)
                if feed is not None:
                    made = await self._finish(feed, descriptor, writer.fd)
                if made is None or descriptor.digest.algorithm != "sha256":
                    await in_thread(check_file, writer.fd, descriptor)
                await in_thread(writer.seal, descriptor.digest, descriptor.size)
                writer.commit(descriptor.digest, descriptor.size)
            except BaseException:
                if made is not None:
                    self.puller.unpacker.discard(made.tree)
                raise
            finally:
                if feed is not None:
                    await feed.abort()
        return made

    async def _download(
        self, descriptor: Descriptor, fd: int, feed: Feed[Unpacked] | None, *, mirrors: bool
    ) -> None:
        got, last = 0, 0.0
        stream = self.puller.registry.blob(
            self.image.reference, descriptor, auth=self.auth, verify=False, mirrors=mirrors
        )
        async with contextlib.aclosing(stream):
            async for data in stream:
                write_all(fd, data, descriptor)
                got += len(data)
                if feed is not None:
                    feed.available(got)
                if (now := time.monotonic()) - last > STATUS_EVERY:
                    last = now
                    self._status(descriptor, got, "downloading")

    async def _finish(self, feed: Feed[Unpacked], descriptor: Descriptor, fd: int) -> Unpacked:
        """The job's answer.  A job that failed on bytes that aren't the blob's is the bytes' fault."""
        try:
            made = await feed.finish()
        except NoSpace:
            raise
        except BuildError:
            await in_thread(check_file, fd, descriptor)
            raise
        found = made.applied["digest"]
        if descriptor.digest.algorithm == "sha256" and found != descriptor.digest:
            self.puller.unpacker.discard(made.tree)
            raise Corrupt(f"blob {descriptor.digest}: its content has digest {found}")
        return made

    def _status(self, descriptor: Descriptor, current: int, text: str) -> None:
        if self.emit is not None:
            size, name = descriptor.size, descriptor.digest.short
            self.emit("status", id=name, current=current, total=size, unit="bytes", text=text)


def write_all(fd: int, data: bytes, descriptor: Descriptor) -> None:
    """Append to an ingest file.  Raises NoSpace."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError as error:
        raise disk_error(error, f"download of {descriptor.digest}") from error


def check_file(fd: int, descriptor: Descriptor) -> None:
    """Hash what a file holds.  For ``in_thread``.  Raises Corrupt."""
    found, size = hash_file(fd, descriptor.digest.algorithm)
    if found != descriptor.digest.hex:
        raise Corrupt(
            f"blob {descriptor.digest}: {size:,} bytes with digest {descriptor.digest.algorithm}:{found}"
        )


def read_config(data: bytes, manifest: Manifest, what: str) -> ImageConfig:
    """An image config that fits its manifest.  Raises RegistryError, TooLarge."""
    check_json(data, f"config of {what}", MAX_CONFIG)
    try:
        config = decode_config(data)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"config of {what}: {str(error)[:300]}") from None
    if len(config.rootfs.diff_ids) != len(manifest.layers):
        raise RegistryError(
            f"config of {what}: {len(config.rootfs.diff_ids)} diff ids for {len(manifest.layers)} layers; "
            f"it is {manifest.config.media_type if manifest.config else 'nothing'}"
        )
    return config


def stored_index(store: Store, digest: Digest, index: Index) -> StoredIndex:
    """An index as the store keeps it: with the images of it that are here."""
    entries = []
    for entry in index.manifests:
        image = store.images.by_manifest(entry.digest)
        entries.append((entry.digest, str(entry.platform or ""), image.id if image else None))
    return StoredIndex(digest, index.media_type or MEDIA_INDEX, tuple(entries))


def name_of(reference: Reference) -> str:
    """The name under which the store keeps a reference: a digest in it wins over its tag."""
    if reference.digest is not None:
        return str(replace(reference, tag=None))
    return str(reference.with_default_tag())


def seconds(created: str | None) -> float:
    """RFC 3339 to seconds since the epoch; 0 for none or nonsense."""
    try:
        return datetime.fromisoformat(created).timestamp() if created else 0.0
    except (ValueError, OverflowError):
        return 0.0


def is_id(text: str) -> bool:
    """Could it be an image id, or a prefix of one?"""
    return 4 <= len(digits := text.removeprefix("sha256:")) <= 64 and HEX.issuperset(digits)
