"""Images to registries: layers go while the rest is still being made.

pusher = Pusher(blobs, registry, reference, auth=…, emit=…)
pusher.layer(descriptor)                 starts the upload; the same digest again is no work
pusher.failed                            an upload failed; ``image`` tries it again, once
digest = await pusher.image(manifest, media_type, config=…, layers=…)   waits for all, then the manifest
digest = await pusher.index(index, media_type, reference=…)   under another tag of the same repository
await pusher.close()                     ends what is still under way
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..errors import BuildError
from ..model.digest import Digest
from ..model.oci import Descriptor
from ..model.reference import Reference
from ..model.request import RegistryAuth
from ..ports import BlobStore, Emit, Registry
from ..runtime import until_done
from ..store.failpoints import hit
from .image import EMPTY_GZIP, EMPTY_LAYER

STATUS_EVERY = 0.1
"""Seconds between two status events of one layer."""
DONE_TEXTS = {"exists": "exists", "mounted": "mounted", "pushed": "pushed"}


class Pusher:
    """One push to one repository.  Not to be used after ``close``."""

    def __init__(
        self,
        blobs: BlobStore,
        registry: Registry,
        reference: Reference,
        *,
        auth: Mapping[str, RegistryAuth] | None = None,
        emit: Emit | None = None,
        mount_from: Sequence[str] = (),
        on_failure: Callable[[BuildError], object] | None = None,
    ) -> None:
        """``on_failure`` is told of the first upload that fails before ``image`` waits for it."""
        self._blobs = blobs
        self._registry = registry
        self.reference = reference
        self._auth = auth
        self._emit = emit
        self._mount_from = tuple(mount_from)
        self._tasks: dict[Digest, asyncio.Task[str]] = {}
        self._on_failure = on_failure
        self.failed = False

    def layer(self, descriptor: Descriptor) -> None:
        """A blob of the store that the image needs: start its upload, again if it failed."""
        task = self._tasks.get(descriptor.digest)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            self._status(descriptor, 0, "waiting")
            task = asyncio.create_task(self._push(descriptor))
            task.add_done_callback(self._ended)
            self._tasks[descriptor.digest] = task

    def _ended(self, task: asyncio.Task[str]) -> None:
        """Whoever waits for it sees its failure; nobody may be left to, or be there yet."""
        error = None if task.cancelled() else task.exception()
        if error is None or self.failed:
            return
        self.failed = True
        if self._on_failure is not None and isinstance(error, BuildError):
            self._on_failure(error)

    async def _push(self, descriptor: Descriptor) -> str:
        last = 0.0

        def progress(current: int) -> None:
            nonlocal last
            if (now := time.monotonic()) - last > STATUS_EVERY:
                last = now
                self._status(descriptor, current, "pushing")

        if descriptor.digest == EMPTY_LAYER.digest:
            self._blobs.put(EMPTY_GZIP)
        hit("push.before-blob")
        outcome = await self._registry.push_blob(
            self.reference, descriptor, lambda: self._blobs.open(descriptor.digest),
            mount_from=self._mount_from, auth=self._auth, progress=progress,
        )  # fmt: skip
        hit("push.after-blob")
        self._status(descriptor, descriptor.size, DONE_TEXTS[outcome])
        return outcome

    async def image(
        self, manifest: bytes, media_type: str, *, config: Descriptor, layers: Sequence[Descriptor],
        by_digest: bool = False, reference: Reference | None = None,
    ) -> Digest:  # fmt: skip
        """All blobs, then the manifest, under the reference's tag or, ``by_digest``, under its digest.

        reference: another name in the same repository.  Raises what the registry client raises; the first
        failure ends the other uploads.
        """
        self._on_failure = None  # from here on it is raised
        for descriptor in (*layers, config):
            self.layer(descriptor)
        await self._settled({descriptor.digest for descriptor in (*layers, config)})
        return await self._put(manifest, media_type, reference, by_digest=by_digest)

    async def index(
        self, data: bytes, media_type: str, *, by_digest: bool = False,
        reference: Reference | None = None,
    ) -> Digest:  # fmt: skip
        """An index whose manifests were pushed before."""
        return await self._put(data, media_type, reference, by_digest=by_digest)

    async def _put(
        self, data: bytes, media_type: str, reference: Reference | None, *, by_digest: bool
    ) -> Digest:
        reference = reference or self.reference
        if by_digest:
            reference = Reference(reference.domain, reference.path, None, Digest.of(data))
        hit("push.before-manifest")
        digest = await self._registry.push_manifest(reference, data, media_type, auth=self._auth)
        hit("push.after-manifest")
        return digest

    async def _settled(self, digests: Collection[Digest]) -> None:
        tasks = [self._tasks[digest] for digest in digests]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End uploads under way and wait for their end.  Idempotent."""
        tasks = [task for task in self._tasks.values() if not task.done()]
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        gathered: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
        await until_done(gathered)

    def _status(self, descriptor: Descriptor, current: int, text: str) -> None:
        if self._emit is not None:
            self._emit(
                "status", id=descriptor.digest.short, current=current, total=descriptor.size,
                unit="bytes", text=text,
            )  # fmt: skip
