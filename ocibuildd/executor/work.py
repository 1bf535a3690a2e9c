"""The work of one build: every vertex's operation carried out (``ports.Executor``)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, cast

from ocibuildd.errors import InvalidArgument
from ocibuildd.layer.scan import Scan
from ocibuildd.model.digest import EMPTY_TAR, Digest
from ocibuildd.model.graph import (
    ContextSource,
    Copy,
    GitSource,
    HttpSource,
    ImageSource,
    Mkdir,
    Mount,
    Run,
    Vertex,
)
from ocibuildd.model.oci import MEDIA_LAYER, MEDIA_LAYER_GZIP, MEDIA_LAYER_ZSTD
from ocibuildd.ports import (
    Checksum,
    Emit,
    LayerId,
    Lease,
    MountSpec,
    Nsd,
    Output,
    Packed,
    Result,
    RunOutcome,
    RunSpec,
    Selection,
    SourceDir,
    Work,
)
from ocibuildd.runtime import in_thread
from ocibuildd.store import Store
from ocibuildd.store.cache_mounts import Grip
from ocibuildd.store.failpoints import hit

from .contents import RememberedScan, ScanFile, opened
from .context_trees import ContextTrees
from .copy import copy_spec, directory_of, inline_dir, selections, source_dir
from .diagnosis import why_not_found
from .failures import NOT_FOUND, missing_source, step_failed
from .image import ImagePuller, ResolvedImage
from .kept import KeptSegments, signature
from .output import STEP_LOG_LIMIT, Pipe, StepLog
from .room import while_there_is_room
from .run import MountInput, Surroundings, run_spec
from .source import Directory
from .untouched import untouched

MEDIA_TYPES = {"gzip": MEDIA_LAYER_GZIP, "zstd": MEDIA_LAYER_ZSTD, "none": MEDIA_LAYER}
_NOT_NAME = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class FailedRun:
    """A RUN that ended badly, kept for ``ocibuild debug``."""

    vertex: int
    spec: RunSpec
    chain: tuple[LayerId, ...]
    tree: str


@dataclass(slots=True)
class Materials:
    """What a build brings along.

    images: by vertex index, as resolved.  contexts: by name.  around: of every RUN.
    fetch_http, fetch_git: how remote sources come (vertex's op, emit) → Result.
    checksum: of a directory's files.
    kept: compressed segments of earlier layers.
    on_failed: takes over a failed step's tree (True) or not.
    """

    build: str
    vertices: Sequence[Vertex]
    lease: Lease
    output: Output
    images: Mapping[int, ResolvedImage]
    contexts: Mapping[str, Directory]
    around: Surroundings
    epoch: int | None
    auth: Mapping[str, Any]
    fetch_http: Callable[[HttpSource, Emit], Any]
    fetch_git: Callable[[GitSource, Emit], Any]
    checksum: Callable[[Directory, SourceDir, Any], Any]
    kept: KeptSegments
    on_failed: Callable[[FailedRun], bool]
    log_limit: int = STEP_LOG_LIMIT
    masked: tuple[str, ...] = field(default=(), repr=False)


class StepExecutor:
    """``ports.Executor`` for one build."""

    def __init__(self, store: Store, nsd: Nsd, puller: ImagePuller, materials: Materials):
        self._store = store
        self._nsd = nsd
        self._puller = puller
        self._materials = materials
        self._unused: set[LayerId] = set()
        self._stamps: dict[tuple[int, str], str] = {}
        self._scans: dict[tuple[int, str], Scan | ScanFile | RememberedScan] = {}
        self._digests: dict[tuple[int, str], str] = {}
        self._emptied: set[str] = set()
        self._trees = ContextTrees(store, nsd, puller.unpacker)

    def close(self) -> None:
        """No vertex of the build runs any more: trees that became no layer go."""
        for layer in self._unused:
            if self._store.layers.pending(layer):
                tree = self._store.layers.get(layer).tree
                self._store.layers.drop(layer)
                self._puller.unpacker.discard(tree)
        self._unused.clear()
        self._scans.clear()
        self._trees.close()

    def _op(self, vertex: int) -> Any:
        return self._materials.vertices[vertex].op

    # --- sources --------------------------------------------------------------------------------

    def at_hand(self, vertex: int) -> Result | None:
        """``ports.Executor.at_hand``."""
        op = self._op(vertex)
        if isinstance(op, ContextSource):
            directory = self._materials.contexts.get(op.name)
            if directory is None:
                raise InvalidArgument(f"build context {op.name!r}: the build was not given it")
            return Result(directory=directory)
        if isinstance(op, ImageSource):
            image = self._materials.images[vertex]
            if image.local:
                return Result(image.chain, image_identity(image))
        return None

    async def fetch(self, vertex: int, emit: Emit) -> Result:
        """``ports.Executor.fetch``."""
        op, materials = self._op(vertex), self._materials
        if isinstance(op, ImageSource):
            image = materials.images[vertex]
            chain = await self._puller.fetch(
                image, lease=materials.lease, auth=materials.auth, emit=emit
            )
            return Result(chain, image_identity(image))
        if isinstance(op, HttpSource):
            return cast("Result", await materials.fetch_http(op, emit))
        assert isinstance(op, GitSource)
        return cast("Result", await materials.fetch_git(op, emit))

    # --- content --------------------------------------------------------------------------------

    def selections(self, vertex: int) -> list[Selection]:
        """``ports.Executor.selections``."""
        op = self._op(vertex)
        if isinstance(op, Copy):
            return selections(op)
        if not isinstance(op, Run):
            return []
        return [
            Selection(
                f"mount {mount.target}", mount.input,
                () if mount.source in ("/", "", ".") else (mount.source,), {"mount": True},
            )
            for mount in op.mounts if mount.input is not None
        ]

    async def checksum(self, vertex: int, selection: Selection, source: Result) -> Checksum:
        """``ports.Executor.checksum``.  Raises InvalidArgument for a literal path that isn't there."""
        op, materials = self._op(vertex), self._materials
        paths = selection.paths or ("/",)
        spec = copy_spec(op, materials.epoch) if isinstance(op, Copy) else _WHOLE
        directory = directory_of(source)
        if directory is not None:
            files = source_dir(paths, directory=directory, fd=0)
            found = cast("Checksum", await materials.checksum(directory, files, spec))
            self._digests[vertex, selection.role] = found["digest"]
            scan = found.pop("scan", None)
            if scan is not None and isinstance(op, Copy):
                self._scans[vertex, selection.role] = scan
            if directory.path:
                self._stamps[vertex, selection.role] = found.get("stamp", "")
        else:
            lowers = await self._puller.unpacker.ensure_trees(source.chain)
            args = {"source": source_dir(paths, lowers=lowers), "copy": spec}
            found = cast("Checksum", await self._nsd.call("checksum", args))
        if found["missing"]:
            raise missing_source(found, directory)
        return found

    # --- steps ----------------------------------------------------------------------------------

    async def execute(self, vertex: int, inputs: Sequence[Result], emit: Emit) -> Work:
        """``ports.Executor.execute``."""
        def told(text: str) -> None:
            emit("log", stream=2, data=f"{text}\n")

        # Whatever it will be: there must be room at all.
        (await self._store.admit(lease=self._materials.lease, told=told)).release()
        op = self._op(vertex)
        if isinstance(op, Run):
            return await self._run(vertex, op, inputs, emit)
        assert isinstance(op, Copy | Mkdir)
        return await self._copy(vertex, op, inputs)

    async def _copy(self, vertex: int, op: Copy | Mkdir, inputs: Sequence[Result]) -> Work:
        """Straight from the sources into a layer; no file system is made."""
        materials, store = self._materials, self._store
        ensure = self._puller.unpacker.ensure_trees
        root = inputs[0]
        writer = store.blobs.writer(trusted=True)
        scans: list[int] = []
        try:
            fds, sources = [writer.fd], []
            for number, source in enumerate(op.sources if isinstance(op, Copy) else ()):
                if source.input is None:
                    sources.append(inline_dir(source.inline))
                    continue
                given = inputs[source.input]
                directory = directory_of(given)
                if directory is not None:
                    sources.append(source_dir(source.paths, directory=directory, fd=len(fds)))
                    fds.append(directory.fd)
                    scan = self._scans.pop((vertex, f"source {number}"), None)
                    scan_fd = -1 if scan is None else await in_thread(opened, scan, scans)
                    del scan
                    if scan_fd >= 0:
                        sources[-1]["scan"] = len(fds)
                        fds.append(scan_fd)
                else:
                    lowers = await ensure(given.chain)
                    sources.append(source_dir(source.paths, lowers=lowers))
            args = {
                "sources": sources, "copy": copy_spec(op, materials.epoch),
                "lowers": await ensure(root.chain), "output": materials.output,
            }
            hit("copy.before-pack")
            packed = await self._pack(op, inputs, args, fds)
            hit("copy.after-pack")
            self._same_files(vertex, packed)
            if packed["empty"]:
                return Work()
            standalone = isinstance(op, Copy) and op.link
            below = root.chain[-1] if root.chain and not standalone else 0
            layer = store.layers.new(below, standalone=standalone)
            materials.lease.add(layers=(layer,))
            try:
                await self._commit_blob(layer, packed, writer)
            except BaseException:
                store.layers.drop(layer)
                raise
        finally:
            for fd in scans:
                os.close(fd)
            writer.abort()
        return Work(layer, packed, standalone)

    def _same_files(self, vertex: int, packed: Packed) -> None:
        """A layer whose files changed since they were digested must not be kept under that digest."""
        for number, stamp in enumerate(packed.get("stamps", ())):
            if self._stamps.get((vertex, f"source {number}"), stamp) != stamp:
                raise InvalidArgument(
                    "build context: files changed between being digested and being copied",
                    hint="something writes to the build context during the build; build again",
                )

    async def _pack(
        self, op: Copy | Mkdir, inputs: Sequence[Result], args: dict[str, Any], fds: list[int]
    ) -> Packed:
        """The job; segments of the layer that this instruction made before are copied from its blob."""
        kept, blobs = self._materials.kept, self._store.blobs
        directories = [
            (directory_of(inputs[source.input]), source.paths)
            for source in (op.sources if isinstance(op, Copy) else ()) if source.input is not None
        ]
        places = [(directory.path if directory else "", paths) for directory, paths in directories]
        key = signature(places, args["copy"], self._materials.output)
        blob = -1
        try:
            if key:
                args["reuse"] = {"segments": ""}
                known = kept.get(key)
                if known is not None and blobs.has(known.digest):
                    blob = blobs.open(known.digest)
                    args["reuse"] = {"segments": known.segments, "fd": len(fds)}
                    fds = [*fds, blob]
            packed = await self._nsd.call("pack", args, fds)
        finally:
            if blob >= 0:
                os.close(blob)
        segments = packed.pop("segments", "")
        if key and segments and not packed["empty"]:
            kept.put(key, Digest(packed["digest"]), segments)
        return cast("Packed", packed)

    async def _run(self, vertex: int, op: Run, inputs: Sequence[Result], emit: Emit) -> Work:
        store, materials = self._store, self._materials
        lowers = await self._puller.unpacker.ensure_trees(inputs[0].chain)
        tree = store.trees.allocate()
        grips: list[Grip] = []
        keep = False
        try:
            behind = await self._behind(vertex, op, inputs, grips)
            step = f"{materials.build}-{vertex}"
            spec = run_spec(op, lowers=lowers, tree=tree, behind=behind, around=materials.around,
                            step=_NOT_NAME.sub("-", step.lower()))
            hit("run.before-sandbox")
            outcome, tail = await self._sandboxed(spec, emit)
            hit("run.after-sandbox")
            if outcome["exit_code"] or outcome["signal"] or outcome["reason"] != "exit":
                lasting = [
                    mount for mount in spec["mounts"]
                    if not any(lower in self._trees for lower in mount.get("lowers", ()))
                ]
                error = step_failed(op, outcome, tail, vertex, full=store.space.is_full)
                if outcome["exit_code"] == NOT_FOUND and not outcome["message"]:
                    error.hint = await why_not_found(self._nsd, [*lowers, tree], op, tail) or error.hint
                failed = FailedRun(vertex, {**spec, "mounts": lasting}, inputs[0].chain, tree)
                keep = materials.on_failed(failed)
                raise error
            usage = outcome["usage"]
            below = [store.trees.path(each) / "fs" for each in lowers]
            if untouched(store.trees.path(tree) / "fs", below):
                return Work(usage=usage)
            keep = True
            layer = store.layers.new(inputs[0].chain[-1] if inputs[0].chain else 0, tree=tree)
            hit("run.after-layer")
            materials.lease.add(layers=(layer,))
            self._unused.add(layer)  # until it is committed
            return Work(layer, usage=usage)
        finally:
            for grip in grips:
                grip.release()
            if not keep:
                self._puller.unpacker.discard(tree)

    async def _behind(
        self, vertex: int, op: Run, inputs: Sequence[Result], grips: list[Grip]
    ) -> dict[int, MountInput]:
        """What stands behind the mounts."""
        behind: dict[int, MountInput] = {}
        caches = [(mount.cache_id, number) for number, mount in enumerate(op.mounts)
                  if mount.type == "cache"]
        for cache_id, number in sorted(caches):  # always in this order: no two steps wait for each other
            mount = op.mounts[number]
            if mount.mode is not None or mount.uid or mount.gid:
                cache_id += f"\0{mount.mode}:{mount.uid}:{mount.gid}"
            if mount.input is not None:
                # BuildKit's key of a cache mount ends in the id of what it begins with (getRefCacheDir).
                cache_id += f"\0from {await self._origin(vertex, mount, inputs[mount.input])}"
            if self._materials.vertices[vertex].ignore_cache:
                self._empty_cache(cache_id)
            grip = await self._store.cache_mounts.acquire(cache_id, mount.sharing)
            grips.append(grip)
            lowers = None
            if mount.input is not None:
                lowers = await self._lowers(vertex, mount, inputs[mount.input])
            behind[number] = MountInput(path=str(grip.path), lowers=lowers)
        for number, mount in enumerate(op.mounts):
            if mount.type == "bind" and mount.input is not None:
                lowers = await self._lowers(vertex, mount, inputs[mount.input])
                behind[number] = MountInput(lowers=lowers)
        return behind

    async def _origin(self, vertex: int, mount: Mount, source: Result) -> str:
        """What a cache mount's source is, by content."""
        if directory_of(source) is not None:
            return self._digests.get((vertex, f"mount {mount.target}"), source.identity)
        return (await source.settled() if source.settled is not None else source).identity

    async def _lowers(self, vertex: int, mount: Mount, source: Result) -> Sequence[str]:
        """The trees of what a mount shows."""
        directory = directory_of(source)
        if directory is None:
            return await self._puller.unpacker.ensure_trees(source.chain)
        role = vertex, f"mount {mount.target}"
        digest, stamp = self._digests.get(role, ""), self._stamps.get(role, "")
        return [await self._trees.get(directory, mount, digest, stamp)]

    def _empty_cache(self, cache_id: str) -> None:
        """--no-cache is for cache mounts too (BuildKit's choice): once a build, where nobody else uses them."""
        if cache_id in self._emptied:
            return
        self._emptied.add(cache_id)
        caches = self._store.cache_mounts
        for mount in caches.find(cache_id):
            if not mount.in_use:
                caches.forget(mount.hash)
                path = caches.trash(mount.hash)
                if path is not None:
                    self._puller.unpacker.remove(path)

    async def _sandboxed(
        self, spec: RunSpec, emit: Emit
    ) -> tuple[RunOutcome, list[str]]:
        log = StepLog(self._materials.masked, self._materials.log_limit)
        pipes = [Pipe(number, log, emit) for number in (1, 2)]
        try:
            writers = [pipe.write_fd for pipe in pipes]
            outcome = await while_there_is_room(self._store.space, self._nsd.call("run", spec, writers))
        finally:
            for pipe in pipes:
                pipe.close()
        return cast("RunOutcome", outcome), log.tail

    async def commit(
        self, vertex: int, inputs: Sequence[Result], work: Work  # noqa: ARG002 - the port's
    ) -> Packed:
        """``ports.Executor.commit``: the diff of a RUN's tree."""
        assert work.layer is not None
        store = self._store
        tree = store.layers.get(work.layer).tree
        writer = store.blobs.writer(trusted=True)
        try:
            lowers = await self._puller.unpacker.ensure_trees(inputs[0].chain)
            args = {"tree": tree, "lowers": lowers, "output": self._materials.output}
            hit("commit.before-diff")
            packed = cast("Packed", await self._nsd.call("diff", args, [writer.fd]))
            hit("commit.after-diff")
            if not packed["empty"]:
                await self._commit_blob(work.layer, packed, writer, tree=tree)
                self._unused.discard(work.layer)
        finally:
            writer.abort()
        return packed

    async def _commit_blob(
        self, layer: LayerId, packed: Packed, writer: Any, tree: str = ""
    ) -> None:
        digest = Digest(packed["digest"])
        self._materials.lease.add(blobs=(digest,))
        await in_thread(writer.seal, digest, packed["size"])
        hit("commit.after-seal")
        store = self._store
        with store.transaction():
            writer.commit(digest, packed["size"])
            if tree:
                store.trees.commit(tree, packed["tar_size"])
            store.layers.finish(
                layer, diff_id=Digest(packed["diff_id"]), digest=digest, size=packed["size"],
                tar_size=packed["tar_size"], content=packed["content"],
                media_type=MEDIA_TYPES[self._materials.output["compression"]],
            )


_WHOLE = copy_spec(Copy((), "/"), None)


def image_identity(image: ResolvedImage) -> str:
    """The identity of an image's root file system."""
    parts = [d for d in image.config.rootfs.diff_ids if d != EMPTY_TAR]
    return sha256("\n".join(["image", *parts]).encode()).hexdigest()


__all__ = ["FailedRun", "Materials", "MountSpec", "StepExecutor", "image_identity", "step_failed"]
