"""A build as far as its events have told: what both displays draw from."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TAIL = 200
"""Log lines that are kept of each vertex."""


class Vertex:
    """One piece of work; times are seconds since the epoch, None = not yet."""

    def __init__(self, number: int, ident: str, name: str):
        self.number = number
        self.id = ident
        self.name = name
        self.started: float | None = None
        self.ended: float | None = None
        self.seconds: float | None = None
        self.cached = False
        self.cancelled = False
        self.reason = ""
        self.error: dict[str, Any] | None = None
        self.statuses: dict[str, dict[str, Any]] = {}
        self.lines: list[str] = []
        self._partial = {1: "", 2: ""}

    @property
    def running(self) -> bool:
        return self.started is not None and self.ended is None

    def log(self, stream: int, data: str) -> list[str]:
        """Whole lines that ``data`` completes."""
        *whole, rest = (self._partial.get(stream, "") + data).split("\n")
        self._partial[stream] = rest[-65536:]
        self.lines = [*self.lines, *whole][-TAIL:]
        return whole

    def flush(self) -> list[str]:
        """Lines without an end that are left when the vertex is done."""
        left = [text for text in self._partial.values() if text]
        self._partial = {1: "", 2: ""}
        self.lines = [*self.lines, *left][-TAIL:]
        return left


class Build:
    """The vertices of a build in the order in which they appeared, and how it ended."""

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.total = 0
        self.begun: float | None = None
        self.vertices: dict[str, Vertex] = {}
        self.steps: dict[str, dict[str, Any]] = {}
        self.warnings: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self.failure: dict[str, Any] | None = None
        self.dockerfile = ""

    def vertex(self, event: dict[str, Any]) -> Vertex:
        """The vertex of an event; made where it is new."""
        ident = str(event.get("vertex", ""))
        found = self.vertices.get(ident)
        if found is None:
            name = str(event.get("name") or self._step_name(ident) or ident)
            found = self.vertices[ident] = Vertex(len(self.vertices) + 1, ident, name)
        return found

    def _step_name(self, ident: str) -> str:
        step = self.steps.get(ident)
        if not step:
            return ""
        stage = f"{step['stage']} " if step.get("stage") else ""
        return f"[{stage}{step.get('step', '?')}/{step.get('total', '?')}] {step.get('text', '')}"

    def feed(self, event: dict[str, Any]) -> Vertex | None:
        """Take an event in; the vertex that it is about, None where it is about none.

        Lines of a log are the caller's to take from ``Vertex.log``."""
        kind, when = event.get("type"), float(event.get("t", 0.0))
        if self.begun is None:
            self.begun = when
        if kind == "build.started":
            self.id, self.name = str(event.get("id", "")), str(event.get("name", ""))
            self.total = int(event.get("steps", 0) or 0)
            self.dockerfile = str(event.get("dockerfile", ""))
        elif kind == "build.step":
            self.steps.setdefault(str(event.get("vertex", "")), event)
        elif kind == "warning":
            self.warnings.append(event)
        elif kind == "build.done":
            self.result = event
        elif kind == "build.failed":
            self.failure = event
        elif isinstance(kind, str) and kind.startswith("vertex."):
            return self._feed_vertex(kind, when, event)
        return None

    def _feed_vertex(self, kind: str, when: float, event: dict[str, Any]) -> Vertex:
        vertex = self.vertex(event)
        if kind == "vertex.started":
            vertex.started = when if vertex.started is None else vertex.started
        elif kind == "vertex.status":
            vertex.statuses[str(event.get("id", ""))] = event
        elif kind == "vertex.done":
            vertex.started = when if vertex.started is None else vertex.started
            vertex.ended = when
            vertex.seconds = event.get("seconds")
            vertex.cached = bool(event.get("cached"))
            vertex.reason = str(event.get("reason", ""))
            error = event.get("error")
            if isinstance(error, dict):
                vertex.error = error
                vertex.cancelled = error.get("code") == "cancelled"
        return vertex
