"""Why each step ran, or didn't: what a build remembers of its keys, and how it is told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..errors import NotFound
from ..model.graph import Plan
from ..solver.cache import Preimage
from ..solver.job import Trace
from ..solver.reasons import Reason, compare
from ..store import Store
from ..store.records import Eviction

STEPS_FILE = "steps.json"
SHOWN_NUMBER = re.compile(r"\[(?:\S+ )?(\d+)/\d+\] ")
"""How a step's name begins: ``[stage 2/5] ``."""
MAX_BUILDS_SEARCHED = 50
"""How far back the build before of the same name is looked for."""
NOWHERE = ("", 0)
"""The place of a vertex that is no instruction's result."""


def dump(plan: Plan, traces: Mapping[int, Trace], prefix: str = "") -> dict[str, Any]:
    """What is kept of a build's traces, by vertex (JSON)."""
    kept = {}
    places = _places(plan)
    for index, trace in sorted(traces.items()):
        if trace.preimage is None:
            continue
        place = places.get(index, NOWHERE)
        kept[f"{prefix}{index}"] = {
            "name": plan.vertices[index].name, "key": trace.key, "cached": trace.cached,
            "made_by": trace.made_by, "seconds": round(trace.seconds, 4),
            "reasons": [reason.to_dict() for reason in trace.reasons],
            "stage": place[0], "number": place[1], "op": trace.preimage.op,
        }
    return kept


def _places(plan: Plan) -> dict[int, tuple[str, int]]:
    """Of each vertex the stage and number of its instruction, the first that it is the result of."""
    found: dict[int, tuple[str, int]] = {}
    for stage in plan.stages:
        for step in stage.steps:
            if step.vertex is not None:
                found.setdefault(step.vertex, (stage.name or str(stage.index), step.number))
    return found


def save(store: Store, build: str, traces: Mapping[str, Any]) -> None:
    """Beside the event log.  A full disk loses it, never the build."""
    path = store.builds.directory(build) / STEPS_FILE
    try:
        path.write_bytes(msgspec.json.encode(traces))
    except OSError:
        return


def load(store: Store, build: str) -> dict[str, Any]:
    """{} where there is nothing (any more)."""
    path = store.builds.directory(build) / STEPS_FILE
    try:
        found: dict[str, Any] = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return found


class BuildBefore:
    """The build of the same name before a build, looked up once and when it is first asked for."""

    def __init__(self, store: Store, name: str, build: str, plan: Plan):
        self._store, self._name, self._build = store, name, build
        self._places = _places(plan)
        self._texts = {index: _text(vertex.name) for index, vertex in enumerate(plan.vertices)}
        self._steps: dict[tuple[str, int], Any] | None = None
        self._before = ""
        self._ended_well = True

    def differs(self, vertex: int, preimage: Preimage) -> list[Reason]:
        """Of an instruction that was never seen: what stood in its place in the build before?"""
        gone = self._store.records.evicted(selector=preimage.selector)
        if gone is not None:
            return [Reason("evicted", f"what was known of this instruction {_removed(gone)}")]
        if self._steps is None:
            self._steps = self._load()
        place = self._places.get(vertex, NOWHERE)
        step = self._same_text(vertex, place[0]) or self._steps.get(place)
        if step is None:
            return []
        found = compare(Preimage(step["op"]), Preimage(preimage.op))
        if not found and not step["cached"] and not self._ended_well:
            # Whether it failed or never got so far.
            found = [Reason("first", f"build {self._before}, which did not end well, has no result of it")]
        return found

    def _same_text(self, vertex: int, stage: str) -> dict[str, Any] | None:
        """The step of the same instruction in the same stage, wherever there."""
        assert self._steps is not None
        for (other, _), step in self._steps.items():
            if other == stage and _text(step["name"]) == self._texts[vertex]:
                found: dict[str, Any] = step
                return found
        return None

    def gone(self, key: str) -> list[Reason]:
        """``solver.job.Job.gone``."""
        found = self._store.records.evicted(key=key)
        return [] if found is None else [Reason("evicted", f"its record {_removed(found)}")]

    def _load(self) -> dict[tuple[str, int], Any]:
        for row in self._store.builds.recent(MAX_BUILDS_SEARCHED):
            if row.name == self._name and row.id != self._build:
                self._before, self._ended_well = row.id, row.status == "done"
                steps = load(self._store, row.id).values()
                return {(step["stage"], step["number"]): step for step in reversed([*steps])}
        return {}


def _text(name: str) -> str:
    """A vertex's name without its place in the build."""
    shown = SHOWN_NUMBER.match(name)
    return name if shown is None else name[shown.end() :]


def _removed(found: Eviction) -> str:
    """When, by which rule, and why."""
    when = datetime.fromtimestamp(found.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    rule = f" by {found.rule}" if found.rule else ""
    why = f": {found.why}" if found.why else ""
    return f"was removed from the cache at {when}{rule}{why}"


def explanations(store: Store, build: str, step: str = "") -> list[dict[str, Any]]:
    """For each step (or the one of this vertex, number or beginning of its name) in order:
    {vertex, name, cached, reasons: [{kind, text}], made_by, made_at, seconds, key}, and ``state`` "failed" for
    the one that ended the build.  Raises NotFound."""
    found = []
    row = store.builds.get(build)
    failed = str(row.error.get("details", {}).get("vertex", "")) if row is not None else ""
    for vertex, kept in load(store, build).items():
        if step and not _means(step, vertex, kept["name"]):
            continue
        entry = {"vertex": vertex, **{k: v for k, v in kept.items() if k not in ("op", "stage", "number")}}
        if kept["cached"]:
            entry["reasons"] = [_hit(store, kept)]
        if vertex == failed:
            entry["state"] = "failed"
        found.append(entry)
    if step and not found:
        raise NotFound(f"build {build}: no step {step!r}", hint="ocibuild explain lists them")
    return found


def _means(step: str, vertex: str, name: str) -> bool:
    """Does what somebody wrote mean this step: its number as shown, a part of its text, or its vertex?"""
    shown = SHOWN_NUMBER.match(name)
    if step.isdecimal() and shown is not None:
        return int(step) == int(shown[1])
    return step == vertex or step in name


def _hit(store: Store, kept: Mapping[str, Any]) -> dict[str, str]:
    record = store.records.get(kept["key"])
    if record is None:
        return Reason("hit", f"build {kept['made_by']} had made it").to_dict()
    when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = f"nothing that it depends on has changed since build {record.build} made it at {when}"
    return Reason("hit", text).to_dict()
