"""``save`` and ``load``: images in one tar, as docker archives and OCI layouts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import InvalidArgument, NotFound, RegistryError
from ..executor.image import ImagePuller, ResolvedImage, name_of, seconds
from ..executor.unpack import first_cause
from ..export.image import OCI, LayerBlob, compression_of, from_config, manifest_bytes
from ..export.layout import (
    Packaged,
    damaged,
    docker_archive,
    oci_layout,
    tar_chunks,
)
from ..layer import compress
from ..model.digest import Digest
from ..model.oci import MEDIA_LAYER, Descriptor, ImageConfig, Manifest, Platform, decode_config
from ..model.reference import Reference
from ..ports import Emit, LayerId, Nsd
from ..registry.layout import Layout, Stretch, read_small
from ..registry.protocol import MAX_CONFIG, check_json
from ..runtime import in_thread
from ..store import Store
from ..store.images import Image
from .archive import Archive
from .lookup import find_named
from .rootfs import recompress
from .spool import Source, plain, spooled
from .transfer import Sender
from .values import Loaded

Form = Literal["docker", "oci"]
MAX_IMAGES = 1_000
COMPRESSING = 3
"""Layers of one archive that are compressed at once."""


class Saver:
    """Packs images."""

    def __init__(self, store: Store, sender: Sender) -> None:
        self._store = store
        self._sender = sender

    async def save(
        self, names: Sequence[str], form: Form, platform: Platform | None = None
    ) -> AsyncIterator[bytes]:
        """The tar.  A name packs its image under that name, a repository without tag all its tags, an id
        its image without a name.  Raises NotFound before the first byte."""
        with self._store.leases.new("save") as lease:
            packaged = self._collect(names, platform)
            for image, _ in packaged.values():
                lease.add(layers=image.chain, blobs=(image.id,))
            images = [self._package(image, refs) for image, refs in packaged.values()]
            members = docker_archive(images) if form == "docker" else oci_layout(images)
            blobs = self._store.blobs
            for digest in dict.fromkeys(member.digest for member in members if member.digest is not None):
                # Before the first byte: an answer that has begun can't become an error.
                if problem := await in_thread(blobs.verify, digest):
                    blobs.quarantine(digest, problem)
                    raise damaged(digest)
            for chunk in tar_chunks(members, blobs, verified=True):
                yield chunk
                await asyncio.sleep(0)

    def _collect(
        self, names: Sequence[str], platform: Platform | None
    ) -> dict[Digest, tuple[Image, list[Reference]]]:
        found: dict[Digest, tuple[Image, list[Reference]]] = {}
        for text in names:
            for image, reference in self._named(text, platform):
                refs = found.setdefault(image.id, (image, []))[1]
                if reference is not None and reference not in refs:
                    refs.append(reference)
        return found

    def _named(self, text: str, platform: Platform | None) -> list[tuple[Image, Reference | None]]:
        try:
            bare = Reference.parse(text)
        except ValueError:
            bare = None
        if bare is not None and not bare.tag and not bare.digest:
            tags = self._store.images.names(f"{bare.repository}:")
            pairs = [(self._store.images.get(n.image), Reference.parse(n.name)) for n in tags]
            if pairs:
                return [(image, reference) for image, reference in pairs if image is not None]
        image, name = find_named(self._store, text)
        image = self._sender.for_platform(image, name, platform)
        tagged = name is not None and "@" not in name.name
        return [(image, Reference.parse(name.name) if tagged and name else None)]

    def _package(self, image: Image, names: Sequence[Reference]) -> Packaged:
        ready = self._sender.ready(image)
        composed = self._sender.compose(image)
        layers = [
            LayerBlob(
                diff_id=layer.diff_id, digest=descriptor.digest, size=descriptor.size,
                compression=compression_of(descriptor.media_type), data=layer.data
                if layer.digest == descriptor.digest else None,
            )
            for layer, descriptor in zip(composed.layers, ready.layers, strict=True)
        ]  # fmt: skip
        return Packaged(
            ready.data, ready.media_type, composed.config, tuple(layers), tuple(names),
            composed.platform,
        )  # fmt: skip


# --- load ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """One image of a docker archive's manifest.json."""

    config: str
    tags: tuple[str, ...]
    layers: tuple[str, ...]


class _ArchiveLayers:
    """The half of a registry that a pull of a docker archive's layers needs: blobs by digest."""

    def __init__(self, archive: Archive, places: dict[Digest, str]) -> None:
        self._archive = archive
        self._places = places
        self._layout = Layout(self, "archive")
        self.blob = self._layout.blob

    def open(self, name: str) -> Stretch:
        """``registry.layout.Files``."""
        _, algorithm, digits = name.split("/")
        return self._archive.open(self._places[Digest(f"{algorithm}:{digits}")])


class Loader:
    """Unpacks images."""

    def __init__(self, store: Store, nsd: Nsd, puller: ImagePuller) -> None:
        self._store = store
        self._nsd = nsd
        self._puller = puller

    async def load(
        self, source: Source, platform: Platform, emit: Emit | None = None
    ) -> list[Loaded]:
        """Load every image of a docker archive or an OCI layout, plain or compressed.

        Raises InvalidArgument (neither of them, or damaged, or, when all of it is loaded, a RepoTags entry that is
        no name with a tag), Corrupt, TooLarge, NoSpace.
        """
        async with spooled(self._store, source) as writer, plain(self._store, writer) as fd:
            archive = await in_thread(Archive, fd)
            if "manifest.json" in archive and not self._is_better_layout(archive):
                return await self._docker(archive, emit)
            if "index.json" in archive:
                found = await self._oci(Layout(archive, "archive"), platform, emit)
                return self._named_too(archive, found)
        raise InvalidArgument(
            "load: neither a docker archive (no manifest.json) nor an OCI layout (no index.json)",
            hint="a root file system's tar is brought in with ocibuild import",
        )

    @staticmethod
    def _is_better_layout(archive: Archive) -> bool:
        """Modern docker archives are OCI layouts too: those keep their manifests."""
        return "oci-layout" in archive and "index.json" in archive

    # --- OCI layouts --------------------------------------------------------------------------

    async def _oci(self, layout: Layout, platform: Platform, emit: Emit | None) -> list[Loaded]:
        puller = ImagePuller(self._store, self._nsd, layout, self._puller.unpacker)
        found: dict[Digest, Loaded] = {}
        entries = layout.entries()
        if len(entries) > MAX_IMAGES:
            raise InvalidArgument(f"load: {len(entries)} images, at most {MAX_IMAGES} are taken")
        for entry in entries:
            names = [name for text in entry.names if (name := whole_name(text)) is not None]
            handle = Reference("archive.invalid", "image", None, entry.descriptor.digest)
            try:
                image = await puller.resolve(handle, platform)
            except NotFound:
                if len(entries) > 1:  # an image for other platforms only
                    continue
                raise
            with self._store.leases.new("load") as lease:
                await puller.fetch(image, lease=lease, emit=emit, tag=False)
                for name in names:
                    self._store.images.tag(name_of(name), image.id, image.target)
            before = found.get(image.id, Loaded(image.id)).names
            found[image.id] = Loaded(image.id, (*before, *(name.familiar for name in names)))
        return list(found.values())

    def _named_too(self, archive: Archive, found: list[Loaded]) -> list[Loaded]:
        """Names that only the manifest.json beside a layout has."""
        if "manifest.json" not in archive:
            return found
        by_id = {each.id: each for each in found}
        bad: list[tuple[Digest, str]] = []
        for entry in read_manifest_json(read_small(archive, "manifest.json")):
            each = by_id.get(Digest.of(read_small(archive, entry.config, MAX_CONFIG)))
            if each is None:
                continue
            names, refused = read_tags(entry.tags)
            bad += [(each.id, why) for why in refused]
            for name in names:
                if name.familiar not in each.names:
                    self._store.images.tag(name_of(name), each.id)
            extra = tuple(n.familiar for n in names if n.familiar not in each.names)
            by_id[each.id] = Loaded(each.id, (*each.names, *extra))
        refuse_tags(bad)
        return list(by_id.values())

    # --- docker archives ----------------------------------------------------------------------

    async def _docker(self, archive: Archive, emit: Emit | None) -> list[Loaded]:
        loaded = []
        bad: list[tuple[Digest, str]] = []
        for entry in read_manifest_json(read_small(archive, "manifest.json")):
            names, refused = read_tags(entry.tags)
            with self._store.leases.new("load") as lease:
                image, chain = await self._one(archive, entry, lease, emit)
                self._record(image, chain, names)
            loaded.append(Loaded(image.id, tuple(name.familiar for name in names)))
            bad += [(image.id, why) for why in refused]
        refuse_tags(bad)
        return loaded

    async def _one(
        self, archive: Archive, entry: _Entry, lease: Any, emit: Emit | None
    ) -> tuple[ResolvedImage, tuple[LayerId, ...]]:
        data = read_small(archive, entry.config, MAX_CONFIG)
        config = read_archive_config(data, entry)
        lease.add(blobs=(Digest.of(data),))
        descriptors, places = await in_thread(_describe, archive, entry, config)
        manifest = Manifest(layers=descriptors)
        layers = _ArchiveLayers(archive, places)
        puller = ImagePuller(self._store, self._nsd, layers, self._puller.unpacker)  # type: ignore[arg-type]
        image = ResolvedImage(
            None, Digest.of(data), Digest.of(data), config.platform, config, manifest, blobs=(data,)
        )
        chain = await puller.layers(image, lease, None, emit)
        slots = asyncio.Semaphore(COMPRESSING)
        try:
            async with asyncio.TaskGroup() as group:
                for layer in dict.fromkeys(chain):
                    group.create_task(self._compressed(layer, lease, slots))
        except BaseExceptionGroup as error:
            raise first_cause(error) from None
        return image, chain

    async def _compressed(self, layer_id: LayerId, lease: Any, slots: asyncio.Semaphore) -> None:
        """An archive's plain layers get compressed: they will be pushed some day."""
        layer = self._store.layers.get(layer_id)
        if layer.media_type != MEDIA_LAYER or layer.digest is None or layer.diff_id is None:
            return
        known = self._store.layers.with_blob(layer.diff_id)
        if known is not None and known.digest not in (None, layer.digest):
            blob = LayerBlob(
                layer.diff_id,
                Digest(str(known.digest)),
                known.size,
                compression_of(known.media_type),
            )
        else:
            fd = self._store.blobs.open(layer.digest)
            try:
                async with slots:
                    blob = await recompress(self._store, self._nsd, fd, layer.diff_id)
            finally:
                os.close(fd)
        lease.add(blobs=(blob.digest,))
        self._store.layers.set_blob(
            layer_id, digest=blob.digest, size=blob.size, media_type=OCI.layers[blob.compression]
        )

    def _record(
        self, image: ResolvedImage, chain: tuple[LayerId, ...], names: Sequence[Reference]
    ) -> None:
        store = self._store
        layers = store.layers.chain(chain)
        blobs = [
            LayerBlob(each.diff_id, each.digest, each.size, compression_of(each.media_type))
            for each in layers
            if each.diff_id is not None and each.digest is not None
        ]
        manifest = manifest_bytes(from_config(image.config, image.blobs[0], blobs), OCI)
        image_id, digest = store.blobs.put_many([image.blobs[0], manifest])
        with store.transaction():
            store.images.put(
                Image(
                    id=image_id, manifest=digest, media_type=OCI.manifest, chain=chain,
                    created=seconds(image.config.created),
                    size=sum(layer.tar_size or layer.size for layer in layers),
                    platform=str(image.platform), labels=image.config.config.labels or {},
                )
            )  # fmt: skip
            for name in names:
                store.images.tag(name_of(name), image_id)


def read_manifest_json(data: bytes) -> list[_Entry]:
    """A docker archive's list of images.  Raises InvalidArgument."""
    try:
        value = json.loads(data)
        entries = [
            _Entry(
                str(entry["Config"]), tuple(map(str, entry.get("RepoTags") or ())),
                tuple(map(str, entry.get("Layers") or ())),
            )
            for entry in value
        ]  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InvalidArgument("load: manifest.json is not a docker archive's") from None
    if len(entries) > MAX_IMAGES:
        raise InvalidArgument(f"load: {len(entries)} images, at most {MAX_IMAGES} are taken")
    return entries


def read_archive_config(data: bytes, entry: _Entry) -> ImageConfig:
    """Raises InvalidArgument."""
    try:
        check_json(data, f"config {entry.config}", MAX_CONFIG)
        config = decode_config(data)
    except (RegistryError, ValueError) as error:
        raise InvalidArgument(f"load: config {entry.config[:100]}: {str(error)[:300]}") from None
    if len(config.rootfs.diff_ids) != len(entry.layers):
        raise InvalidArgument(
            f"load: invalid manifest, layers length mismatch: expected {len(entry.layers)}, got"
            f" {len(config.rootfs.diff_ids)}"
        )
    return config


def _describe(
    archive: Archive, entry: _Entry, config: ImageConfig
) -> tuple[tuple[Descriptor, ...], dict[Digest, str]]:
    """Descriptors of an archive's layers, and where each is.  A plain tar's digest is its diff id; what is
    compressed is hashed here.  Reads files: for ``in_thread``."""
    descriptors: list[Descriptor] = []
    places: dict[Digest, str] = {}
    for name, diff_id in zip(entry.layers, config.rootfs.diff_ids, strict=True):
        stretch = archive.open(name)
        try:
            head = os.pread(stretch.fd, compress.MAGIC_SIZE, stretch.offset)
            kind = compress.detect(head)
            digest = diff_id
            if kind != "none":
                hasher, at = hashlib.sha256(), 0
                while at < stretch.size:
                    data = os.pread(
                        stretch.fd, min(1 << 20, stretch.size - at), stretch.offset + at
                    )
                    if not data:
                        break
                    hasher.update(data)
                    at += len(data)
                digest = Digest.from_hex(hasher.hexdigest())
        finally:
            os.close(stretch.fd)
        descriptors.append(Descriptor(OCI.layers.get(kind, MEDIA_LAYER), digest, stretch.size))
        places[digest] = name
    return tuple(descriptors), places


def read_tags(tags: Sequence[str]) -> tuple[list[Reference], list[str]]:
    """RepoTags of a manifest.json: the names, and what is wrong with those that are none (as dockerd: a tag
    must be there)."""
    names, refused = [], []
    for text in tags:
        try:
            reference = Reference.parse(text)
            if reference.tag is None:
                raise ValueError("it has no tag")
        except ValueError as error:
            refused.append(f"invalid tag {text[:300]!r}: {error}")
        else:
            names.append(replace(reference, digest=None))
    return names, refused


def refuse_tags(bad: Sequence[tuple[Digest, str]]) -> None:
    """As dockerd the image stays, without that name, and the load has failed.  Raises InvalidArgument."""
    if bad:
        image, why = bad[0]
        more = f" (and {len(bad) - 1} more like it)" if len(bad) > 1 else ""
        raise InvalidArgument(
            f"load: {why}{more}: image {image} was loaded without that name",
            hint=f"name it: ocibuild tag {image.short} NAME:TAG",
        )


def whole_name(text: str) -> Reference | None:
    """A name in an archive; None for one that is no reference (a bare tag in an OCI layout)."""
    if "/" not in text and ":" not in text:
        return None
    try:
        reference = Reference.parse(text)
    except ValueError:
        return None
    return replace(reference.with_default_tag(), digest=None)
