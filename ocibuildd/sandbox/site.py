"""What every child of nsd knows about this host: paths, ids, devices, the network.

Made once in nsd before anything is forked; children inherit it as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .. import syscalls
from ..errors import Conflict, InvalidArgument, Unsupported
from . import mounts, probe, roots, spec, trees, userns
from .cgroup import Cgroups
from .network import Kind, NetnsLease, Network

SIOCSIFFLAGS, SIOCGIFFLAGS, IFF_UP = 0x8914, 0x8913, 1

Overlay = Literal["kernel", "fuse", "copy"]


@dataclass(slots=True)
class Site:
    """state: the daemon's directory.  devices: path descriptors of host nodes, by name; null: one of /dev/null.

    proc: how a sandbox gets /proc.  overlay: how a chain becomes a root file system.  network: None = only "none"
    and "host".  cgroups: None = no limits but resource limits."""

    state: bytes
    ids: userns.IdPlan
    devices: dict[str, int]
    null: int = -1
    proc: Literal["new", "bind", "none"] = "new"
    overlay: Overlay = "kernel"
    network: Network | None = None
    dormant: Network | None = None
    cgroups: Cgroups | None = None
    filters: dict[bool, bytes] = field(default_factory=dict)
    selftest: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, state: str, ids: userns.IdPlan, overlay: str = "") -> Site:
        """Make the state's directories and pin the host's device nodes.

        overlay: kernel, fuse or copy; "" = the best that works.  Raises Unsupported, OSError."""
        site = cls(os.fsencode(state), ids, {})
        site.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for part in (b"trees", b"tmp"):
            os.makedirs(os.path.join(site.state, part), 0o700, exist_ok=True)
        mounts.work_in(site.state)
        site.cgroups = Cgroups.detect()
        if site.cgroups is not None:
            site.cgroups.sweep()
        os.makedirs(site.empty, 0o755, exist_ok=True)
        os.chown(site.empty, ids.shift, ids.shift)
        for name, (major, minor) in spec.DEVICES.items():
            site.devices[name] = mounts.device(f"/dev/{name}", major, minor)
        site.selftest = probe.selftest(site.state)
        site.overlay = _choose_overlay(overlay, site.selftest)
        if site.selftest["proc"]:
            site.proc = "bind"  # read-only, and still with a pid namespace of the sandbox's own
        return site

    @property
    def shift(self) -> int:
        return self.ids.shift

    @property
    def squash(self) -> bool:
        """One id only: owners are neither set nor read."""
        return self.ids.mode == "single"

    @property
    def empty(self) -> bytes:
        """An empty directory: the lower layer of scratch."""
        return os.path.join(self.state, b"empty")

    def tree(self, name: str) -> bytes:
        """The files of a tree; ``name`` was checked by :func:`spec.trees`."""
        return os.path.join(self.state, b"trees", name.encode(), b"fs")

    def new_tree(self, name: str) -> int:
        """Make the directory of a tree, owned by the container's root; a descriptor of it.

        Raises Conflict when it is there, InvalidArgument for what is no tree id."""
        path = self.tree(spec.trees([name])[0])
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            raise Conflict(f"tree {name}: is there already") from None
        if not self.squash:
            os.chown(path, self.shift, self.shift)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_tree(self, name: str) -> int:
        """A descriptor of a tree's directory.  Raises FileNotFoundError."""
        path = self.tree(spec.trees([name])[0])
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    @contextlib.contextmanager
    def rooted(self, lowers: Sequence[str]) -> Iterator[int]:
        """A chain's root file system, read-only, as a descriptor; an empty directory for an empty chain.

        One tree is itself.  The mount is attached nowhere: it goes with its descriptors."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        stack = self.stack(spec.trees(lowers))
        trash: list[bytes] = []
        try:
            if len(stack) == 1:
                root = os.open(stack[0], flags)
            else:
                mount = self.overlaid(stack, trash)
                root = os.open(".", flags, dir_fd=mount)
                os.close(mount)
            try:
                yield root
            finally:
                os.close(root)
        finally:
            trees.discard_all(trash)

    def stack(self, lowers: Sequence[str]) -> list[bytes]:
        """The directories of a chain's trees that show, lowest first; the empty directory for an empty chain."""
        return roots.cut([self.tree(name) for name in lowers]) or [self.empty]

    def overlaid(
        self, stack: Sequence[bytes], trash: list[bytes], *, upper: bytes = b"", work: bytes = b"",
        attributes: int = 0,
    ) -> int:
        """A stack as a detached mount, read-only without ``upper``; to ``trash`` goes what is to be removed after it.

        With "copy" this takes seconds, and ``upper`` becomes a whole root.  Raises Unsupported, OSError."""
        match self.overlay:
            case "kernel":
                below = stack if upper or len(stack) > 1 else [self.empty, *stack]
                return mounts.overlay(below, upper=upper, work=work, attributes=attributes)
            case "fuse":
                return roots.fuse(self.state, stack, upper=upper, work=work, attributes=attributes)
            case "copy":
                place = upper
                if upper:
                    roots.mark_whole(upper)
                else:
                    attributes |= syscalls.MOUNT_ATTR_RDONLY
                    place = os.path.join(self.state, b"tmp", b"root-" + uuid.uuid4().hex.encode())
                    os.mkdir(place, 0o700)
                    trash.append(place)
                roots.compose(stack, place, link=not upper)
                fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    return mounts.bind(fd, attributes)
                finally:
                    os.close(fd)

    @contextlib.contextmanager
    def mounted(self, lowers: Sequence[str]) -> Iterator[int | None]:
        """:meth:`rooted`, but None for an empty chain."""
        if not lowers:
            yield None
            return
        with self.rooted(lowers) as root:
            yield root

    def start_network(self, mode: str = "", *, wanted: bool = True) -> None:
        """Say what the build network is to be.  It is brought up when a step first wants it (:meth:`wake_network`):
        its three processes are most of what an idle daemon would weigh, and many builds need none.

        mode: pasta, slirp4netns or none; "" = the best that works.  Raises InvalidArgument."""
        if mode not in {"", "pasta", "slirp4netns", "none"}:
            raise InvalidArgument(f"network {mode[:100]!r}: pasta, slirp4netns or none wanted")
        network = Network(
            uid_map=self.ids.inner_map(), gid_map=self.ids.inner_map(gids=True),
            mode="none" if not wanted else mode or None,  # type: ignore[arg-type]
        )
        network.foresee()
        self.dormant = network

    def wake_network(self) -> None:
        """Bring the build network up; why it isn't there is told with "default" leases.  Idempotent."""
        if self.dormant is not None:
            self.network, self.dormant = self.dormant, None
            self.network.start()

    def describe(self) -> dict[str, Any]:
        """What main makes its Capabilities of."""
        known = self.network or self.dormant
        network = known.describe() if known is not None else {"mode": "none"}
        return {
            "ids": self.ids.mode, "shift": self.shift, "count": self.ids.count, "proc": self.proc,
            "network": network, "cgroup": "none" if self.cgroups is None else "v2",
            "controllers": sorted(self.cgroups.controllers) if self.cgroups is not None else [],
            "notes": list(self.ids.notes), "selftest": self.selftest, "overlay": self.overlay,
        }

    def close(self) -> None:
        """End the network's processes and what waits in control groups."""
        if self.cgroups is not None:
            self.cgroups.sweep()
        if self.network is not None:
            self.network.close()

    def filter(self, *, insecure: bool) -> bytes:
        """The seccomp program, b"" for insecure steps."""
        if insecure:
            return b""
        if False not in self.filters:
            from .seccomp import filter_bytes

            self.filters[False] = filter_bytes(os.uname().machine, frozenset(spec.CAPABILITIES))
        return self.filters[False]

    def lease(self, kind: Kind) -> NetnsLease:
        """A user namespace (and, but for "host", a network namespace) for one sandbox."""
        if kind == "default":
            self.wake_network()
        if self.network is not None:
            return self.network.lease(kind)
        if kind == "default":
            raise Unsupported("network: not started", hint="--network=none works")
        return make_pair(self.ids, kind)


def _choose_overlay(wanted: str, selftest: Mapping[str, str]) -> Overlay:
    """The rung that is asked for, else the best that works.  Raises Unsupported, InvalidArgument."""
    problems: dict[Overlay, str] = {
        "kernel": selftest["overlay"] or selftest["rename"], "fuse": roots.fuse_problem(), "copy": "",
    }
    if not wanted:
        return next(rung for rung, problem in problems.items() if not problem)
    for rung, problem in problems.items():
        if rung == wanted:
            if problem:
                raise Unsupported(f"overlay = {wanted!r}: {problem}", hint='overlay = "copy" works everywhere')
            return rung
    raise InvalidArgument(f"overlay = {wanted[:100]!r}: kernel, fuse or copy wanted")


def make_pair(ids: userns.IdPlan, kind: Kind) -> NetnsLease:
    """A fresh U1 with its maps written and, unless kind is "host", an empty network with lo up.

    A child makes the namespaces, we write its maps and keep descriptors, the child ends."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _make_namespaces(theirs, kind)
    theirs.close()
    try:
        pid = ours.recv(64).decode()
        if not pid.isdecimal():
            raise Unsupported(f"user namespace for a sandbox: {pid or 'the helper ended'}")
        if ids.mode == "single":
            _write_setgroups_deny(pid)
        userns.write_map(pid, "uid", ids.inner_map())
        userns.write_map(pid, "gid", ids.inner_map(gids=True))
        ours.send(b"m")
        ours.recv(1)
        flags = os.O_RDONLY | os.O_CLOEXEC
        user = os.open(f"/proc/{pid}/ns/user", flags)
        net = -1 if kind == "host" else os.open(f"/proc/{pid}/ns/net", flags)
    finally:
        ours.close()
        os.waitpid(child, 0)
    return NetnsLease(kind=kind, userns=user, netns=net, address="", address6="", slot=-1)


def _write_setgroups_deny(pid: str) -> None:
    # The parent already denies it in the single-id mode, which is inherited.
    _write(f"/proc/{pid}/setgroups", b"deny")


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _make_namespaces(sock: socket.socket, kind: Kind) -> None:
    try:
        flags = syscalls.CLONE_NEWUSER | (0 if kind == "host" else syscalls.CLONE_NEWNET)
        syscalls.unshare(flags)
        if kind != "host":
            raise_loopback()
        # Numbers in /proc are those of the host's pid namespace: ours would mean nothing there.
        sock.send(os.readlink("/proc/self").encode())
        sock.recv(1)
        with contextlib.suppress(OSError):  # a read-only /proc/sys: the seccomp filter still denies it
            _write("/proc/sys/user/max_user_namespaces", b"0")
        sock.send(b"d")
        sock.recv(1)
    except OSError as error:
        sock.send(str(error.strerror).encode()[:64])
    finally:
        os._exit(0)


def raise_loopback() -> None:
    """Set lo up in the current network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        flags: int = struct.unpack_from("16sH", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
