"""Layers into trees: the ``apply`` jobs, one per layer however many want it.

    unpacker = Unpacker(store, nsd)
    trees = await unpacker.ensure_trees(chain)      → tree ids, lowest first: what to mount
    made = await unpacker.apply(fd, diff_id)        → Unpacked: a tree of one layer, not yet any row's

A layer is unpacked without knowing what is below it, so that all layers of an image can be unpacked at once.
One that lacks entries for parent directories (``Applied.implied``) gets their owners, modes and times from what is
below it once that is there, by an ``inherit`` job; where a parent is a symlink below, or a hard link names a file that
is only there, it is unpacked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

from ..errors import BuildError, Corrupt, NotFound
from ..model.digest import Digest
from ..ports import Applied, Emit, Layer, LayerId, Nsd
from ..runtime import spawn
from ..store import Store

PARALLEL = 3
"""Layers that are unpacked at once by one call."""
REMOVE_DELAY = 0.25
"""Seconds that a tree thrown away waits for others: a job costs more than deleting a small one."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A tree that is whole, committed to the store and named by no layer yet."""

    tree: str
    applied: Applied

    @property
    def standalone(self) -> bool:
        """Nothing in it came from below or was guessed: it fits over anything."""
        return self.applied["implied"] == 0


class Unpacker:
    """Unpacks layers.  ``limits``: ``ports.Limits``, {} = the applier's own."""

    def __init__(self, store: Store, nsd: Nsd, limits: Mapping[str, int] | None = None) -> None:
        self._store = store
        self._nsd = nsd
        self._limits = dict(limits or {})
        self._locks: WeakValueDictionary[Any, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(PARALLEL)
        self._trash: list[str] = []
        self.providers: dict[Digest, Callable[[], Awaitable[None]]] = {}
        """Where blobs come from that rows name and the store hasn't (remote caches), by digest."""

    def lock(self, key: object) -> asyncio.Lock:
        """The lock of that name, for as long as somebody holds on to it."""
        found = self._locks.get(key)
        if found is None:
            found = self._locks[key] = asyncio.Lock()
        return found

    async def apply(
        self,
        fd: int,
        diff_id: Digest | None,
        lowers: Sequence[str] = (),
        on_event: Callable[[dict[str, Any], list[int]], None] | None = None,
        *,
        over: bool = False,
    ) -> Unpacked:
        """Unpack what can be read from ``fd`` (a blob's file, or a pipe) into a new tree.

        over: there are lowers, though ``lowers`` doesn't tell them yet.
        Raises Corrupt (the diff id differs), InvalidArgument, TooLarge, NoSpace; then no tree is left.
        """
        tree = self._store.trees.allocate()
        try:
            args = {
                "tree": tree, "lowers": list(lowers), "expect_diff_id": diff_id or "",
                "limits": self._limits, "lenient": over,
            }  # fmt: skip
            applied = cast("Applied", await self._nsd.call("apply", args, [fd], on_event))
            self._store.trees.commit(tree, applied["bytes"])
        except BaseException:
            self.discard(tree)
            raise
        return Unpacked(tree, applied)

    def discard(self, tree: str) -> None:
        """A tree that nobody will name: its row goes now, its files soon."""
        if self._store.trees.has(tree):
            self._store.trees.forget(tree)
        path = self._store.trees.discard(tree)
        if path is not None:
            self.remove(path)

    def remove(self, path: Path) -> None:
        """Something in the trash: its files go soon."""
        self._trash.append(str(path))
        if len(self._trash) == 1:
            spawn(self._tasks, asyncio.ensure_future(self._remove()))

    async def _remove(self) -> None:
        """One job for all that is thrown away within a moment."""
        await asyncio.sleep(REMOVE_DELAY)
        paths, self._trash = self._trash, []
        with contextlib.suppress(BuildError, OSError):  # what stays goes at the next start
            await self._nsd.call("remove", {"paths": paths})

    async def close(self) -> None:
        """Wait for removals under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- chains -------------------------------------------------------------------------------

    async def ensure_trees(
        self,
        chain: Sequence[LayerId],
        emit: Emit | None = None,
        half: dict[LayerId, Unpacked] | None = None,
    ) -> list[str]:
        """Tree ids of a chain, lowest first, unpacking what isn't.  The chain must be leased.

        half: what was unpacked of it already and lacks parents; empty at the end.
        Raises NotFound (neither tree nor blob is here), Corrupt (the blob is damaged, and now in
        quarantine), and as ``apply``.
        """
        layers = self._store.layers.chain(chain)
        missing = [layer for layer in layers if not layer.tree]
        half = {} if half is None else half
        try:
            if missing:
                async with asyncio.TaskGroup() as group:
                    for layer in missing:
                        if layer.id not in half:
                            below = layer is not layers[0]
                            group.create_task(self._guard(self._ensure(layer, below, emit, half)))
                await self._over_parents(chain, half, emit)
                layers = self._store.layers.chain(chain)
        except BaseExceptionGroup as error:
            raise first_cause(error) from None
        finally:
            while half:
                self.discard(half.popitem()[1].tree)
        return [layer.tree for layer in layers]

    async def _guard(self, work: Any) -> None:
        async with self._slots:
            await work

    async def _ensure(
        self, layer: Layer, over_something: bool, emit: Emit | None, half: dict[LayerId, Unpacked]
    ) -> None:
        """Name the layer's tree, or put it into ``half`` where it needs to know what is below."""
        async with self.lock(layer.id):
            layer = self._store.layers.get(layer.id)
            if layer.tree:
                return
            made = await self._from_blob(layer, (), emit, over=over_something)
            if made.standalone or not over_something:
                self.name(layer, made)
            else:
                half[layer.id] = made

    async def _over_parents(
        self, chain: Sequence[LayerId], half: dict[LayerId, Unpacked], emit: Emit | None
    ) -> None:
        """Layers that lacked parents, from below upwards."""
        lowers: list[str] = []
        for layer in self._store.layers.chain(chain):
            if not layer.tree and layer.id in half:
                async with self.lock(layer.id):
                    layer = self._store.layers.get(layer.id)
                    if not layer.tree:
                        if await self._inherit(half[layer.id], lowers):
                            made = half.pop(layer.id)
                        else:
                            made = await self._from_blob(layer, lowers, emit)
                        layer = self.name(layer, made)
            lowers.append(layer.tree)

    async def _inherit(self, made: Unpacked, lowers: Sequence[str]) -> bool:
        """Make the parents in a tree what they are below; False: that takes more."""
        parents = made.applied["parents"]
        if len(parents) < made.applied["implied"]:
            return False
        args = {"tree": made.tree, "lowers": list(lowers), "parents": parents}
        answer = await self._nsd.call("inherit", args)
        return bool(answer["done"])

    async def _from_blob(
        self, layer: Layer, lowers: Sequence[str], emit: Emit | None, *, over: bool = False
    ) -> Unpacked:
        digest = await self.obtain(layer)
        fd = self._store.blobs.open(digest)
        if emit is not None:
            emit("status", id=f"unpack {digest.short}", text="extracting", total=layer.size)
        try:
            made = await self.apply(fd, layer.diff_id, lowers, over=over)
        except Corrupt as error:
            self._store.blobs.quarantine(digest, error.message)
            raise
        finally:
            os.close(fd)
        if digest.algorithm == "sha256" and made.applied["digest"] != digest:
            self.discard(made.tree)
            self._store.blobs.quarantine(digest, "digest differs")
            raise Corrupt(f"blob {digest}: damaged on the disk (now in quarantine)")
        if emit is not None:
            emit(
                "status",
                id=f"unpack {digest.short}",
                text="done",
                current=layer.size,
                total=layer.size,
            )
        return made

    async def obtain(self, layer: Layer) -> Digest:
        """The digest of a blob that holds the layer; fetched first where somebody can provide it.

        Raises NotFound, and what fetching raises."""
        provide = self.providers.get(layer.digest) if layer.digest is not None else None
        if provide is None:
            return self._blob_of(layer)
        async with self.lock(("blob", layer.digest)):
            try:
                return self._blob_of(layer)
            except NotFound:
                await provide()
        return self._blob_of(layer)

    def _blob_of(self, layer: Layer) -> Digest:
        if layer.digest is not None and self._store.blobs.has(layer.digest):
            return layer.digest
        other = self._store.layers.with_blob(layer.diff_id) if layer.diff_id else None
        if other is None or other.digest is None:
            raise NotFound(
                f"layer {layer.diff_id or layer.id}: neither unpacked nor its blob in the store",
                hint="pull the image again",
            )
        return other.digest

    def name(self, layer: Layer, made: Unpacked) -> Layer:
        """Let a layer's row name its tree."""
        return self._store.layers.set_tree(
            layer.id, made.tree, standalone=made.standalone, tar_size=made.applied["tar_size"]
        )


def first_cause(group: BaseExceptionGroup[Any]) -> BaseException:
    """The exception that a task group ended for."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
