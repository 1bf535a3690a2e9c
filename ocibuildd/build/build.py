"""One build, from request to answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..dockerfile import NamedContext
from ..errors import BuildError, Cancelled, Denied
from ..executor.contents import LocalContents
from ..executor.git import Checkout, checkout
from ..executor.image import ImagePuller
from ..executor.run import Surroundings
from ..executor.source import Directory, Downloads, HttpFile
from ..executor.work import FailedRun, Materials, StepExecutor
from ..export.options import flag, made_as
from ..model.graph import GitSource, HttpSource, Plan
from ..model.oci import Platform
from ..model.request import BuildRequest
from ..ports import Emit, LayerId, Nsd, Output, Result
from ..runtime import until_done
from ..solver.job import Job
from ..solver.solve import Solver
from ..store import Store
from ..store.leases import Lease
from . import explain
from .cache_export import CacheExporter, Keys, keys_of
from .classic import Checksums, check_made, classic_checksums
from .context import ContextOpener, OpenContext, Remote
from .frontend import FrontEnd, Lowered, or_findings, parse_platform
from .info import BuildInfo, Peer, Settings
from .options import (
    build_name,
    check_entitlements,
    decode_secrets,
    limit_warnings,
    located,
    of_system,
    parse_hosts,
    step_limits,
    variant,
)
from .outcome import MadeImage
from .progress import EventLog
from .publish import Published, Publisher
from .pushes import Pushes
from .remote import ask_time, fetch_context
from .remote_cache import Imported, RemoteCaches, inject
from .squash import Squasher
from .watch import Watch

log = logging.getLogger(__name__)

LATER = 0.005
"""Seconds between the answer and the rows of intermediate images: the answer goes out first."""

@dataclass(slots=True)
class Site:
    """What all builds of the daemon share."""

    store: Store
    nsd: Nsd
    puller: ImagePuller
    solver: Solver
    downloads: Downloads
    contents: LocalContents
    publisher: Publisher
    settings: Settings
    scratch: Path
    upload: Any = None
    keep_failed: Any = None


@dataclass(slots=True)
class _Made:
    """One platform's outcome."""

    plan: Plan
    final: MadeImage
    cached: int
    total: int
    warnings: tuple[str, ...] = ()
    images: list[MadeImage] = field(default_factory=list)
    keys: Keys = field(default_factory=lambda: Keys((), ()))
    base: tuple[LayerId, ...] = ()


class Build:
    """A build.  ``run`` once; ``info`` at any time."""

    def __init__(
        self, site: Site, request: BuildRequest, peer: Peer, build_id: str, log_path: Path, *,
        remember: bool = True,
    ):
        """remember: see ``solver.job.Job``."""
        self.id = build_id
        self.request = request
        self.peer = peer
        self.events = EventLog(log_path)
        self.name = build_name(request)
        self.remember = remember
        self.state = "queued"
        self.created = time.time()
        self.started = self.ended = 0.0
        self.error: BuildError | None = None
        self.answer: dict[str, Any] = {}
        self.traces: dict[str, Any] = {}
        self.used: set[str] = set()
        self.task: asyncio.Task[None] | None = None
        self.debug = False
        self._site = site
        self._scratch = site.scratch / build_id
        self._lease: Lease = site.store.leases.new(f"build {build_id}")
        self._closers: list[Any] = []
        self._later: Callable[[], None] | None = None
        self._imported: Imported | None = None

    @property
    def info(self) -> BuildInfo:
        """How it stands."""
        got = self.answer
        return BuildInfo(
            self.id, self.name, self.state, self.created, self.started, self.ended,
            got.get("image", ""), got.get("digest", ""), tuple(got.get("names", ())),
            got.get("total", 0), got.get("cached", 0),
            self.error.to_dict() if self.error else None, self.debug,
        )

    # --- the whole ------------------------------------------------------------------------------

    async def run(self) -> None:
        """From start to the last event; raises nothing but bugs of ours."""
        self.state, self.started = "running", time.time()
        begun = time.monotonic()
        limit = self.request.timeout or self._site.settings.build_timeout or None
        try:
            async with asyncio.timeout(limit):
                self.answer = await self._build()
            self.state = "done"
        except asyncio.CancelledError:
            self.state, self.error = "cancelled", Cancelled("the build was cancelled")
        except TimeoutError:
            self.state = "failed"
            self.error = BuildError(f"the build took longer than {limit:g} s", hint="raise the timeout")
        except BuildError as error:
            self.state, self.error = "failed", error
        except OSError as error:
            log.warning("build %s: %r", self.id, error)
            self.state, self.error = "failed", of_system(error)
        except Exception as error:
            log.exception("build %s", self.id)
            self.state = "failed"
            self.error = BuildError(f"internal error: {error!r}", hint="the daemon's log tells more")
        self.ended = time.time()
        seconds = round(time.monotonic() - begun, 4)
        if self.error is not None:
            self.events.append("build.failed", error=self.error.to_dict(), seconds=seconds)
        else:
            self.events.append("build.done", seconds=seconds, **self.answer)
        if self._later is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(LATER)
            with contextlib.suppress(BuildError):
                self._later()
        await self._clean_up()

    def cancelled_early(self) -> None:
        """It was cancelled while it waited for its turn."""
        if self.state == "queued":
            self.state, self.error = "cancelled", Cancelled("the build was cancelled")
            self.ended = time.time()
            self.events.append("build.failed", error=self.error.to_dict())

    async def _clean_up(self) -> None:
        for close in reversed(self._closers):
            with contextlib.suppress(OSError):
                close()
        if self._scratch.exists():
            with contextlib.suppress(BuildError, OSError):
                await until_done(asyncio.ensure_future(
                    self._site.nsd.call("remove", {"paths": [str(self._scratch)]})
                ))

    async def _build(self) -> dict[str, Any]:
        site = self._site
        opener = ContextOpener(site.nsd, self._scratch, site.upload, self._fetch_context, self.peer)
        context = await opener.open(self.request)
        if context.directory is not None:
            self._closers.append(context.directory.close)
        return await or_findings(self._read(opener, context), self.request, context)

    async def _read(self, opener: ContextOpener, context: OpenContext) -> dict[str, Any]:
        front = FrontEnd(self._site.puller, self.request, context)
        self._closers.append(front.close)
        if self.request.call == "targets":
            return {"result": front.targets()}
        if self.request.call == "build":
            await self._import_caches()
        async with contextlib.aclosing(self._site.publisher.pushes(self.request, self.events)) as pushes:
            return await self._platforms(context, front, front.named_contexts(opener), pushes)

    async def _platforms(
        self, context: OpenContext, front: FrontEnd, named: Mapping[str, NamedContext], pushes: Pushes
    ) -> dict[str, Any]:
        request = self.request
        platforms: list[Platform | None] = [parse_platform(text) for text in request.platforms] or [None]
        made = []
        for number, platform in enumerate(platforms):
            options = front.options(platform, named, reproducible=self._clamps())
            options = await front.with_epoch(options, self._epoch_of)
            if request.call != "build":
                await front.resolve(options)
                result = front.check(options) if request.call == "check" else front.outline(options)
                return {"result": result}
            lowered = await front.lower(options)
            prefix = f"{number}." if len(platforms) > 1 else ""
            made.append(await self._one(lowered, context, front, prefix, pushes))
        return await self._publish(made, pushes)

    # --- one platform ---------------------------------------------------------------------------

    async def _one(
        self, lowered: Lowered, context: OpenContext, front: FrontEnd, prefix: str, pushes: Pushes
    ) -> _Made:
        plan = lowered.plan
        watch = Watch(
            self.id, self.name, self.events, self._site.store, plan, prefix,
            keep_empty=self.request.compat != "docker",
            # What is squashed later is no layer of the image.
            offer=None if self.request.squash else pushes.offer,
        )
        watch.announce(context.filename, (*lowered.warnings, *limit_warnings(plan, self.request, self._site)))
        check_entitlements(plan, self.request, self._site.settings, context)
        agents = await self._agents()
        executor = self._executor(lowered, context, front, agents)
        uses = self._site.store.leases.new(f"steps of build {self.id}", of=self._lease)

        def release() -> None:
            executor.close()
            uses.release()

        job = Job(
            f"{self.id}{prefix}", plan.vertices, executor, watch.event, self._hold(uses),
            release, limit=self.request.max_parallelism,
            variant=variant(self._output(plan), plan.epoch), earlier=watch.before.differs,
            gone=watch.before.gone, imported=self._imported, remember=self.remember,
        )
        try:
            results = await self._site.solver.solve(job)
        except Exception as error:
            self.traces |= explain.dump(plan, job.traces, prefix)
            images = list(watch.follower.images)
            self._later = lambda: self._site.publisher.remember(self.id, plan, images, self._lease)
            if isinstance(error, BuildError):
                self._locate(error, job, context, prefix)
            raise
        self.traces |= explain.dump(plan, job.traces, prefix)
        final = watch.follower.finish()
        self.used |= job.used
        cached = sum(1 for trace in job.traces.values() if trace.preimage and trace.cached)
        total = sum(1 for trace in job.traces.values() if trace.preimage)
        keys = keys_of(job, results, plan.stages[plan.target].vertex)
        return _Made(
            plan, final, cached, total, images=watch.follower.images, keys=keys,
            base=watch.follower.maker.base_chain(plan.stages[plan.target]),
        )

    async def _agents(self) -> Mapping[str, str]:
        """The sockets of the SSH keys that the request brought."""
        if not self.request.ssh:
            return {}
        from .agent import AgentSockets  # cryptography stands behind it: megabytes

        agents = AgentSockets(self._scratch, self.request.ssh, self.peer)
        self._closers.append(agents.close)
        await agents.start()
        return agents

    def _hold(self, uses: Lease) -> Any:
        def hold(chain: Iterable[LayerId]) -> None:
            layers = tuple(chain)
            self._lease.add(layers=layers)
            uses.add(layers=layers)
        return hold

    def _output(self, plan: Plan) -> Output:
        settings, outputs = self._site.settings, self.request.outputs
        compression, level = made_as(outputs, settings.compression, settings.compression_level)
        attrs = next((o.attrs for o in outputs if "rewrite-timestamp" in o.attrs), {})
        rewrite = flag(attrs, "rewrite-timestamp", plan.epoch is not None)
        clamp = (plan.epoch or 0) if rewrite or self._clamps() else None
        return {"compression": compression, "level": level, "clamp": clamp}

    def _clamps(self) -> bool:
        """Is the build to be reproducible, times and all?"""
        wanted = self.request.reproducible
        return self._site.settings.reproducible if wanted is None else wanted

    def _executor(
        self, lowered: Lowered, context: OpenContext, front: FrontEnd, agents: Mapping[str, str]
    ) -> StepExecutor:
        site, request = self._site, self.request
        secrets = decode_secrets(request)
        contexts: dict[str, Directory] = dict(front.directories)
        contexts["context"] = context.directory or self._empty()
        masked = tuple(data.decode("utf-8", "replace").strip() for data in secrets.values())
        materials = Materials(
            build=self.id, vertices=lowered.plan.vertices, lease=self._lease,
            output=self._output(lowered.plan), images=lowered.images, contexts=contexts,
            around=Surroundings(
                secrets, agents, parse_hosts(request.add_hosts), step_limits(request, site.settings),
                {**site.settings.dns, **({"servers": list(request.dns)} if request.dns else {})},
                request.no_new_privileges or site.settings.no_new_privileges,
            ),
            epoch=lowered.plan.epoch, auth=request.auth,
            fetch_http=lambda op, emit: self._fetch_http(op, secrets, emit),
            fetch_git=lambda op, emit: self._fetch_git(op, secrets, emit),
            checksum=self._checksums(), kept=site.contents.kept,
            on_failed=self._failed, log_limit=site.settings.log_bytes, masked=masked,
        )
        return StepExecutor(site.store, site.nsd, site.puller, materials)

    def _checksums(self) -> Checksums:
        checksum = self._site.contents.checksum
        return classic_checksums(checksum) if self.request.compat == "docker" else checksum

    def _empty(self) -> Directory:
        path = self._scratch / "empty"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = Directory(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self._closers.append(directory.close)
        return directory

    def _failed(self, failed: FailedRun) -> bool:
        if not self.request.keep_failed or self._site.keep_failed is None:
            return False
        self.debug = bool(self._site.keep_failed(self.id, failed))
        return self.debug

    def _locate(self, error: BuildError, job: Job, context: OpenContext, prefix: str) -> None:
        """Say where in the Dockerfile it was."""
        index = job.failed
        if index is None or index < 0:
            return
        vertex = job.vertices[index]
        error.details["vertex"] = f"{prefix}{index}"
        self.events.append("vertex.done", vertex=f"{prefix}{index}", error=error.to_dict())
        if vertex.location is not None and "line" not in error.details:
            error.details |= located(vertex, context)

    # --- remote sources -------------------------------------------------------------------------

    async def _download(
        self, op: HttpSource, secrets: Mapping[str, bytes], emit: Emit
    ) -> HttpFile:
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)

        def progress(done: int, total: int) -> None:
            emit("status", id=op.filename or "download", current=done, total=total, unit="bytes")

        file = await self._site.downloads.get(
            op, secrets, lambda digest: self._lease.add(blobs=(digest,)), self._scratch, progress
        )
        self._closers.append(file.directory.close)
        return file

    async def _fetch_http(
        self, op: HttpSource, secrets: Mapping[str, bytes], emit: Emit
    ) -> Result:
        file = await self._download(op, secrets, emit)
        return Result(identity=file.identity, directory=file.directory)

    async def _checkout(self, op: GitSource, secrets: Mapping[str, bytes], emit: Emit) -> Checkout:
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        agent = next((spec.agent for spec in self.request.ssh if spec.id == "default"), "")
        got = await checkout(op, secrets, self._scratch, emit, agent)
        self._closers.append(got.directory.close)
        return got

    async def _fetch_git(self, op: GitSource, secrets: Mapping[str, bytes], emit: Emit) -> Result:
        got = await self._checkout(op, secrets, emit)
        return Result(identity=got.identity, directory=got.directory)

    async def _epoch_of(self, source: GitSource | HttpSource) -> int | None:
        """The time of a remote source: its commit's, Last-Modified, or its newest entry's."""
        secrets = decode_secrets(self.request)
        if isinstance(source, GitSource):
            return (await self._checkout(source, secrets, _silent)).time
        file = await self._download(source, secrets, _silent)
        return await ask_time(file, source.filename, self._site.nsd, self._scratch)

    async def _fetch_context(self, url: str) -> Remote:
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        secrets = decode_secrets(self.request)
        return await fetch_context(
            url, self._site.nsd, self._site.downloads, secrets, self._scratch,
            lambda digest: self._lease.add(blobs=(digest,)), classic=self.request.compat == "docker",
        )

    # --- caches elsewhere -----------------------------------------------------------------------

    async def _import_caches(self) -> None:
        site, specs = self._site, self.request.cache_from
        if not specs:
            return
        if any(spec.type == "local" for spec in specs) and not self.peer.local:
            raise Denied("cache-from: only clients of the Unix socket may name directories")
        self._imported = Imported(site.store, site.puller.unpacker)
        self._closers.append(self._imported.close)
        caches = RemoteCaches(site.store, site.puller.registry, self.request.auth, self._lease)
        for text in await caches.load(specs, self._imported):
            self.events.append("message", level="warning", text=text)

    def _exporter(self) -> CacheExporter:
        site = self._site
        return CacheExporter(
            site.store, site.puller.registry, site.puller.unpacker, self.request.auth, self._lease,
            self._imported,
        )

    async def _export_caches(self, made: list[_Made]) -> None:
        keys = Keys(
            tuple(dict.fromkeys(key for each in made for key in each.keys.all)),
            tuple(dict.fromkeys(key for each in made for key in each.keys.target)),
        )
        for number, spec in enumerate(self.request.cache_to):
            if spec.type == "inline":
                continue
            if spec.type == "local" and not self.peer.local:
                raise Denied("cache-to: only clients of the Unix socket may name directories")
            vertex, begun = f"cache:{number}", time.monotonic()
            self.events.append("vertex.started", vertex=vertex, name=f"exporting cache to {spec.type}")

            def emit(kind: str, vertex: str = vertex, **fields: Any) -> None:
                self.events.append(f"vertex.{kind}", vertex=vertex, **fields)

            await self._exporter().export(spec, keys, emit)
            seconds = round(time.monotonic() - begun, 4)
            self.events.append("vertex.done", vertex=vertex, seconds=seconds)

    async def _complete(self, made: list[_Made]) -> None:
        """Bring in what of the images is still in remote caches; put the cache into their configs."""
        store, unpacker = self._site.store, self._site.puller.unpacker
        for each in made:
            if self._imported is not None:
                for layer in store.layers.chain(each.final.chain):
                    await unpacker.obtain(layer)
            if any(spec.type == "inline" for spec in self.request.cache_to):
                listed = self._exporter().listing(each.keys, "min")
                composed = each.final.composed
                composed = replace(composed, config=inject(composed.config, listed))
                each.final = replace(each.final, composed=composed)

    # --- the end --------------------------------------------------------------------------------

    async def _squash(self, made: list[_Made]) -> None:
        site = self._site
        for each in made:
            squasher = Squasher(site.store, site.nsd, site.puller.unpacker, self._output(each.plan), self._lease)
            own = len(each.plan.stages[each.plan.target].history)
            each.final = await squasher.squash(each.final, each.base, own)

    async def _publish(self, made: list[_Made], pushes: Pushes) -> dict[str, Any]:
        if self.request.compat == "docker":
            check_made(made[0].plan)
        if self.request.squash:
            await self._squash(made)
        await self._complete(made)
        published: Published = await self._site.publisher.publish(
            self.id, self.request, [(each.plan, each.final, each.images) for each in made],
            self._lease, self.events, self.peer, pushes,
        )
        self._later = published.later
        if self._imported is not None:
            self._imported.keep()
        await self._export_caches(made)
        return {
            "image": published.image, "digest": published.descriptor["digest"],
            "descriptor": published.descriptor, "names": published.names,
            "outputs": published.outputs,
            "cached": sum(each.cached for each in made), "total": sum(each.total for each in made),
        }

    def release(self) -> None:
        """Nothing of it is needed any more (its rows are written)."""
        self._lease.release()


def _silent(*_args: Any, **_fields: Any) -> None:
    """``Emit`` for work that is no vertex's."""
