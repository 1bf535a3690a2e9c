"""A build, and a piece of work under way, as the solver sees them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ocibuildd.model.graph import Vertex
from ocibuildd.ports import Executor, LayerId, RecordSource, Result, Work

from . import cache, reasons

log = logging.getLogger(__name__)

BACKLOG = 512
"""Events of a run under way that a build which joins it later still gets to see."""

Event = Callable[..., None]


@dataclass(slots=True)
class Trace:
    """What became of a vertex, for events, history and ``explain``."""

    key: str = ""
    preimage: cache.Preimage | None = None
    cached: bool = False
    source: bool = False
    started: float = 0.0
    seconds: float = 0.0
    reasons: list[reasons.Reason] = field(default_factory=list)
    usage: Mapping[str, float] = field(default_factory=dict)
    made_by: str = ""
    inputs: Sequence[Result] = ()


@dataclass(eq=False, slots=True)
class Job:
    """One build as the solver sees it.

    event(vertex, kind, **fields): kinds "started" (trace, known: it needs no work), "log", "status", "done"
    (trace, result).
    hold(chain): keep these layers until the build ends; raises NotFound when they are gone.
    release: called once, when nothing needs the executor any more.
    variant: output options that are part of keys.
    gone(key): when and why the record of exactly this key was removed, if it was.
    remember: False = what runs only because the cache isn't to be used leaves no record (a verification).
    imported: further records (a remote cache's): ``get`` and ``seen``.
    earlier(vertex, preimage): why an instruction that has no record is another than in the build before.
    """

    id: str
    vertices: Sequence[Vertex]
    executor: Executor
    event: Event
    hold: Callable[[Iterable[LayerId]], None]
    release: Callable[[], None]
    limit: int = 0
    variant: Mapping[str, Any] = field(default_factory=dict)
    gone: Callable[[str], list[reasons.Reason]] = lambda _key: []
    remember: bool = True
    earlier: Callable[[int, cache.Preimage], list[reasons.Reason]] = lambda _vertex, _preimage: []
    imported: RecordSource | None = None
    results: dict[int, Result] = field(default_factory=dict)
    traces: dict[int, Trace] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    done: asyncio.Future[None] | None = None
    error: BaseException | None = None
    failed: int | None = None
    uses: int = 0

    def tell(self, vertex: int, kind: str, **fields: Any) -> None:
        """``event``; where telling fails the build does, with that, and no other one."""
        try:
            self.event(vertex, kind, **fields)
        except Exception as error:
            log.exception("%s: event %s", self.vertices[vertex].name, kind)
            self.error = self.error or error
            if self.done is not None and not self.done.done():
                self.done.set_exception(self.error)


@dataclass(eq=False, slots=True)
class Run:
    """Work under way, for everyone in ``listeners``."""

    key: str
    job: Job
    vertex: int
    inputs: Sequence[Result]
    preimage: cache.Preimage | None
    listeners: list[tuple[Job, int]] = field(default_factory=list)
    backlog: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    started: float = 0.0
    result: Result | None = None
    work: Work = field(default_factory=Work)
    stopping: bool = False
    seconds: float = 0.0

    def emit(self, kind: str, **fields: Any) -> None:
        if len(self.backlog) < BACKLOG:
            self.backlog.append((kind, fields))
        for job, vertex in self.listeners:
            job.tell(vertex, kind, **fields)
