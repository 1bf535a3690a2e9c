"""A root file system tar becomes an image (``docker import``), and layers get their compression."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from ..errors import InvalidArgument
from ..executor.image import name_of
from ..executor.unpack import Unpacked, Unpacker
from ..export.image import OCI, LayerBlob, Line, compose, manifest_bytes, rfc3339
from ..layer import compress
from ..model.digest import Digest
from ..model.oci import ContainerConfig, ImageConfig, Platform
from ..model.reference import Reference
from ..ports import Compression, Nsd, Output
from ..runtime import in_thread
from ..store import Store
from ..store.blobs import Writer
from ..store.images import Image
from .changes import apply_changes
from .spool import Source, spooled


async def recompress(
    store: Store, nsd: Nsd, source_fd: int, diff_id: Digest,
    compression: Compression = "gzip", level: int = -1,
) -> LayerBlob:  # fmt: skip
    """The layer that ``source_fd`` holds from its start, as a blob of the store in that compression."""
    output = Output(compression=compression, level=level, clamp=None)
    own = os.open(f"/proc/self/fd/{source_fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with store.blobs.writer(trusted=True) as writer:
            packed = await nsd.call(
                "recompress",
                {"output": output, "expect_diff_id": diff_id, "limits": {}},
                [own, writer.fd],
            )
            digest = Digest(packed["digest"])
            await in_thread(writer.seal, digest, packed["size"])
            writer.commit(digest, packed["size"])
    finally:
        os.close(own)
    return LayerBlob(diff_id, digest, packed["size"], compression)


class Importer:
    """Imports root file systems."""

    def __init__(self, store: Store, nsd: Nsd, unpacker: Unpacker) -> None:
        self._store = store
        self._nsd = nsd
        self._unpacker = unpacker

    async def run(
        self,
        source: Source,
        name: str = "",
        *,
        changes: Sequence[str] = (),
        message: str = "",
        platform: Platform | None = None,
        origin: str = "-",
    ) -> Digest:
        """Import; gives the image's id.

        source: a tar, uncompressed or in gzip, bzip2, xz or zstd.  name: a reference, "" = none.  changes:
        Dockerfile instructions that only change the config.  origin: what the history says.
        Raises InvalidArgument, DockerfileError, TooLarge, NoSpace.
        """
        platform = platform or Platform("amd64", "linux")
        reference = parse_name(name)
        config = apply_changes(changes, platform)
        with self._store.leases.new(f"import {name or origin}") as lease:
            async with spooled(self._store, source) as writer:
                made = await self._unpack(writer)
                try:
                    layer = await self._blob(writer, made)
                except BaseException:
                    self._unpacker.discard(made.tree)
                    raise
            lease.add(blobs=(layer.digest,))
            return self._record(
                reference, config, layer, made, message or f"Imported from {origin}", platform
            )

    async def _unpack(self, writer: Writer) -> Unpacked:
        if os.fstat(writer.fd).st_size == 0:
            raise InvalidArgument("import: the archive is empty")
        fd = os.open(f"/proc/self/fd/{writer.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return await self._unpacker.apply(fd, None)
        finally:
            os.close(fd)

    async def _blob(self, writer: Writer, made: Unpacked) -> LayerBlob:
        """The layer's bytes: as they came if registries take them so, else compressed anew."""
        applied = made.applied
        kind = compress.detect(os.pread(writer.fd, compress.MAGIC_SIZE, 0))
        diff_id = Digest(applied["diff_id"])
        if kind not in ("gzip", "zstd"):
            return await recompress(self._store, self._nsd, writer.fd, diff_id)
        digest, size = Digest(applied["digest"]), applied["size"]
        await in_thread(writer.seal, digest, size)
        writer.commit(digest, size)
        return LayerBlob(diff_id, digest, size, "gzip" if kind == "gzip" else "zstd")

    def _record(
        self, reference: Reference | None, config: ContainerConfig, blob: LayerBlob, made: Unpacked,
        message: str, platform: Platform,
    ) -> Digest:  # fmt: skip
        store = self._store
        now = time.time()
        template = ImageConfig(
            created=rfc3339(now), architecture=platform.architecture, os=platform.os,
            variant=platform.variant, config=config,
        )  # fmt: skip
        line = Line("", True, blob, rfc3339(now), comment=message)
        composed = compose(template, None, (), [line], created=rfc3339(now))
        manifest = manifest_bytes(composed, OCI)
        image_id, manifest_digest = store.blobs.put_many([composed.config, manifest])
        with store.transaction():
            layer = store.layers.ensure(
                0, diff_id=blob.diff_id, digest=blob.digest, size=blob.size,
                media_type=OCI.layers[blob.compression],
            )  # fmt: skip
            if layer.tree:
                self._unpacker.discard(made.tree)
            else:
                layer = self._unpacker.name(layer, made)
            store.images.put(
                Image(
                    id=image_id, manifest=manifest_digest, media_type=OCI.manifest, chain=(layer.id,),
                    created=now, size=made.applied["tar_size"], platform=str(platform),
                    labels=config.labels or {}, created_by="",
                )
            )  # fmt: skip
            if reference is not None:
                store.images.tag(name_of(reference), image_id)
        return image_id


def parse_name(name: str) -> Reference | None:
    """The reference that an image is to get.  Raises InvalidArgument (Docker's words)."""
    if not name:
        return None
    try:
        reference = Reference.parse(name)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None
    if reference.digest is not None:
        raise InvalidArgument("refusing to create a tag with a digest reference")
    return replace(reference, tag=reference.tag or "latest")
