"""SQLite as the store uses it: one connection, one thread, each query a named function elsewhere.

Raises NoSpace for a full disk and Corrupt for a damaged file; other sqlite3 errors are bugs and pass.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import BuildError, Corrupt, NoSpace, Unsupported
from .failpoints import hit
from .journal import Journal
from .schema import KEYS, MIGRATIONS

BUSY_TIMEOUT_MS = 5_000
CACHED_STATEMENTS = 256
CACHE_KIB = 32 << 10
"""Pages are taken as they are read, and given back after a collection (``shrink``)."""
CHECKPOINT_PAGES = 64_000
"""A checkpoint inside a commit costs a sync of the database: maintenance does it in a thread, and a
commit only when the log has grown to this (256 MB)."""

Row = tuple[Any, ...]


def _nobody() -> None:
    """Nobody wants to know."""


def _readable(value: object) -> object:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def translate(error: sqlite3.Error, path: object) -> BuildError | sqlite3.Error:
    """The project's error for an SQLite one, or the same again."""
    text = str(error)
    if "disk is full" in text:
        return NoSpace(
            f"database {path}: the disk is full", hint="free some space, or run `ocibuild prune`"
        )
    if "malformed" in text or "not a database" in text:
        return Corrupt(f"database {path}: {text}", hint="restart the daemon: it rebuilds the database")
    return error


class Database:
    """A connection in autocommit mode with explicit transactions."""

    def __init__(self, path: Path, journal: Journal | None = None):
        """Opens or creates; migrates.  Raises Corrupt, NoSpace, BuildError (a newer schema)."""
        self.path = path
        self.journal = journal
        self.damaged = False
        """A query found damage: the next start must look."""
        self._lines: list[bytes] = []
        self.depth = 0
        self._after: list[Callable[[], None]] = []
        self._undo: list[Callable[[], None]] = []
        self.on_write: Callable[[], None] = _nobody
        """Called after each commit (maintenance wakes by it)."""
        self.connection = sqlite3.connect(
            path, isolation_level=None, cached_statements=CACHED_STATEMENTS, timeout=BUSY_TIMEOUT_MS / 1e3
        )
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.connection.close()
            raise translate(error, path) from error
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self) -> None:
        run = self.connection.execute
        # Only possible before the first table; lets prune give all its space back.
        run("PRAGMA auto_vacuum = INCREMENTAL")
        (mode,) = run("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            # Without shared memory (some network file systems) there is no write-ahead log.
            raise Unsupported(
                f"database {self.path}: journal mode {mode!r}, expected 'wal'",
                hint="put the state directory on a local file system",
            )
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        run(f"PRAGMA cache_size = -{CACHE_KIB}")
        run("PRAGMA temp_store = MEMORY")
        run("PRAGMA trusted_schema = OFF")
        (version,) = run("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise BuildError(
                f"database {self.path}: schema {version}, this daemon knows {len(MIGRATIONS)}",
                hint="run the newer daemon, or give this one another state directory",
            )
        for number in range(version, len(MIGRATIONS)):
            hit("db.migrate")
            self.connection.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
            )

    def damage(self) -> list[str]:
        """What ``quick_check`` finds; empty = sound."""
        try:
            found = [str(row[0]) for row in self.connection.execute("PRAGMA quick_check(20)")]
        except sqlite3.Error as error:
            return [str(error)]
        return [] if found == ["ok"] else found

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> Row | None:
        """The first row."""
        try:
            row: Row | None = self.connection.execute(sql, parameters).fetchone()
            return row
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def all(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows: for queries that are bounded by what they ask."""
        try:
            return self.connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Write; a commit of its own outside a transaction.  Gives how many rows it touched."""
        try:
            return self.connection.execute(sql, parameters).rowcount
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error) -> BuildError | sqlite3.Error:
        translated = translate(error, self.path)
        if isinstance(translated, Corrupt):
            self.damaged = True
        return translated

    def put(self, table: str, row: Sequence[Any]) -> None:
        """Insert or replace a whole row (columns in the schema's order), in the journal too."""
        self.put_returning_id(table, row)

    def put_returning_id(self, table: str, row: Sequence[Any]) -> int:
        """``put``; gives the row's rowid."""
        sql = f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(row))})"
        try:
            cursor = self.connection.execute(sql, row)
        except UnicodeEncodeError:
            # Names from images and Dockerfiles need not be UTF-8; what is in columns is for people.
            row = [_readable(value) for value in row]
            cursor = self.connection.execute(sql, row)
        except sqlite3.Error as error:
            raise self._translated(error) from error
        self.mirror(table, row)
        return cursor.lastrowid or 0

    def delete(self, table: str, key: str | int, *about: object) -> int:
        """Delete the row with this primary key (or ``key``, for records), in the journal too.  about: what else its
        line says."""
        column = KEYS[table]
        touched = self.run(f"DELETE FROM {table} WHERE {column} = ?", (key,))
        self.mirror("-" + table, (key, *about))
        return touched

    def mirror(self, what: str, row: Sequence[Any]) -> None:
        """A line for the journal, once what was written stands."""
        if self.journal is None:
            return
        self._lines.append(self.journal.line(what, row))
        if not self.depth:
            self._write_journal()

    def _write_journal(self) -> None:
        self.on_write()
        lines, self._lines = self._lines, []
        if lines and self.journal is not None:
            self.journal.append(b"".join(lines))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside are one commit; nests; an exception undoes all.  Never await inside:
        other tasks' writes would become part of it."""
        if self.depth:
            self.depth += 1
            try:
                yield
            finally:
                self.depth -= 1
            return
        self.run("BEGIN IMMEDIATE")
        self.depth = 1
        try:
            yield
            hit("db.before-commit")
            self.run("COMMIT")
        except BaseException:
            if self.connection.in_transaction:
                self.connection.rollback()
            for undo in reversed(self._undo):
                undo()
            self._after.clear()
            self._lines.clear()
            raise
        finally:
            self.depth = 0
            self._undo.clear()
        callbacks, self._after = self._after, []
        hit("db.after-commit")
        self._write_journal()
        for callback in callbacks:
            callback()

    @contextmanager
    def relaxed(self) -> Iterator[None]:
        """Commits inside don't wait for the disk (a crash of the machine may undo the latest of them, in
        order); whoever acts on them calls ``barrier`` first.  Not inside a transaction."""
        self.run("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self.run("PRAGMA synchronous = FULL")

    def barrier(self) -> None:
        """All commits so far are on the disk when this returns."""
        self.run(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def after_commit(self, callback: Callable[[], None], undo: Callable[[], None] | None = None) -> None:
        """Call once what was written stands (now, outside a transaction); ``undo`` if it is rolled back."""
        if not self.depth:
            callback()
            return
        self._after.append(callback)
        if undo is not None:
            self._undo.append(undo)

    def shrink(self, pages: int = 1_000) -> bool:
        """Give up to ``pages`` free pages back to the disk; True when there are more."""
        self.all(f"PRAGMA incremental_vacuum({int(pages)})")
        row = self.one("PRAGMA freelist_count")
        if row and row[0]:
            return True
        self.all("PRAGMA shrink_memory")
        return False

    def close(self) -> None:
        """Checkpoints (SQLite does so with the last connection) and closes."""
        self.connection.close()


def checkpoint(path: Path, *, truncate: bool = True) -> None:
    """Move the write-ahead log into the database, and empty it (``truncate``: writers wait for that).
    *Thread-safe*: a connection of its own."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_MS / 1e3)
    try:
        hit("db.checkpoint")
        connection.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if truncate else 'PASSIVE'})").fetchall()
    finally:
        connection.close()
