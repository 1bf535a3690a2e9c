"""A RunSpec, checked and decided: everything a sandbox will be, as one value.  Pure.

Whatever is unknown or out of range is refused here (fail closed, GHSA-7236-3392-c5c6): guest and supervisor
only carry out what the :class:`Plan` says.
"""

from __future__ import annotations

import base64
import binascii
import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InvalidArgument

CAPABILITIES = {
    "CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_FSETID": 4, "CAP_KILL": 5,
    "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13, "CAP_SYS_CHROOT": 18, "CAP_MKNOD": 27, "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
"""What a container has by default in Docker; the bounding, permitted and effective set of root."""

ALL_CAPABILITIES = frozenset(range(64))

MASKED = (
    "proc/acpi", "proc/asound", "proc/interrupts", "proc/kcore", "proc/keys", "proc/latency_stats",
    "proc/sched_debug", "proc/scsi", "proc/timer_list", "proc/timer_stats",
    "sys/devices/virtual/powercap", "sys/firmware",
)
READ_ONLY = ("proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger")
"""Both as Docker's default for a container (runtime-spec, linux.maskedPaths and readonlyPaths)."""

DEVICES = {
    "null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0),
}
LINKS = {
    "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx", "core": "/proc/kcore",
}

DEFAULT_PIDS = 4096
"""Processes and threads of one id in a sandbox, unless the limits say otherwise."""

DEFAULT_NOFILE = (1024, 1_048_576)
DEFAULT_SHM = 64 << 20
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OOM_SCORE_ADJ = 500

MAX_ARGUMENTS = 4096
MAX_TEXT = 2 << 20
"""Bytes of arguments and environment together (the kernel's ARG_MAX is in this region)."""

MAX_MOUNTS = 128
MAX_PATH = 4095
MAX_DATA = 32 << 20
"""Bytes of inline files (secrets, heredocs) in one sandbox."""

LIMITS = frozenset({
    "memory", "memory_swap", "pids", "cpu_quota", "cpu_period", "cpu_shares", "cpuset_cpus", "cpuset_mems",
    "io_weight", "upper_bytes", "fsize", "nofile", "timeout", "shm_size",
})
KINDS = frozenset({"chain", "cache", "tmpfs", "secret", "files", "socket"})
FORBIDDEN_TARGETS = ("/proc", "/sys", "/dev")
ALLOWED_BELOW = ("/dev/shm", "/dev/pipes")
"""On our own /dev: shared memory, and the place where heredocs are mounted."""

_STEP = re.compile(r"[a-z0-9-]{0,64}\Z")
_HOSTNAME = re.compile(r"[A-Za-z0-9._-]{0,63}\Z")
_TREE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Content:
    """One file to be made on a tmpfs: a name without slashes, bytes, mode."""

    name: str
    data: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class Mount:
    """A MountSpec with all its defaults decided.  uid, gid: container ids."""

    kind: Literal["chain", "cache", "tmpfs", "secret", "files", "socket"]
    target: str
    readonly: bool
    source: str
    lowers: tuple[str, ...]
    path: str
    size: int
    mode: int
    uid: int
    gid: int
    contents: tuple[Content, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A sandbox, decided.  limits: as in RunSpec, zeros left out."""

    lowers: tuple[str, ...]
    tree: str
    args: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]
    cwd: str
    user: str
    hostname: str
    network: Literal["default", "none", "host"]
    insecure: bool
    mounts: tuple[Mount, ...]
    hosts: tuple[tuple[str, str], ...]
    dns: Mapping[str, tuple[str, ...]]
    limits: Mapping[str, int]
    tty: bool
    no_new_privileges: bool
    step: str

    @property
    def capabilities(self) -> frozenset[int]:
        return ALL_CAPABILITIES if self.insecure else frozenset(CAPABILITIES.values())


def plan(spec: Mapping[str, Any]) -> Plan:
    """Check a RunSpec and decide everything in it.  Raises InvalidArgument, naming the field."""
    args = tuple(_text(arg, "args") for arg in _list(spec, "args"))
    if not args or not args[0] or len(args) > MAX_ARGUMENTS:
        raise InvalidArgument(f"run: args has {len(args)} items, 1 to {MAX_ARGUMENTS} are possible")
    env = _environment(_list(spec, "env"))
    if sum(map(len, args)) + sum(len(k) + len(v) for k, v in env) > MAX_TEXT:
        raise InvalidArgument(f"run: arguments and environment pass {MAX_TEXT} bytes")
    mounts = _list(spec, "mounts")
    if len(mounts) > MAX_MOUNTS:
        raise InvalidArgument(f"run: {len(mounts)} mounts, at most {MAX_MOUNTS} are possible")
    return Plan(
        lowers=trees(spec.get("lowers", [])),
        tree=_matching(spec, "tree", _TREE) if spec.get("tree") else "",
        args=args,
        env=env,
        cwd=_path(spec.get("cwd") or "/", "cwd"),
        user=_string(spec, "user"),
        hostname=_matching(spec, "hostname", _HOSTNAME) or "buildkitsandbox",
        network=_choice(spec, "network", ("default", "none", "host")),
        insecure=_choice(spec, "security", ("sandbox", "insecure")) == "insecure",
        mounts=tuple(_mount(mount) for mount in mounts),
        hosts=tuple(_pair(item) for item in _list(spec, "hosts")),
        dns=_dns(spec.get("dns") or {}),
        limits=_limits(spec.get("limits") or {}),
        tty=_flag(spec, "tty"),
        no_new_privileges=_flag(spec, "no_new_privileges"),
        step=_matching(spec, "step", _STEP),
    )


def trees(names: Any) -> tuple[str, ...]:
    """A chain's tree ids, checked: an id is never a path.  Raises InvalidArgument."""
    if not isinstance(names, (list, tuple)):
        raise InvalidArgument("run: lowers is no list")
    for name in names:
        if not isinstance(name, str) or not _TREE.match(name):
            raise InvalidArgument(f"run: {str(name)[:100]!r} is no tree id")
    return tuple(names)


def _list(spec: Mapping[str, Any], key: str) -> list[Any]:
    value = spec.get(key) or []
    if not isinstance(value, list):
        raise InvalidArgument(f"run: {key} is no list")
    return value


def _string(spec: Mapping[str, Any], key: str) -> str:
    value = spec.get(key) or ""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidArgument(f"run: {key} is no text")
    return value


def _flag(spec: Mapping[str, Any], key: str) -> bool:
    value = spec.get(key, False)
    if not isinstance(value, bool):
        raise InvalidArgument(f"run: {key} is neither true nor false")
    return value


def _matching(spec: Mapping[str, Any], key: str, pattern: re.Pattern[str]) -> str:
    value = _string(spec, key)
    if not pattern.match(value):
        raise InvalidArgument(f"run: {key} {value[:100]!r} does not match {pattern.pattern}")
    return value


def _choice(spec: Mapping[str, Any], key: str, choices: tuple[str, ...]) -> Any:
    value = spec.get(key)
    if value not in choices:
        raise InvalidArgument(f"run: {key} {str(value)[:100]!r}: one of {', '.join(choices)} wanted")
    return value


def _text(value: Any, key: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidArgument(f"run: {key} has an item that is no text")
    data = value.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise InvalidArgument(f"run: {key} has an item with a NUL")
    return data


def _environment(pairs: list[Any]) -> tuple[tuple[bytes, bytes], ...]:
    result: dict[bytes, bytes] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise InvalidArgument("run: env has an item that is no [name, value]")
        name, value = _text(pair[0], "env"), _text(pair[1], "env")
        if not name or b"=" in name:
            raise InvalidArgument(f"run: {name[:100]!r} is no name of a variable")
        result[name] = value
    return tuple(result.items())


def _path(value: Any, key: str) -> str:
    if not isinstance(value, str) or "\0" in value or len(value) > MAX_PATH:
        raise InvalidArgument(f"run: {key} {str(value)[:100]!r} is no path")
    return posixpath.normpath("/" + value.lstrip("/"))


def target(value: Any) -> str:
    """A mount's place, normalised; what would hide /proc, /sys or /dev is refused (CVE-2019-16884)."""
    path = _path(value, "mount target")
    if path == "/":
        raise InvalidArgument("run: mount target /: a mount can't replace the root")
    if path in ALLOWED_BELOW or path.startswith(tuple(f"{name}/" for name in ALLOWED_BELOW)):
        return path
    for name in FORBIDDEN_TARGETS:
        if path == name or path.startswith(name + "/"):
            raise InvalidArgument(f"run: mount target {path}: nothing may be mounted in {name}")
    return path


def _integer(value: Any, key: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgument(f"run: {key} {str(value)[:100]}: a number from {low} to {high} wanted")
    return value


def cache_mount(value: Any) -> Mount:
    """A MountSpec of kind "cache" that has a base.  Raises InvalidArgument."""
    mount = _mount(value)
    if mount.kind != "cache" or not mount.lowers:
        raise InvalidArgument("fill: a cache mount with lowers wanted")
    return mount


def _mount(spec: Any) -> Mount:
    if not isinstance(spec, Mapping) or spec.get("kind") not in KINDS:
        raise InvalidArgument("run: a mount of no known kind")
    kind = spec["kind"]
    files = spec.get("files") or []
    if kind == "secret":
        files = [["secret", spec.get("data", ""), spec.get("mode", 0o400)]]
    path = _string(spec, "path")
    if kind in {"cache", "socket"} and not path.startswith("/"):
        raise InvalidArgument(f"run: a {kind} mount without a path")
    default_mode = {"secret": 0o400, "tmpfs": 0o1777}.get(kind, 0o755)
    return Mount(
        kind=kind,
        target=target(spec.get("target")),
        readonly=_flag(spec, "readonly"),
        source=_path(spec.get("source") or "/", "source").lstrip("/"),
        lowers=trees(spec.get("lowers") or ()),
        path=path,
        size=_integer(spec.get("size", 0), "size", 0, 1 << 50),
        mode=_integer(spec.get("mode", default_mode), "mode", 0, 0o7777),
        uid=_integer(spec.get("uid", 0), "uid", 0, 65535),
        gid=_integer(spec.get("gid", 0), "gid", 0, 65535),
        contents=tuple(_content(item) for item in files),
    )


def _content(item: Any) -> Content:
    if not isinstance(item, (list, tuple)) or len(item) != 3:
        raise InvalidArgument("run: a file that is no [name, data, mode]")
    name, text, mode = item
    if not isinstance(name, str) or not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise InvalidArgument(f"run: {str(name)[:100]!r} is no name of a file")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise InvalidArgument(f"run: the data of {name!r} is no base64") from None
    if len(data) > MAX_DATA:
        raise InvalidArgument(f"run: {name!r} has {len(data)} bytes, at most {MAX_DATA} are possible")
    return Content(name, data, _integer(mode, "mode", 0, 0o7777))


def _pair(item: Any) -> tuple[str, str]:
    if not isinstance(item, (list, tuple)) or len(item) != 2 or not all(isinstance(i, str) for i in item):
        raise InvalidArgument("run: hosts has an item that is no [name, address]")
    return item[0], item[1]


def _dns(dns: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(dns, Mapping) or not set(dns) <= {"servers", "search", "options"}:
        raise InvalidArgument("run: dns has servers, search and options only")
    return {key: tuple(_string({key: item}, key) for item in _list(dns, key)) for key in dns}


def _limits(limits: Any) -> dict[str, int]:
    if not isinstance(limits, Mapping):
        raise InvalidArgument("run: limits is no object")
    result: dict[str, int] = {}
    for key, value in limits.items():
        if key not in LIMITS:
            raise InvalidArgument(f"run: no limit is called {str(key)[:100]!r}")
        if isinstance(value, float) and key == "timeout":
            value = math.ceil(value)
        if value:
            result[key] = _integer(value, f"limit {key}", 0, 1 << 62)
    return result
