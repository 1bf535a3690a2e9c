"""The daemon's log: one JSON object a line on standard error, or lines for people on a terminal.

What comes from outside (names, tags, messages of registries) is never a line of its own: JSON escapes
control characters, and so does the other form.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping

MAX_MESSAGE = 16 << 10
"""Characters of one message; the rest is cut."""
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_CONTROLS = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if code != 0x09}


class JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "logger": …, "message": …}``; ``journal``: with sd-daemon(3)'s priority
    in front, which journald takes off."""

    def __init__(self, *, journal: bool):
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, object] = {
            "time": round(record.created, 3), "level": record.levelname.lower(),
            "logger": record.name, "message": record.getMessage()[:MAX_MESSAGE],
        }
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)[:MAX_MESSAGE]
        line = json.dumps(body, ensure_ascii=True)
        return f"<{PRIORITIES.get(record.levelno, 6)}>{line}" if self._journal else line


class PlainFormatter(logging.Formatter):
    """``12:00:00.123 info store: message``, control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix("ocibuildd.")
        message = record.getMessage()[:MAX_MESSAGE].translate(_CONTROLS)
        text = f"{clock}.{int(record.msecs):03d} {record.levelname.lower()} {name}: {message}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)[:MAX_MESSAGE]
        return text


def under_journal(environ: Mapping[str, str]) -> bool:
    """Is standard error the journal's?  ($JOURNAL_STREAM is ``device:inode``, systemd.exec(5).)"""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def set_up(level: str, *, plain: bool, environ: Mapping[str, str]) -> None:
    """Once, at the start; ``set_level`` later."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        PlainFormatter() if plain else JsonFormatter(journal=under_journal(environ))
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.raiseExceptions = False
    set_level(level)


def set_level(level: str) -> None:
    logging.getLogger().setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.getLogger().level, logging.WARNING))
