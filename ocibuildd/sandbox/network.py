"""Network namespaces for build steps, as nsd leases them out.

**Who is where.**  nsd is in user namespace U0 and *stays in the host's network namespace* (so that
``--network=host`` needs no second zygote, pasta can be its child, and the host's addresses and
resolvers can be watched).  The build network N0 is a network namespace of its own, owned by U0, that
a worker process holds:

    host netns ──pasta (tap)──► N0: NAT and isolation rules ──veth, point to point──► N1, N2, …

**Why pairs are pooled, not network namespaces.**  sysfs can only be mounted, and ports below 1024 and
raw sockets only be used, where the network namespace is owned by the sandbox's own user namespace U1.
So each lease is a ready-made pair {U1 with its id maps written, N owned by U1}; a sandbox joins both
with two ``setns`` calls and pays for neither.  A pair is used once and never again.

How a sandbox child uses a lease (single-threaded, in U0, before it unshares anything else)::

    lease = network.lease("default")          # in nsd, before the fork; µs when the pool is filled
    …fork…
    syscalls.setns(lease.userns, CLONE_NEWUSER)   # now root of U1, all capabilities in it
    if lease.netns >= 0:                          # -1 with "host": stay
        syscalls.setns(lease.netns, CLONE_NEWNET)
    syscalls.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    …
    network.release(lease)                    # in nsd, when the sandbox is gone

Inside U1 ``user.max_user_namespaces`` is already 0.
"""

from __future__ import annotations

import ipaddress
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .. import syscalls
from ..errors import Unavailable, Unsupported
from . import network_dns, wire
from .network_rtnl import Address, IpNetwork, Rtnl
from .network_rules import FORWARDER
from .network_uplink import Settings, supervise
from .network_worker import work

Kind = Literal["default", "none", "host"]
Mode = Literal["pasta", "slirp4netns", "none"]

START_TIMEOUT = 46.0
"""Seconds that the worker has to say that N0 is up (0.3 on a usual host), or that it can't be."""
LEASE_TIMEOUT = 10.0
"""Seconds that a lease waits when the pool is empty."""
RESTART_AFTER = 1.0
"""Seconds between two starts of a worker that keeps dying; the first time it is at once."""
RETRY_AFTER = 10.0
"""Seconds until an uplink that could not be had is tried again, when a step wants one: the host may
have been offline."""
MAX_WARNINGS = 16
POOLED: frozenset[str] = frozenset({"default"})
"""What is kept in store; "none" and "host" pairs are made when asked for (2 ms)."""
SLIRP_RESOLVER = ipaddress.ip_address("10.0.2.3")
TUN = "/dev/net/tun"
SEARCH = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where programs are looked for beyond $PATH: a service's is often short."""


@dataclass(frozen=True, slots=True)
class NetnsLease:
    """A user namespace and a network namespace for one sandbox.

    userns: descriptor of U1 (``setns`` with CLONE_NEWUSER).  netns: descriptor of the network
    namespace, lo up, address and default route set; -1 for "host".  address, address6: the sandbox's
    own addresses ("" where it has none).  generation: see ``Network.current``.  Both descriptors are
    close-on-exec and belong to the lease.
    """

    kind: Kind
    userns: int
    netns: int
    address: str
    address6: str
    slot: int
    generation: int = 0


def find_program(name: str) -> str:
    """The path of a program, "" when it isn't installed."""
    for directory in (*os.environ.get("PATH", "").split(":"), *SEARCH):
        path = f"{directory}/{name}"
        if directory.startswith("/") and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return ""


def tun_problem() -> str:
    """Why /dev/net/tun can't be used, "" when it can."""
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{TUN}: {error.strerror}"
    return ""


class Network:
    """The build network of one nsd.  Not thread-safe, never blocks but where it says so."""

    def __init__(self, *, uid_map: str, gid_map: str, pool: int = 4, mode: Mode | None = None):
        """``uid_map``, ``gid_map``: the text for /proc/PID/{uid,gid}_map of U1, as seen from U0.

        pool: how many pairs are kept ready.  mode: None = the best that works here.
        """
        self.mode: Mode = "none"
        self.reason = ""
        self.fix = ""
        self.warnings: deque[str] = deque(maxlen=MAX_WARNINGS)
        self._uid_map, self._gid_map = uid_map, gid_map
        self._size, self._wanted_mode = pool, mode
        self._ready: deque[NetnsLease] = deque()
        self._asked = 0
        self._generation = 0
        self._sock: socket.socket | None = None
        self._pid, self._pidfd = 0, -1
        self._up = False
        self._closed = False
        self._restart_at = self._retry_at = 0.0
        self._facts: dict[str, Any] = {}
        self._own: tuple[IpNetwork, ...] = ()
        self._stamp: tuple[object, ...] | None = None
        self._found = network_dns.Resolvers()
        self._told: tuple[Address, ...] = ()
        self._error = ""
        self._candidates: deque[Mode] = deque()
        self._problems: list[str] = []
        self._deadline = 0.0

    # --- life ----------------------------------------------------------------------------------------

    def foresee(self) -> Mode:
        """Set ``mode`` (and reason and fix) to what :meth:`start` would begin with; starts nothing."""
        wanted: list[Mode] = ["pasta", "slirp4netns"] if self._wanted_mode is None else [self._wanted_mode]
        if wanted == ["none"]:
            self.reason = "switched off by the configuration"
        elif problem := tun_problem():
            self.reason, self.fix = problem, f"chmod 666 {TUN} (and load the module tun)"
        else:
            self.mode = next((mode for mode in wanted if find_program(mode)), "none")
            if self.mode == "none":
                self.reason = f"{' and '.join(wanted)}: not installed"
                self.fix = "install passt (it has pasta)"
        return self.mode

    def start(self) -> Mode:
        """Begin to make N0 and its uplink, and return what it is to be (``starting`` until it is so).

        Raises nothing for lack of pasta, tun or nftables: then the mode is "none", ``describe()`` says why, and
        "default" leases raise Unsupported with the reason."""
        wanted: list[Mode] = ["pasta", "slirp4netns"] if self._wanted_mode is None else [self._wanted_mode]
        self._problems = []
        self._retry_at = 0.0
        self.reason = self.fix = ""
        if wanted == ["none"]:
            self.reason = "switched off by the configuration"
        elif problem := tun_problem():
            self._problems.append(problem)
            self.fix = f"chmod 666 {TUN} (and load the module tun)"
        else:
            self._candidates = deque(wanted)
        self._next()
        return self.mode

    def _next(self) -> None:
        """Start the next candidate that may work, else none."""
        while self._candidates:
            candidate = self._candidates.popleft()
            if not find_program(candidate):
                self._problems.append(f"{candidate} is not installed")
                self.fix = self.fix or "install passt (it has pasta)"
            elif problem := self._launch(candidate):
                self._came_to_nothing(problem)
            else:
                return
        self.reason = self.reason or "; ".join(self._problems)
        if problem := self._launch("none"):
            self.reason = f"{self.reason}; {problem}"

    def _came_to_nothing(self, problem: str) -> None:
        self._problems.append(problem)
        self._retry_at = time.monotonic() + RETRY_AFTER
        if "option" in problem:  # the words of getopt_long(3)
            self.fix = self.fix or "install a newer passt: this one lacks an option that isolation takes"
        self.fix = self.fix or "see the message; the kernel needs veth and nftables (nft_masq)"

    @property
    def starting(self) -> bool:
        """Whether it isn't known yet if the mode works."""
        return self._sock is not None and not self._up and time.monotonic() < self._deadline

    def settle(self) -> Mode:
        """Wait until the mode works or another one does (some 300 ms from the start).  Returns it."""
        while self._sock is not None and not self._up:
            if (problem := self._receive(self._deadline)) is not None:
                self._ended(problem)
        return self.mode

    def _ended(self, problem: str) -> None:
        """The worker is gone, or of no use."""
        before, self._up = self._up, False
        self._stop()
        if before:
            self.warnings.append("the network's worker ended and is started again")
        elif self.mode == "none":
            self.warnings.append(problem)
        else:
            self._came_to_nothing(problem)
            self._next()

    def _launch(self, mode: Mode) -> str:
        """Start the processes.  Returns what went wrong, or ""."""
        self._stop()
        self.mode = mode
        with Rtnl() as netlink:
            self._own = tuple(netlink.own())
        self._read_resolvers(mode)
        self._told = self._resolvers(mode).servers
        settings = Settings(
            mode=mode, program=find_program(mode), uid_map=self._uid_map, gid_map=self._gid_map,
            resolvers=tuple(str(server) for server in self._told),
        )
        ours, theirs = wire.pair()
        try:
            pid = syscalls.clone(syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNS)
        except OSError as error:
            ours.close()
            theirs.close()
            return f"namespaces for the network's worker: {error.strerror}"
        if not pid:
            try:
                supervise(settings, theirs, work)
            except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
                os.write(2, f"ocibuildd-net: {type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(1)
        theirs.close()
        self._generation += 1
        self._pid, self._pidfd, self._sock = pid, os.pidfd_open(pid), ours
        self._deadline = time.monotonic() + START_TIMEOUT
        return ""

    def _stop(self) -> None:
        """End the processes and drop what they made."""
        self._up = False
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._pidfd >= 0:
            try:
                syscalls.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            try:
                os.waitpid(self._pid, 0)
            except ChildProcessError:  # nsd's own loop has reaped it
                pass
            os.close(self._pidfd)
            self._pid, self._pidfd = 0, -1
        while self._ready:
            self.release(self._ready.popleft())
        self._asked = 0

    def close(self) -> None:
        """End worker and uplink, close the pool.  Idempotent."""
        self._closed = True
        self._stop()

    def fileno(self) -> int:
        """Readable when :meth:`handle` has something to do; for nsd's poll loop.

        It changes when the worker is started again; -1 while there is none."""
        return -1 if self._sock is None else self._sock.fileno()

    def pids(self) -> set[int]:
        """Our processes among nsd's children."""
        return {self._pid} if self._pid else set()

    def handle(self) -> None:
        """Take in new pairs, notice a dead worker and start it again.  Never blocks."""
        while self._sock is not None and select.select([self._sock], [], [], 0)[0]:
            if (problem := self._receive(time.monotonic())) is not None:
                self._ended(problem)
        if self._sock is None:
            self._restart()

    def _restart(self) -> None:
        now = time.monotonic()
        if self._closed or now < self._restart_at:
            return
        self._restart_at = now + RESTART_AFTER
        self._problems = []
        self._candidates = deque([] if self.mode == "none" else [self.mode])
        self._next()

    # --- pairs ---------------------------------------------------------------------------------------

    def _ask(self, kind: Kind = "default") -> None:
        """Ask the worker for what the pool lacks, or for one pair of another kind."""
        count = 1
        if kind in POOLED:
            count = self._size - len(self._ready) - self._asked if self.mode != "none" else 0
        for _ in range(count):
            assert self._sock is not None
            wire.send(self._sock, {"want": kind})
            self._asked += kind in POOLED

    def _receive(self, deadline: float) -> str | None:
        """Take in one message of the worker: None, or what went wrong with the worker."""
        assert self._sock is not None
        if not select.select([self._sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return "the network's worker did not answer in time"
        try:
            received = wire.receive(self._sock)
        except OSError as error:
            received, text = None, f": {error.strerror}"
        else:
            text = ""
        if received is None:
            return f"the network's worker ended{text}"
        message, fds = received
        if "failed" in message:
            return str(message["failed"])
        if "ready" in message:
            self._up, self._facts = True, message
            if self.mode != "none":
                self._own = tuple(ipaddress.ip_network(text) for text in message["host"])
                if self._resolvers(self.mode).servers != self._told:
                    self._tell_resolvers()
                self.reason = self.fix = ""
            self._ask()
        if "warning" in message:
            self.warnings.append(message["warning"])
        if "pair" in message:
            self._take(message, fds)
        return None

    def _take(self, message: dict[str, Any], fds: list[int]) -> None:
        kind: Kind = message["pair"]
        self._asked -= kind in POOLED
        if "error" in message:
            self.warnings.append(f"a network namespace: {message['error']}")
            self._error = message["error"]
            return
        self._ready.append(NetnsLease(
            kind, fds[0], fds[1] if len(fds) > 1 else -1, message["address"], message["address6"],
            message["slot"], self._generation,
        ))

    def lease(self, kind: Kind) -> NetnsLease:
        """A fresh pair; waits (≤ 10 s) only when the pool is empty, "default" also while ``starting``.  "host" has
        no netns.

        Raises Unsupported (no network here, with the fix as hint), Unavailable (being restarted)."""
        if kind == "default" and self.mode == "none" and 0 < self._retry_at < time.monotonic():
            self.start()
        if kind == "default" and self.settle() == "none":
            raise Unsupported(
                f"network for a build step: {self.reason or 'there is none'}",
                hint=self.fix or "use --network=none, or --network=host with its entitlement",
            )
        self.handle()
        if self._sock is None:
            last = self.warnings[-1] if self.warnings else "it is being started again"
            raise Unavailable(f"network for a build step: {last}")
        found = self._pop(kind)
        if found is None:
            if kind not in POOLED or not self._asked:
                self._asked += kind in POOLED
                wire.send(self._sock, {"want": kind})
            found = self._await(kind)
        self._ask()
        return found

    def _pop(self, kind: Kind) -> NetnsLease | None:
        for lease in self._ready:
            if lease.kind == kind:
                self._ready.remove(lease)
                return lease
        return None

    def _await(self, kind: Kind) -> NetnsLease:
        deadline = time.monotonic() + LEASE_TIMEOUT
        self._error = ""
        while True:
            problem = self._receive(deadline)
            if problem is not None:
                self._ended(problem)
                if kind in POOLED or self._sock is None:
                    raise Unavailable(f"network for a build step: {problem}")
                wire.send(self._sock, {"want": kind})  # to the worker of the next candidate
                continue
            if self._error:
                raise Unavailable(f"network for a build step: {self._error}")
            found = self._pop(kind)
            if found is not None:
                return found

    def current(self, lease: NetnsLease) -> bool:
        """Whether the lease's network still is: it goes when the worker dies, with all that it made."""
        return lease.kind != "default" or lease.generation == self._generation

    def release(self, lease: NetnsLease) -> None:
        """Close the lease's descriptors; the kernel removes the namespaces with their last process."""
        wire.close_all([fd for fd in (lease.userns, lease.netns) if fd >= 0])

    # --- names ---------------------------------------------------------------------------------------

    def _read_resolvers(self, mode: Mode) -> bool:
        """Read the host's files again when they changed; True when what a sandbox gets did."""
        stamp = network_dns.stamp()
        if stamp == self._stamp:
            return False
        before = self._resolvers(mode)
        self._stamp, self._found = stamp, network_dns.read()
        return self._resolvers(mode) != before

    def _resolvers(self, mode: Mode) -> network_dns.Resolvers:
        forwarder: Address | None = FORWARDER
        if mode == "slirp4netns":
            forwarder = SLIRP_RESOLVER
        ipv6 = bool(self._facts.get("ipv6", True))
        return network_dns.reachable(self._found, self._own, forwarder, ipv6)

    def _tell_resolvers(self) -> None:
        """Let the worker allow them."""
        if self._sock is not None and self.mode != "none":
            self._told = self._resolvers(self.mode).servers
            wire.send(self._sock, {"resolvers": [str(server) for server in self._told]})

    def resolv_conf(self, kind: Kind, dns: Mapping[str, Sequence[str]] | None = None) -> bytes:
        """/etc/resolv.conf for a sandbox, from the host's as it is now (read again when it changed).

        ``dns`` is RunSpec's {servers, search, options}: a list that isn't empty replaces ours.
        Raises InvalidArgument."""
        if self._read_resolvers(self.mode) and self._up:
            self._tell_resolvers()
        match kind:
            case "default":
                found = self._resolvers(self.mode)
            case "host":
                found = network_dns.parse(network_dns.host_text())
            case "none":
                found = network_dns.Resolvers(search=self._found.search, options=self._found.options)
        return network_dns.render(network_dns.override(found, dns or {}))

    def hosts(self, lease: NetnsLease, hostname: str, extra: Sequence[Sequence[str]] = ()) -> bytes:
        """/etc/hosts for a sandbox; ``extra`` is RunSpec's [[name, address], …] ("host-gateway" is
        refused).  Raises InvalidArgument."""
        own = [address for address in (lease.address, lease.address6) if address]
        return network_dns.hosts(hostname, own, extra)

    def describe(self) -> dict[str, Any]:
        """{mode, reason, fix, uplink, prefix, ipv6, resolvers, pool, warnings} for ``ocibuild info`` and doctor."""
        return {
            "mode": self.mode, "reason": self.reason, "fix": self.fix,
            "uplink": find_program(self.mode) if self.mode != "none" else "",
            "prefix": self._facts.get("prefix", ""), "ipv6": bool(self._facts.get("ipv6")),
            "resolvers": [str(server) for server in self._resolvers(self.mode).servers],
            "pool": len(self._ready), "warnings": list(self.warnings),
        }
