"""Address translation and isolation in the build network N0, as nftables rules.

What a sandbox may reach is decided here, as a list of rules (pure), and put in place in one transaction
over nfnetlink.  The messages are written out by hand: pyroute2 (0.9.7) takes 290 ms and 32 MiB for its
import, brings asyncio into a process that must not have it, and encodes ``fib`` wrongly.

Linux: include/uapi/linux/netfilter/nf_tables.h; nft(8).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .network_rtnl import Address, IpNetwork, attribute

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
"""A host with more has them cut: the kernel takes a batch of a few hundred KiB at most."""

IPV4, IPV6 = 2, 10  # NFPROTO_*
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


CHAINS: dict[str, tuple[str, int, int, int]] = {
    # name: type, hook, priority, policy (0 drop, 1 accept)
    "prerouting": ("filter", 0, -300, 1),
    "input": ("filter", 1, 0, 0),
    "forward": ("filter", 2, 0, 0),
    "postrouting": ("nat", 4, 100, 1),
}


def _network(address: Address) -> IpNetwork:
    return ipaddress.ip_network(address)


def rules(host: Sequence[Address], resolvers: Sequence[Address], *, fib: bool = True) -> list[Rule]:
    """All rules, in order.

    host: the host's own addresses (pasta connects from the host, so that everything that listens on
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
    denied = [*DENIED, *(_network(a) for a in dict.fromkeys(host[:MAX_HOST_ADDRESSES]))]
    result += [Rule("forward", "reject", destination=network) for network in denied]
    result += [
        Rule("forward", "accept", iif=sandboxes, oif=UPLINK),
        Rule("postrouting", "masquerade", oif=UPLINK),
    ]
    return result


# --- encoding ---------------------------------------------------------------------------------------

_ACCEPT, _DROP = 1, 0
_META_IIFNAME, _META_OIFNAME, _META_NFPROTO, _META_L4PROTO = 6, 7, 15, 16
_EQ, _NEQ = 0, 1
_STATES = {"invalid": 1, "established": 6}  # NF_CT_STATE_BIT


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def _string(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _expression(name: str, *attributes: bytes) -> bytes:
    return attribute(1, _string(1, name) + attribute(2, b"".join(attributes)))


def _compare(value: bytes, op: int = _EQ) -> bytes:
    return _expression("cmp", _be32(1, 1), _be32(2, op), attribute(3, attribute(1, value)))


def _meta(key: int) -> bytes:
    return _expression("meta", _be32(1, 1), _be32(2, key))


def _payload(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", _be32(1, 1), _be32(2, base), _be32(3, offset), _be32(4, length))


def _masked(mask: bytes) -> bytes:
    data = attribute(4, attribute(1, mask)) + attribute(5, attribute(1, bytes(len(mask))))
    return _expression("bitwise", _be32(1, 1), _be32(2, 1), _be32(3, len(mask)), data)


def _interface(key: int, name: str, op: int) -> bytes:
    value = name[:-1].encode() if name.endswith("*") else name.encode().ljust(16, b"\0")
    return _meta(key) + _compare(value, op)


def _destination(network: IpNetwork) -> bytes:
    protocol, offset, size = (IPV4, 16, 4) if network.version == 4 else (IPV6, 24, 16)
    code = _meta(_META_NFPROTO) + _compare(bytes([protocol])) + _payload(1, offset, size)
    if network.prefixlen < 8 * size:
        code += _masked(network.netmask.packed)
    return code + _compare(network.network_address.packed)


def _verdict(name: str) -> bytes:
    match name:
        case "accept" | "drop":
            code = _be32(1, _ACCEPT if name == "accept" else _DROP)
            return _expression("immediate", _be32(1, 0), attribute(2, attribute(2, code)))
        case "reject":  # icmpx, administratively prohibited: the program fails at once
            return _expression("reject", _be32(1, 2), attribute(2, b"\x03"))
        case "masquerade":
            return _expression("masq")
        case _:
            raise ValueError(f"verdict {name!r}")


def _expressions(rule: Rule) -> bytes:
    code = b""
    for key, name, op in (
        (_META_IIFNAME, rule.iif, _EQ), (_META_IIFNAME, rule.not_iif, _NEQ),
        (_META_OIFNAME, rule.oif, _EQ), (_META_OIFNAME, rule.not_oif, _NEQ),
    ):
        if name:
            code += _interface(key, name, op)
    if rule.spoofed:  # fib saddr . iif oif missing
        code += _expression("fib", _be32(1, 1), _be32(2, 1), _be32(3, 1 | 8 | 32))
        code += _compare(bytes(4))
    if rule.state:
        code += _expression("ct", _be32(1, 1), _be32(2, 0))
        code += _masked(struct.pack("=I", _STATES[rule.state])) + _compare(bytes(4), _NEQ)
    if rule.destination is not None:
        code += _destination(rule.destination)
    if rule.protocol:
        code += _meta(_META_L4PROTO) + _compare(bytes([rule.protocol]))
    if rule.port:
        code += _payload(2, 2, 2) + _compare(struct.pack(">H", rule.port))
    if rule.icmp_type >= 0:
        code += _payload(2, 0, 1) + _compare(bytes([rule.icmp_type]))
    return code + _verdict(rule.verdict)


_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE = 0xA00, 0xA02, 0xA03, 0xA06
_REQUEST, _ACK, _CREATE, _APPEND = 1, 4, 0x400, 0x800
_HEADER = struct.Struct("=IHHII")


def batch(listed: Sequence[Rule]) -> tuple[bytes, int]:
    """One transaction that puts the table in place of what was there; and how many answers to expect."""
    table = _string(1, TABLE)
    messages = [(_NEWTABLE, _CREATE, table), (_DELTABLE, 0, table), (_NEWTABLE, _CREATE, table)]
    for name, (kind, hook, priority, policy) in CHAINS.items():
        hooked = attribute(4, _be32(1, hook) + _be32(2, priority))
        body = _string(1, TABLE) + _string(3, name) + hooked + _be32(5, policy) + _string(7, kind)
        messages.append((_NEWCHAIN, _CREATE, body))
    for rule in listed:
        body = _string(1, TABLE) + _string(2, rule.chain) + attribute(4, _expressions(rule))
        messages.append((_NEWRULE, _CREATE | _APPEND, body))
    data = _message(0x10, _REQUEST, 0, 0, 10, b"")
    for number, (operation, flags, body) in enumerate(messages, 1):
        data += _message(operation, flags | _REQUEST | _ACK, number, 1, 0, body)  # NFPROTO_INET
    return data + _message(0x11, _REQUEST, len(messages) + 1, 0, 10, b""), len(messages)


def _message(kind: int, flags: int, sequence: int, family: int, resource: int, body: bytes) -> bytes:
    content = struct.pack(">BBH", family, 0, resource) + body
    return _HEADER.pack(_HEADER.size + len(content), kind, flags, sequence, 0) + content


def apply(listed: Sequence[Rule]) -> None:
    """Put the rules in place in the current network namespace.

    Raises OSError with the kernel's answer (ENOENT: an expression that it hasn't got, EOPNOTSUPP,
    EPROTONOSUPPORT: no nftables at all); then nothing has changed."""
    data, expected = batch(listed)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 12) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(len(data) * 2, 1 << 16))
        sock.settimeout(5)
        sock.bind((0, 0))
        sock.send(data)
        while expected:
            reply = sock.recv(1 << 16)
            at = 0
            while at + _HEADER.size <= len(reply):
                size, kind, _, sequence, _ = _HEADER.unpack_from(reply, at)
                if kind == 2:
                    (code,) = struct.unpack_from("=i", reply, at + _HEADER.size)
                    if code:
                        raise OSError(-code, f"nftables, message {sequence}: {os.strerror(-code)}")
                    expected -= 1
                at += max(size + -size % 4, _HEADER.size)
