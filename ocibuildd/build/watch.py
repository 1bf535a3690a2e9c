"""What the solver tells of a build, as events of its log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..model.graph import Plan
from ..ports import LayerId, Result
from ..solver.job import Trace
from ..store import Store
from . import explain
from .outcome import MadeImage, VertexOutcome
from .progress import EventLog
from .pushes import image_vertices
from .steps import NumberedStep, StepFollower, number_steps


class Watch:
    """The solver's events as the log's."""

    def __init__(
        self, build: str, name: str, events: EventLog, store: Store, plan: Plan, prefix: str, *,
        keep_empty: bool, offer: Callable[[Sequence[LayerId]], object] | None = None,
    ):
        """``offer`` is told of each part of the target's root file system as it is settled."""
        self._build = build
        self._name = name
        self._events = events
        self._plan = plan
        self._prefix = prefix
        self._store = store
        self.before = explain.BuildBefore(store, name, build, plan)
        self._offer = offer
        self._wanted = image_vertices(plan) if offer is not None else ()
        self.follower = StepFollower(plan, store.layers.chain, self._tell, keep_empty=keep_empty)

    def announce(self, dockerfile: str, warnings: Sequence[str]) -> None:
        """What is going to happen, before any of it does."""
        plan, events = self._plan, self._events
        steps = number_steps(plan)
        events.append(
            "build.started", id=self._build, name=self._name, steps=len(steps), dockerfile=dockerfile,
            arguments=list(plan.arguments),
        )
        for entry in steps:
            step = entry.step
            own = step.vertex is not None and _owns(entry)
            events.append(
                "build.step", vertex=f"{self._prefix}{step.vertex}" if own else "",
                step=entry.number, total=len(steps), stage=step.stage_name or str(step.stage),
                text=step.text, line=step.location.start,
            )
        for found in plan.warnings:
            where = found.location
            events.append(
                "warning", rule=found.rule, message=found.message, url=found.url,
                line=where.start if where else None, end_line=where.end if where else None,
            )
        for text in warnings:
            events.append("message", level="warning", text=text)
        if plan.unused_args:
            names = ", ".join(plan.unused_args)
            events.append("message", level="warning",
                          text=f"one or more build-args were not consumed: [{names}]")

    def event(self, vertex: int, kind: str, **fields: Any) -> None:
        """``solver.job.Job.event``."""
        name = f"{self._prefix}{vertex}"
        events = self._events
        if not self._plan.vertices[vertex].name:  # scratch: there is nothing to tell
            if kind == "done":
                self._ended(vertex, fields["trace"], fields["result"])
        elif kind == "started":
            inputs = [f"{self._prefix}{i}" for i in self._plan.vertices[vertex].inputs]
            events.append(
                "vertex.started", vertex=name, name=self._plan.vertices[vertex].name, inputs=inputs,
                cached=fields.get("known") or None,
            )
        elif kind == "done":
            self._done(vertex, name, fields["trace"], fields["result"])
        else:
            events.append(f"vertex.{kind}", vertex=name, **fields)

    def _done(self, vertex: int, name: str, trace: Trace, result: Result) -> None:
        layer = None
        if result.layer is not None:
            row = self._store.layers.get(result.layer)
            layer = {"diff_id": str(row.diff_id), "digest": str(row.digest), "size": row.size}
        self._events.append(
            "vertex.done", vertex=name, cached=trace.cached or None, seconds=round(trace.seconds, 4),
            reason="; ".join(reason.text for reason in trace.reasons), layer=layer,
            usage=dict(trace.usage),
        )
        self._ended(vertex, trace, result)

    def _ended(self, vertex: int, trace: Trace, result: Result) -> None:
        outcome = VertexOutcome(result.chain, result.layer, result.created)
        self.follower.ended(vertex, outcome, cached=trace.cached)
        if self._offer is not None and vertex in self._wanted:
            self._offer(result.chain)

    def _tell(self, entry: NumberedStep, image: MadeImage, cached: bool) -> None:
        vertex = "" if entry.step.vertex is None else f"{self._prefix}{entry.step.vertex}"
        if not _owns(entry):
            # An instruction that makes no vertex is cached where its image is known already.
            cached = self._store.images.get(image.composed.id) is not None
        self._events.append(
            "step.done", step=entry.number, vertex=vertex, image=str(image.composed.id),
            cached=cached or None,
        )


def _owns(entry: NumberedStep) -> bool:
    """Is the vertex this instruction's own (not the one of the instruction before)?"""
    if entry.index == 0:
        return True
    return entry.stage.steps[entry.index - 1].vertex != entry.step.vertex
