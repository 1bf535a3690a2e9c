"""Control groups (version 2) for build steps, where a subtree is delegated to us.

Linux: Documentation/admin-guide/cgroup-v2.rst; systemd: CGROUP_DELEGATION.  Version 1 can't be
delegated safely: there limits come down to rlimits.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONTROLLERS = ("memory", "pids", "cpu", "cpuset", "io")
DAEMON_LEAF = "daemon"
"""Where our own processes are: a group that has controllers for its children may hold none itself.

systemd's ``DelegateSubgroup=daemon`` puts us there from the start."""
SWEEP_TIMEOUT = 0.5
"""Seconds that killed processes have to be gone."""
MAX_FILE = 64 * 1024
MAX_CPUS = 62
"""RunSpec's limits are integers of 62 bits."""
MIN_CPU_PERIOD, MAX_CPU_PERIOD, DEFAULT_CPU_PERIOD = 1_000, 1_000_000, 100_000
MIN_CPU_QUOTA = 1_000
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}\Z")
_CPUS = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\Z")


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


def _read(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, MAX_FILE).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _flat(text: str) -> dict[str, int]:
    """A "flat keyed" file: one "name value" a line."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _io(text: str) -> tuple[int, int]:
    """(bytes read, bytes written) of all devices of io.stat."""
    words = [word.partition("=") for word in text.split()]
    read, written = (
        sum(int(value) for name, _, value in words if name == key and value.isdecimal())
        for key in ("rbytes", "wbytes")
    )
    return read, written


def settings(limits: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """(controller, file, value) for RunSpec's limits (cpuset_cpus, cpuset_mems: a bit for each); 0 and what is
    absent set nothing."""
    result: list[tuple[str, str, str]] = []
    if memory := limits.get("memory", 0):
        swap = limits.get("memory_swap", 0)
        result.append(("memory", "memory.max", str(memory)))
        # Docker's memory_swap is memory and swap together; -1 = no limit, 0 = twice the memory
        if swap >= 0:
            result.append(("memory", "memory.swap.max", str(max(0, swap - memory) if swap else memory)))
        # the step dies as a whole: half of a build tool is worse than none
        result.append(("memory", "memory.oom.group", "1"))
    if pids := limits.get("pids", 0):
        result.append(("pids", "pids.max", str(pids)))
    if quota := limits.get("cpu_quota", 0):
        period = limits.get("cpu_period", 0) or DEFAULT_CPU_PERIOD
        period = min(max(period, MIN_CPU_PERIOD), MAX_CPU_PERIOD)
        result.append(("cpu", "cpu.max", f"{max(quota, MIN_CPU_QUOTA)} {period}"))
    if shares := limits.get("cpu_shares", 0):
        # 2…262144 to 1…10000, as runc converts them
        shares = min(max(shares, 2), 262144)
        result.append(("cpu", "cpu.weight", str(1 + (shares - 2) * 9999 // 262142)))
    if weight := limits.get("io_weight", 0):
        result.append(("io", "io.weight", str(min(max(weight, 1), 10_000))))
    for name, file in (("cpuset_cpus", "cpuset.cpus"), ("cpuset_mems", "cpuset.mems")):
        if mask := limits.get(name, 0):
            numbers = [str(number) for number in range(mask.bit_length()) if mask >> number & 1]
            result.append(("cpuset", file, ",".join(numbers)))
    return result


def unenforced(limits: Mapping[str, int], controllers: Collection[str]) -> list[str]:
    """Of RunSpec's limits those that don't hold with these controllers, as a build's user is to be told.

    The number of processes is not among them: without a controller a resource limit bounds it."""
    lacking = {controller for controller, _, _ in settings(limits)} - {*controllers, "pids"}
    flags = {
        "memory": "--memory and --memory-swap", "cpu": "--cpu-quota and --cpu-shares",
        "cpuset": "--cpuset-cpus and --cpuset-mems", "io": "io_weight of [limits]",
    }
    return [
        f"{flags[controller]}: not enforced, no {controller} controller is delegated to the daemon"
        " (`ocibuild doctor` tells how to mend it)"
        for controller in CONTROLLERS if controller in lacking
    ]


def mask_of(text: str) -> int:
    """Docker's list of CPUs or memory nodes ("0-2,5") as RunSpec has it: a bit for each.  Raises ValueError."""
    if not _CPUS.match(text):
        raise ValueError(f"list {text[:100]!r}: expected numbers and ranges, such as 0-2,5")
    mask = 0
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if high < low or high >= MAX_CPUS:
            raise ValueError(f"list {text[:100]!r}: {part} is not within 0-{MAX_CPUS - 1}")
        mask |= (1 << (high + 1)) - (1 << low)
    return mask


@dataclass(slots=True)
class Leaf:
    """The group of one step.  unenforced: limits that no controller is there for.

    Moving a process takes milliseconds (the kernel waits for all CPUs), so a guest is moved in when it
    is made, and gets its limits when it is used."""

    path: str
    unenforced: tuple[str, ...] = ()

    def add(self, pid: int) -> None:
        """Move a process in (its number as we see it; 0: ourselves).  Raises OSError."""
        _write(f"{self.path}/cgroup.procs", str(pid))

    def usage(self) -> Usage:
        """The counters as they are now."""
        cpu = _flat(_read(f"{self.path}/cpu.stat"))
        events = _flat(_read(f"{self.path}/memory.events"))
        peak = _read(f"{self.path}/memory.peak").strip()  # Linux 5.19
        read, written = _io(_read(f"{self.path}/io.stat"))
        return Usage(
            cpu_user=cpu.get("user_usec", 0) / 1e6, cpu_system=cpu.get("system_usec", 0) / 1e6,
            memory_peak=int(peak) if peak.isdecimal() else 0,
            read=read, written=written, oom_kills=events.get("oom_kill", 0),
        )

    def kill(self) -> None:
        """SIGKILL to all in it at once (cgroup.kill, Linux 5.14).  Raises OSError."""
        _write(f"{self.path}/cgroup.kill", "1")

    def freeze(self, frozen: bool) -> None:
        """Stop, or let go on, all in it.  Raises OSError."""
        _write(f"{self.path}/cgroup.freeze", str(int(frozen)))

    def populated(self) -> bool:
        """Whether a process is left in it or below."""
        return bool(_flat(_read(f"{self.path}/cgroup.events")).get("populated", 0))

    def remove(self) -> bool:
        """rmdir; False while processes are still in it (try again later)."""
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


@dataclass(slots=True)
class Cgroups:
    """A delegated subtree.  ``controllers``: those that leaves have, of CONTROLLERS."""

    path: str
    controllers: frozenset[str] = frozenset()
    _count: int = field(default=0, repr=False)

    @classmethod
    def detect(cls) -> Cgroups | None:
        """The subtree that this process may use, or None where nothing is delegated.

        Called by main before nsd starts: our processes move to the leaf "daemon".  Called again in nsd
        it finds the same subtree, from inside that leaf."""
        mount = mount_point(_read("/proc/self/mountinfo"))
        own = own_path(_read("/proc/self/cgroup"))
        if not mount or own in {"", "/"}:  # the root group is the whole machine's
            return None
        path = mount + own
        if os.path.basename(own) == DAEMON_LEAF:
            path = os.path.dirname(path)
        return cls.at(path)

    @classmethod
    def at(cls, path: str) -> Cgroups | None:
        """Use a given group, if we may."""
        files = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")
        if not os.access(path, os.W_OK) or not all(os.access(f"{path}/{f}", os.W_OK) for f in files[:2]):
            return None
        try:
            _evacuate(path)
        except OSError:
            return None
        available = set(_read(f"{path}/cgroup.controllers").split())
        for controller in CONTROLLERS:
            if controller in available:
                try:
                    _write(f"{path}/cgroup.subtree_control", f"+{controller}")
                except OSError:
                    available.discard(controller)
        enabled = set(_read(f"{path}/cgroup.subtree_control").split())
        return cls(path, frozenset(enabled & available & set(CONTROLLERS)))

    def leaf(self, name: str) -> Leaf:
        """A fresh group, without limits.  Raises OSError, ValueError (the name)."""
        if not _NAME.match(name):
            raise ValueError(f"group name {name[:100]!r}")
        while True:
            self._count += 1
            path = f"{self.path}/step-{name}-{self._count}"
            try:
                os.mkdir(path, 0o755)
                return Leaf(path)
            except FileExistsError:  # another nsd's, before a restart
                continue

    def limit(self, leaf: Leaf, limits: Mapping[str, int]) -> None:
        """Set RunSpec's limits; ``leaf.unenforced`` tells which could not be."""
        unenforced: list[str] = []
        for controller, file, value in settings(limits):
            try:
                if controller not in self.controllers:
                    raise FileNotFoundError(file)
                _write(f"{leaf.path}/{file}", value)
            except OSError:
                # no swap accounting, no oom.group: the limit itself still holds
                if file not in {"memory.swap.max", "memory.oom.group"}:
                    unenforced.append(file)
        leaf.unenforced = tuple(unenforced)

    def sweep(self) -> int:
        """Kill and remove all steps: those of an earlier nsd at the start, prepared ones at the end.

        How many there were."""
        leaves = [Leaf(str(entry)) for entry in Path(self.path).glob("step-*")]
        for leaf in leaves:
            try:
                leaf.kill()
            except OSError:
                continue
        deadline = time.monotonic() + SWEEP_TIMEOUT
        left = [leaf for leaf in leaves if not leaf.remove()]
        while left and time.monotonic() < deadline:
            time.sleep(0.005)
            left = [leaf for leaf in left if not leaf.remove()]
        return len(leaves)


def _evacuate(path: str) -> None:
    """Move the processes of a group to its leaf "daemon" (cgroup-v2.rst, "No Internal Process
    Constraint").  Raises OSError."""
    pids = _read(f"{path}/cgroup.procs").split()
    if not pids:
        return
    leaf = f"{path}/{DAEMON_LEAF}"
    os.makedirs(leaf, exist_ok=True)
    for pid in pids:
        if pid == "0":  # of a pid namespace that we don't see
            raise PermissionError(1, "foreign processes in the group")
        try:
            _write(f"{leaf}/cgroup.procs", pid)
        except ProcessLookupError:
            continue


def mount_point(mountinfo: str) -> str:
    """Where the cgroup2 hierarchy is mounted, from /proc/self/mountinfo (proc(5)); "" if nowhere."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if right.split(" ")[0] == "cgroup2" and len(fields) > 4 and fields[3] == "/":
            return fields[4].encode().decode("unicode_escape").rstrip("/")
    return ""


def own_path(text: str) -> str:
    """Our group in the cgroup2 hierarchy, from /proc/self/cgroup (cgroups(7)); "" if none."""
    for line in text.splitlines():
        if line.startswith("0::"):
            return line[3:]
    return ""
