"""What the rows say, once more: a file of JSON lines that a damaged database is built again from.

``["table", [column, …]]`` puts a row, ``["-table", [key]]`` takes one away; ``["preimages", [record's key, text,
deflated in base64]]`` has one of the last two and goes with its record.  ``["-records", [key, at, rule, why]]`` also
says why the record went; once the file was rewritten ``["evictions", [key, selector, at, rule, why]]`` does.  The
first line is ``["schema", [n, bytes]]``: how long the file was when it was last rewritten.  Appended after each
commit and never synced: the database is the truth, this is the spare.  A line that a crash cut short is skipped
when read.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from .failpoints import hit

log = logging.getLogger(__name__)

MAX_LINE = 4 << 20
"""A row is far smaller; a longer line is damage."""
FIRST_LINE = 100
REWRITE_SLICE = 500
COMPACT_AT = 1 << 20
"""A journal smaller than this is never worth rewriting."""
LEAST = 64 << 10
"""The same after a collection, whose caller waits for the space."""
ROW = 1_000
"""Bytes that a record or an image has here with all that goes with it."""
GROWN = 2
"""It is rewritten once it is so many times as long as after the last time."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[str, list[Any]]).decode


class Journal:
    """Append-only, opened for the life of the store."""

    def __init__(self, path: Path, schema: int):
        self.path = path
        self.schema = schema
        self._failed = False
        self._fresh: IO[bytes] | None = None
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.size = os.fstat(self.fd).st_size
        self._rewritten = _length_in(os.pread(self.fd, FIRST_LINE, 0))
        if not self.size:
            self.append(self._first(0))

    def _first(self, length: int) -> bytes:
        """The first line; as long for any length."""
        return self.line("schema", (self.schema, f"{length:020}"))

    @staticmethod
    def line(what: str, row: Sequence[Any]) -> bytes:
        """One line."""
        return _encode((what, row)) + b"\n"

    def append(self, lines: bytes) -> None:
        """Best effort: a full disk costs the spare, not the commit that it follows."""
        hit("journal.append")
        if self._fresh is not None:
            self._fresh.write(lines)
        try:
            self.size += os.write(self.fd, lines)
        except OSError as error:
            if not self._failed:
                log.warning("journal %s: %s", self.path, error)
            self._failed = True

    def rewriting(self, rows: Iterable[tuple[str, Sequence[Any]]]) -> Generator[None, None, None]:
        """Replace the journal by these rows (the live ones), stepwise; what is appended meanwhile goes to
        both, and later lines win."""
        fresh = self.path.with_suffix(".new")
        try:
            with open(fresh, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as file:
                self._fresh = file
                file.write(self._first(0))
                for number, (table, row) in enumerate(rows):
                    file.write(self.line(table, row))
                    if number % REWRITE_SLICE == REWRITE_SLICE - 1:
                        yield
                self._rewritten = file.tell()
                file.seek(0)
                file.write(self._first(self._rewritten))
        finally:
            self._fresh = None
        hit("journal.before-rename")
        fresh.rename(self.path)
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self.size = os.fstat(self.fd).st_size
        self._failed = False

    @property
    def bloated(self) -> bool:
        """Is it mostly history?"""
        return self.size > COMPACT_AT and self.size > GROWN * self._rewritten

    def outlived(self, rows: int) -> bool:
        """Is about half of it history, now that so many rows went at once?"""
        return self.size > LEAST and rows * ROW * GROWN > self.size

    def close(self) -> None:
        """No more lines."""
        with contextlib.suppress(OSError):
            os.close(self.fd)


def _length_in(start: bytes) -> int:
    """What the first line says; 0 where it is another."""
    try:
        _, row = _decode(start.partition(b"\n")[0])
        return int(row[1])
    except (msgspec.DecodeError, msgspec.ValidationError, IndexError, TypeError, ValueError):
        return 0


def read(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """The lines that can be read, in order; what can't is skipped."""
    if not path.exists():
        return
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
                yield _decode(line)
