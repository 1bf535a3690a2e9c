"""Text for people: escaping, sizes, times, tables."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# C0 and C1 controls, DEL, and the marks that turn the direction of text: what an image name, a log
# line or an error message must not do to a terminal.
_BIDI = "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
_ESCAPES = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)]}
_ESCAPES.update({ord(mark): f"\\u{ord(mark):04x}" for mark in _BIDI})
del _ESCAPES[ord("\t")]
_MULTILINE = {code: shown for code, shown in _ESCAPES.items() if code != ord("\n")}


def escape(text: str) -> str:
    """One line that is safe to print: control characters become visible."""
    return text if text.isascii() and text.isprintable() else _safe(text.translate(_ESCAPES))


def escape_lines(text: str) -> str:
    """Like ``escape``, but line ends stay."""
    return _safe(text.translate(_MULTILINE))


def _safe(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def strip_colours(text: str) -> str:
    """Without terminal sequences (``ESC [ … letter`` and ``ESC ] … BEL``): a log line's colours."""
    if "\x1b" not in text:
        return text
    import re

    return re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])", "", text)


def log_line(text: str) -> str:
    """A line of a step's output as we print it: what a carriage return overwrote is gone."""
    text = strip_colours(text.rstrip("\r"))
    if "\r" in text:
        text = next((part for part in reversed(text.split("\r")) if part), "")
    return escape(text)


def size(number: float) -> str:
    """Docker's short form: ``72.8MB``."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while number >= 1000 and len(units) > 1:
        number /= 1000
        del units[0]
    return f"{number:.4g}{units[0]}" if units[0] == "B" else f"{number:.3g}{units[0]}"


def seconds(number: float) -> str:
    """``0.3s``, ``1m 5s``, ``2h 3m``."""
    if number < 60:
        return f"{number:.1f}s"
    whole = int(number)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"


def ago(then: float, now: float | None = None) -> str:
    """``3 hours ago``, in Docker's words."""
    if not then or then < 0:
        return "N/A"
    import time

    age = int(max(0, (time.time() if now is None else now) - then))
    if age < 1:
        return "Less than a second ago"
    for limit, unit, name in (
        (60, 1, "second"), (3600, 60, "minute"), (172800, 3600, "hour"), (1209600, 86400, "day"),
        (5184000, 604800, "week"), (63072000, 2592000, "month"), (1 << 62, 31536000, "year"),
    ):
        if age < limit:
            count = age // unit
            if name in ("minute", "hour") and count == 1:
                return f"About {'a' if name == 'minute' else 'an'} {name} ago"
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "N/A"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that are three spaces apart, as docker prints them; everything is escaped."""
    lines = [[escape(str(cell)) for cell in row] for row in ([header, *rows] if header else rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))] if lines else []
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
