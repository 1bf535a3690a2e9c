"""What a step holds on the disk under no name: files that it has open and that nobody can find any more.

The size of an upper directory has no part of them, and their space is taken until the last descriptor is closed.
What has no descriptor either (a mapping, a descriptor on its way through a socket) is seen by nobody but the file
system: main watches its free space while a step runs.
"""

from __future__ import annotations

import os

MAX_PROCESSES = 65_536
MAX_OPEN = 1_000_000
"""Descriptors that are looked at in one scan, some µs each."""


def host_pid(pidfd: int) -> int:
    """The number of a process in the procfs that we see, which may be of another pid namespace; -1 when it's gone.

    Linux: Documentation/filesystems/proc.rst (fdinfo of a pidfd)."""
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        for line in file:
            if line.startswith(b"Pid:"):
                return int(line.split()[1])
    return -1


def processes(first: int) -> list[int]:
    """A process and all that descend from it: orphans of a pid namespace are children of its process 1."""
    found = [first]
    for pid in found:
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    found += [int(word) for word in file.read().split()]
        except OSError:
            continue  # it has ended
        if len(found) > MAX_PROCESSES:
            break
    return found


def size(pidfd: int, stop_at: int) -> int:
    """Bytes on disk of unlinked files that a sandbox's processes have open; ``pidfd``: its process 1.

    Counting ends soon after ``stop_at`` is passed.  Files of its root file system only: what is behind other
    mounts is no part of its layer."""
    first = host_pid(pidfd)
    if first <= 0:
        return 0
    try:
        device = os.stat(f"/proc/{first}/root").st_dev
    except OSError:
        return 0
    total, looked = 0, 0
    seen: set[int] = set()
    for pid in processes(first):
        for fd in _descriptors(pid):
            looked += 1
            try:
                info = os.stat(fd)
            except OSError:
                continue
            if info.st_dev == device and info.st_nlink == 0 and info.st_ino not in seen:
                seen.add(info.st_ino)
                total += info.st_blocks * 512
            if total > stop_at or looked > MAX_OPEN:
                return total
    return total


def _descriptors(pid: int) -> list[str]:
    try:
        return [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return []
