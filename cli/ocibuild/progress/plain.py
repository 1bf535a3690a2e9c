"""Plain progress: one line a happening, as BuildKit prints it, and why each step ran."""

from __future__ import annotations

from ..text import escape, log_line, size
from . import Display
from .state import Build, Vertex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

STATUS_INTERVAL = 1.0
"""Seconds between two lines about the same transfer."""


class PlainDisplay(Display):
    """``#3 [2/5] RUN make`` / ``#3 0.12 text`` / ``#3 DONE 0.3s`` / ``#3 CACHED``."""

    def __init__(self, out: TextIO, *, explain: bool = True):
        self.out = out
        self.build = Build()
        self.explain = explain
        self._last = 0
        self._told: dict[tuple[int, str], float] = {}

    def feed(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        vertex = self.build.feed(event)
        if vertex is None:
            if kind == "message":
                self._write(f"{event.get('level', 'info')}: {escape(str(event.get('text', '')))}\n")
            elif kind == "build.done" and event.get("image"):
                self._write("\n" + summary(event) + "\n")
            return
        self._begin(vertex)
        if kind == "vertex.log":
            when = float(event.get("t", 0.0))
            for line in vertex.log(int(event.get("stream", 1)), str(event.get("data", ""))):
                self._log(vertex, when, line)
        elif kind == "vertex.status":
            self._status(vertex, event)
        elif kind == "vertex.done":
            for line in vertex.flush():
                self._log(vertex, float(event.get("t", 0.0)), line)
            self._done(vertex)
        self.out.flush()

    def _begin(self, vertex: Vertex) -> None:
        """The vertex's heading, again whenever the output changes to it from another one."""
        if self._last == vertex.number:
            return
        if self._last:
            self._write("\n")
        self._last = vertex.number
        self._write(f"#{vertex.number} {escape(vertex.name)}\n")

    def _log(self, vertex: Vertex, when: float, line: str) -> None:
        begun = vertex.started if vertex.started is not None else when
        self._write(f"#{vertex.number} {max(0.0, when - begun):.2f} {log_line(line)}\n")

    def _status(self, vertex: Vertex, event: dict[str, Any]) -> None:
        ident, when = str(event.get("id", "")), float(event.get("t", 0.0))
        current, total = event.get("current") or 0, event.get("total") or 0
        key = (vertex.number, ident)
        ended = bool(total) and current >= total
        told = self._told.get(key, float("-inf"))
        if told == float("inf") or (not ended and when - told < STATUS_INTERVAL):
            return
        self._told[key] = when if not ended else float("inf")
        self._write(f"#{vertex.number} {describe(event)}\n")

    def _done(self, vertex: Vertex) -> None:
        number = vertex.number
        if vertex.cached:
            self._write(f"#{number} CACHED\n")
        elif vertex.cancelled:
            self._write(f"#{number} CANCELED\n")
        elif vertex.error:
            self._write(f"#{number} ERROR: {escape(str(vertex.error.get('message', '')))}\n")
        else:
            if self.explain and vertex.reason:
                self._write(f"#{number} why: {escape(vertex.reason)}\n")
            taken = vertex.seconds
            if taken is None:
                taken = (vertex.ended or 0.0) - (vertex.started or 0.0)
            self._write(f"#{number} DONE {taken:.1f}s\n")

    def _write(self, text: str) -> None:
        self.out.write(text)


def summary(event: dict[str, Any]) -> str:
    """The last line of a build that went well."""
    names = ", ".join(escape(str(name)) for name in event.get("names") or [])
    image = str(event["image"])
    named = f" as {names}" if names else ""
    steps = f", {event.get('cached', 0)} of {event['total']} steps cached" if event.get("total") else ""
    return f"built {image}{named} in {float(event.get('seconds') or 0):.1f}s{steps}"


def describe(event: dict[str, Any]) -> str:
    """A status in words: ``sha256:12ab… 1.2MB / 3.4MB``."""
    ident, text = escape(str(event.get("id", ""))), escape(str(event.get("text", "")))
    current, total = event.get("current") or 0, event.get("total") or 0
    parts = [ident] if ident else []
    if text:
        parts.append(text)
    if current or total:
        show = size if event.get("unit") == "bytes" else str
        parts.append(f"{show(current)} / {show(total)}" if total else show(current))
    return " ".join(parts)
