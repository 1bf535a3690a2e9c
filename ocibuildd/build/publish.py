"""The end of a build: rows for its images, names, and the outputs that were asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from ..errors import Corrupt, Denied, InvalidArgument
from ..executor.image import name_of
from ..export.image import EMPTY_GZIP, EMPTY_LAYER
from ..export.layout import (
    Packaged,
    PackagedIndex,
    descriptor_json,
    docker_archive,
    oci_layout,
    write_directory,
    write_tar,
)
from ..export.options import Shape, flag, made_as, shape_of, unused
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
from .info import Peer, Settings
from .outcome import MadeImage
from .progress import EventLog
from .pushes import Pushes, destinations, parse_names, parse_references
from .shapes import Formed, Former, Ready


@dataclass(frozen=True, slots=True)
class Published:
    """image: config digest; descriptor: of the manifest, or the index of several platforms, as JSON has it.

    later: what nobody need wait for (the rows of intermediate images); to be called once."""

    image: str
    descriptor: dict[str, Any]
    names: list[str]
    outputs: list[dict[str, str]]
    later: Callable[[], None]


@dataclass(slots=True)
class _Order:
    """What is to be published, as decided.  formed: the image as this host keeps it."""

    build: str
    formed: Formed
    former: Former
    names: list[Reference]
    lease: Lease
    events: EventLog
    peer: Peer
    outputs: list[dict[str, str]] = field(default_factory=list)

    @property
    def image(self) -> Digest:
        return self.formed.ready[0].final.composed.id


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

    def __init__(self, store: Store, nsd: Nsd, registry: Registry, settings: Settings):
        self._store = store
        self._nsd = nsd
        self._registry = registry
        self._settings = settings

    def _shape(self, request: BuildRequest, output: OutputSpec | None) -> Shape:
        own = self._settings.compression, self._settings.compression_level
        return shape_of(
            output, request.annotations, made_as(request.outputs, *own),
            platforms=len(request.platforms),
        )

    def pushes(self, request: BuildRequest, events: EventLog) -> Pushes:
        """What the build pushes, if it pushes; to be closed.  Checks what all outputs ask for.

        Raises InvalidArgument."""
        shapes = [self._shape(request, output) for output in (*request.outputs, None)]
        for output in request.outputs:
            for name in unused(output):
                events.append(
                    "message", level="warning",
                    text=f"output type={output.type}: attribute {name!r} is not known and not used",
                )
        early = not any(shape.compression for shape in shapes)
        wanted = destinations(request, parse_names(request))
        return Pushes(self._store, self._registry, wanted, request.auth, events, early=early)

    async def publish(
        self, build: str, request: BuildRequest,
        made: Sequence[tuple[Plan, MadeImage, Sequence[MadeImage]]], lease: Lease, events: EventLog,
        peer: Peer, pushes: Pushes,
    ) -> Published:
        """Write rows, give names, write outputs, push.  Raises InvalidArgument, Denied and what
        registries and disks raise."""
        former = Former(self._store, self._nsd, lease, made)

        async def form(output: OutputSpec | None) -> Formed:
            return await former.form(self._shape(request, output))

        outputs = request.outputs
        kept = next((o for o in outputs if o.type in ("image", "registry")), None)
        formed = await form(kept or (outputs[0] if outputs else None))
        names = [*parse_names(request), *canonical_names(outputs, request.tags, formed.digest)]
        order = _Order(build, formed, former, names, lease, events, peer)
        self._store_images(order, keep=wants_image(request))
        for number, output in enumerate(outputs):
            await self._output(order, number, output, form)
        for name in await pushes.finish(form):
            order.outputs.append({"type": "registry", "dest": name})
        return Published(
            str(order.image), described(formed), [name.familiar for name in order.names],
            order.outputs, partial(self._store_intermediate, order),
        )

    # --- rows -----------------------------------------------------------------------------------

    def _store_images(self, order: _Order, *, keep: bool) -> None:
        """All rows in one commit; nothing at all for what is there already."""
        store = self._store
        rows: dict[Digest, Image] = {}
        blobs: list[bytes] = []
        formed = order.formed
        for ready in formed.ready if keep else ():
            self._final(order, ready, rows, blobs)
        if formed.index is not None and keep:
            blobs.append(formed.index)
        hit("publish.before-rows")
        order.lease.add(blobs=store.blobs.put_many(list(dict.fromkeys(blobs))))
        moved = [name for name in order.names if keep and not self._named(order, name)]
        if not rows and not moved and formed.index is None:
            return
        with store.transaction():
            for row in rows.values():
                store.images.put(row)
            if formed.index is not None and keep:
                store.images.put_index(StoredIndex(formed.digest, formed.index_type, tuple(
                    (each.digest, str(each.plan.platform), each.final.composed.id)
                    for each in formed.ready
                )))
            for name in moved:
                store.images.tag(name_of(name), order.image, formed.digest)

    def _store_intermediate(self, order: _Order) -> None:
        for ready in order.formed.ready:
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
            parent = before.get(made.stage)
            before[made.stage] = image
            if image in rows or image in known:
                continue
            parent = parent or self._base(plan, made.stage)
            configs.append(made.composed.config)
            rows[image] = self._row(build, made, kind="intermediate", parent=parent)
        if rows:
            lease.add(blobs=self._store.blobs.put_many(configs, sync=False))
            with self._store.transaction():
                for row in rows.values():
                    self._store.images.put(row)

    def _named(self, order: _Order, name: Reference) -> bool:
        known = self._store.images.resolve(name_of(name))
        return (
            known is not None and known.image == order.image and known.target == order.formed.digest
        )

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
        if known is not None and known.kind == "image" and known.manifest == ready.digest and all(
            map(self._store.blobs.has, (composed.id, ready.digest))  # else they were damaged
        ):
            return
        own = [made.composed.id for made in ready.images if made.stage == ready.final.stage]
        parent = next((image for image in reversed(own) if image != composed.id), None)
        if EMPTY_LAYER in composed.layers:
            blobs.append(EMPTY_GZIP)
        blobs += [composed.config, ready.manifest]
        row = self._row(order.build, ready.final, kind="image", parent=parent)
        # What the manifest names beside the layers' own blobs: empty layers, layers compressed anew.
        own_blobs = {layer.digest for layer in self._store.layers.chain(row.chain)}
        others = dict.fromkeys(layer.digest for layer in composed.layers)
        rows[composed.id] = replace(
            row, manifest=ready.digest, media_type=ready.types.manifest,
            blobs=tuple(digest for digest in others if digest not in own_blobs),
        )

    def _row(self, build: str, made: MadeImage, *, kind: Any, parent: Digest | None) -> Image:
        return Image(
            id=made.composed.id, manifest=None, media_type="", chain=made.chain, kind=kind,
            parent=parent, created_by=made.created_by, created=time.time(),
            size=self._size(made.chain), platform=str(made.composed.platform), build=build,
            labels=made.labels,
        )

    def _size(self, chain: Sequence[LayerId]) -> int:
        return sum(layer.tar_size or layer.size for layer in self._store.layers.chain(chain))

    # --- outputs --------------------------------------------------------------------------------

    async def _output(
        self, order: _Order, number: int, output: OutputSpec,
        form: Callable[[OutputSpec], Awaitable[Formed]],
    ) -> None:
        if output.type in ("image", "registry", "cacheonly"):
            return
        begun = time.monotonic()
        vertex = f"export:{number}"
        order.events.append("vertex.started", vertex=vertex, name=f"exporting to {output.type}")
        path = self._destination(order, number, output)
        if output.type in ("oci", "docker"):
            formed = await form(output)
            layers = [layer for each in formed.ready for layer in each.final.composed.layers]
            digests = {layer.digest for layer in layers if layer.data is None}
            names = parse_references(output.attrs.get("name", "")) or order.names
            with PinnedBlobs(self._store.blobs, digests) as blobs:
                try:
                    await in_thread(_write_layout, formed, output, names, path, blobs)
                except Corrupt as error:
                    self._store.blobs.suspect(error)
                    raise
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

    async def _write_files(self, order: _Order, output: OutputSpec, path: Path) -> None:
        """-o type=tar and type=local: the file system itself."""
        from ..executor.unpack import Unpacker

        trees = Unpacker(self._store, self._nsd)
        for each in order.formed.ready:
            args = {"lowers": await trees.ensure_trees(each.final.chain), "clamp": each.plan.epoch}
            if output.type == "tar" or output.dest in ("", "-"):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                await self._archive(args, path, flags)
                continue
            target = path
            if flag(output.attrs, "platform-split", len(order.formed.ready) > 1):
                target = path / str(each.plan.platform).replace("/", "_")
            target.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            await self._archive({**args, "files": True}, target, flags)

    async def _archive(self, args: dict[str, Any], path: Path, flags: int) -> None:
        fd = os.open(path, flags, 0o644)
        try:
            await self._nsd.call("archive", args, [fd])
        finally:
            os.close(fd)


def _write_layout(
    formed: Formed, output: OutputSpec, names: Sequence[Reference], path: Path, blobs: BlobStore
) -> None:
    """An OCI layout or a docker archive, as a tar or (``tar=false``) as a directory."""
    single = formed.index is None
    # Who reads only a docker archive's manifest.json gets the first platform under the names.
    first = formed.ready[:1] if single or output.type == "docker" else ()
    images = [
        Packaged(each.manifest, each.types.manifest, each.final.composed.config,
                 each.final.composed.layers, tuple(names) if each in first else (),
                 each.final.composed.platform, formed.annotations if single else {})
        for each in formed.ready
    ]
    indexes = [] if formed.index is None else [
        PackagedIndex(formed.index, formed.index_type, tuple(names), formed.annotations)
    ]
    layout = oci_layout if output.type == "oci" else docker_archive
    members = layout(images, indexes)
    if not flag(output.attrs, "tar", True) and output.dest not in ("", "-"):
        write_directory(members, blobs, path)
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_tar(members, blobs, fd)
    finally:
        os.close(fd)


def described(formed: Formed) -> dict[str, Any]:
    """The descriptor that a build answers with; as BuildKit's, it names the config of a single platform."""
    body = descriptor_json(formed.descriptor)
    if formed.index is None:
        config = str(formed.ready[0].final.composed.id)
        body["annotations"] = {"config.digest": config, **body.get("annotations", {})}
    return body


def wants_image(request: BuildRequest) -> bool:
    """Is the image to stay here?  Not where only files or nothing was asked for, and no name given."""
    kinds = {output.type for output in request.outputs if flag(output.attrs, "store", True)}
    return bool(request.tags) or not request.outputs or bool(kinds & {"image", "registry"})


def canonical_names(
    outputs: Sequence[OutputSpec], tags: Sequence[str], digest: Digest
) -> list[Reference]:
    """Names by digest: of what is pushed without a tag, ``name-canonical``, ``dangling-name-prefix``."""
    found: list[Reference] = []
    for output in outputs:
        name = output.attrs.get("name", "")
        if flag(output.attrs, "push-by-digest") or flag(output.attrs, "name-canonical"):
            found += parse_references(name or ",".join(tags))
        elif not name and not tags:
            found += parse_references(output.attrs.get("dangling-name-prefix", ""))
    return list(dict.fromkeys(replace(each, tag=None, digest=digest) for each in found))
