"""The process that holds the build network N0 and makes pairs {U1, network namespace} for sandboxes.

It is single-threaded, in U0, and forks a short-lived child for each pair, since only a process inside a
user namespace can create network namespaces that belong to it.  A pair takes some 3 ms of which a build
step sees nothing: nsd keeps a few in store.  Its netlink messages are written by hand (``network_rtnl``): with
pyroute2 a pair would take 15 ms more, and this process 25 MiB.  What is done once, links, routes and rules of N0, is
done with pyroute2 by ``network_setup``, in a process that this one forks and that ends.
"""

from __future__ import annotations

import gc
import ipaddress
import os
import select
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import syscalls
from . import network_rtnl as rtnl
from . import wire
from .network_plan import PREFIXES, SLOTS, Plan, length, plan
from .network_rtnl import Address, IpNetwork, Rtnl
from .network_rules import FORWARDER, SANDBOX, UPLINK
from .network_uplink import MTU, NETNS_FILE, Settings, fork

UPLINK_TIMEOUT = 45.0
"""Seconds that the uplink has to come up: enough for an emulated host."""
FIRST_INDEX = 16
"""Interface indices of N0's ends: slot + this."""
SLOT_TRIES = 64
NICE = 5
"""Filling the pool must not slow the step down that has just taken from it."""
GUEST_INTERFACE, GUEST_INDEX, LOOPBACK_INDEX = "eth0", 2, 1

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


@dataclass(slots=True)
class Worker:
    """The state of the process.

    setup: our end to the process that is setting N0 up, or changing its rules; stale: the rules must be changed
    once more after it."""

    settings: Settings
    nsd: socket.socket
    link: socket.socket
    deadline: float
    netlink: Rtnl | None = None
    setup: socket.socket | None = None
    setup_pid: int = 0
    prefix: ipaddress.IPv4Network = PREFIXES[0]
    host: list[IpNetwork] = field(default_factory=list)
    resolvers: list[Address] = field(default_factory=list)
    ipv6: bool = False
    fib: bool = True
    ready: bool = False
    stale: bool = False
    slot: int = -1

    # --- N0 ------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Make N0, let another process set it up, and the uplink begin.  Raises OSError."""
        self.resolvers = [ipaddress.ip_address(text) for text in self.settings.resolvers]
        self.fork_setup(None)  # it looks at the host's routes first
        syscalls.unshare(syscalls.CLONE_NEWNET)
        for name, value in N0_SYSCTLS.items():
            sysctl(name, value)
        if Path("/proc/sys/net/ipv4/ip_forward").read_text("ascii").strip() != "1":
            raise OSError(30, "net.ipv4.ip_forward can't be set: /proc/sys is read-only")
        self.netlink = Rtnl()
        Path(NETNS_FILE).touch()
        syscalls.mount("/proc/self/ns/net", NETNS_FILE, "", syscalls.MS_BIND)
        wire.send(self.link, {"begin": True})

    def fork_setup(self, fib: bool | None) -> None:
        """Start a process of ``network_setup``: pyroute2's memory is gone with it."""
        ours, theirs = wire.pair()
        mode, deadline = self.settings.mode, self.deadline

        def body() -> None:
            from . import network_setup

            network_setup.run(theirs, mode, deadline, fib)

        self.setup_pid = fork("ocibuildd-setup", {theirs.fileno()}, body)
        theirs.close()
        self.setup = ours

    def protect(self) -> None:
        """Have the rules changed, after what is going on already.

        It takes some 300 ms, in which an address that the host has only just got can be reached."""
        if self.setup is not None:
            self.stale = self.stale or self.ready or bool(self.host)
            return
        self.fork_setup(self.fib)
        self.tell_setup()

    def tell_setup(self) -> None:
        """Give the process what the rules are made of."""
        assert self.setup is not None
        host, resolvers = ([str(a) for a in found] for found in (self.host, self.resolvers))
        wire.send(self.setup, {"host": host, "resolvers": resolvers})

    def set_up_done(self) -> None:
        """The process has answered or ended.  Raises OSError when N0 could not be made."""
        assert self.setup is not None
        try:
            received = wire.receive(self.setup)
        except ConnectionResetError:
            received = None
        answer: dict[str, Any] = {"failed": "the set-up ended early"} if received is None else received[0]
        self.setup.close()
        self.setup = None
        os.waitpid(self.setup_pid, 0)
        if "failed" in answer:
            if not self.ready:
                raise OSError(5, answer["failed"])
            wire.send(self.nsd, {"warning": f"the network's rules stay as they were: {answer['failed']}"})
            return
        self.fib = answer["fib"]
        if not self.ready:
            self.prefix, self.ipv6 = ipaddress.IPv4Network(answer["prefix"]), answer["ipv6"]
            self.tell_ready()
        if self.stale:
            self.stale = False
            self.protect()

    def tell_ready(self) -> None:
        """Let nsd know."""
        self.ready = True
        network = self.settings.mode != "none"
        wire.send(self.nsd, {
            "ready": self.settings.mode, "prefix": str(self.prefix) if network else "",
            "ipv6": self.ipv6, "uplink": UPLINK, "host": [str(a) for a in self.host],
        })

    def heard(self) -> None:
        """One message of the supervisor.  Raises OSError: the uplink ended before it was up."""
        received = wire.receive(self.link)
        if received is None:
            raise OSError(32, "the supervisor is gone")
        message = received[0]
        if "host" in message:
            first = not self.host and not self.ready
            self.host = [ipaddress.ip_network(text) for text in message["host"]]
            if first:
                self.tell_setup()
            else:
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
            self.netlink.request([rtnl.address(index, a, length(a)) for a in made.outer])
            return made
        raise OSError(17, f"no free slot among {SLOT_TRIES} for a sandbox's interface")

    def serve(self) -> None:
        """Answer nsd until it hangs up.  Raises OSError when N0 could not be made."""
        while True:
            socks = [sock for sock in (self.nsd, self.link, self.setup) if sock is not None]
            wait = None if self.ready else max(0.0, self.deadline + 1 - time.monotonic())
            ready = select.select(socks, [], [], wait)[0]
            if not ready:
                raise OSError(110, f"{self.settings.mode} did not come up in time")
            if self.link in ready:
                self.heard()
            elif self.setup in ready:
                self.set_up_done()
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
                *(rtnl.address(GUEST_INDEX, a, length(a)) for a in inner),
                *(rtnl.default_route(a, GUEST_INDEX) for a in outer),
            ])
    parent.send(b"done")


def _last_id(id_map: str) -> int:
    """The highest id that a map knows."""
    extents = [line.split() for line in id_map.splitlines() if line.strip()]
    return max(int(inside) + int(count) - 1 for inside, _, count in extents)


def work(settings: Settings, nsd: socket.socket, link: socket.socket) -> None:
    """The life of the process."""
    gc.freeze()  # a collection would copy pages that the children share
    worker = Worker(settings, nsd, link, time.monotonic() + UPLINK_TIMEOUT)
    try:
        if settings.mode == "none":
            worker.tell_ready()
        else:
            worker.set_up()
        os.nice(NICE)
        worker.serve()
    except (BrokenPipeError, ConnectionResetError):
        return  # nsd is gone
    except OSError as error:
        wire.send(nsd, {"failed": error.strerror or str(error)})
