"""Why each step ran, or didn't: what a build remembers of its keys, and how it is told."""

from __future__ import annotations

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

STEPS_FILE = "steps.json"
MAX_BUILDS_SEARCHED = 50
"""How far back the build before of the same name is looked for."""


def dump(plan: Plan, traces: Mapping[int, Trace], prefix: str = "") -> dict[str, Any]:
    """What is kept of a build's traces, by vertex (JSON)."""
    kept = {}
    for index, trace in sorted(traces.items()):
        if trace.preimage is None:
            continue
        place = _place(plan, index)
        kept[f"{prefix}{index}"] = {
            "name": plan.vertices[index].name, "key": trace.key, "cached": trace.cached,
            "made_by": trace.made_by, "seconds": round(trace.seconds, 4),
            "reasons": [reason.to_dict() for reason in trace.reasons],
            "stage": place[0], "number": place[1], "op": trace.preimage.op,
        }
    return kept


def _place(plan: Plan, vertex: int) -> tuple[str, int]:
    for stage in plan.stages:
        for step in stage.steps:
            if step.vertex == vertex:
                return stage.name or str(stage.index), step.number
    return "", 0


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


def against_build_before(
    store: Store, name: str, build: str, plan: Plan, vertex: int, preimage: Preimage
) -> list[Reason]:
    """An instruction that was never seen: what stood in its place in the build before?"""
    evicted = store.records.evicted(key=preimage.key, selector=preimage.selector)
    if evicted is not None:
        when = datetime.fromtimestamp(evicted.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        rule = f" by {evicted.rule}" if evicted.rule else ""
        why = f": {evicted.why}" if evicted.why else ""
        return [Reason("evicted", f"its record was removed from the cache at {when}{rule}{why}")]
    stage, number = _place(plan, vertex)
    for row in store.builds.recent(MAX_BUILDS_SEARCHED):
        if row.name != name or row.id == build:
            continue
        for step in load(store, row.id).values():
            if step["stage"] == stage and step["number"] == number:
                old = Preimage(step["op"])
                return compare(old, Preimage(preimage.op)) or []
        return []
    return []


def explanations(store: Store, build: str, step: str = "") -> list[dict[str, Any]]:
    """For each step (or the one of this vertex, number or beginning of its name) in order:
    {vertex, name, cached, reasons: [{kind, text}], made_by, made_at, seconds, key}.  Raises NotFound."""
    found = []
    for vertex, kept in load(store, build).items():
        if step and step not in (vertex, str(kept["number"])) and step not in kept["name"]:
            continue
        entry = {"vertex": vertex, **{k: v for k, v in kept.items() if k not in ("op", "stage", "number")}}
        if kept["cached"]:
            entry["reasons"] = [_hit(store, kept)]
        found.append(entry)
    if step and not found:
        raise NotFound(f"build {build}: no step {step!r}", hint="ocibuild explain lists them")
    return found


def _hit(store: Store, kept: Mapping[str, Any]) -> dict[str, str]:
    record = store.records.get(kept["key"])
    if record is None:
        return Reason("hit", f"build {kept['made_by']} had made it").to_dict()
    when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    text = f"nothing that it depends on has changed since build {record.build} made it at {when}"
    return Reason("hit", text).to_dict()
