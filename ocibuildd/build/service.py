"""All builds of the daemon: start, list, follow, cancel, explain, drain.

What the API calls.  A build goes on when the client that started it goes away; whoever wants it to
end cancels it.  For the API:

    builds = Builds(store, nsd, registry, puller, fetcher, settings=Settings(…))
    build = await builds.start(request, peer=Peer(local=True, uid=…))   → BuildInfo
    builds.get(id)            → BuildInfo (an id, a unique prefix, or "" for the newest); NotFound
    builds.list()             → [BuildInfo], newest first
    builds.events(id, since)  → async iterator of bytes: whole lines (JSON), until the build ends
    await builds.wait(id)     → BuildInfo once it has ended
    await builds.cancel(id)   → returns once the build has ended
    await builds.explain(id, step) → [{vertex, name, cached, reasons: [{kind, text}], …}]
    builds.failed(id)         → FailedStep: what to hand to a ``run`` job for `debug`; NotFound
    upload = builds.upload()  → .id, .write(bytes), .close() / .abort(): a context as tar, or a Dockerfile
    builds.verify(target, peer=…) → async iterator: the events of building it again, then {"type": "verified"}
    builds.output(id, n)      → path of the file that output n ("-") was written to; NotFound
    builds.active             → number of builds that are queued or running (idle timeout)
    await builds.drain(grace) → no new builds; waits; cancels what is left after grace seconds
    await builds.close()      → cancels everything and waits
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..errors import Conflict, NotFound, Unavailable
from ..executor.contents import LocalContents
from ..executor.image import ImagePuller
from ..executor.source import Downloads, Fetcher
from ..executor.work import FailedRun
from ..model.request import BuildRequest, UploadContext
from ..ports import LayerId, Nsd, Registry, RunSpec
from ..runtime import spawn, until_done
from ..solver.solve import Solver
from ..store import Store
from ..store.builds import Build as BuildRow
from ..store.failpoints import hit
from ..store.leases import Lease
from . import explain
from .build import Build, Site
from .info import BuildInfo, Peer, Settings
from .options import build_name
from .progress import last_event, replay
from .publish import Publisher
from .uploads import Upload, Uploads
from .verify import Comparison, again, build_of, kept_request

Explained = list[dict[str, Any]]
MAX_LIVE = 256
"""Builds that are queued or running at once; more are refused."""
MAX_KEPT_FAILED = 16
"""Failed steps whose file systems are kept at once; the oldest goes."""
DEFAULT_PARALLELISM = 32
"""Steps that run at once, over all builds."""


@dataclass(slots=True)
class FailedStep:
    """What is left of a step that failed.  spec: without secrets, agents and contexts; chain: leased;
    its ``tree`` is the upper directory as the step left it.  expires: seconds since the epoch."""

    build: str
    vertex: int
    spec: RunSpec
    chain: tuple[LayerId, ...]
    expires: float
    lease: Lease
    timer: asyncio.TimerHandle | None = None


class Builds:
    """One for the daemon.  Used from the loop's thread."""

    def __init__(
        self, store: Store, nsd: Nsd, registry: Registry, puller: ImagePuller, fetcher: Fetcher, *,
        settings: Settings | None = None,
    ):
        self._store = store
        self.settings = settings or Settings()
        scratch = store.path / "work"
        fingerprints = store.path / "fingerprints"
        for directory in (scratch, fingerprints):
            directory.mkdir(mode=0o700, exist_ok=True)
        self._uploads = Uploads(store.path / "uploads", self.settings.context_bytes)
        self._solver = Solver(
            store.records, store.transaction,
            limit=self.settings.max_parallelism or DEFAULT_PARALLELISM,
        )
        self._site = Site(
            store, nsd, puller, self._solver, Downloads(fetcher, store.blobs, store.sources),
            LocalContents(fingerprints, nsd, store.path / "selections"),
            Publisher(store, nsd, registry, self.settings), self.settings,
            scratch, self._uploads.path, self._keep_failed,
        )
        self._live: dict[str, Build] = {}
        self._failed: dict[str, FailedStep] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(self.settings.max_builds or MAX_LIVE)
        self._numbers = itertools.count()
        self._draining = False
        for left in scratch.iterdir():
            spawn(self._tasks, asyncio.ensure_future(self._sweep(left)))

    async def _sweep(self, path: Path) -> None:
        """What builds left that the daemon ended under."""
        with contextlib.suppress(Exception):
            await self._site.nsd.call("remove", {"paths": [str(path)]})

    # --- begin and end --------------------------------------------------------------------------

    async def start(self, request: BuildRequest, *, peer: Peer, remember: bool = True) -> BuildInfo:
        """Begin a build; ``remember``: see ``solver.job.Job``.
        Raises Unavailable (draining, too many), InvalidArgument, NoSpace."""
        if self._draining:
            raise Unavailable("the daemon is ending: it takes no new builds", hint="try again soon")
        if len(self._live) >= MAX_LIVE:
            raise Unavailable(f"{MAX_LIVE} builds are queued or running: no more are taken")
        build_id = secrets.token_hex(8)
        # A build that the daemon dies under is told from this row.
        kept = {**kept_request(request), "tags": list(request.tags)}
        directory = self._store.builds.new(build_id, build_name(request), kept)
        log_path = directory / "events.jsonl"
        build = Build(self._site, request, peer, build_id, log_path, remember=remember)
        self._live[build_id] = build
        build.task = spawn(self._tasks, asyncio.ensure_future(self._run(build)))
        return build.info

    async def _run(self, build: Build) -> None:
        try:
            try:
                async with self._slots:
                    await build.run()
            except asyncio.CancelledError:
                build.cancelled_early()
        finally:
            self._finish(build)

    def _finish(self, build: Build) -> None:
        info = build.info
        hit("builds.before-finish")
        with contextlib.suppress(Exception):
            explain.save(self._store, build.id, build.traces)
        with self._store.transaction():
            self._store.records.touch(build.used)
            if info.image and (image := self._store.images.get(info.image)) is not None:
                self._store.images.touch(image.id)
            self._store.builds.finish(
                build.id, info.state, result=msgspec.to_builtins(info), error=info.error or {}
            )
        self._live.pop(build.id, None)
        build.release()
        build.events.release()
        if isinstance(build.request.context, UploadContext):
            self._uploads.remove(build.request.context.id)
        self._expire()

    def _expire(self) -> None:
        if next(self._numbers) % 16:
            return
        settings = self.settings
        for old in self._store.builds.expired(settings.history_max, settings.history_ttl, time.time()):
            self._store.builds.remove(old)

    def reconfigure(self, settings: Settings) -> None:
        """Take other settings over, for builds that begin from now on (what bounds how many run at once
        stays as it was)."""
        self.settings = self._site.settings = settings

    async def cancel(self, build_id: str) -> None:
        """End a build; one that has ended is no error.  Raises NotFound."""
        live = self._live.get(build_id) or self._live.get(self.get(build_id).id)
        if live is None or live.task is None:
            return
        live.task.cancel()
        await until_done(asyncio.ensure_future(asyncio.wait({live.task})))

    async def wait(self, build_id: str) -> BuildInfo:
        """How it ended.  Raises NotFound."""
        name = self.get(build_id).id
        live = self._live.get(name)
        if live is not None and live.task is not None:
            await asyncio.wait({live.task})
        return self.get(name)

    async def drain(self, grace: float) -> None:
        """Take no new builds; wait for the rest so many seconds, then cancel them."""
        self._draining = True
        tasks = [build.task for build in self._live.values() if build.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        await self.close()

    async def close(self) -> None:
        """Cancel everything, and wait until it is gone."""
        self._draining = True
        tasks = [build.task for build in self._live.values() if build.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self.drop_failed()
        await self._solver.close()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # --- look -----------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Builds that are queued or running."""
        return len(self._live)

    def get(self, build_id: str) -> BuildInfo:
        """By id, by a unique beginning of one, or "" for the newest.  Raises NotFound, Conflict."""
        if build_id in self._live:
            return self._live[build_id].info
        rows = self._store.builds.recent(1) if not build_id else self._store.builds.find(build_id)
        if not rows:
            raise NotFound(f"build {build_id or '(newest)'}: no such build", hint="ocibuild ps -a lists them")
        if len(rows) > 1 and rows[0].id != build_id:
            raise Conflict(f"build {build_id}: more than one build begins so", hint="give more digits")
        return self._info(rows[0])

    def list(self, limit: int = 100) -> list[BuildInfo]:
        """Newest first."""
        return [self._info(row) for row in self._store.builds.recent(limit)]

    def _info(self, row: BuildRow) -> BuildInfo:
        live = self._live.get(row.id)
        if live is not None:
            return live.info
        if row.result:
            info = msgspec.convert(row.result, BuildInfo)
            return msgspec.structs.replace(info, debug=row.id in self._failed)
        return BuildInfo(
            row.id, row.name, row.status, row.started, row.started, row.ended,
            error=dict(row.error) or None,
        )

    async def events(
        self, build_id: str, since: int = 0, *, follow: bool = True
    ) -> AsyncIterator[bytes]:
        """The event log from event ``since`` on; ends with the build.  Raises NotFound."""
        info = self.get(build_id)
        name = info.id
        live = self._live.get(name)
        if live is not None:
            async for data in live.events.follow(since, wait=follow):
                yield data
            return
        try:
            data = replay(self._store.builds.events(name), since)
        except FileNotFoundError:
            raise NotFound(f"build {name}: its event log is gone") from None
        if info.state == "interrupted":
            data += last_event(data, since, info.ended, info.error or {})
        if data:
            yield data

    async def explain(self, target: str, step: str = "") -> Explained:
        """Why each step of a build, or of the one that made an image, ran or didn't; see
        ``explain.explanations``.  Raises NotFound."""
        try:
            build = self.get(target).id
        except NotFound as error:
            try:
                build = build_of(self._store, target)
            except NotFound:
                raise error from None
        return explain.explanations(self._store, build, step)

    async def verify(self, target: str, *, peer: Peer) -> AsyncIterator[bytes | dict[str, Any]]:
        """Build again what an image's name, or a build's id, stands for; its events, then one more:
        {"type": "verified", "same", "image", "differences": [{instruction, files}]}."""
        name = build_of(self._store, target)
        row = self._store.builds.get(name)
        assert row is not None
        kept = {key: value for key, value in row.request.items() if key != "tags"}
        old = self._store.images.get(str(row.result.get("image", "")))
        if old is None:
            raise NotFound(f"build {name}: it made no image, or the image is gone")
        with self._store.leases.new(f"verify {name}", passing=False) as lease:  # its build passes
            lease.add(layers=old.chain, blobs=[old.id])
            started = await self.start(again(kept, name), peer=peer, remember=False)
            async for data in self.events(started.id):
                yield data
            info = await self.wait(started.id)
            new = self._store.images.get(info.image) if info.image else None
            if new is None:
                return
            lease.add(layers=new.chain, blobs=[new.id])
            comparison = Comparison(self._store, self._site.nsd, self._site.puller.unpacker)
            found = await comparison.differences(old, new)
        yield {"type": "verified", "same": not found, "image": info.image, "differences": found}

    def output(self, build_id: str, number: int) -> Path:
        """The file that an output with dest "-" was written to.  Raises NotFound."""
        path = self._store.builds.directory(self.get(build_id).id) / f"output-{int(number)}"
        if not path.is_file():
            raise NotFound(f"build {build_id}: no output {number}")
        return path

    def upload(self) -> Upload:
        """A context on its way in.  Raises Unavailable, NoSpace."""
        if self._draining:
            raise Unavailable("the daemon is ending: it takes no new builds")
        return self._uploads.new()

    # --- failed steps ---------------------------------------------------------------------------

    def failed(self, build_id: str) -> FailedStep:
        """What is left of a build's failed step, for a while.  Raises NotFound."""
        name = self.get(build_id).id
        found = self._failed.get(name)
        if found is None:
            raise NotFound(f"build {name}: nothing is kept of a failed step",
                           hint="it may have expired ([build] failed_ttl), or nothing failed")
        return found

    def _keep_failed(self, build: str, failed: FailedRun) -> bool:
        ttl = self.settings.failed_ttl
        if ttl <= 0 or build in self._failed or self._store.space.is_full:
            return False
        while len(self._failed) >= MAX_KEPT_FAILED:
            self._drop_failed(next(iter(self._failed)))
        lease = self._store.leases.new(f"failed step of build {build}", passing=False)
        lease.add(layers=failed.chain)
        spec = failed.spec.copy()
        spec["mounts"] = [m for m in spec["mounts"] if m["kind"] not in ("secret", "socket")]
        timer = asyncio.get_running_loop().call_later(ttl, self._drop_failed, build)
        self._failed[build] = FailedStep(
            build, failed.vertex, spec, failed.chain, time.time() + ttl, lease, timer
        )
        return True

    def drop_failed(self) -> None:
        """Give up all that is kept of failed steps (``prune -a``)."""
        for name in list(self._failed):
            self._drop_failed(name)

    def _drop_failed(self, build: str) -> None:
        kept = self._failed.pop(build, None)
        if kept is None:
            return
        if kept.timer is not None:
            kept.timer.cancel()
        kept.lease.release()
        self._site.puller.unpacker.discard(kept.spec["tree"])


__all__ = ["BuildInfo", "Builds", "FailedStep", "Peer", "Settings", "Upload"]
