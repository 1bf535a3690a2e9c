"""What goes on beside the builds: trees to the disk, the trash emptied, policies applied, the database kept
small.  The only asynchronous part of the store; one :class:`Maintenance` a store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from pathlib import Path
from typing import TypeVar

from ..errors import BuildError, NoSpace
from ..ports import Lease
from ..runtime import in_thread, spawn, until_done
from .db import checkpoint
from .gc import Plan, planning
from .policy import Policy
from .rebuild import compacting
from .space import Reservation, Told
from .store import Store
from .survey import surveying
from .sweep import Outcome, collecting, list_trash, unlink_trash
from .usage import Usage, reckoning

log = logging.getLogger(__name__)

SYNC_DELAY = 2.0
"""Seconds after which new trees are synced: long enough for a build's next steps to join in."""
IDLE_CHECKPOINT = 256 << 10
"""Bytes of write-ahead log below which an idle moment isn't used to empty it."""
BUSY_CHECKPOINT = 16 << 20
"""Bytes of it above which a long collection stops to work it off."""
CHECKPOINT_STEPS = 16
ADMIT_TRIES = 3
ADMIT_PAUSE = 1.0
ADMIT_PATIENCE = 20.0
"""Seconds that a step waits for room which others hold, if they may still give it back."""
ADMIT_AGAIN = 5.0
"""Seconds after which who waits looks again for what may go, where no lease gave anything back."""

REMOVERS = 3
"""Jobs that delete directories at a time."""
REMOVER_LEAST = 32
"""Directories worth a job."""

T = TypeVar("T")
Remover = Callable[[Sequence[Path]], Awaitable[object]]
"""Deletes directories that belong to subordinate ids (nsd's ``remove`` job)."""
Measurer = Callable[[Sequence[Path]], Awaitable[Sequence[int]]]
"""Bytes that such directories take (nsd's ``measure`` job)."""


async def _unknown(paths: Sequence[Path]) -> Sequence[int]:
    """Where nobody can look."""
    return [0] * len(paths)


async def drive(
    steps: Generator[None, None, T], *, every: int = 0, also: Callable[[], Awaitable[object]] | None = None
) -> T:
    """Run a stepwise function, letting the loop turn at each step; ``also`` after each ``every`` steps."""
    number = 0
    try:
        while True:
            try:
                next(steps)
            except StopIteration as stop:
                result: T = stop.value
                return result
            number += 1
            await asyncio.sleep(0)
            if also is not None and every and not number % every:
                await also()
    finally:
        steps.close()


class Maintenance:
    """``run`` is a task of the daemon's; the rest is for whoever wants it now."""

    def __init__(
        self, store: Store, remove: Remover, policies: Sequence[Policy] = (), *, interval: float = 600.0,
        keep_builds: int = 500, build_age: float = 0.0, measure: Measurer = _unknown,
    ):
        self.store = store
        self.policies = tuple(policies)
        self.interval = interval
        self.keep_builds = keep_builds
        self.build_age = build_age
        self.last: Outcome | None = None
        self._remove = remove
        self._measure = measure
        self._free = store.space.disk().free
        """Bytes on the disk when cache mounts were measured last."""
        self._collecting = asyncio.Lock()
        self._emptying = asyncio.Lock()
        self._giving: set[asyncio.Task[None]] = set()
        """Giving the disk back what collections took."""
        self._wake = asyncio.Event()
        self._collected = time.monotonic()
        self._gave_up = 0.0
        """When somebody last waited for room in vain: what that one held comes back."""
        self._dirty = True
        if not store.recovered.clean:
            store.cache_mounts.stale.update(mount.hash for mount in store.cache_mounts.all())
        store.db.on_write = self.poke
        store.admit = self.admit

    def poke(self) -> None:
        """Something was committed or put into the trash: work for a moment later."""
        self._dirty = True
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled.  Failures are logged and tried again later."""
        while True:
            self._wake.clear()  # before the work: what is committed meanwhile is the next turn's
            try:
                if self._dirty:
                    self._dirty = False
                    await self.measure()
                    await self.sync()
                    await self.empty_trash()
                    await self.tidy()
                if self.interval and time.monotonic() - self._collected >= self.interval:
                    await self.collect()
            except (BuildError, OSError) as error:
                log.warning("maintenance: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self.interval or None)
                await asyncio.sleep(SYNC_DELAY)

    async def measure(self, *, everything: bool = False) -> None:
        """How large the cache mounts are that were used since they were last looked at, or all of them."""
        mounts = self.store.cache_mounts
        found = [mount for mount in mounts.all() if everything or mount.hash in mounts.stale]
        mounts.stale.clear()  # whoever uses one from here on makes it so again
        self._free = self.store.space.disk().free
        if found:
            sizes = await self._measure([mount.path for mount in found])
            for mount, size in zip(found, sizes, strict=True):
                mounts.set_size(mount.hash, size)

    async def _measure_if_near(self) -> None:
        """What cache mounts took since they were measured is no more than what the disk lost since."""
        space = self.store.space
        if self.store.cache_mounts.stale and space.near_ceiling(self._free - space.disk().free):
            await self.measure()

    async def sync(self) -> int:
        """Trees that were committed, to the disk; gives how many."""
        trees = self.store.trees.unsynced()
        if trees:
            await in_thread(self.store.trees.syncfs)
            self.store.trees.mark_synced(trees)
        return len(trees)

    async def empty_trash(self) -> None:
        """Delete for good what was put into the trash."""
        async with self._emptying:
            state = self.store.path
            files, directories = await in_thread(list_trash, state)
            unlinking = asyncio.ensure_future(in_thread(unlink_trash, state, files))
            try:
                if directories:
                    await self._remove_all(directories)  # beside it, on another processor
            finally:
                await until_done(unlinking)

    async def _remove_all(self, directories: Sequence[Path]) -> None:
        """By several jobs where there are many: on a busy disk each name waits for the file system's journal."""
        count = min(max(len(directories) // REMOVER_LEAST, 1), REMOVERS)
        done = await asyncio.gather(
            *(self._remove(directories[number::count]) for number in range(count)), return_exceptions=True
        )
        for failed in done:
            if isinstance(failed, BaseException):
                raise failed

    async def tidy(self) -> None:
        """Old builds, hints and log lines; free pages back to the disk; the write-ahead log emptied."""
        store = self.store
        for build in store.builds.expired(self.keep_builds, self.build_age, time.time()):
            store.builds.remove(build)
            await asyncio.sleep(0)
        store.sources.trim()
        store.uploads.trim()
        await self.shrink()

    async def shrink(self, removed: int = 0) -> None:
        """Database and journal as small as what is in them.  removed: rows that were just collected."""
        await drive(compacting(self.store.db, removed))
        more = True
        while more:
            more = self.store.db.shrink()
            await asyncio.sleep(0)
        if self._log_size() > IDLE_CHECKPOINT:
            await in_thread(checkpoint, self.store.db.path)

    def _log_size(self) -> int:
        """Bytes of the write-ahead log."""
        path = self.store.db.path
        with contextlib.suppress(FileNotFoundError):
            return path.with_name(path.name + "-wal").stat().st_size
        return 0

    async def _checkpoint(self) -> None:
        """While much is being deleted: keep the log from growing, without holding the writers."""
        if self._log_size() > BUSY_CHECKPOINT:
            await in_thread(checkpoint, self.store.db.path, truncate=False)

    async def collect(
        self, policies: Sequence[Policy] | None = None, *, dry_run: bool = False, wait: bool = False,
        patience: float | None = None,
    ) -> Outcome:
        """Apply policies (None: the configured ones; (): only what nobody holds).

        ``wait``: also until the files are gone, which otherwise happens in the background.  ``patience``:
        not longer than so many seconds after the rows are, unless the disk needs the space (None: as long
        as it takes); the files go on going, and ``Outcome.pending`` says how many bytes there are still."""
        await self.measure()
        async with self._collecting:
            policies = self.policies if policies is None else policies
            free = self.store.space.disk().free
            try:
                steps = collecting(self.store, policies, dry_run=dry_run, later=True)
                outcome = await drive(steps, every=CHECKPOINT_STEPS, also=self._checkpoint)
            except NoSpace:
                # Not even the log of what goes could be written: once more, without the ballast.
                if dry_run or not self.store.space.drop_ballast():
                    raise
                steps = collecting(self.store, policies, later=True)
                outcome = await drive(steps, every=CHECKPOINT_STEPS, also=self._checkpoint)
        if dry_run:
            return outcome
        self._collected = time.monotonic()
        self.last = outcome
        if outcome.removals or outcome.freed:
            log.info(
                "collected %d things, %d bytes in %.3f s",
                len(outcome.removals), outcome.freed, outcome.seconds,
            )
        if not wait:
            await self._clear(outcome)
            self.poke()
            return outcome
        others = set(self._giving)
        giving = spawn(self._giving, asyncio.ensure_future(self._give_back(outcome)))
        giving.add_done_callback(self._given_back)
        if patience is not None and outcome.freed < free and not self.store.space.is_full:
            await asyncio.wait({giving}, timeout=patience)
        else:
            await asyncio.wait({giving, *others})  # what they have in hand is wanted too
        if giving.done():
            giving.result()
        return outcome

    async def _clear(self, outcome: Outcome) -> None:
        """What lost its row, into the trash or away; all of it, also where this is cancelled."""
        try:
            await drive(outcome.files.going(self.store, outcome))
        finally:
            outcome.files.go(self.store, outcome)

    async def _give_back(self, outcome: Outcome) -> None:
        """The disk's space.  Trees go (on another processor) while blobs do, and the database becomes smaller."""
        files = outcome.files
        outcome.pending = outcome.freed
        blobs = sum(size for _, size in files.blobs)
        try:
            await drive(files.moving_trees(self.store, outcome))
            parts = await asyncio.gather(
                self._empty(outcome, outcome.freed - blobs), self._clear(outcome),
                self.shrink(len(outcome.removals)), return_exceptions=True,
            )
        finally:
            files.go(self.store, outcome)
        for failed in parts:
            if failed is not None:
                raise failed
        await self.empty_trash()  # large blobs
        outcome.pending = 0
        self.store.space.make_ballast()

    async def _empty(self, outcome: Outcome, size: int) -> None:
        """The trash; ``size`` bytes of what was collected are in it."""
        await self.empty_trash()
        outcome.pending -= size

    def _given_back(self, giving: asyncio.Task[None]) -> None:
        """What went wrong when nobody waited any more is tried again."""
        error = None if giving.cancelled() else giving.exception()
        if error is not None:
            log.warning("maintenance: %s", error)
            self.poke()

    async def close(self) -> None:
        """Let nothing go on.  What lost its row is at least in the trash then, which the next start empties."""
        tasks = set(self._giving)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def explain(self, policies: Sequence[Policy] | None = None) -> Plan:
        """What ``collect`` would take now, and why."""
        async with self._collecting:
            graph = await drive(surveying(self.store))
            return await drive(
                planning(
                    graph, self.policies if policies is None else policies, now=time.time(),
                    free=self.store.space.disk().free,
                )
            )

    async def usage(self) -> Usage:
        """What ``df`` shows."""
        async with self._collecting:
            graph = await drive(surveying(self.store))
            return await drive(reckoning(graph))

    async def admit(
        self, size: int = 0, *, lease: Lease | None = None, told: Told | None = None
    ) -> Reservation:
        """Room for ``size`` bytes, collected if need be; while others are at work, what they hold is waited
        for.  lease: the caller's own, which nobody need wait for.  told: that it waits, and that it goes on.
        Raises NoSpace when nothing is left that may go.  The caller releases the reservation."""
        if self.store.space.never_fits(size):
            return self.store.space.reserve(size)  # nothing need go to find that out
        await self._measure_if_near()
        try:
            return self.store.space.reserve(size)
        except NoSpace:
            return await self._wait_for_room(size, lease, told or (lambda _text: None))

    async def _wait_for_room(self, size: int, lease: Lease | None, told: Told) -> Reservation:
        """A collection marks all that there is: it is made again only when it may find something."""
        held, begun = self.store.held, time.monotonic()
        tries, releases, looked, waits = 0, 0, begun, False
        while True:
            others = held.others(lease)  # before: one that ends meanwhile leaves something to collect
            if (
                tries < ADMIT_TRIES or held.releases != releases or not self._patient(others, begun)
                or time.monotonic() >= looked + ADMIT_AGAIN
            ):  # fmt: skip
                tries, releases = tries + 1, held.releases
                await self.make_room(size)
                looked = time.monotonic()
            try:
                room = self.store.space.reserve(size)
            except NoSpace:
                # Where all wait for each other one must fail; the rest then have what it held.
                if tries >= ADMIT_TRIES and not self._patient(others, begun):
                    self._gave_up = time.monotonic()
                    raise
            else:
                if waits:
                    told(f"there is room: going on after {time.monotonic() - begun:.1f} s")
                return room
            if others and not waits:
                waits = True
                told(self.store.space.wanted(size, others))
            await asyncio.sleep(ADMIT_PAUSE)

    def _patient(self, others: int, begun: float) -> bool:
        """Does waiting still make sense?"""
        return bool(others) and time.monotonic() < max(begun, self._gave_up) + ADMIT_PATIENCE

    async def make_room(self, size: int = 0) -> Outcome:
        """Collect until ``size`` bytes fit under the ceiling and above the floor."""
        space = self.store.space
        keep = max(space.ceiling - space.reserved - max(size, 1), 1) if space.ceiling else 0
        floor = space.floor + space.reserved + size if space.floor or size else 0
        policy = Policy("ceiling", all=True, max_used_space=keep, min_free_space=floor)
        if policy.unlimited:
            return await self.collect((), wait=True)
        return await self.collect([policy], wait=True)
