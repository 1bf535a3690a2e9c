"""The handful of rtnetlink messages that the network of one sandbox takes, written out.

Written out by hand, for each pair and for watching the host's addresses: pyroute2 takes 15 ms of a pair and 25 MiB of
its process for what this does in half a millisecond, and brings asyncio along.  What is set up once is set up with
pyroute2 (``network_setup``), and the tests read these messages with it.
Linux: rtnetlink(7), include/uapi/linux/{rtnetlink,if_link,if_addr}.h, drivers/net/veth.c.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_GETADDR = 16, 17, 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x10, 0x100
RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_ROUTE = 0x40, 0x400
LOCAL_TABLE, LOCAL_ROUTE, ANYCAST_ROUTE = 255, 2, 4
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
NLM_REQUEST, NLM_ACK, NLM_DUMP, NLM_EXCL, NLM_CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFF_UP = 1
IFA_F_NODAD = 2
MAX_REPLY = 1 << 16
_HEADER = struct.Struct("=IHHII")


@dataclass(frozen=True, slots=True)
class Message:
    """A request without its header."""

    type: int
    flags: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """A struct nlattr with its padding."""
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _link_header(index: int, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BBHiII", 0, 0, 0, index, flags, change)


def veth(name: str, index: int, peer_name: str, peer_index: int, peer_netns: int, mtu: int) -> Message:
    """A pair of virtual interfaces, the near end up, the far end in the namespace of a descriptor."""
    peer = (
        _link_header(peer_index)
        + _text(3, peer_name)  # IFLA_IFNAME
        + attribute(4, struct.pack("=I", mtu))  # IFLA_MTU
        + attribute(28, struct.pack("=I", peer_netns))  # IFLA_NET_NS_FD
    )
    info = _text(1, "veth") + attribute(2, attribute(1, peer))  # KIND, DATA{VETH_INFO_PEER}
    body = (
        _link_header(index, IFF_UP, IFF_UP)
        + _text(3, name)
        + attribute(4, struct.pack("=I", mtu))
        + attribute(18, info)  # IFLA_LINKINFO
    )
    return Message(RTM_NEWLINK, NLM_CREATE | NLM_EXCL, body)


def link_up(index: int) -> Message:
    """Set an interface up; lo has index 1 in every network namespace."""
    return Message(RTM_NEWLINK, 0, _link_header(index, IFF_UP, IFF_UP))


def link_delete(index: int) -> Message:
    """Remove an interface (a veth's peer goes with it)."""
    return Message(RTM_DELLINK, 0, _link_header(index))


def address(index: int, value: Address, prefix: int) -> Message:
    """Add an address; IPv6 without duplicate detection, so that it works at once."""
    packed = value.packed
    family = socket.AF_INET if value.version == 4 else socket.AF_INET6
    body = struct.pack("=BBBBI", family, prefix, 0, 0, index) + attribute(1, packed)  # IFA_ADDRESS
    if value.version == 4:
        body += attribute(2, packed)  # IFA_LOCAL
    else:
        body += attribute(8, struct.pack("=I", IFA_F_NODAD))  # IFA_FLAGS
    return Message(RTM_NEWADDR, NLM_CREATE | NLM_EXCL, body)


def default_route(gateway: Address, index: int) -> Message:
    """A default route in the main table."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    # table main, protocol static, scope universe, type unicast
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 254, 4, 0, 1, 0)
    body += attribute(5, gateway.packed) + attribute(4, struct.pack("=I", index))
    return Message(RTM_NEWROUTE, NLM_CREATE | NLM_EXCL, body)


class Rtnl:
    """A rtnetlink socket in the network namespace where it was made."""

    def __init__(self, groups: int = 0) -> None:
        self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self.sock.bind((0, groups))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def request(self, messages: Sequence[Message]) -> None:
        """Send all in one go, in order, and wait for each answer.  Raises OSError for the first that
        failed (those after it were tried all the same)."""
        data, first = b"", self._sequence + 1
        for message in messages:
            self._sequence += 1
            flags = message.flags | NLM_REQUEST | NLM_ACK
            size = _HEADER.size + len(message.body)
            data += _HEADER.pack(size, message.type, flags, self._sequence, 0) + message.body
            data += bytes(-size % 4)
        self.sock.send(data)
        failed: OSError | None = None
        left = len(messages)
        while left:
            for kind, sequence, body in _split(self.sock.recv(MAX_REPLY)):
                if kind != NLMSG_ERROR or sequence < first:
                    continue
                left -= 1
                (code,) = struct.unpack_from("=i", body)
                if code and failed is None:
                    failed = OSError(-code, f"rtnetlink: {os.strerror(-code)}")
        if failed is not None:
            raise failed

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Bodies of all objects of a kind (RTM_GETADDR); ``body``: the header that chooses among them."""
        self._sequence += 1
        size = _HEADER.size + len(body)
        self.sock.send(_HEADER.pack(size, kind, NLM_REQUEST | NLM_DUMP, self._sequence, 0) + body)
        bodies: list[bytes] = []
        while True:
            for answer, sequence, content in _split(self.sock.recv(MAX_REPLY)):
                if sequence != self._sequence:
                    continue
                if answer in {NLMSG_DONE, NLMSG_ERROR}:
                    return bodies
                bodies.append(content)

    def own(self) -> list[IpNetwork]:
        """What this namespace answers for itself: its addresses, and networks that a local route gives to it
        (``ip route add local``: load balancers' addresses in clouds), in order, each once."""
        found = {ipaddress.ip_network(value) for value in self._addresses()} | self._local_routes()
        return sorted(found, key=lambda network: (network.version, network.network_address.packed, network.prefixlen))

    def _local_routes(self) -> set[IpNetwork]:
        # Only that table, where the kernel lets us choose (4.20): the others may be as large as the internet's.
        with contextlib.suppress(OSError):
            self.sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        found: set[IpNetwork] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            header = struct.pack("=BBBBBBBBI", family, 0, 0, 0, LOCAL_TABLE, 0, 0, 0, 0)
            for body in self.dump(RTM_GETROUTE, header):
                packed = _attributes(body, 12).get(1)  # RTA_DST
                if body[7] in {LOCAL_ROUTE, ANYCAST_ROUTE} and packed and len(packed) in {4, 16}:
                    found.add(ipaddress.ip_network((packed, body[1]), strict=False))
        return found

    def _addresses(self) -> list[Address]:
        found: list[Address] = []
        for body in self.dump(RTM_GETADDR, bytes(8)):
            attributes = _attributes(body, 8)
            packed = attributes.get(2) or attributes.get(1)  # IFA_LOCAL, else IFA_ADDRESS
            if packed and len(packed) in {4, 16}:
                found.append(ipaddress.ip_address(packed))
        return found


def _split(data: bytes) -> list[tuple[int, int, bytes]]:
    """(type, sequence, body) of the messages of a datagram."""
    messages: list[tuple[int, int, bytes]] = []
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            break
        messages.append((kind, sequence, data[at + _HEADER.size : at + size]))
        at += size + -size % 4
    return messages


def _attributes(body: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, at)
        if size < 4:
            break
        found[kind & 0x3FFF] = body[at + 4 : at + size]
        at += size + -size % 4
    return found
