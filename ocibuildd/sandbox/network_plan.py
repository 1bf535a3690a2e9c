"""Which addresses N0 and the sandboxes get.  Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from .network_rtnl import Address, IpNetwork

SLOTS = 1 << 15
"""Pairs of addresses in a /16."""

PREFIXES = tuple(
    ipaddress.IPv4Network(text)
    for text in ("10.233.0.0/16", "10.91.0.0/16", "172.30.0.0/16", "10.177.0.0/16", "198.18.0.0/16")
)
"""For the sandboxes' addresses: the first that the host has no route into."""
PREFIX6 = ipaddress.IPv6Network("fd6f:6369:6275::/64")
"""A unique local prefix (RFC 4193); it is translated and never leaves the machine."""


def choose_prefix(routes: Sequence[IpNetwork], host: Sequence[IpNetwork]) -> ipaddress.IPv4Network:
    """The first of ``PREFIXES`` that no route of the host (but a default one) and no network of its own touches."""
    taken = [net for net in (*routes, *host) if net.version == 4 and net.prefixlen]
    for prefix in PREFIXES:
        if not any(prefix.overlaps(net) for net in taken):
            return prefix
    return PREFIXES[-1]


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


def length(address: Address) -> int:
    """Of the prefix that a pair's end has."""
    return 31 if address.version == 4 else 127
