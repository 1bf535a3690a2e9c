"""Drives the schedule: evaluates vertices, looks keys up, has work done once for all who want it.

One Solver serves all builds of the daemon.  A build is a ``Job``: its vertices, who does its work
(``ports.Executor``) and where its events go.  The solver never waits for a layer to be hashed and
compressed before it lets the next step run: see ``ports.Result``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from ocibuildd.errors import BuildError, Cancelled, NotFound
from ocibuildd.model.graph import ContextSource, GitSource, HttpSource, ImageSource, Scratch
from ocibuildd.ports import LayerId, Packed, Record, Result, Selection, Work
from ocibuildd.runtime import spawn, until_done
from ocibuildd.store.failpoints import hit

from . import cache, reasons
from .job import Job, Run, Trace
from .pending import Index, PendingRecords
from .schedule import Action, Evaluate, Finish, Resolve, Schedule, Start, Stop

log = logging.getLogger(__name__)

COMMITS = 2
"""Layers being diffed, hashed and compressed at once, beside the steps that run."""


class Solver:
    """``transaction``: the store's, so that what belongs together is one commit."""

    def __init__(
        self, records: Index, transaction: Callable[[], AbstractContextManager[None]], *,
        limit: int = 0,
    ):
        self._records = PendingRecords(records, transaction)
        self._schedule = Schedule(limit)
        self._jobs: dict[str, Job] = {}
        self._runs: dict[str, Run] = {}
        self._committing: dict[str, Result] = {}
        self._commits: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(COMMITS)

    # --- for builds -----------------------------------------------------------------------------

    async def solve(self, job: Job) -> dict[int, Result]:
        """The settled results of all vertices.  Raises what the first failing vertex raised.

        When cancelled, whatever only this build waited for is stopped and gone before it returns."""
        loop = asyncio.get_running_loop()
        job.done = loop.create_future()
        job.uses += 1
        self._jobs[job.id] = job
        try:
            inputs = [vertex.inputs for vertex in job.vertices]
            self._apply(self._schedule.add(job.id, inputs, limit=job.limit))
            await job.done
            settled = {index: await settle(result) for index, result in job.results.items()}
            await _gone(job.tasks)  # each vertex has been told of
            if job.error is not None:  # or could not be
                raise job.error
            self._records.flush()
            return settled
        finally:
            mine = [run for run in self._runs.values() if run.job is job]
            self._apply(self._schedule.cancel(job.id))
            self._leave(job)
            alone = [run.task for run in mine if run.task and not run.listeners]
            try:
                await until_done(asyncio.ensure_future(_gone(alone)))
            finally:
                self._unuse(job)

    async def close(self) -> None:
        """End everything."""
        for name in list(self._jobs):
            self._apply([Finish(name, -1), *self._schedule.cancel(name)])
        await _gone([run.task for run in self._runs.values() if run.task])
        await _gone(self._commits)

    # --- actions --------------------------------------------------------------------------------

    def _apply(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Evaluate(build, vertex):
                    job = self._jobs.get(build)
                    if job is not None:
                        spawn(job.tasks, asyncio.ensure_future(self._evaluate(job, vertex)))
                case Start(key, build, vertex):
                    self._start(key, self._jobs[build], vertex)
                case Stop(key):
                    run = self._runs[key]
                    run.stopping = True
                    if run.task is not None:
                        run.task.cancel()
                case Resolve(key, build, vertex):
                    self._resolve(self._runs[key], build, vertex)
                case Finish(build, failed):
                    self._finish(build, failed)

    def _start(self, key: str, job: Job, vertex: int) -> None:
        run = self._runs[key]
        if run.task is not None:  # it was stopped, and is wanted again
            run = self._runs[key] = Run(key, job, vertex, (), None, run.listeners)
        run.job, run.vertex = job, vertex
        latest = [job.results[index] for index in job.vertices[vertex].inputs]
        given = job.traces[vertex].inputs or latest
        run.inputs = [
            new if old.settled is not None and new.settled is None else old
            for old, new in zip(given, latest, strict=True)
        ]
        run.preimage = job.traces[vertex].preimage
        run.started = time.monotonic()
        job.uses += 1
        for other, index in run.listeners:
            self._event_started(other, index)
        run.task = asyncio.ensure_future(self._execute(run))

    def _event_started(self, job: Job, vertex: int, *, known: bool = False) -> None:
        trace = job.traces[vertex]
        trace.started = time.time()
        job.tell(vertex, "started", trace=trace, known=known)

    def _resolve(self, run: Run, build: str, vertex: int) -> None:
        job = self._jobs.get(build)
        if job is None or run.result is None:
            return
        trace = job.traces[vertex]
        trace.seconds, trace.usage = run.seconds, run.work.usage
        if job is not run.job:
            try:
                job.hold(run.result.chain)
            except NotFound as error:
                job.error = error
        self._give(job, vertex, run.result, trace)

    def _give(self, job: Job, vertex: int, result: Result, trace: Trace) -> None:
        """A vertex has its result; its event waits until all is known of it."""
        job.results[vertex] = result
        job.traces[vertex] = trace
        if result.settled is None:
            job.tell(vertex, "done", trace=trace, result=result)
        else:
            spawn(job.tasks, asyncio.ensure_future(_announce(job, vertex, result, trace)))

    def _finish(self, build: str, failed: int | None) -> None:
        job = self._jobs.get(build)
        if job is None or job.done is None or job.done.done():
            return
        if failed is None and job.error is None:
            job.done.set_result(None)
            return
        job.failed = failed
        for task in job.tasks:
            if task is not asyncio.current_task():
                task.cancel()
        job.done.set_exception(job.error or Cancelled("build cancelled: the daemon ends"))

    def _leave(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        for task in job.tasks:
            task.cancel()
        for key, run in list(self._runs.items()):
            run.listeners = [entry for entry in run.listeners if entry[0] is not job]
            if not run.listeners and (run.task is None or run.task.done()):
                del self._runs[key]

    def _unuse(self, job: Job) -> None:
        job.uses -= 1
        if job.uses == 0:
            self._records.flush()  # their layers are this job's to hold
            job.release()

    # --- evaluation -----------------------------------------------------------------------------

    async def _evaluate(self, job: Job, index: int) -> None:
        try:
            actions = await self._consider(job, index)
        except Exception as error:  # noqa: BLE001 - it is the build's to raise
            job.error = job.error or error
            actions = self._schedule.broke(job.id, index)
        self._apply(actions)

    async def _consider(self, job: Job, index: int) -> list[Action]:
        vertex = job.vertices[index]
        job.traces[index] = trace = Trace()
        if isinstance(vertex.op, Scratch):
            return self._known(job, index, Result(identity=cache.SCRATCH), trace)
        if isinstance(vertex.op, ImageSource | ContextSource | HttpSource | GitSource):
            return self._source(job, index, trace)
        inputs = [job.results[i] for i in vertex.inputs]
        inputs = [inputs[0], *[await settle(each) for each in inputs[1:]]]
        about = {"name": vertex.name, "build": job.id}
        bare = cache.Preimage(cache.describe(vertex.op), (), job.variant, about)
        if inputs[0].settled and not vertex.ignore_cache and self._seen(job, bare.op_digest):
            # A record of this very operation exists: whether it fits shows once the parent's
            # content is known.  Where there is none, the step needn't wait for that.
            inputs[0] = await settle(inputs[0])
        others = await self._selected(job, index, inputs)
        root = inputs[0].identity or inputs[0].provisional
        stands = () if cache.independent_of_root(vertex.op) else (
            cache.Input("root", root, name=job.vertices[vertex.inputs[0]].name),
        )
        preimage = cache.Preimage(bare.op, (*stands, *others), job.variant, about)
        trace.preimage, trace.key = preimage, preimage.key
        return self._look_up(job, index, inputs, trace)

    def _look_up(
        self, job: Job, index: int, inputs: Sequence[Result], trace: Trace
    ) -> list[Action]:
        key, vertex = trace.key, job.vertices[index]
        assert trace.preimage is not None
        if vertex.ignore_cache:
            trace.preimage = self._with_files(trace.preimage)
            trace.reasons = [reasons.Reason("no-cache", "the cache was not to be used (--no-cache)")]
            key = f"{key}/{job.id}/{index}"
        else:
            if not inputs[0].settled and (hit := self._hit(job, inputs[0], trace)) is not None:
                return self._known(job, index, hit, trace)
            if key in self._committing:
                job.hold(self._committing[key].chain)
                return self._known(job, index, self._committing[key], trace)
            trace.preimage = self._with_files(trace.preimage)
            trace.reasons = self._why(job, index, trace.preimage)
        return self._want(job, index, key, inputs, trace)

    def _source(self, job: Job, index: int, trace: Trace) -> list[Action]:
        trace.source = True
        result = job.executor.at_hand(index)
        if result is not None:
            job.hold(result.chain)
            return self._known(job, index, result, trace)
        op = job.vertices[index].op
        # Downloads and checkouts are done with the build's own credentials: never shared.
        trace.key = f"pull/{op.digest}/{op.platform}" if isinstance(op, ImageSource) else (
            f"{cache.digest([cache.describe(op)])}/{job.id}"
        )
        return self._want(job, index, trace.key, (), trace)

    def _known(self, job: Job, index: int, result: Result, trace: Trace) -> list[Action]:
        self._event_started(job, index, known=True)
        self._give(job, index, result, trace)
        return self._schedule.resolved(job.id, index)

    def _want(
        self, job: Job, index: int, key: str, inputs: Sequence[Result], trace: Trace
    ) -> list[Action]:
        trace.inputs = inputs
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = Run(key, job, index, inputs, trace.preimage)
        run.listeners.append((job, index))
        if run.task is not None:
            self._event_started(job, index)
            for kind, fields in run.backlog:
                job.tell(index, kind, **fields)
        return self._schedule.wants(job.id, index, key)

    async def _selected(
        self, job: Job, index: int, inputs: Sequence[Result]
    ) -> list[cache.Input]:
        """What COPY and bind mounts use, by content."""
        found = []
        for selection in job.executor.selections(index):
            source = inputs[selection.input]
            name = job.vertices[job.vertices[index].inputs[selection.input]].name
            whole = not selection.paths and source.identity
            if whole:
                found.append(cache.Input(selection.role, source.identity, name=name))
                continue
            digest, files, key = await self._checksum(job, index, selection, source)
            found.append(cache.Input(selection.role, digest, True, files, name, key))
        return found

    async def _checksum(
        self, job: Job, index: int, selection: Selection, source: Result
    ) -> tuple[str, Mapping[str, str], str]:
        """Digest, files, and the key of a record that has the files where they are left out."""
        if not source.identity:
            found = await job.executor.checksum(index, selection, source)
            return found["digest"], found["files"], ""
        key = cache.selection_key(source.identity, selection.paths, selection.options)
        record = self._record_of(job, key)
        job.used.add(key)
        if record is not None:
            return record.value, {}, key
        found = await job.executor.checksum(index, selection, source)
        kept = json.dumps(found["files"], separators=(",", ":"))
        record = Record(key, (), found["digest"], kept, 0.0, time.time(), job.id, kind="internal")
        self._records.put([record])
        return found["digest"], found["files"], ""

    def _with_files(self, preimage: cache.Preimage) -> cache.Preimage:
        """For a step that is to run: with the files that a hit has no need of."""
        inputs = tuple(
            replace(each, files=json.loads(self._records.preimage(each.selection) or "{}"), selection="")
            if each.selection else each for each in preimage.inputs
        )
        return replace(preimage, inputs=inputs)

    def _record_of(self, job: Job, key: str) -> Record | None:
        """The store's, else a remote cache's."""
        record = self._records.get(key)
        if record is None and job.imported is not None:
            record = job.imported.get(key)
        return record

    def _seen(self, job: Job, op: str) -> bool:
        return self._records.seen(op) or (job.imported is not None and job.imported.seen(op))

    def _hit(self, job: Job, parent: Result, trace: Trace) -> Result | None:
        record = self._record_of(job, trace.key)
        if record is None:
            return None
        standalone = record.value == "standalone"
        identity = record.identity
        if standalone:
            identity = cache.layer_identity(parent.identity, record.identity)
        # Its own layer only: the same content may stand on other layers here (--no-cache).
        own = record.chain if standalone else record.chain[-1:] if identity != parent.identity else ()
        chain = (*parent.chain, *own)
        try:
            job.hold(chain)
        except NotFound:
            return None
        job.used.add(trace.key)
        trace.cached, trace.made_by = True, record.build
        return Result(chain, identity, layer=own[-1] if own else None, created=record.created)

    def _why(self, job: Job, index: int, preimage: cache.Preimage) -> list[reasons.Reason]:
        """Why there is no record of this key."""
        if gone := job.gone(preimage.key):
            return gone
        nearest = self._records.nearest(preimage.selector)
        if nearest is None or not nearest.preimage:
            return job.earlier(index, preimage) or [reasons.Reason("first", "it never ran before")]
        try:
            return reasons.compare(cache.Preimage.from_json(nearest.preimage), preimage) or [
                reasons.Reason("evicted", "its record was removed from the cache")
            ]
        except ValueError:
            return [reasons.Reason("first", "its earlier record can't be read")]

    # --- runs -----------------------------------------------------------------------------------

    async def _execute(self, run: Run) -> None:
        try:
            run.result = await self._work(run)
            run.seconds = time.monotonic() - run.started
            actions = self._schedule.finished(run.key)
        except asyncio.CancelledError:
            actions = self._schedule.stopped(run.key)
        except Exception as error:  # noqa: BLE001 - it is the builds' to raise
            actions = self._failed(run, error)
        self._apply(actions)
        if self._runs.get(run.key) is run and not (run.stopping and run.listeners):
            del self._runs[run.key]
        self._unuse(run.job)

    def _failed(self, run: Run, error: Exception) -> list[Action]:
        if run.stopping:
            return self._schedule.stopped(run.key)
        if not isinstance(error, BuildError):
            log.error("%s", run.job.vertices[run.vertex].name, exc_info=error)
        for job, _ in run.listeners:
            job.error = job.error or error
        return self._schedule.failed(run.key)

    async def _work(self, run: Run) -> Result:
        executor, vertex = run.job.executor, run.vertex
        if run.preimage is None:
            return await executor.fetch(vertex, run.emit)
        run.work = work = await executor.execute(vertex, run.inputs, run.emit)
        run.seconds = time.monotonic() - run.started
        parent = run.inputs[0]
        if parent.settled is None and (work.layer is None or work.packed is not None):
            return await self._settle(run, parent, work.packed)
        return self._overlap(run, parent, work)

    def _overlap(self, run: Run, parent: Result, work: Work) -> Result:
        """The next step may use the tree while this one's layer is written."""
        task = spawn(self._commits, asyncio.ensure_future(self._commit(run, parent, work)))
        task.add_done_callback(_seen)
        run.job.uses += 1
        task.add_done_callback(lambda _: self._unuse(run.job))
        added = () if work.layer is None else (work.layer,)
        stands_for = cache.digest(["run", run.key]) if added else parent.provisional
        result = Result(
            (*parent.chain, *added), parent.identity if not added else "", stands_for,
            settled=lambda: asyncio.shield(task), layer=work.layer,
        )
        self._committing[run.key] = result
        task.add_done_callback(lambda _: self._committing.pop(run.key, None) and None)
        return result

    async def _commit(self, run: Run, parent: Result, work: Work) -> Result:
        packed = work.packed
        if packed is None and work.layer is not None:
            async with self._slots:
                packed = await run.job.executor.commit(run.vertex, run.inputs, work)
        return await self._settle(run, parent, packed)

    async def _settle(self, run: Run, parent: Result, packed: Packed | None) -> Result:
        """The layer is durable: what the result is, and the records that say so."""
        parent = await settle(parent)
        work, preimage = run.work, run.preimage
        assert preimage is not None
        content = "" if packed is None or packed["empty"] or work.layer is None else packed["content"]
        identity = cache.layer_identity(parent.identity, content)
        preimage = _final(preimage, parent)
        key = preimage.key
        for job, vertex in run.listeners:
            job.traces[vertex].key = key
        chain, records, created = parent.chain, [], time.time()
        if content and work.layer is not None:
            chain = (*parent.chain, work.layer)
            same = cache.identity_key(identity, preimage.variant)
            earlier = None if run.job.vertices[run.vertex].ignore_cache else self._records.get(same)
            if earlier is not None and self._held(run, earlier.chain[-1:]):
                chain, created = (*parent.chain, *earlier.chain[-1:]), earlier.created
            else:
                records.append(self._record(run, preimage, same, chain, identity, created, kind="internal"))
        own, value, known = chain, "", identity
        if work.standalone and work.layer is not None and content:
            own, value, known = chain[-1:], "standalone", content
        records.append(self._record(run, preimage, key, own, known, created, value=value))
        hit("solve.before-records")
        if run.job.remember or not run.job.vertices[run.vertex].ignore_cache:
            self._records.put(records)
        hit("solve.after-records")
        changed = chain[-1] if chain != parent.chain else None
        return Result(chain, identity, layer=changed, created=created)

    def _held(self, run: Run, chain: Sequence[LayerId]) -> bool:
        try:
            run.job.hold(chain)
            for job, _ in run.listeners:
                job.hold(chain)
        except NotFound:
            return False
        return True

    def _record(
        self, run: Run, preimage: cache.Preimage, key: str, chain: Sequence[LayerId], identity: str,
        created: float, *, kind: str = "regular", value: str = "",
    ) -> Record:
        step = kind == "regular"
        return Record(
            key, tuple(chain), value, preimage.to_json() if step else "", run.seconds, created,
            run.job.id, identity, preimage.selector if step else "",
            preimage.op_digest if step else "", kind=kind,
            description=run.job.vertices[run.vertex].name, last_used=time.time(),
        )


def _final(preimage: cache.Preimage, parent: Result) -> cache.Preimage:
    """The preimage once the parent's identity is known."""
    inputs = tuple(
        cache.Input("root", parent.identity, name=each.name) if each.role == "root" else each
        for each in preimage.inputs
    )
    return cache.Preimage(preimage.op, inputs, preimage.variant, preimage.about)


async def settle(result: Result) -> Result:
    """The result once its layer is durable."""
    return result if result.settled is None else await result.settled()


async def _announce(job: Job, vertex: int, result: Result, trace: Trace) -> None:
    """Tell of a vertex once its layer is known; a commit that failed is told of by the build."""
    try:
        final = await settle(result)
    except BuildError:
        return
    job.results[vertex] = final
    job.tell(vertex, "done", trace=trace, result=final)


async def _gone(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Wait for tasks that were told to end, or will."""
    waiting = [task for task in tasks if not task.done() and task is not asyncio.current_task()]
    if waiting:
        await asyncio.wait(waiting)


def _seen(task: asyncio.Future[Any]) -> None:
    """An error of a commit is raised where it is awaited; nobody may be left to do so."""
    if not task.cancelled():
        task.exception()
