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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["default", "none", "host"]
Mode = Literal["pasta", "slirp4netns", "none"]


@dataclass(frozen=True, slots=True)
class NetnsLease:
    """A user namespace and a network namespace for one sandbox.

    userns: descriptor of U1 (``setns`` with CLONE_NEWUSER).  netns: descriptor of the network
    namespace, lo up, address and default route set; -1 for "host".  address, address6: the sandbox's
    own addresses ("" where it has none).  Both descriptors are close-on-exec and belong to the lease.
    """

    kind: Kind
    userns: int
    netns: int
    address: str
    address6: str
    slot: int


class Network:
    """The build network of one nsd.  Not thread-safe, never blocks but where it says so."""

    def __init__(self, *, uid_map: str, gid_map: str, pool: int = 4, mode: Mode | None = None):
        """``uid_map``, ``gid_map``: the text for /proc/PID/{uid,gid}_map of U1, as seen from U0.

        pool: how many pairs are kept ready.  mode: None = the best that works here.
        """
        raise NotImplementedError

    def start(self) -> Mode:
        """Make N0 and its uplink (blocks up to some 100 ms); ``describe()`` says why it is "none".

        Raises nothing for lack of pasta, tun or nftables: then the mode is "none" and "default"
        leases raise Unsupported with the reason."""
        raise NotImplementedError

    def fileno(self) -> int:
        """Readable when :meth:`handle` has something to do; for nsd's poll loop."""
        raise NotImplementedError

    def handle(self) -> None:
        """Take in new pairs, notice a dead uplink or worker and start it again.  Never blocks."""
        raise NotImplementedError

    def lease(self, kind: Kind) -> NetnsLease:
        """A fresh pair; waits (≤ 5 s) only when the pool is empty.  "host" has no netns.

        Raises Unsupported (no network here, with the fix as hint), Unavailable (being restarted)."""
        raise NotImplementedError

    def release(self, lease: NetnsLease) -> None:
        """Close the lease's descriptors; the kernel removes the namespaces with their last process."""
        raise NotImplementedError

    def resolv_conf(self, kind: Kind, dns: Mapping[str, Sequence[str]] | None = None) -> bytes:
        """/etc/resolv.conf for a sandbox, from the host's as it is now (read again when it changed).

        ``dns`` is RunSpec's {servers, search, options}: a list that isn't empty replaces ours."""
        raise NotImplementedError

    def hosts(self, lease: NetnsLease, hostname: str, extra: Sequence[Sequence[str]] = ()) -> bytes:
        """/etc/hosts for a sandbox; ``extra`` is RunSpec's [[name, address], …] ("host-gateway" is
        refused).  Raises InvalidArgument."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """{mode, reason, fix, uplink, prefix, ipv6, resolvers, pool} for ``ocibuild info`` and doctor."""
        raise NotImplementedError

    def close(self) -> None:
        """End worker and uplink, close the pool.  Idempotent."""
        raise NotImplementedError
