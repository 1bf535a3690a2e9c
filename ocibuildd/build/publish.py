"""The end of a build: rows for its images, names, and the outputs that were asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec

from ..errors import Denied, InvalidArgument
from ..executor.image import name_of
from ..export.annotations import Annotations, parse_annotations
from ..export.image import (
    EMPTY_GZIP,
    EMPTY_LAYER,
    OCI,
    Entry,
    MediaTypes,
    index_bytes,
    manifest_bytes,
    types_for,
)
from ..export.layout import (
    Packaged,
    PackagedIndex,
    docker_archive,
    oci_layout,
    write_directory,
    write_tar,
)
from ..model.digest import Digest
from ..model.graph import Plan
from ..model.reference import Reference
from ..model.request import BuildRequest, OutputSpec
from ..ports import BlobStore, LayerId, Nsd, Registry
from ..runtime import in_thread
from ..store import Store
from ..store.failpoints import hit
from ..store.images import Image, StoredIndex
from ..store.leases import Lease
from .info import Peer
from .outcome import MadeImage
from .progress import EventLog
from .pushes import Pushable, Pushes, parse_names, push_names


@dataclass(frozen=True, slots=True)
class Published:
    """image: config digest; digest: of the manifest, or the index of several platforms.

    later: what nobody need wait for (the rows of intermediate images); to be called once."""

    image: str
    digest: str
    names: list[str]
    outputs: list[dict[str, str]]
    later: Callable[[], None]


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


@dataclass(slots=True)
class _Order:
    """What is to be published, as decided."""

    build: str
    ready: list[Ready]
    names: list[Reference]
    index: bytes | None
    lease: Lease
    events: EventLog
    peer: Peer
    outputs: list[dict[str, str]] = field(default_factory=list)

    @property
    def digest(self) -> Digest:
        return Digest.of(self.index) if self.index is not None else self.ready[0].digest


class PinnedBlobs:
    """Blobs opened beforehand, for a thread to read (the store itself is the loop's)."""

    def __init__(self, blobs: BlobStore, digests: Iterable[Digest]):
        self._fds: dict[Digest, int] = {}
        try:
            for digest in digests:
                self._fds[digest] = blobs.open(digest)
        except BaseException:
            self.close()
            raise

    def open(self, digest: Digest) -> int:
        """A descriptor of the caller's own, at the start."""
        # Not a duplicate: that would share its offset with others.
        return os.open(f"/proc/self/fd/{self._fds[digest]}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> BlobStore:
        return cast("BlobStore", self)

    def __exit__(self, *_: object) -> None:
        self.close()


class Publisher:
    """One for the daemon."""

    def __init__(self, store: Store, nsd: Nsd, registry: Registry):
        self._store = store
        self._nsd = nsd
        self._registry = registry

    def pushes(self, request: BuildRequest, events: EventLog) -> Pushes:
        """What the build pushes, if it pushes; to be closed.  Raises InvalidArgument."""
        names = push_names(request, parse_names(request))
        return Pushes(self._store, self._registry, names, request.auth, events)

    async def publish(
        self, build: str, request: BuildRequest,
        made: Sequence[tuple[Plan, MadeImage, Sequence[MadeImage]]], lease: Lease, events: EventLog,
        peer: Peer, pushes: Pushes,
    ) -> Published:
        """Write rows, give names, write outputs, push.  Raises InvalidArgument, Denied and what
        registries and disks raise."""
        order = self._order(build, request, made, lease, events, peer)
        self._store_images(order, keep=wants_image(request))
        for number, output in enumerate(request.outputs):
            await self._output(order, number, output)
        images = [Pushable(each.manifest, each.types, each.final.composed) for each in order.ready]
        for name in await pushes.finish(images, order.index):
            order.outputs.append({"type": "registry", "dest": name})
        final = order.ready[0].final.composed
        names = [name.familiar for name in order.names]
        return Published(
            str(final.id), str(order.digest), names, order.outputs,
            partial(self._store_intermediate, order),
        )

    def _order(
        self, build: str, request: BuildRequest,
        made: Sequence[tuple[Plan, MadeImage, Sequence[MadeImage]]], lease: Lease, events: EventLog,
        peer: Peer,
    ) -> _Order:
        attrs = next((output.attrs for output in request.outputs if output.attrs), {})
        annotations = parse_annotations(request.annotations, attrs)
        oci = attrs.get("oci-mediatypes", "true").lower() not in ("0", "false")
        ready = []
        for plan, final, images in made:
            types = types_for([layer.compression for layer in final.composed.layers], oci=oci)
            own = annotations.at("manifest", str(plan.platform))
            manifest = manifest_bytes(final.composed, types, own)
            ready.append(Ready(plan, final, images, manifest, types))
        index = self._index(ready, annotations) if len(ready) > 1 else None
        return _Order(build, ready, parse_names(request), index, lease, events, peer)

    @staticmethod
    def _index(ready: Sequence[Ready], annotations: Annotations) -> bytes:
        entries = [
            Entry(each.manifest, each.final.composed.platform, each.types.manifest,
                  annotations.at("manifest-descriptor", str(each.plan.platform)))
            for each in ready
        ]
        return index_bytes(entries, OCI, annotations.at("index"))

    # --- rows -----------------------------------------------------------------------------------

    def _store_images(self, order: _Order, *, keep: bool) -> None:
        """All rows in one commit; nothing at all for what is there already."""
        store = self._store
        rows: dict[Digest, Image] = {}
        blobs: list[bytes] = []
        for ready in order.ready if keep else ():
            self._final(order, ready, rows, blobs)
        if order.index is not None and keep:
            blobs.append(order.index)
        hit("publish.before-rows")
        order.lease.add(blobs=store.blobs.put_many(list(dict.fromkeys(blobs))))
        moved = [name for name in order.names if keep and not self._named(order, name)]
        if not rows and not moved and order.index is None:
            return
        with store.transaction():
            for row in rows.values():
                store.images.put(row)
            if order.index is not None and keep:
                store.images.put_index(StoredIndex(Digest.of(order.index), OCI.index, tuple(
                    (each.digest, str(each.plan.platform), each.final.composed.id)
                    for each in order.ready
                )))
            for name in moved:
                store.images.tag(name_of(name), order.ready[0].final.composed.id, order.digest)

    def _store_intermediate(self, order: _Order) -> None:
        for ready in order.ready:
            # The build's own image was written before, and somebody may have removed it by now.
            final = ready.final.composed.id
            others = [made for made in ready.images if made.composed.id != final]
            self.remember(order.build, ready.plan, others, order.lease)

    def remember(
        self, build: str, plan: Plan, images: Sequence[MadeImage], lease: Lease
    ) -> None:
        """The rows of intermediate images: of a build that failed, too, up to where it did."""
        rows: dict[Digest, Image] = {}
        configs: list[bytes] = []
        known = self._store.images.known([made.composed.id for made in images])
        before: dict[int, Digest] = {}
        for made in images:
            image = made.composed.id
            parent = before.get(made.stage) or self._base(plan, made.stage)
            before[made.stage] = image
            if image in rows or image in known:
                continue
            configs.append(made.composed.config)
            rows[image] = self._row(build, made, kind="intermediate", parent=parent)
        if rows:
            lease.add(blobs=self._store.blobs.put_many(configs, sync=False))
            with self._store.transaction():
                for row in rows.values():
                    self._store.images.put(row)

    def _named(self, order: _Order, name: Reference) -> bool:
        known = self._store.images.resolve(name_of(name))
        final = order.ready[0].final.composed
        return known is not None and known.image == final.id and known.target == order.digest

    def _base(self, plan: Plan, stage: int) -> Digest | None:
        found = next((each for each in plan.stages if each.index == stage), None)
        if found is None or found.base is None or found.base_vertex is None:
            return None
        op = plan.vertices[found.base_vertex].op
        base = self._store.images.by_manifest(getattr(op, "digest", Digest.of(b"")))
        return base.id if base is not None else None

    def _final(
        self, order: _Order, ready: Ready, rows: dict[Digest, Image], blobs: list[bytes]
    ) -> None:
        composed = ready.final.composed
        known = self._store.images.get(composed.id)
        if known is not None and known.kind == "image" and known.manifest == ready.digest:
            return
        own = [made.composed.id for made in ready.images if made.stage == ready.final.stage]
        parent = next((image for image in reversed(own) if image != composed.id), None)
        if EMPTY_LAYER in composed.layers:
            blobs.append(EMPTY_GZIP)
        blobs += [composed.config, ready.manifest]
        row = self._row(order.build, ready.final, kind="image", parent=parent)
        rows[composed.id] = replace(
            row, manifest=ready.digest, media_type=ready.types.manifest,
            blobs=(EMPTY_LAYER.digest,) if EMPTY_LAYER in composed.layers else (),
        )

    def _row(self, build: str, made: MadeImage, *, kind: Any, parent: Digest | None) -> Image:
        config = msgspec.json.decode(made.composed.config)
        labels = config.get("config", {}).get("Labels") or {}
        return Image(
            id=made.composed.id, manifest=None, media_type="", chain=made.chain, kind=kind,
            parent=parent, created_by=made.created_by, created=time.time(),
            size=self._size(made.chain), platform=str(made.composed.platform), build=build,
            labels=labels,
        )

    def _size(self, chain: Sequence[LayerId]) -> int:
        return sum(layer.tar_size or layer.size for layer in self._store.layers.chain(chain))

    # --- outputs --------------------------------------------------------------------------------

    async def _output(self, order: _Order, number: int, output: OutputSpec) -> None:
        if output.type in ("image", "registry", "cacheonly"):
            return
        begun = time.monotonic()
        vertex = f"export:{number}"
        order.events.append("vertex.started", vertex=vertex, name=f"exporting to {output.type}")
        path = self._destination(order, number, output)
        if output.type in ("oci", "docker"):
            layers = {layer.digest for each in order.ready for layer in each.final.composed.layers}
            with PinnedBlobs(self._store.blobs, layers - {EMPTY_LAYER.digest}) as blobs:
                await in_thread(self._write_layout, order, output, path, blobs)
        else:
            await self._write_files(order, output, path)
        order.outputs.append({"type": output.type, "dest": output.dest})
        order.events.append("vertex.done", vertex=vertex, seconds=round(time.monotonic() - begun, 4))

    def _destination(self, order: _Order, number: int, output: OutputSpec) -> Path:
        """Where it goes: a path that a local client named, or a file that the client then fetches."""
        if output.dest in ("", "-"):
            return self._store.builds.directory(order.build) / f"output-{number}"
        if not order.peer.local or order.peer.uid not in (-1, 0, os.geteuid()):
            raise Denied(f"output {output.dest}: only the daemon's own user may name files on this host")
        if not output.dest.startswith("/"):
            raise InvalidArgument(f"output {output.dest}: an absolute path is wanted")
        return Path(output.dest)

    def _write_layout(
        self, order: _Order, output: OutputSpec, path: Path, blobs: BlobStore
    ) -> None:
        images = [
            Packaged(each.manifest, each.types.manifest, each.final.composed.config,
                     each.final.composed.layers, tuple(order.names) if order.index is None else (),
                     each.final.composed.platform)
            for each in order.ready
        ]
        indexes = [] if order.index is None else [
            PackagedIndex(order.index, OCI.index, tuple(order.names))
        ]
        layout = oci_layout if output.type == "oci" else docker_archive
        members = layout(images, indexes)
        if output.attrs.get("tar", "true").lower() in ("0", "false") and output.dest not in ("", "-"):
            write_directory(members, blobs, path)
            return
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            write_tar(members, blobs, fd)
        finally:
            os.close(fd)

    async def _write_files(self, order: _Order, output: OutputSpec, path: Path) -> None:
        """-o type=tar and type=local: the file system itself."""
        from ..executor.unpack import Unpacker

        trees = Unpacker(self._store, self._nsd)
        for each in order.ready:
            lowers = await trees.ensure_trees(each.final.chain)
            if output.type == "tar" or output.dest in ("", "-"):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                await self._archive({"lowers": lowers}, path, flags)
                continue
            target = path
            if len(order.ready) > 1:
                target = path / str(each.plan.platform).replace("/", "_")
            target.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            await self._archive({"lowers": lowers, "files": True}, target, flags)

    async def _archive(self, args: dict[str, Any], path: Path, flags: int) -> None:
        fd = os.open(path, flags, 0o644)
        try:
            await self._nsd.call("archive", args, [fd])
        finally:
            os.close(fd)


def wants_image(request: BuildRequest) -> bool:
    """Is the image to stay here?  Not where only files or nothing was asked for, and no name given."""
    kinds = {output.type for output in request.outputs}
    return bool(request.tags) or not kinds or bool(kinds & {"image", "registry"})
