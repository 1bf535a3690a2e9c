"""What happens at start: directories, the marker of an orderly end, the database (built again where it is
damaged), and the sweep of what a crash left."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BuildError, Corrupt
from ..model.digest import Digest
from .blobs import disk_error
from .db import Database
from .failpoints import hit
from .gc import finish
from .journal import Journal
from .rebuild import EMPTY, compacting, live_rows, rebuild

if TYPE_CHECKING:
    from .store import Store

log = logging.getLogger(__name__)

MAX_REHASH = 1 << 30
"""Bytes of blobs without a row that are hashed at start to adopt them; more are dropped."""


@dataclass(slots=True)
class Report:
    """What a start found and mended."""

    clean: bool = True
    damage: list[str] = field(default_factory=list)
    rebuilt_rows: int = 0
    ingests: int = 0
    adopted: list[str] = field(default_factory=list)
    dropped_blobs: int = 0
    missing_blobs: list[str] = field(default_factory=list)
    untrusted_trees: list[str] = field(default_factory=list)
    orphan_trees: int = 0
    missing_trees: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    trash: int = 0


def make_directories(state: Path, names: Iterable[str]) -> None:
    """The directories of a store, 0700.  Raises BuildError (read-only, not ours), NoSpace."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if state.stat().st_mode & 0o077:
            state.chmod(0o700)
        for name in names:
            directory = state / name
            if not directory.is_dir():
                directory.parent.mkdir(mode=0o700, exist_ok=True)
                directory.mkdir(mode=0o700, exist_ok=True)
    except PermissionError as error:
        raise BuildError(
            f"state directory {state}: {error.strerror}",
            hint="it must belong to the user who runs the daemon",
        ) from error
    except OSError as error:
        raise disk_error(error, f"state directory {state}") from error


def take_marker(state: Path) -> bool:
    """Was the last end orderly (or is this the first start)?  Takes the marker away."""
    try:
        (state / "clean").unlink()
    except FileNotFoundError:
        return not ((state / "store.db").exists() or (state / "journal.jsonl").exists())
    except OSError as error:
        raise disk_error(error, f"state directory {state}") from error
    return True


def put_marker(state: Path) -> None:
    """An orderly end."""
    fd = os.open(state / "clean", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.close(fd)


def open_database(state: Path, *, clean: bool, schema: int) -> tuple[Database, Report]:
    """The database with its journal; checked after a crash, and built again where it is damaged."""
    report = Report(clean=clean)
    path = state / "store.db"
    db = _open_sound(path, report)
    if db is None:
        log.error("database %s: %s: building it again", path, "; ".join(report.damage[:3]))
        report.rebuilt_rows = _build_again(state, path)
        db = Database(path)
    try:
        _private(path)
        db.journal = Journal(state / "journal.jsonl", schema)
        if report.damage:
            finish(db.journal.rewriting(live_rows(db)))
        else:
            finish(compacting(db))
    except BaseException:
        db.close()
        raise
    return db, report


def _open_sound(path: Path, report: Report) -> Database | None:
    """The database, or None where it is damaged (``report.damage`` says how); one that is missing is damage
    if the journal knows of rows."""
    if not path.exists():
        journal = path.with_name("journal.jsonl")
        if journal.exists() and journal.stat().st_size > EMPTY:
            report.damage = ["it is missing"]
            return None
    try:
        db = Database(path)
    except Corrupt as error:
        report.damage = [error.message]
        return None
    report.damage = [] if report.clean else db.damage()
    if not report.damage:
        return db
    db.close()
    return None


def _private(path: Path) -> None:
    """SQLite makes its files with the umask's mode; the log and index take the database's."""
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).chmod(0o600)


def _build_again(state: Path, path: Path) -> int:
    """Put the damaged database aside and a new one in its place, which is there in whole or not at all (a
    crash in between finds no database and begins again).  Gives the number of rows."""
    stamp = int(time.time())
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(state / "quarantine" / f"store.db{suffix}.{stamp}")
    fresh = path.with_name("store.db.new")
    for suffix in ("", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    hit("recover.before-rebuild")
    db = Database(fresh)
    try:
        rows = rebuild(state, db)
    finally:
        db.close()
    hit("recover.before-rename")
    fresh.rename(path)
    return rows


def sweep(store: Store, report: Report, *, clean: bool) -> None:
    """Take away what was on its way in or out; after a crash, compare files and rows."""
    for entry in os.scandir(store.path / "ingest"):
        os.unlink(entry.path)
        report.ingests += 1
    for tree in store.trees.untrusted():
        _lose_tree(store, tree)
        report.untrusted_trees.append(tree)
    report.interrupted = store.builds.interrupted()
    if not clean or report.damage:
        _sweep_blobs(store, report)
        _sweep_trees(store, report)
        _sweep_directories(store)
    report.trash = sum(1 for _ in os.scandir(store.path / "trash"))
    if not clean:
        log.info("recovered from a crash: %s", report)


def _lose_tree(store: Store, tree: str) -> None:
    """A tree that can't be trusted: the layers keep their blobs and are unpacked again when needed."""
    hit("recover.before-tree")
    with store.transaction():
        store.trees.forget(tree)
    store.trees.trash(tree)


def _sweep_blobs(store: Store, report: Report) -> None:
    files: set[str] = set()
    budget = MAX_REHASH
    for algorithm in ("sha256", "sha512"):
        for entry in os.scandir(store.path / "blobs" / algorithm):
            try:
                digest = Digest(f"{algorithm}:{entry.name}")
            except ValueError:
                os.unlink(entry.path)
                continue
            size = entry.stat(follow_symlinks=False).st_size
            files.add(digest)
            known = store.db.one("SELECT size FROM blobs WHERE digest = ?", (digest,))
            if known is not None and known[0] == size:
                continue
            if known is not None:
                store.blobs.quarantine(digest, f"{size:,} bytes, expected {known[0]:,}")
                files.discard(digest)
                continue
            budget -= size
            if budget >= 0 and not store.blobs.verify(digest):
                hit("recover.before-adopt")
                store.blobs.add_row(digest, size)
                report.adopted.append(digest)
            else:
                os.unlink(entry.path)
                files.discard(digest)
                report.dropped_blobs += 1
    after = ""
    while page := store.blobs.all_digests(after):
        after = page[-1][0]
        for digest, _ in page:
            if digest not in files:
                store.blobs.forget(digest)
                store.blobs.on_lost(digest, "is missing after a crash")
                report.missing_blobs.append(digest)


def _sweep_trees(store: Store, report: Report) -> None:
    rows = {row[0] for row in store.db.all("SELECT id FROM trees")}
    found = set(os.listdir(store.path / "trees"))
    for tree in found - rows:
        store.trees.trash(tree)
        report.orphan_trees += 1
    for tree in rows - found:
        store.trees.forget(tree)
        report.missing_trees.append(tree)
    # A layer may name a tree whose row was never written (the commit after it did not happen).
    store.db.run("UPDATE layers SET tree = '' WHERE tree != '' AND tree NOT IN (SELECT id FROM trees)")


def _sweep_directories(store: Store) -> None:
    mounts = {row[0] for row in store.db.all("SELECT hash FROM cache_mounts")}
    for name in set(os.listdir(store.path / "cache")) - mounts:
        store.cache_mounts.trash(name)
    builds = {row[0] for row in store.db.all("SELECT id FROM builds")}
    for name in set(os.listdir(store.path / "builds")) - builds:
        shutil.rmtree(store.path / "builds" / name, ignore_errors=True)


def is_full(error: BaseException) -> bool:
    """Is it for want of room?"""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
