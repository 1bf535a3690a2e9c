"""Collection, carried out: a plan's removals in small transactions, each thing looked at once more (what
came into use since the plan was made stays), then the files into the trash."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import Conflict, NoSpace
from ..model.digest import Digest
from .blobs import LARGE
from .failpoints import hit
from .gc import Plan, Removal, planning, releasing_graph
from .policy import Policy
from .survey import surveying

if TYPE_CHECKING:
    from .store import Store

log = logging.getLogger(__name__)

SLICE_SECONDS = 0.015
"""Removals go on for so long, and a transaction of them, before the loop may turn."""
CHECK_EVERY = 16

T = TypeVar("T")


@dataclass(slots=True)
class Files:
    """Whose rows are gone and whose files are not.  blobs: with their sizes.  Each way out of here goes
    on where it was when it is begun again."""

    trees: list[str] = field(default_factory=list)
    blobs: list[tuple[Digest, int]] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)

    def moving_mounts(self, store: Store, outcome: Outcome) -> Generator[None, None, None]:
        """Cache mounts, into the trash."""
        return _timed(self.mounts, lambda name: outcome.note(store.cache_mounts.trash(name)))

    def moving_trees(self, store: Store, outcome: Outcome) -> Generator[None, None, None]:
        """Trees, into the trash."""
        return _timed(self.trees, lambda tree: outcome.note(store.trees.trash(tree)))

    def unlinking(self, store: Store, outcome: Outcome) -> Generator[None, None, None]:
        """Small blobs, for good; large ones, into the trash."""

        def unlink(blob: tuple[Digest, int]) -> None:
            outcome.blobs += store.blobs.trash_forgotten(*blob)
            outcome.pending -= blob[1] if blob[1] < LARGE else 0

        return _timed(self.blobs, unlink)

    def going(self, store: Store, outcome: Outcome) -> Generator[None, None, None]:
        """All of them."""
        yield from self.moving_mounts(store, outcome)
        yield from self.moving_trees(store, outcome)
        yield from self.unlinking(store, outcome)

    def go(self, store: Store, outcome: Outcome) -> None:
        """All of them, now."""
        for _ in self.going(store, outcome):
            pass


@dataclass(slots=True)
class Outcome:
    """What a collection did.  removals: what went (or would go, ``dry_run``).  freed: bytes, by the rows;
    kept: removals that were called off because somebody wanted the thing meanwhile.  used: before.
    garbage: the part of ``freed`` that nothing held to begin with, as planned.
    trees: paths in the trash that only nsd can delete.  files: of what went, those that are still there;
    pending: bytes of them, and of what is in the trash, for whoever empties it to count down."""

    removals: list[Removal] = field(default_factory=list)
    freed: int = 0
    used: int = 0
    garbage: int = 0
    layers: int = 0
    blobs: int = 0
    kept: int = 0
    seconds: float = 0.0
    dry_run: bool = False
    trees: list[Path] = field(default_factory=list)
    files: Files = field(default_factory=Files)
    pending: int = 0

    def count_kept(self) -> None:
        """One removal called off."""
        self.kept += 1

    def count_layer(self) -> None:
        """One layer more."""
        self.layers += 1

    def note(self, path: Path | None) -> None:
        """A directory in the trash, where there was one."""
        if path is not None:
            self.trees.append(path)


def collecting(
    store: Store, policies: Sequence[Policy], *, dry_run: bool = False, now: float | None = None,
    later: bool = False,
) -> Generator[None, None, Outcome]:
    """Survey, plan, carry out; yields every few milliseconds.  Only one at a time (the caller's lock).

    With no policies only what nobody holds goes.  later: no more than the rows (for good) and the names of
    cache mounts; the caller sees to ``Outcome.files``.  Raises InvalidArgument (a filter), Corrupt; NoSpace only
    if the disk stays full without the ballast too.
    """
    started = time.monotonic()
    now = time.time() if now is None else now
    store.held.watch()
    try:
        graph = yield from surveying(store)
        decided = yield from planning(graph, policies, now=now, free=store.space.disk().free)
        outcome = Outcome(used=decided.used, garbage=decided.garbage, dry_run=dry_run)
        if dry_run:
            outcome.removals, outcome.freed = decided.removals, decided.freed
            outcome.layers, outcome.blobs = len(decided.layers), len(decided.blobs)
        else:
            yield from releasing_graph(graph)
            yield from _carry_out(store, decided, outcome, now, later=later)
    finally:
        store.held.unwatch()
    outcome.seconds = time.monotonic() - started
    return outcome


def _carry_out(
    store: Store, decided: Plan, outcome: Outcome, now: float, *, later: bool
) -> Generator[None, None, None]:
    before = store.used
    files = outcome.files

    def remove(item: Removal) -> None:
        if _remove(store, item, now):
            # Counted once the commit stands: a slice may be undone and tried again.
            store.db.after_commit(lambda: outcome.removals.append(item))
            if item.what == "mount":
                store.db.after_commit(lambda: files.mounts.append(item.id))
            return
        store.db.after_commit(outcome.count_kept)
        # Looking it up keeps what it stands on.
        if item.what == "record":
            store.records.get(item.id)
        elif item.what != "mount":
            store.images.get(item.id)

    try:
        yield from _sliced(store, decided.removals, remove)
        yield from _sliced(store, decided.layers, lambda layer: _layer(store, layer, outcome))
        yield from _sliced(store, decided.trees, lambda tree: _tree(store, tree, files.trees))
        yield from _sliced(store, decided.blobs, lambda blob: _blob(store, blob, files.blobs))
        while store.records.trim_evictions():
            yield
        # Row first, file second: the rows are gone for good before any file moves.
        store.db.barrier()
        hit("gc.after-barrier")
        yield
        # At once: whoever asks for one of them again finds it empty.
        yield from files.moving_mounts(store, outcome)
        if not later:
            yield from files.going(store, outcome)
    except GeneratorExit:
        # Whoever waited was cancelled: what has lost its row goes all the same.
        store.db.barrier()
        files.go(store, outcome)
        raise
    outcome.freed = before - store.used


def _timed(items: list[T], each: Callable[[T], None]) -> Generator[None, None, None]:
    """``each`` for all items, which it takes out of the list, a slice at a time: a name's going takes 20 µs, or
    milliseconds on a busy disk."""
    deadline = time.monotonic() + SLICE_SECONDS
    while items:
        each(items.pop())
        if time.monotonic() > deadline:
            yield
            deadline = time.monotonic() + SLICE_SECONDS


def _sliced(store: Store, items: Iterable[T], each: Callable[[T], None]) -> Generator[None, None, None]:
    """``each`` for all items, in transactions of SLICE_SECONDS."""
    todo = list(items)
    start = 0
    while start < len(todo):
        try:
            start = _slice(store, todo, start, each)
        except NoSpace:
            # A full SQLite can't even delete.  Try again without the ballast.
            if not store.space.drop_ballast():
                raise
            continue
        hit("gc.after-slice")
        yield


def _slice(store: Store, todo: list[T], start: int, each: Callable[[T], None]) -> int:
    deadline = time.monotonic() + SLICE_SECONDS
    with store.db.relaxed(), store.transaction():
        while start < len(todo):
            each(todo[start])
            start += 1
            if not start % CHECK_EVERY and time.monotonic() > deadline:
                break
        hit("gc.before-commit")
    return start


def _remove(store: Store, item: Removal, now: float) -> bool:
    held = store.held
    if item.what == "record":
        if held.recent_keys is not None and item.id in held.recent_keys:
            return False
        return store.records.remove(item.id, rule=item.rule, why=item.why, now=now)
    if item.what == "mount":
        try:
            store.cache_mounts.forget(item.id)
        except Conflict:
            return False
        return True
    image = Digest(item.id)
    if held.has_blob(image):
        return False
    names = {name.name for name in store.images.names_of(image)}
    if names - set(item.names):
        return False  # it was given a name meanwhile
    return store.images.remove(image)


def _layer(store: Store, layer: int, outcome: Outcome) -> None:
    if not store.held.has_layer(layer):
        store.layers.remove(layer)
        store.db.after_commit(outcome.count_layer)


def _tree(store: Store, tree: str, gone: list[str]) -> None:
    if store.trees.busy(tree):
        return
    if store.db.one("SELECT 1 FROM layers WHERE tree = ? LIMIT 1", (tree,)) is None and store.trees.has(tree):
        store.trees.forget(tree)
        store.db.after_commit(lambda: gone.append(tree))


_NAMED = (
    "SELECT EXISTS (SELECT 1 FROM layers WHERE digest = ?1) OR EXISTS (SELECT 1 FROM images WHERE id = ?1)"
    " OR EXISTS (SELECT 1 FROM images WHERE manifest = ?1) OR EXISTS (SELECT 1 FROM names WHERE target = ?1),"
    " EXISTS (SELECT 1 FROM indexes WHERE digest = ?1)"
)
"""Does a row name a blob; is it an index."""


def _blob(store: Store, blob: str, gone: list[tuple[Digest, int]]) -> None:
    if store.held.has_blob(blob):
        return
    named, index = store.db.one(_NAMED, (blob,)) or (1, 0)
    if named:
        return
    digest = Digest(blob)
    if size := store.blobs.forget(digest):
        if index:
            store.db.delete("indexes", blob)
        store.db.after_commit(lambda: gone.append((digest, size)))


def empty_trash(state: Path) -> list[Path]:
    """Unlink the files in the trash; gives the directories (trees, cache mounts), which are nsd's to
    delete.  *Thread-safe*."""
    files, directories = list_trash(state)
    unlink_trash(state, files)
    return directories


def list_trash(state: Path) -> tuple[list[str], list[Path]]:
    """What is in the trash: names of files, paths of directories.  *Thread-safe*."""
    files: list[str] = []
    directories: list[Path] = []
    with os.scandir(state / "trash") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories.append(Path(entry.path))
            else:
                files.append(entry.name)
    return files, directories


def unlink_trash(state: Path, names: Iterable[str]) -> None:
    """Delete files in the trash; one that is gone is no error.  *Thread-safe*."""
    trash = os.open(state / "trash", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            hit("trash.before-unlink")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=trash)
    finally:
        os.close(trash)
