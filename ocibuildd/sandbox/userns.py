"""The daemon's user namespace U0: which ids it holds, and how they get mapped.

The ladder, best first (user_namespaces(7), subuid(5)):

* *shifted*: U0 is {0 → the daemon's user, 1… → subordinate ids}, a sandbox's U1 is {0… → U0's 1…}, so that
  root in a sandbox is a subordinate id and never the daemon's user.  Wants 65,535 subordinate ids.
* *identity*: fewer subordinate ids; U1 has the same ids as U0: root in a sandbox is the daemon's user.
* *single*: no subordinate ids (or no newuidmap): one id, everything belongs to root.

Maps are written by newuidmap and newgidmap, or directly where this process has CAP_SETUID and CAP_SETGID (root,
or a service with ambient capabilities).  Root without an entry in /etc/subuid gets the first range from 100000
that no entry uses.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from .. import syscalls
from ..errors import Unsupported

Extent = tuple[int, int, int]
"""(first id inside, first id outside, how many)."""

WANTED = 65536
ENOUGH = 65535
"""With 65,535 ids "nobody" (65534) is the last: good enough for the shifted mode."""

FREE_RANGE_START = 100_000
MAX_EXTENTS = 32
CAP_SETGID, CAP_SETUID = 6, 7
MAPPER_FAILED = 4
"""How the helper ends when newuidmap or newgidmap did not do it."""
REFUSED = "newuidmap was not allowed to write the id maps"
"""A note: they are there, but gain no rights (no_new_privs, a nosuid mount, a container's bounding set)."""


@dataclass(frozen=True, slots=True)
class IdPlan:
    """The maps of U0 (``uids``, ``gids``: extents against the host) and how they are to be written.

    shift: what to add to an id of a container to have U0's id.  count: ids in a container.
    direct: we may write the maps ourselves.  notes: why it isn't a better rung (for doctor)."""

    mode: Literal["shifted", "identity", "single"]
    uids: tuple[Extent, ...]
    gids: tuple[Extent, ...]
    shift: int
    count: int
    direct: bool
    notes: tuple[str, ...] = ()

    def dump(self) -> str:
        """As JSON, for the command line of nsd."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> IdPlan:
        """The inverse of :meth:`dump`."""
        fields: dict[str, Any] = json.loads(text)
        for name in ("uids", "gids"):
            fields[name] = tuple(tuple(extent) for extent in fields[name])
        fields["notes"] = tuple(fields["notes"])
        return cls(**fields)

    def inner_map(self, *, gids: bool = False) -> str:
        """The text for /proc/PID/uid_map (or gid_map) of a sandbox's U1, as seen from U0.

        A line may not span two extents of the parent: one line each.
        """
        extents = self.gids if gids else self.uids
        first = self.shift
        return "".join(
            f"{inside - first} {inside} {count}\n"
            for inside, _, count in extents
            if inside >= first
        )


def subordinate(text: str, name: str, uid: int) -> list[tuple[int, int]]:
    """The ranges (start, count) that /etc/subuid or /etc/subgid gives a user, by name or by number."""
    ranges: list[tuple[int, int]] = []
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) != 3 or parts[0] not in {name, str(uid)}:
            continue
        if parts[1].isdecimal() and parts[2].isdecimal() and int(parts[2]) > 0:
            ranges.append((int(parts[1]), int(parts[2])))
    return ranges[:MAX_EXTENTS]


def free_range(text: str, count: int = WANTED) -> tuple[int, int]:
    """The first range of ``count`` ids from 100000 on that no entry of a subuid file touches."""
    taken: list[tuple[int, int]] = []
    for line in text.splitlines():
        parts = line.split(":")
        if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
            taken.append((int(parts[1]), int(parts[1]) + int(parts[2])))
    start = FREE_RANGE_START
    for low, high in sorted(taken):
        if low < start + count and high > start:
            start = high
    return start, count


def extents(own: int, ranges: Sequence[tuple[int, int]], limit: int = WANTED) -> tuple[Extent, ...]:
    """U0's map: 0 is the daemon's user, 1… are ``limit`` subordinate ids at most."""
    result: list[Extent] = [(0, own, 1)]
    inside = 1
    for start, count in ranges:
        use = min(count, limit + 1 - inside)
        if use <= 0:
            break
        result.append((inside, start, use))
        inside += use
    return tuple(result)


def mapped_here(ranges: Sequence[tuple[int, int]], id_map: str) -> bool:
    """Are all ids of these ranges mapped in our own namespace (text of /proc/self/uid_map)?"""
    lines = [[int(word) for word in line.split()] for line in id_map.splitlines()]
    return all(
        any(low <= start and start + count <= low + size for low, _, size in lines)
        for start, count in ranges
    )


def plan(
    *, uid: int, gid: int, name: str, subuid: str, subgid: str, direct: bool, newuidmap: bool,
    uid_map: str = "0 0 4294967295", gid_map: str = "0 0 4294967295",
) -> IdPlan:
    """Decide from what the host has.  Pure; :func:`discover` looks at the host."""
    uid_ranges = subordinate(subuid, name, uid)
    gid_ranges = subordinate(subgid, name, uid)
    notes: list[str] = []
    if uid == 0 and direct:
        uid_ranges, gid_ranges = (
            ranges if ranges and mapped_here(ranges, id_map) else _root_ranges(text, id_map)
            for ranges, text, id_map in (
                (uid_ranges, subuid, uid_map), (gid_ranges, subgid, gid_map),
            )
        )
    if not uid_ranges or not gid_ranges:
        notes.append(f"no subordinate ids for {name} in /etc/subuid and /etc/subgid")
    elif not direct and not newuidmap:
        notes.append("newuidmap and newgidmap not found")
        uid_ranges = []
    if not uid_ranges or not gid_ranges:
        single = ((0, uid, 1),), ((0, gid, 1),)
        return IdPlan("single", *single, 0, 1, False, tuple(notes))
    uids, gids = extents(uid, uid_ranges), extents(gid, gid_ranges)
    count = min(sum(extent[2] for extent in uids), sum(extent[2] for extent in gids)) - 1
    if count >= ENOUGH:
        return IdPlan("shifted", uids, gids, 1, count, direct)
    notes.append(f"{count} subordinate ids, {WANTED} wanted")
    return IdPlan("identity", uids, gids, 0, count + 1, direct, tuple(notes))


def lowered(found: IdPlan, mode: str) -> IdPlan:
    """The same host on another rung of the ladder.  Raises Unsupported for one that is too high for it."""
    rungs = ("single", "identity", "shifted")
    if mode not in rungs or rungs.index(mode) > rungs.index(found.mode):
        raise Unsupported(
            f"ids = {mode!r}: this host offers {found.mode}",
            hint="; ".join(found.notes) or "one of shifted, identity, single",
        )
    if mode == found.mode:
        return found
    notes = (*found.notes, f"set to {mode} by the configuration")
    if mode == "identity":
        return replace(found, mode="identity", shift=0, count=found.count + 1, notes=notes)
    own = ((0, found.uids[0][1], 1),), ((0, found.gids[0][1], 1),)
    return IdPlan("single", *own, 0, 1, False, notes)


def _root_ranges(text: str, id_map: str) -> list[tuple[int, int]]:
    wanted = free_range(text)
    if mapped_here([wanted], id_map):
        return [wanted]
    # Root of a container that has only some ids: those above 0 are ours to use.  (A rootless one has a line for
    # 0 and another that begins at 1: a line of ours may not span both.)
    for line in id_map.splitlines():
        low, _, size = (int(word) for word in line.split())
        if low <= 1 < low + size:
            return [(1, low + size - 1)]
    return []


def discover() -> IdPlan:
    """The plan for this process, from /etc/subuid, /etc/subgid, newuidmap and our capabilities."""
    uid, gid = os.getuid(), os.getgid()
    wanted = 1 << CAP_SETUID | 1 << CAP_SETGID
    return plan(
        uid=uid, gid=gid, name=user_name(uid), subuid=_text("/etc/subuid"),
        subgid=_text("/etc/subgid"), direct=syscalls.capget()[0] & wanted == wanted,
        newuidmap=bool(shutil.which("newuidmap") and shutil.which("newgidmap")),
        uid_map=_text("/proc/self/uid_map"), gid_map=_text("/proc/self/gid_map"),
    )


def user_name(uid: int) -> str:
    """The name of a user here, or its number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def enter(ids: IdPlan, *, strict: bool = False) -> IdPlan:
    """Move this single-threaded process to a new user namespace with the maps of ``ids``; the maps that it got.

    Those are of one id where newuidmap is refused, unless ``strict``.
    Raises Unsupported with the host's reason and the command that mends it."""
    ready, go = os.pipe()
    pid = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        _exit_after(lambda: _map_when_told(ready, pid, ids))
    os.close(ready)
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        if ids.mode == "single":
            write_single_maps(ids.uids[0][1], ids.gids[0][1])
        os.write(go, b"1")
    except OSError as error:
        raise _refused(error) from error
    finally:
        os.close(go)
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if status == MAPPER_FAILED and not strict and (alone := _alone(ids)) is not None:
        return alone
    if status != 0:
        raise Unsupported(
            f"user namespace: the id maps could not be written (helper ended with {status})",
            hint="see that newuidmap and newgidmap are setuid root or have file capabilities, that "
            "no_new_privs isn't set, and that /etc/subuid and /etc/subgid hold our ranges",
        )
    if ids.mode != "single":
        os.setgroups([])
    return ids


def _alone(ids: IdPlan) -> IdPlan | None:
    """The rung that takes nobody's help: one id; None where a map has been written already."""
    uid, gid = ids.uids[0][1], ids.gids[0][1]
    try:
        write_single_maps(uid, gid)
    except OSError:
        return None
    return IdPlan("single", ((0, uid, 1),), ((0, gid, 1),), 0, 1, False, (*ids.notes, REFUSED))


def _exit_after(work: Callable[[], int]) -> None:
    status = 1
    try:
        status = work()
    finally:
        os._exit(status)


def _map_when_told(ready: int, pid: int, ids: IdPlan) -> int:
    if not os.read(ready, 1):
        return 3
    if ids.mode == "single":
        return 0
    if ids.direct:
        for kind, lines in (("uid", ids.uids), ("gid", ids.gids)):
            text = "".join(f"{a} {b} {n}\n" for a, b, n in lines)
            write_map(pid, kind, text)
        return 0
    for kind, lines in (("uid", ids.uids), ("gid", ids.gids)):
        program = shutil.which(f"new{kind}map") or f"/usr/bin/new{kind}map"
        arguments = [program, str(pid), *(str(n) for extent in lines for n in extent)]
        child = os.posix_spawn(program, arguments, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0:
            return MAPPER_FAILED
    return 0


def write_map(pid: int | str, kind: str, text: str) -> None:
    """Write /proc/PID/uid_map or gid_map: one write, as the kernel wants it."""
    fd = os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def write_single_maps(uid: int, gid: int) -> None:
    """Map our own id to 0 from inside; the kernel wants setgroups denied for that."""
    fd = os.open("/proc/self/setgroups", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"deny")
    finally:
        os.close(fd)
    write_map("self", "uid", f"0 {uid} 1\n")
    write_map("self", "gid", f"0 {gid} 1\n")


def _refused(error: OSError) -> Unsupported:
    hints = {
        errno.ENOSPC: "sysctl -w user.max_user_namespaces=28633",
        errno.EPERM: "sysctl -w kernel.unprivileged_userns_clone=1 (old Debian), or start the container "
        "with --security-opt seccomp=unconfined",
        errno.EACCES: "allow user namespaces to ocibuildd in AppArmor: install the profile in "
        "systemd/apparmor, or sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    }
    return Unsupported(
        f"user namespace: {error.strerror}", hint=hints.get(error.errno or 0, ""),
        details={"errno": error.errno or 0},
    )
