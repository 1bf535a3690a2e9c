"""Room on the disk: the ceiling that is held before anything is allocated, the floor of free space, and
the ballast that is thrown out when the disk is full all the same (SQLite can't even delete then)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from ..errors import NoSpace
from ..ports import Lease
from .failpoints import hit

log = logging.getLogger(__name__)

FULL = 16 << 20
"""Free bytes (or a sixteenth of a small disk) below which a disk counts as full."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of the state directory; ``free`` is what ordinary users may take.  Bytes."""

    total: int
    free: int


def _mib(size: int) -> str:
    """For people."""
    return f"{size / (1 << 20):,.1f} MiB"


class Reservation:
    """Bytes promised to somebody; also a context manager.  ``release`` once they are allocated (and so
    counted) or no longer wanted; idempotent."""

    def __init__(self, space: Space, size: int):
        self._space: Space | None = space
        self.size = size

    def release(self) -> None:
        space, self._space = self._space, None
        if space is not None:
            space.reserved -= self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


Told = Callable[[str], None]
"""Somebody who waits for room is told so: one line of text, without an end of line."""


class Admit(Protocol):
    """``Maintenance.admit``."""

    async def __call__(
        self, size: int = 0, *, lease: Lease | None = None, told: Told | None = None
    ) -> Reservation: ...


class Space:
    """ceiling: the store may take no more (0 = no limit).  floor: the disk keeps this much free."""

    def __init__(self, state: Path, used: Callable[[], int]):
        self._state = state
        self._used = used
        self.ceiling = 0
        self.floor = 0
        self.reserved = 0
        self._ballast = 0

    def configure(self, *, ceiling: int = 0, floor: int = 0) -> None:
        """Set the limits, bytes."""
        self.ceiling, self.floor = ceiling, floor

    def disk(self) -> Disk:
        """As it is now."""
        found = os.statvfs(self._state)
        return Disk(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    @property
    def is_full(self) -> bool:
        """Is there hardly a byte left on the disk?"""
        disk = self.disk()
        return disk.free < min(FULL, disk.total // 16)

    def near_ceiling(self, more: int) -> bool:
        """Is more than half of what may be taken taken, with ``more`` bytes that aren't counted yet?"""
        return bool(self.ceiling) and self._used() + self.reserved + max(more, 0) > self.ceiling // 2

    @property
    def is_low(self) -> bool:
        """Is half of what the disk keeps free gone too?  Who is writing then must stop."""
        return bool(self.floor) and self.disk().free < self.floor // 2

    def never_fits(self, size: int) -> bool:
        """Would there be no room for it in an empty store either?"""
        return bool(self.ceiling) and size > self.ceiling

    def lacking(self, size: int = 0) -> int:
        """Bytes that must go before ``size`` more may come; ≤ 0 = there is room."""
        over = self._used() + self.reserved + size - self.ceiling if self.ceiling else 0
        under = self.floor + self.reserved + size - self.disk().free if self.floor or size else 0
        return max(over, under)

    def reserve(self, size: int = 0) -> Reservation:
        """Before anything is allocated: room for ``size`` bytes (0 = whatever it will be: there must be
        room at all).  Raises NoSpace; the caller may collect and try again (``Maintenance.admit``)."""
        lacking = self.lacking(size)
        if lacking > 0 or (size == 0 and self.ceiling and self._used() + self.reserved >= self.ceiling):
            disk = self.disk()
            raise NoSpace(
                f"store {self._state}: no room for {size:,} bytes: {self._used():,} used"
                f" of {self.ceiling or disk.total:,}, {disk.free:,} free on the disk",
                hint="run `ocibuild prune`, or raise gc.ceiling in ocibuildd.toml",
                details={
                    "used": self._used(), "ceiling": self.ceiling, "free": disk.free, "floor": self.floor,
                    "lacking": max(lacking, 1),
                },
            )
        self.reserved += size
        return Reservation(self, size)

    def wanted(self, size: int, others: int) -> str:
        """What somebody waits for, in words.  others: pieces of work that hold something."""
        of = f" of {_mib(self.ceiling)}" if self.ceiling else ""
        needed = f"{_mib(max(self.lacking(size), 1))} must go" if size == 0 else (
            f"{_mib(size)} needed, {_mib(max(self.lacking(size), 1))} lacking"
        )
        who = f"; {others} other build{'s' * (others > 1)} or transfer{'s' * (others > 1)} may give some back"
        return (
            f"waiting for room: {needed}; the store has {_mib(self._used())}{of},"
            f" {_mib(self.disk().free)} free on the disk" + (who if others else "")
        )

    # --- ballast --------------------------------------------------------------------------------------

    def make_ballast(self, size: int | None = None) -> bool:
        """Put bytes aside (None: as many as last time); False where there is no room for them."""
        self._ballast = self._ballast if size is None else size
        path = self._state / "ballast"
        if not self._ballast:
            path.unlink(missing_ok=True)
            return True
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == self._ballast:
                return True
        try:
            hit("space.ballast")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._ballast)
            finally:
                os.close(fd)
        except OSError as error:
            path.unlink(missing_ok=True)
            log.warning("ballast of %d bytes: %s", self._ballast, error)
            return False
        return True

    def drop_ballast(self) -> bool:
        """The disk is full: give the ballast up; True if there was any."""
        path = self._state / "ballast"
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        log.warning("the disk is full: the ballast of %d bytes was given up", self._ballast)
        return True
