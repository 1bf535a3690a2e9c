"""A failed build in words: the last lines of the step, and the Dockerfile's line under a caret."""

from __future__ import annotations

from .text import escape, log_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TextIO

    from .progress.state import Build

TAIL = 15


def source_lines(details: Mapping[str, Any]) -> str:
    """``Dockerfile:3`` and its lines, those meant marked, with a caret below."""
    first = int(details.get("line") or 0)
    last = int(details.get("end_line") or first)
    column = int(details.get("column") or 0)
    source = [
        (int(item[0]), escape(str(item[1])).expandtabs(4))
        for item in details.get("source") or []
        if isinstance(item, list | tuple) and len(item) == 2
    ]
    shown = escape(str(details.get("file") or "Dockerfile"))
    out = [f"{shown}:{first}", "-" * 20]
    for number, text in source:
        mark = ">>>" if first <= number <= last else "   "
        out.append(f"{number:4d} | {mark} {text}")
        if number == last or (column and number == first):
            out.append(_caret(text, column))
            column, last = 0, last if number == last else -1
    out.append("-" * 20)
    return "\n".join(out)


def _caret(text: str, column: int) -> str:
    """A line of carets below the text, or one at a column (1-based)."""
    indent = len(text) - len(text.lstrip())
    if column:
        return f"     |     {' ' * (column - 1)}^"
    return f"     |     {' ' * indent}{'^' * max(1, len(text.strip()))}"


def report(build: Build, out: TextIO, *, show_log: bool) -> None:
    """What is printed after a build that failed.

    ``show_log``: repeat the failing step's last lines (not where they were just printed)."""
    error: Mapping[str, Any] = (build.failure or {}).get("error") or {}
    details: Mapping[str, Any] = error.get("details") or {}
    vertex = build.vertices.get(str(details.get("vertex", "")))
    lines: list[str] = []
    tail = details.get("tail") or (vertex.lines if vertex else [])
    if show_log and tail and error.get("code") == "step-failed":
        name = escape(vertex.name) if vertex else "step"
        lines += ["------", f" > {name}:"]
        lines += [log_line(str(line)) for line in list(tail)[-TAIL:]]
        lines.append("------")
    described = dict(details)
    if not described.get("source") and vertex is not None:
        described.update(_step_source(build, vertex.id))
    if described.get("source"):
        lines.append(source_lines(described))
    lines.append(f"ERROR: {escape(str(error.get('message', 'the build failed')))}")
    if error.get("hint"):
        lines.append(f"hint: {escape(str(error['hint']))}")
    if build.id and error.get("code") == "step-failed":
        lines.append(f"hint: to look around in the failed step: ocibuild debug {build.id}")
    print("\n".join(lines), file=out)


def _step_source(build: Build, vertex: str) -> dict[str, Any]:
    """The instruction that a vertex stands for, from the build's list of steps."""
    step = build.steps.get(vertex)
    if not step or not step.get("line"):
        return {}
    line = int(step["line"])
    return {
        "file": build.dockerfile or "Dockerfile", "line": line, "end_line": line,
        "source": [[line, str(step.get("text", ""))]],
    }


def warnings(found: list[dict[str, Any]]) -> str:
    """What the build checks found: ``Rule: message (line 3)`` each."""
    count = len(found)
    lines = [f"\n {count} warning{'' if count == 1 else 's'} found:"]
    for item in found:
        where = f" (line {item['line']})" if item.get("line") else ""
        lines.append(f" - {escape(str(item.get('rule', '')))}: {escape(str(item['message']))}{where}")
    return "\n".join(lines)
