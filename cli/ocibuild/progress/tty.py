"""Live progress on a terminal: every vertex a line with its time, and a window on running logs."""

from __future__ import annotations

import os
import time

from ..text import escape, log_line, seconds
from . import Display
from .plain import describe, summary
from .state import Build, Vertex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

WINDOW = 6
"""Log lines shown below a running vertex."""
MIN_REDRAW = 0.05


class TtyDisplay(Display):
    """Redraws its lines in place.  Ended vertices that no longer fit scroll away above."""

    interval = 0.1

    def __init__(self, out: TextIO):
        self.out = out
        self.build = Build()
        self._drawn = 0
        self._printed: set[str] = set()
        self._at = 0.0
        self._clock = 0.0
        self._closed = False

    def feed(self, event: dict[str, Any]) -> None:
        vertex = self.build.feed(event)
        # The daemon's clock and ours may differ: durations are measured on the daemon's.
        self._clock = float(event.get("t", 0.0)) - time.time()
        if vertex is not None and event.get("type") == "vertex.log":
            vertex.log(int(event.get("stream", 1)), str(event.get("data", "")))
        elif vertex is not None and event.get("type") == "vertex.done":
            vertex.flush()
        self.tick()

    def tick(self) -> None:
        now = time.monotonic()
        if now - self._at >= MIN_REDRAW:
            self._at = now
            self._draw(final=False)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._draw(final=True)

    def _draw(self, *, final: bool) -> None:
        try:
            width, height = os.get_terminal_size(self.out.fileno())
        except OSError:
            width, height = 80, 24
        lines = self._lines(max(width or 80, 20), final=final)
        # Vertices that have ended and would not fit are printed for good, once.
        room = max((height or 24) - 2, 3)
        head, body = lines[0], lines[1:]
        out = [f"\x1b[{self._drawn}A" if self._drawn else "", "\r\x1b[J", "\x1b[?25l"]
        if final:
            shown = [head, *body]
        else:
            shown = [head, *body[-(room - 1) :]]
        out += [line + "\n" for line in shown]
        self._drawn = 0 if final else len(shown)
        if final:
            out.append("\x1b[?25h")
        if final and self.build.result and self.build.result.get("image"):
            out.append(summary(self.build.result) + "\n")
        self.out.write("".join(out))
        self.out.flush()

    def _lines(self, width: int, *, final: bool) -> list[str]:
        build = self.build
        now = time.time() + self._clock
        vertices = list(build.vertices.values())
        done = sum(1 for vertex in vertices if vertex.ended is not None)
        total = max(len(vertices), len(set(build.steps) | set(build.vertices)))
        took = max(0.0, now - build.begun) if build.begun else 0.0
        word = "Building"
        if build.result is not None or build.failure is not None:
            ended = build.result or build.failure or {}
            took = float(ended.get("seconds") or took)
            word = "Building"
        state = " FINISHED" if build.result is not None else ""
        head = f"[+] {word} {took:.1f}s ({done}/{total}){state}"
        lines = [head[: width - 1]]
        for vertex in vertices:
            lines += _vertex_lines(vertex, now, width, final=final)
        return lines


def _vertex_lines(vertex: Vertex, now: float, width: int, *, final: bool) -> list[str]:
    mark, colour = " => ", ""
    if vertex.cached:
        name, colour = f"CACHED {vertex.name}", "\x1b[34m"
    elif vertex.cancelled:
        name, colour = f"CANCELED {vertex.name}", "\x1b[33m"
    elif vertex.error:
        name, colour = f"ERROR {vertex.name}", "\x1b[31m"
    else:
        name = vertex.name
        colour = "\x1b[34m" if vertex.ended is not None else ""
    taken = vertex.seconds
    if taken is None:
        taken = (vertex.ended if vertex.ended is not None else now) - (vertex.started or now)
    clock = seconds(max(0.0, float(taken)))
    lines = [_row(mark + escape(name), clock, width, colour)]
    if vertex.running and not final:
        for status in list(vertex.statuses.values())[-WINDOW:]:
            current, total = status.get("current") or 0, status.get("total") or 0
            if not total or current < total:
                lines.append(_row(" => => " + describe(status), "", width, ""))
        for line in vertex.lines[-WINDOW:]:
            text = " => => # " + log_line(line).expandtabs(8)
            lines.append(_coloured("\x1b[2m", text[: width - 1]))
    return lines


def _row(left: str, right: str, width: int, colour: str) -> str:
    left = left.expandtabs(8)
    room = width - len(right) - 2
    if len(left) > room:
        left = left[: max(room - 1, 4)] + "…"
    text = left.ljust(room) + " " + right
    return _coloured(colour, text)


def _coloured(colour: str, text: str) -> str:
    """``NO_COLOR``, if it is not empty, says that there are to be none (no-color.org)."""
    return f"{colour}{text}\x1b[0m" if colour and not os.environ.get("NO_COLOR") else text
