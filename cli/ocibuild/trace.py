"""Where a build's time went: from its events, for people and for Chrome's and Perfetto's viewers."""

from __future__ import annotations

from .errors import ClientError
from .text import seconds, size, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .types import Event


def _spans(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Each vertex with the time it took: name, start and end (seconds since the epoch), cached."""
    spans: dict[str, dict[str, Any]] = {}
    for event in events:
        if not str(event.get("type", "")).startswith("vertex."):
            continue
        ident = str(event.get("vertex"))
        span = spans.setdefault(ident, {"id": ident, "name": ident, "start": event["t"], "end": event["t"]})
        span["name"] = event.get("name") or span["name"]
        span["end"] = event["t"]
        if event["type"] == "vertex.done":
            span.update(
                cached=bool(event.get("cached")), usage=event.get("usage") or {}, layer=event.get("layer"),
            )
            if event.get("seconds"):
                span["start"] = min(span["start"], event["t"] - event["seconds"])
    return sorted(spans.values(), key=lambda span: (span["start"], span["end"]))


def _transfers(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Each download and upload of a layer, from its first status to its last: beside the steps."""
    spans: dict[tuple[str, str], dict[str, Any]] = {}
    for event in events:
        if event.get("type") != "vertex.status" or event.get("unit") != "bytes":
            continue
        vertex, ident = str(event.get("vertex")), str(event.get("id"))
        verb = "push" if vertex.startswith("push:") else "fetch"
        span = spans.setdefault((vertex, ident), {
            "id": vertex, "name": f"{verb} {ident}", "start": event["t"], "transfer": True,
        })
        span["end"] = event["t"]
        span["usage"] = {"bytes": event.get("total") or 0, "outcome": event.get("text") or ""}
    return list(spans.values())


def trace(events: Sequence[Event]) -> dict[str, Any]:
    """The trace event format's JSON object: one lane for each thing that ran beside others.

    Times are microseconds (Trace Event Format, "complete events")."""
    lanes: list[float] = []
    out: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "tid": 0, "args": {"name": "ocibuild build"}}
    ]
    spans = sorted([*_spans(events), *_transfers(events)], key=lambda span: (span["start"], -span["end"]))
    for span in spans:
        lane = next((i for i, free in enumerate(lanes) if free <= span["start"]), len(lanes))
        if lane == len(lanes):
            lanes.append(0.0)
        lanes[lane] = span["end"]
        out.append({
            "name": span["name"], "cat": _category(span), "ph": "X",
            "pid": 1, "tid": lane + 1, "ts": round(span["start"] * 1e6),
            "dur": max(1, round((span["end"] - span["start"]) * 1e6)),
            "args": {"vertex": span["id"], **span.get("usage", {})},
        })
        out += _phases(span, lane + 1)
    return {"traceEvents": out, "displayTimeUnit": "ms"}


def _category(span: dict[str, Any]) -> str:
    if span.get("transfer"):
        return "transfer"
    return "cached" if span.get("cached") else "vertex"


def _phases(span: dict[str, Any], lane: int) -> list[dict[str, Any]]:
    """What a RUN's time was: the command itself, then the commit of its layer (beside the next step)."""
    wall = float((span.get("usage") or {}).get("wall", 0))
    whole = span["end"] - span["start"]
    if span.get("cached") or not 0 < wall < whole:
        return []
    ends = ((span["start"], wall, "run"), (span["start"] + wall, whole - wall, "commit"))
    return [
        {"name": name, "cat": name, "ph": "X", "pid": 1, "tid": lane, "ts": round(start * 1e6),
         "dur": max(1, round(took * 1e6)), "args": {"vertex": span["id"]}}
        for start, took, name in ends
    ]


def write(path: str, events: Sequence[Event]) -> None:
    """Raises ClientError when the file can't be written."""
    import json

    try:
        with open(path, "w") as file:
            json.dump(trace(events), file)
    except OSError as error:
        raise ClientError(f"can't write {path}: {error.strerror}") from None


def profile(events: Sequence[Event]) -> str:
    """The vertices by the time that they took, longest first; what each used (peak memory, bytes read from and
    written to disks) and what its layer weighs, compressed."""
    rows = []
    for span in sorted(_spans(events), key=lambda span: span["start"] - span["end"]):
        usage = span.get("usage") or {}
        cpu = float(usage.get("user", 0)) + float(usage.get("system", 0))
        layer = (span.get("layer") or {}).get("size", 0)
        rows.append([
            "CACHED" if span.get("cached") else seconds(span["end"] - span["start"]), seconds(cpu) if cpu else "-",
            *(size(number) if number else "-" for number in (
                usage.get("max_rss", 0), usage.get("read", 0), usage.get("written", 0), layer,
            )),
            span["name"],
        ])
    return "\n" + table(("TIME", "CPU", "MEMORY", "READ", "WRITTEN", "LAYER", "STEP"), rows)


def used(events: Sequence[Event]) -> list[dict[str, Any]]:
    """What ``inspect`` shows of a build's steps, in the order in which they began."""
    return [
        {"vertex": span["id"], "name": span["name"], "cached": span.get("cached", False),
         "seconds": round(span["end"] - span["start"], 4), "usage": span.get("usage") or {},
         "layer": span.get("layer") or None}
        for span in _spans(events)
    ]
