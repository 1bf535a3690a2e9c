"""Address translation and isolation in the build network N0, as nftables rules.

What a sandbox may reach is decided here, as a list of rules; ``network_setup`` puts them in place.  Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from .network_rtnl import Address, IpNetwork

TABLE = "ocibuildd"
UPLINK = "uplink"
"""The tap of pasta or slirp4netns in N0."""
SANDBOX = "sb"
"""Prefix of the names of N0's ends of the veth pairs."""
FORWARDER = ipaddress.ip_address("169.254.1.1")
"""Where pasta takes DNS queries for a resolver that only the host itself can reach."""

DENIED: tuple[IpNetwork, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4",
        "169.254.0.0/16",  # link-local: the clouds' metadata services
        "100.100.100.200/32",  # Alibaba's metadata service
        "168.63.129.16/32",  # Azure's
        "192.0.0.192/32",  # Oracle's
        "::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8",
        # the same by way of translators: NAT64 (RFC 6052, 8215) and 6to4 (RFC 3056)
        "64:ff9b::7f00:0/104", "64:ff9b::a9fe:0/112", "64:ff9b:1::/48", "2002:7f00::/24",
        "2002:a9fe::/32",
        "fd00:ec2::/32",  # Amazon's metadata service and resolver
        "fd20:ce::254/128",  # Google's
    )
)
"""What no build may reach.  Private networks are allowed: mirrors and proxies live there."""

MAX_HOST_ADDRESSES = 512
"""A host with more has them merged: the kernel takes a batch of a few hundred KiB at most."""

TCP, UDP, ICMPV6 = 6, 17, 58
NEIGHBOUR = (135, 136)
"""ICMPv6 neighbour solicitation and advertisement (RFC 4861)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a chain.  Conditions that are None or "" don't hold back; names ending in "*" are
    prefixes; ``verdict``: accept, drop, reject or masquerade.

    state: "invalid" or "established" (with related).  spoofed: the route back to the source leads
    elsewhere.  port: destination, TCP and UDP (two rules)."""

    chain: str
    verdict: str
    iif: str = ""
    oif: str = ""
    not_iif: str = ""
    not_oif: str = ""
    destination: IpNetwork | None = None
    state: str = ""
    spoofed: bool = False
    protocol: int = 0
    port: int = 0
    icmp_type: int = -1


def _network(address: Address) -> IpNetwork:
    return ipaddress.ip_network(address)


def condensed(own: Sequence[IpNetwork]) -> list[IpNetwork]:
    """The same networks in ``MAX_HOST_ADDRESSES`` at most: neighbours merged, and where that isn't enough, all of them
    widened step by step: what lies between them is then out of reach too."""
    four = [network for network in own if isinstance(network, ipaddress.IPv4Network)]
    six = [network for network in own if isinstance(network, ipaddress.IPv6Network)]
    while True:
        four, six = list(ipaddress.collapse_addresses(four)), list(ipaddress.collapse_addresses(six))
        if len(four) + len(six) <= MAX_HOST_ADDRESSES:
            return [*four, *six]
        four, six = [network.supernet() for network in four], [network.supernet() for network in six]


def rules(host: Sequence[IpNetwork], resolvers: Sequence[Address], *, fib: bool = True) -> list[Rule]:
    """All rules, in order.

    host: the host's own addresses and networks (pasta connects from the host, so that everything that listens on
    any of them would be in reach).  resolvers: where port 53 is allowed although a rule below denies
    it.  fib: the kernel can look up the way back (NFT_FIB_INET); else reverse path filtering (sysctl)
    does it for IPv4.
    """
    sandboxes = SANDBOX + "*"
    result = [Rule("prerouting", "drop", iif=sandboxes, spoofed=True)] if fib else []
    result += [
        # pasta's window updates without flags count as invalid: what isn't dropped here, N0 itself
        # would answer with a reset
        Rule("input", "drop", state="invalid"),
        Rule("input", "accept", state="established"),
        Rule("input", "accept", iif="lo"),
        *(Rule("input", "accept", protocol=ICMPV6, icmp_type=kind) for kind in NEIGHBOUR),
        Rule("input", "reject", iif=sandboxes),
        Rule("forward", "drop", state="invalid"),
        Rule("forward", "accept", state="established"),
        Rule("forward", "drop", not_iif=sandboxes),
        Rule("forward", "reject", not_oif=UPLINK),
    ]
    result += [
        Rule("forward", "accept", destination=_network(resolver), protocol=protocol, port=53)
        for resolver in resolvers
        for protocol in (UDP, TCP)
    ]
    denied = [*DENIED, *condensed(host)]
    result += [Rule("forward", "reject", destination=network) for network in denied]
    result += [
        Rule("forward", "accept", iif=sandboxes, oif=UPLINK),
        Rule("postrouting", "masquerade", oif=UPLINK),
    ]
    return result
