"""Who runs when: events in, actions out.  Pure.

A *vertex* of a *build* becomes ready when all its inputs are resolved: ``Evaluate``.  Its owner then
either says what it resolves to (``resolved``: a cache hit, a source at hand) or that it wants a piece
of work done (``wants``), named by a key.  Work of the same key is one *run*, whoever wants it and
however many do.  Runs wait in a queue of their build; slots go to the build that has the fewest
running, the one that was served longest ago among equals.

A build that is cancelled, or failed, leaves its runs; a run that nobody is left to wait for is
stopped, and keeps its slot until it is gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Evaluate:
    """All inputs of a vertex are resolved: find out what it needs."""

    build: str
    vertex: int


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a run, on behalf of this vertex of this build.  Answer with finished, failed, stopped."""

    key: str
    build: str
    vertex: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End a run: nobody waits for it any more.  Answer with ``stopped`` once it is gone."""

    key: str


@dataclass(frozen=True, slots=True)
class Resolve:
    """A vertex has the result of this run."""

    key: str
    build: str
    vertex: int


@dataclass(frozen=True, slots=True)
class Finish:
    """A build has all its vertices, or (``failed``: the vertex) will never have."""

    build: str
    failed: int | None = None


Action = Evaluate | Start | Stop | Resolve | Finish


@dataclass(slots=True)
class _Build:
    dependents: list[list[int]]
    waits: list[int]
    limit: int
    left: int
    queue: deque[str] = field(default_factory=deque)
    running: int = 0
    served: int = 0
    keys: dict[str, None] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Run:
    key: str
    state: Literal["queued", "running", "stopping"] = "queued"
    waiters: list[tuple[str, int]] = field(default_factory=list)
    owner: str = ""


class Schedule:
    """The queue of one daemon.  ``limit``: how many runs at once, over all builds (0 = no limit)."""

    def __init__(self, limit: int = 0):
        self.limit = limit
        self._builds: dict[str, _Build] = {}
        self._runs: dict[str, _Run] = {}
        self._running = 0
        self._served = 0

    @property
    def running(self) -> int:
        """Slots in use, those of runs being stopped among them."""
        return self._running

    def add(self, build: str, inputs: Sequence[Sequence[int]], *, limit: int = 0) -> list[Action]:
        """A new build: the inputs of each vertex (indexes; inputs come before).  ValueError if not."""
        if build in self._builds:
            raise ValueError(f"build {build} is there already")
        dependents: list[list[int]] = [[] for _ in inputs]
        waits = []
        for index, needed in enumerate(inputs):
            unique = set(needed)
            if any(not 0 <= i < index for i in unique):
                raise ValueError(f"vertex {index} needs {sorted(unique)}: inputs come before")
            waits.append(len(unique))
            for i in unique:
                dependents[i].append(index)
        state = _Build(dependents, waits, limit, len(waits))
        self._builds[build] = state
        ready = [index for index, count in enumerate(waits) if count == 0]
        state.open.update(ready)
        if not waits:
            del self._builds[build]
            return [Finish(build)]
        return [Evaluate(build, index) for index in ready]

    def resolved(self, build: str, vertex: int) -> list[Action]:
        """The owner found the result without a run.  Late news of a build that is gone is ignored."""
        return self._resolve(build, vertex)

    def wants(self, build: str, vertex: int, key: str) -> list[Action]:
        """The vertex needs this work."""
        state = self._builds.get(build)
        if state is None or vertex not in state.open:
            return []
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(key)
        run.waiters.append((build, vertex))
        state.keys[key] = None
        if run.state == "queued":
            state.queue.append(key)
        return self._fill()

    def broke(self, build: str, vertex: int) -> list[Action]:
        """The owner can't evaluate a vertex: its build fails."""
        if build not in self._builds:
            return []
        return [Finish(build, vertex), *self.cancel(build)]

    def finished(self, key: str) -> list[Action]:
        """A run ended well."""
        run = self._end(key)
        if run is None:
            return []
        actions: list[Action] = []
        for build, vertex in run.waiters:
            if build in self._builds:
                self._builds[build].keys.pop(key, None)
                actions.append(Resolve(key, build, vertex))
                actions += self._resolve(build, vertex)
        return actions + self._fill()

    def failed(self, key: str) -> list[Action]:
        """A run ended badly: so do all builds that wait for it."""
        run = self._end(key)
        if run is None:
            return []
        actions: list[Action] = []
        for build, _ in run.waiters:
            if build in self._builds:
                self._builds[build].keys.pop(key, None)
        for build, vertex in run.waiters:
            actions += self.broke(build, vertex)
        return actions + self._fill()

    def stopped(self, key: str) -> list[Action]:
        """A run that was to stop is gone.  If somebody came to want it meanwhile, it starts anew."""
        run = self._end(key)
        if run is None:
            return []
        if run.waiters:
            again = self._runs[key] = _Run(key, waiters=run.waiters)
            for build in dict.fromkeys(build for build, _ in again.waiters):
                self._builds[build].queue.append(key)
        return self._fill()

    def cancel(self, build: str) -> list[Action]:
        """Take a build out, with all that nobody else waits for."""
        state = self._builds.pop(build, None)
        if state is None:
            return []
        actions: list[Action] = []
        for key in state.keys:
            run = self._runs[key]
            run.waiters = [waiter for waiter in run.waiters if waiter[0] != build]
            if run.waiters:
                if run.owner == build:
                    self._adopt(run)
            elif run.state == "queued":
                del self._runs[key]
            elif run.state == "running":
                run.state = "stopping"
                actions.append(Stop(key))
        return actions + self._fill()

    # --- inside ---------------------------------------------------------------------------------

    def _adopt(self, run: _Run) -> None:
        """A running run passes to the next build that waits for it."""
        run.owner = run.waiters[0][0]
        self._builds[run.owner].running += 1

    def _end(self, key: str) -> _Run | None:
        run = self._runs.get(key)
        if run is None or run.state == "queued":
            return None
        del self._runs[key]
        self._running -= 1
        owner = self._builds.get(run.owner)
        if owner is not None:
            owner.running -= 1
        return run

    def _resolve(self, build: str, vertex: int) -> list[Action]:
        state = self._builds.get(build)
        if state is None or vertex not in state.open:
            return []
        state.open.discard(vertex)
        state.left -= 1
        if state.left == 0:
            del self._builds[build]
            return [Finish(build)]
        actions: list[Action] = []
        for index in state.dependents[vertex]:
            state.waits[index] -= 1
            if state.waits[index] == 0:
                state.open.add(index)
                actions.append(Evaluate(build, index))
        return actions

    def _fill(self) -> list[Action]:
        """Give free slots away."""
        actions: list[Action] = []
        while not self.limit or self._running < self.limit:
            picked = self._pick()
            if picked is None:
                break
            build, run = picked
            state = self._builds[build]
            self._served += 1
            state.served = self._served
            state.running += 1
            run.state, run.owner = "running", build
            self._running += 1
            vertex = next(v for b, v in run.waiters if b == build)
            actions.append(Start(run.key, build, vertex))
        return actions

    def _pick(self) -> tuple[str, _Run] | None:
        best: tuple[int, int] | None = None
        chosen: tuple[str, _Run] | None = None
        for build, state in self._builds.items():
            if not state.queue or (state.limit and state.running >= state.limit):
                continue
            run = self._head(build, state)
            if run is None:
                continue
            rank = (state.running, state.served)
            if best is None or rank < best:
                best, chosen = rank, (build, run)
        if chosen is not None:
            self._builds[chosen[0]].queue.popleft()
        return chosen

    def _head(self, build: str, state: _Build) -> _Run | None:
        """The first of a build's queue that still is to be started; stale entries are dropped."""
        while state.queue:
            run = self._runs.get(state.queue[0])
            if run is not None and run.state == "queued" and _waits(run.waiters, build):
                return run
            state.queue.popleft()
        return None


def _waits(waiters: Iterable[tuple[str, int]], build: str) -> bool:
    return any(b == build for b, _ in waiters)
