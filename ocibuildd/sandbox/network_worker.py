"""The process that holds the build network N0 and makes pairs {U1, network namespace} for sandboxes.

It is single-threaded, in U0, and forks a short-lived child for each pair, since only a process inside a
user namespace can create network namespaces that belong to it.  A pair takes some 3 ms of which a build
step sees nothing: nsd keeps a few in store.
"""

from __future__ import annotations

import gc
import ipaddress
import os
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import syscalls
from . import network_rtnl as rtnl
from . import wire
from .network_rtnl import Address, IpNetwork, Rtnl
from .network_rules import FORWARDER, SANDBOX, UPLINK, apply, rules
from .network_uplink import MTU, NETNS_FILE, Settings, fork

UPLINK_TIMEOUT = 5.0
"""Seconds that the uplink has to come up."""
SECOND_FAMILY = 0.3
"""Seconds that the other address family has to follow, where the host has both."""
SLOTS = 1 << 15
"""Pairs of addresses in a /16."""
FIRST_INDEX = 16
"""Interface indices of N0's ends: slot + this."""
SLOT_TRIES = 64
NICE = 5
"""Filling the pool must not slow the step down that has just taken from it."""
GUEST_INTERFACE, GUEST_INDEX, LOOPBACK_INDEX = "eth0", 2, 1

PREFIXES = tuple(
    ipaddress.IPv4Network(text)
    for text in ("10.233.0.0/16", "10.91.0.0/16", "172.30.0.0/16", "10.177.0.0/16", "198.18.0.0/16")
)
"""For the sandboxes' addresses: the first that the host has no route into."""
PREFIX6 = ipaddress.IPv6Network("fd6f:6369:6275::/64")
"""A unique local prefix (RFC 4193); it is translated and never leaves the machine."""

N0_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/conf/all/rp_filter": "1",
    "net/ipv4/conf/default/rp_filter": "1",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
}


def choose_prefix(routes: Sequence[IpNetwork], host: Sequence[Address]) -> ipaddress.IPv4Network:
    """The first of ``PREFIXES`` that no route of the host (but a default one) and no address touches."""
    taken = [net for net in routes if net.version == 4 and net.prefixlen]
    for prefix in PREFIXES:
        if not any(prefix.overlaps(net) for net in taken) and not any(a in prefix for a in host):
            return prefix
    return PREFIXES[-1]


def sysctl(name: str, value: str) -> bool:
    """Write a sysctl of the current namespaces; False where it is not there or /proc is read-only."""
    try:
        fd = os.open(f"/proc/sys/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, value.encode())
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pair is to be.  addresses: of N0's end and of the sandbox's, per family."""

    slot: int
    inner: tuple[Address, ...] = ()
    outer: tuple[Address, ...] = ()


def plan(slot: int, prefix: ipaddress.IPv4Network, ipv6: bool) -> Plan:
    """A /31 (RFC 3021) and a /127 (RFC 6164) for a slot: N0 has the even address."""
    outer: list[Address] = [prefix[2 * slot]]
    inner: list[Address] = [prefix[2 * slot + 1]]
    if ipv6:
        outer.append(PREFIX6[2 * slot + 0x10000])
        inner.append(PREFIX6[2 * slot + 0x10001])
    return Plan(slot, tuple(inner), tuple(outer))


def _length(address: Address) -> int:
    return 31 if address.version == 4 else 127


@dataclass(slots=True)
class Worker:
    """The state of the process."""

    settings: Settings
    nsd: socket.socket
    link: socket.socket
    netlink: Rtnl | None = None
    prefix: ipaddress.IPv4Network = PREFIXES[0]
    host: list[Address] = field(default_factory=list)
    resolvers: list[Address] = field(default_factory=list)
    ipv6: bool = False
    fib: bool = True
    ready: bool = False
    slot: int = -1

    # --- N0 ------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Make N0 and wait for its uplink.  Raises OSError."""
        with Rtnl() as host:
            routes = host.routes()
        syscalls.unshare(syscalls.CLONE_NEWNET)
        for name, value in N0_SYSCTLS.items():
            sysctl(name, value)
        if Path("/proc/sys/net/ipv4/ip_forward").read_text("ascii").strip() != "1":
            raise OSError(30, "net.ipv4.ip_forward can't be set: /proc/sys is read-only")
        self.netlink = Rtnl()
        self.netlink.request([rtnl.link_up(LOOPBACK_INDEX)])
        Path(NETNS_FILE).touch()
        syscalls.mount("/proc/self/ns/net", NETNS_FILE, "", syscalls.MS_BIND)
        wire.send(self.link, {"begin": True})
        self.resolvers = [ipaddress.ip_address(text) for text in self.settings.resolvers]
        deadline = time.monotonic() + UPLINK_TIMEOUT
        while not self.host:
            self.heard(deadline)
        self.prefix = choose_prefix(routes, self.host)
        self.protect()
        self.await_uplink(deadline, {net.version for net in routes if not net.prefixlen})

    def await_uplink(self, deadline: float, expected: set[int]) -> None:
        """Until N0 has default routes as the host has.  Raises OSError when the uplink ends, or takes
        too long."""
        assert self.netlink is not None
        pause, enough = 0.002, 0.0
        while True:
            defaults = {net.version for net in self.netlink.routes() if not net.prefixlen}
            if defaults:
                enough = enough or time.monotonic() + SECOND_FAMILY
                if defaults >= expected or time.monotonic() > enough:
                    self.ipv6 = 6 in defaults
                    return
            if select.select([self.link], [], [], pause)[0]:
                self.heard(deadline)
            elif time.monotonic() > deadline:
                raise OSError(110, f"{self.settings.mode} did not come up within {UPLINK_TIMEOUT:.0f} s")
            pause = min(pause * 1.5, 0.05)

    def protect(self) -> None:
        """Put the rules in place.  Raises OSError where the kernel has no nftables."""
        try:
            apply(rules(self.host, self.resolvers, fib=self.fib))
        except OSError:
            if not self.fib:
                raise
            self.fib = False
            apply(rules(self.host, self.resolvers, fib=False))

    def heard(self, deadline: float) -> None:
        """One message of the supervisor.  Raises OSError: the uplink ended before it was up."""
        wait = max(0.0, deadline - time.monotonic())
        if not select.select([self.link], [], [], wait)[0]:
            raise OSError(110, "the host's addresses did not come")
        received = wire.receive(self.link)
        if received is None:
            raise OSError(32, "the supervisor is gone")
        message = received[0]
        if "host" in message:
            self.host = [ipaddress.ip_address(text) for text in message["host"]]
            if self.ready:
                self.protect()
        if message.get("uplink") == "down":
            said = message["said"] or f"status {message['status']}"
            if not self.ready:
                raise OSError(111, f"{self.settings.mode} ended: {said}")
            wire.send(self.nsd, {"warning": f"{self.settings.mode} ended and is started again: {said}"})

    # --- pairs ---------------------------------------------------------------------------------------

    def make(self, kind: str) -> tuple[dict[str, Any], list[int]]:
        """A pair as {pair, slot, address, address6} and its descriptors.  Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            pid = fork(
                "ocibuildd-pair", {theirs.fileno()}, lambda: _inside(theirs, kind, self.settings)
            )
            theirs.close()
            try:
                return self._furnish(ours, kind)
            finally:
                ours.close()
                os.waitpid(pid, 0)

    def _furnish(self, child: socket.socket, kind: str) -> tuple[dict[str, Any], list[int]]:
        pid = int(_expect(child)[0])
        for name, text in (("uid_map", self.settings.uid_map), ("gid_map", self.settings.gid_map)):
            with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
                file.write(text.encode())
        child.send(b"mapped")
        fds = _expect(child)[1]
        answer: dict[str, Any] = {"pair": kind, "slot": -1, "address": "", "address6": ""}
        try:
            if kind == "default":
                made = self._connect(fds[1])
                words = [str(address) for address in (*made.inner, *made.outer)]
                child.send(" ".join(words).encode())
                answer["slot"] = made.slot
                for address in made.inner:
                    answer["address" if address.version == 4 else "address6"] = str(address)
            else:
                child.send(b"alone")
            _expect(child)
        except BaseException:
            wire.close_all(fds)
            raise
        return answer, fds

    def _connect(self, netns: int) -> Plan:
        """A veth pair into a network namespace, from the next slot that is free."""
        assert self.netlink is not None
        for _ in range(SLOT_TRIES):
            self.slot = (self.slot + 1) % SLOTS
            made = plan(self.slot, self.prefix, self.ipv6)
            index = FIRST_INDEX + self.slot
            link = rtnl.veth(f"{SANDBOX}{self.slot}", index, GUEST_INTERFACE, GUEST_INDEX, netns, MTU)
            try:
                self.netlink.request([link])
            except FileExistsError:
                continue
            self.netlink.request([rtnl.address(index, a, _length(a)) for a in made.outer])
            return made
        raise OSError(17, f"no free slot among {SLOT_TRIES} for a sandbox's interface")

    def serve(self) -> None:
        """Answer nsd until it hangs up."""
        poll = select.poll()
        poll.register(self.nsd, select.POLLIN)
        poll.register(self.link, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self.link.fileno():
                    self.heard(time.monotonic() + 1)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        received = wire.receive(self.nsd)
        if received is None:
            return False
        message = received[0]
        if "resolvers" in message:
            self.resolvers = [ipaddress.ip_address(text) for text in message["resolvers"]]
            if self.netlink is not None:
                self.protect()
                wire.send(self.link, {"forward": FORWARDER in self.resolvers})
        if "want" in message:
            kind = message["want"]
            try:
                answer, fds = self.make(kind)
            except OSError as error:
                answer, fds = {"pair": kind, "error": str(error), "errno": error.errno}, []
            try:
                wire.send(self.nsd, answer, fds)
            finally:
                wire.close_all(fds)
        return True


def _expect(child: socket.socket) -> tuple[bytes, list[int]]:
    """The next message of a pair's child.  Raises OSError with what it said when it failed."""
    data, fds, _, _ = socket.recv_fds(child, 4096, 4, socket.MSG_CMSG_CLOEXEC)
    if not data:
        raise OSError(32, "a pair's process ended early")
    if data.startswith(b"!"):
        number, _, text = data[1:].decode().partition(" ")
        raise OSError(int(number), text)
    return data, fds


def _inside(parent: socket.socket, kind: str, settings: Settings) -> None:
    """A pair's child: make both namespaces and set up what belongs to them."""
    try:
        _make_namespaces(parent, kind, settings)
    except OSError as error:
        parent.send(f"!{error.errno or 5} {error.strerror}".encode())


def _make_namespaces(parent: socket.socket, kind: str, settings: Settings) -> None:
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    # our number as the procfs that the worker sees has it, which may be of another pid namespace
    parent.send(os.readlink("/proc/self").encode())
    _expect(parent)
    sysctl("user/max_user_namespaces", "0")
    fds = [os.open("/proc/self/ns/user", os.O_RDONLY)]
    if kind == "host":
        socket.send_fds(parent, [b"made"], fds)
        _expect(parent)
        parent.send(b"done")
        return
    syscalls.unshare(syscalls.CLONE_NEWNET)
    # as Docker sets them: ordinary users may use low ports and ping
    sysctl("net/ipv4/ip_unprivileged_port_start", "0")
    sysctl("net/ipv4/ping_group_range", f"0 {_last_id(settings.gid_map)}")
    fds.append(os.open("/proc/self/ns/net", os.O_RDONLY))
    with Rtnl() as netlink:
        netlink.request([rtnl.link_up(LOOPBACK_INDEX)])
        socket.send_fds(parent, [b"made"], fds)
        words = _expect(parent)[0].decode()
        if words != "alone":
            addresses = [ipaddress.ip_address(word) for word in words.split()]
            half = len(addresses) // 2
            inner, outer = addresses[:half], addresses[half:]
            netlink.request([
                rtnl.link_up(GUEST_INDEX),
                *(rtnl.address(GUEST_INDEX, a, _length(a)) for a in inner),
                *(rtnl.default_route(a, GUEST_INDEX) for a in outer),
            ])
    parent.send(b"done")


def _last_id(id_map: str) -> int:
    """The highest id that a map knows."""
    extents = [line.split() for line in id_map.splitlines() if line.strip()]
    return max(int(inside) + int(count) - 1 for inside, _, count in extents)


def work(settings: Settings, nsd: socket.socket, link: socket.socket) -> None:
    """The life of the process."""
    os.nice(NICE)
    gc.freeze()  # a collection would copy pages that the children share
    worker = Worker(settings, nsd, link)
    if settings.mode != "none":
        try:
            worker.set_up()
        except OSError as error:
            wire.send(nsd, {"failed": error.strerror or str(error)})
            return
    worker.ready = True
    wire.send(nsd, {
        "ready": settings.mode, "prefix": str(worker.prefix) if settings.mode != "none" else "",
        "ipv6": worker.ipv6, "uplink": UPLINK, "host": [str(a) for a in worker.host],
    })
    try:
        worker.serve()
    except (BrokenPipeError, ConnectionResetError):
        return  # nsd is gone
