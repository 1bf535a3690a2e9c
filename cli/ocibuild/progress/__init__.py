"""How a build is shown: plain lines, a live display on a terminal, JSON, or nothing."""

from __future__ import annotations

import sys

from ..errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

MODES = ("auto", "plain", "tty", "json", "rawjson", "quiet", "none")


class Display:
    """What a display does with events; ``tick`` is called a few times a second meanwhile."""

    interval: float | None = None

    def feed(self, event: dict[str, Any]) -> None:
        """One event of the build."""

    def tick(self) -> None:
        """Time passes."""

    def close(self) -> None:
        """The build has ended (or the stream broke): leave the terminal as it was."""


class JsonDisplay(Display):
    """The events themselves, one a line."""

    def __init__(self, out: TextIO):
        self.out = out

    def feed(self, event: dict[str, Any]) -> None:
        import json

        self.out.write(json.dumps(event, separators=(",", ":")) + "\n")
        self.out.flush()


def display(mode: str, out: TextIO | None = None, *, explain: bool = True) -> Display:
    """The display for ``--progress``.  Raises UsageError."""
    out = out or sys.stderr
    if mode not in MODES:
        raise UsageError(f"invalid progress mode {mode!r}: expected one of {', '.join(MODES)}")
    if mode in ("quiet", "none"):
        return Display()
    if mode in ("json", "rawjson"):
        return JsonDisplay(sys.stdout if mode == "json" else out)
    if mode == "tty" or (mode == "auto" and out.isatty() and not _dumb()):
        if not out.isatty():
            raise UsageError("--progress tty: standard error is no terminal")
        from .tty import TtyDisplay

        return TtyDisplay(out)
    from .plain import PlainDisplay

    return PlainDisplay(out, explain=explain)


def _dumb() -> bool:
    import os

    return os.environ.get("TERM", "") in ("", "dumb")
