"""Trees: unpacked layers, a cache of blobs.

``allocate`` gives an id and nothing else happens; a job makes ``<state>/trees/<id>`` (owned by the daemon's
user, else it can't be renamed into the trash) and ``fs`` in it; ``commit`` writes the
row.  Nobody waits for the disk: ``unsynced`` trees are synced in the background, and after a reboot
(another boot id) those that were not are discarded and unpacked again from their blobs.  What is in trees
is owned by subordinate ids, so that only nsd can delete it: ``trash`` renames, the caller's remover removes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from .. import syscalls
from ..errors import Conflict
from .db import Database
from .failpoints import hit

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text or "0"


class Trees:
    """Trees by id.  ``bytes``: what all committed ones take, as their makers said."""

    def __init__(self, state: Path, db: Database, boot_id: str):
        self._state = state
        self._db = db
        self._boot = boot_id
        self._busy: set[str] = set()
        self._trashed = 0
        row = db.one("SELECT coalesce(sum(size), 0) FROM trees")
        self.bytes: int = row[0] if row else 0
        names = [row[0] for row in db.all("SELECT id FROM trees")] + os.listdir(state / "trees")
        self._last = max((int(name, 36) for name in names if name.isalnum() and name.isascii()), default=0)

    def allocate(self) -> str:
        """An id for a tree to be; short (overlayfs options are), never one that a directory has.  It is
        this caller's alone (an upper directory mounted twice is silently broken) until ``commit`` or
        ``discard``."""
        self._last += 1
        tree = _base36(self._last)
        self._busy.add(tree)
        return tree

    def path(self, tree: str) -> Path:
        """``<state>/trees/<id>``; the layer is in ``fs`` below it."""
        return self._state / "trees" / tree

    def commit(self, tree: str, size: int) -> None:
        """The tree is whole; ``size``: bytes it takes, about.  Raises Conflict if it wasn't allocated."""
        if tree not in self._busy:
            raise Conflict(f"tree {tree}: not being made, so it can't be committed")
        hit("tree.before-row")
        self._db.put("trees", (tree, self._boot, 0, size, time.time()))
        hit("tree.after-row")
        self.bytes += size

        def undo() -> None:
            self.bytes -= size

        self._db.after_commit(lambda: self._busy.discard(tree), undo)

    def discard(self, tree: str) -> Path | None:
        """It won't be committed: to the trash with what there is.  Gives its path there, None = nothing."""
        self._busy.discard(tree)
        return self.trash(tree)

    def busy(self, tree: str) -> bool:
        """Is it being made?"""
        return tree in self._busy

    def has(self, tree: str) -> bool:
        return self._db.one("SELECT 1 FROM trees WHERE id = ?", (tree,)) is not None

    def size(self, tree: str) -> int:
        """0 for one that isn't there."""
        row = self._db.one("SELECT size FROM trees WHERE id = ?", (tree,))
        return int(row[0]) if row else 0

    # --- on the way to the disk ---------------------------------------------------------------------

    def unsynced(self) -> list[str]:
        """Committed, not known to be on the disk.  Then ``syncfs`` in a thread, then ``mark_synced``."""
        return [row[0] for row in self._db.all("SELECT id FROM trees WHERE synced = 0")]

    def syncfs(self) -> None:
        """All that the file system of the state directory has in memory, to the disk.  *Thread-safe*.
        Raises OSError: then the trees stay unsynced."""
        fd = os.open(self._state / "trees", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            hit("tree.before-syncfs")
            syscalls.syncfs(fd)
        finally:
            os.close(fd)

    def mark_synced(self, trees: Iterable[str]) -> None:
        """These were committed before a ``syncfs`` that worked."""
        hit("tree.before-synced")
        with self._db.transaction():
            for tree in trees:
                self._db.run("UPDATE trees SET synced = 1 WHERE id = ?", (tree,))

    def untrusted(self) -> list[str]:
        """After a reboot: trees that may be damaged (made under another boot and never synced)."""
        return [
            row[0]
            for row in self._db.all("SELECT id FROM trees WHERE synced = 0 AND boot != ?", (self._boot,))
        ]

    # --- on the way out -----------------------------------------------------------------------------

    def forget(self, tree: str) -> int:
        """Delete the row, and let layers no longer name the tree; gives the bytes.  Then ``trash``."""
        size = self.size(tree)
        if not self._db.delete("trees", tree):
            return 0
        self._db.run("UPDATE layers SET tree = '' WHERE tree = ?", (tree,))
        self.bytes -= size

        def undo() -> None:
            self.bytes += size

        self._db.after_commit(lambda: None, undo)
        return size

    def trash(self, tree: str) -> Path | None:
        """Rename out of the way, after the row is gone.  Gives the path in the trash, None = no such
        directory."""
        self._trashed += 1
        target = self._state / "trash" / f"tree-{tree}-{time.time_ns()}-{self._trashed}"
        hit("tree.before-trash")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path(tree), target)
            hit("tree.after-trash")
            return target
        return None
