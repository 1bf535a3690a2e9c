"""Control groups (version 2) for build steps, where a subtree is delegated to us.

Linux: Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What a leaf used.  cpu_user, cpu_system: seconds; memory_peak, read, written: bytes (0 = not
    known); oom_kills: processes that the kernel killed for memory in it."""

    cpu_user: float = 0.0
    cpu_system: float = 0.0
    memory_peak: int = 0
    read: int = 0
    written: int = 0
    oom_kills: int = 0


class Leaf:
    """The group of one step."""

    path: str
    procs_fd: int
    """Write b"0" here to move the writing process in (the child does it before it unshares)."""

    def usage(self) -> Usage:
        """The counters as they are now."""
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL to all in it at once (cgroup.kill, Linux 5.14)."""
        raise NotImplementedError

    def remove(self) -> bool:
        """Close and rmdir; False while processes are still in it (try again later)."""
        raise NotImplementedError


class Cgroups:
    """A delegated subtree.  ``controllers``: those that leaves have, of memory, pids, cpu, cpuset, io."""

    controllers: frozenset[str]

    @classmethod
    def detect(cls) -> Cgroups | None:
        """The subtree that this process may use: its own group when that is writable (systemd's
        ``Delegate=yes``; our processes are moved to a leaf "daemon" first, since a group with
        controllers for its children may hold no process itself).  None: no delegation."""
        raise NotImplementedError

    def leaf(self, name: str, limits: Mapping[str, int]) -> Leaf:
        """A fresh group for a step.  limits: RunSpec's memory, pids (0 = none), cpu_quota and cpu_period
        (microseconds); what no controller is there for is skipped (``unenforced`` tells)."""
        raise NotImplementedError
