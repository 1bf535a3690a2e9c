"""The one-time set-up of the build network N0, and its rules, with pyroute2.

Only ever imported in a short-lived process that the network's worker forks: importing pyroute2 takes 250 ms and
25 MiB, which go with that process, and it brings asyncio, which nsd must not have.  It works beside the start of
the uplink and of the daemon; nobody waits but a first step that wants a network.

Rules go as one transaction (there is never a moment without), encoded by pyroute2's own message classes and
expression generators.  Two of its encoders are not used: of ``fib`` the result, an enumeration in the kernel, is
encoded as a set of bits (see :class:`RuleMessage`); ``expressions.ipv4addr`` knows no IPv6 and packs its masks in
the machine's byte order.

Linux: include/uapi/linux/netfilter/nf_tables.h, rtnetlink(7); nft(8).
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pyroute2 import IPRoute, NFTSocket
from pyroute2.netlink import NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg, nftsocket
from pyroute2.nftables.expressions import genex, masq, verdict

from .. import syscalls
from . import wire
from .network_plan import choose_prefix
from .network_rtnl import Address, IpNetwork
from .network_rules import TABLE, Rule, rules
from .network_uplink import NETNS_FILE

SECOND_FAMILY = 0.3
"""Seconds that the other address family has to follow, where the host has both."""
POLL = 0.005
"""Seconds between two looks at N0's routes."""
MAIN_TABLE, UNICAST, LOOPBACK_INDEX = 254, 1, 1
SEND_BUFFER = 1 << 20
"""Bytes: a host with hundreds of addresses makes a transaction of some 300 KiB."""

CHAINS: dict[str, tuple[str, int, int, int]] = {
    # name: type, hook, priority, policy (0 drop, 1 accept)
    "prerouting": ("filter", 0, -300, 1),
    "input": ("filter", 1, 0, 0),
    "forward": ("filter", 2, 0, 0),
    "postrouting": ("nat", 4, 100, 1),
}
INET = 1
"""NFPROTO_INET."""
BATCH_BEGIN, BATCH_END = 0x10, 0x11
"""NFNL_MSG_BATCH_*."""
FIB_SOURCE_OIF = {"dreg": 1, "result": 1, "flags": 1 | 8 | 32}
"""``fib saddr . iif oif missing``: NFT_FIB_RESULT_OIF; NFTA_FIB_F_SADDR, _IIF, _PRESENT."""
STATES = {"invalid": 1, "established": 6}
"""NF_CT_STATE_BIT; established with related."""

Expression = dict[str, Any]


class RuleMessage(nftsocket.nft_rule_msg):  # type: ignore[misc]
    """NFT_MSG_NEWRULE with ``fib`` as the kernel has it: NFTA_FIB_RESULT is a number (enum nft_fib_result)."""

    class nft_expr(nftsocket.nft_contains_expr.nft_expr):  # type: ignore[misc]  # noqa: N801 - found by name
        """An expression."""

        class nft_fib(nftsocket.nft_regs):  # type: ignore[misc]  # noqa: N801
            """A look into the routing table."""

            nla_map = (
                ("NFTA_FIB_UNSPEC", "none"), ("NFTA_FIB_DREG", "regs"), ("NFTA_FIB_RESULT", "be32"),
                ("NFTA_FIB_FLAGS", "be32"),
            )


# --- rules ------------------------------------------------------------------------------------------


def _data(value: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


def _compare(value: bytes, op: nftsocket.Cmp = nftsocket.Cmp.NFT_CMP_EQ) -> Expression:
    return genex("cmp", {"sreg": 1, "op": op, "data": _data(value)})  # type: ignore[no-any-return]


def _masked(mask: bytes) -> Expression:
    fields = {"sreg": 1, "dreg": 1, "len": len(mask), "mask": _data(mask), "xor": _data(bytes(len(mask)))}
    return genex("bitwise", fields)  # type: ignore[no-any-return]


def _payload(base: int, offset: int, length: int) -> Expression:
    return genex("payload", {"dreg": 1, "base": base, "offset": offset, "len": length})  # type: ignore[no-any-return]


def _meta(key: nftsocket.Meta) -> Expression:
    return genex("meta", {"dreg": 1, "key": key})  # type: ignore[no-any-return]


def _interface(key: nftsocket.Meta, name: str, op: nftsocket.Cmp) -> list[Expression]:
    value = name[:-1].encode() if name.endswith("*") else name.encode().ljust(16, b"\0")
    return [_meta(key), _compare(value, op)]


def _destination(network: IpNetwork) -> list[Expression]:
    family, offset, size = (socket.AF_INET, 16, 4) if network.version == 4 else (socket.AF_INET6, 24, 16)
    found = [_meta(nftsocket.Meta.NFT_META_NFPROTO), _compare(bytes([family])), _payload(1, offset, size)]
    if network.prefixlen < 8 * size:
        found.append(_masked(network.netmask.packed))
    return [*found, _compare(network.network_address.packed)]


def _verdict(name: str) -> list[Expression]:
    match name:
        case "accept" | "drop":
            return verdict(int(name == "accept"))  # type: ignore[no-any-return]
        case "reject":  # icmpx, administratively prohibited: the program fails at once
            return [genex("reject", {"type": 2, "icmp_code": 3})]
        case "masquerade":
            return masq()  # type: ignore[no-any-return]
        case _:
            raise ValueError(f"verdict {name!r}")


def expressions(rule: Rule) -> list[Expression]:
    """A rule as pyroute2 has it."""
    meta, compare = nftsocket.Meta, nftsocket.Cmp
    found: list[Expression] = []
    for key, name, op in (
        (meta.NFT_META_IIFNAME, rule.iif, compare.NFT_CMP_EQ),
        (meta.NFT_META_IIFNAME, rule.not_iif, compare.NFT_CMP_NEQ),
        (meta.NFT_META_OIFNAME, rule.oif, compare.NFT_CMP_EQ),
        (meta.NFT_META_OIFNAME, rule.not_oif, compare.NFT_CMP_NEQ),
    ):
        if name:
            found += _interface(key, name, op)
    if rule.spoofed:
        found += [genex("fib", FIB_SOURCE_OIF), _compare(bytes(4))]
    if rule.state:
        found += [genex("ct", {"dreg": 1, "key": 0}), _masked(struct.pack("=I", STATES[rule.state]))]
        found.append(_compare(bytes(4), compare.NFT_CMP_NEQ))
    if rule.destination is not None:
        found += _destination(rule.destination)
    if rule.protocol:
        found += [_meta(meta.NFT_META_L4PROTO), _compare(bytes([rule.protocol]))]
    if rule.port:
        found += [_payload(2, 2, 2), _compare(struct.pack(">H", rule.port))]
    if rule.icmp_type >= 0:
        found += [_payload(2, 0, 1), _compare(bytes([rule.icmp_type]))]
    return found + _verdict(rule.verdict)


def _message(kind: type[Any], operation: int, **attributes: object) -> Any:
    message = kind()
    message["nfgen_family"] = INET
    message["attrs"] = [[kind.name2nla(name), value] for name, value in attributes.items()]
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | operation
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND
    return message


def _boundary(kind: int) -> Any:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST
    return message


def transaction(listed: Sequence[Rule]) -> list[Any]:
    """The messages that put our table in place of what was there."""
    nft = nftsocket
    messages = [
        _boundary(BATCH_BEGIN),
        _message(nft.nft_table_msg, nft.NFT_MSG_NEWTABLE, name=TABLE),  # so that it can be deleted
        _message(nft.nft_table_msg, nft.NFT_MSG_DELTABLE, name=TABLE),
        _message(nft.nft_table_msg, nft.NFT_MSG_NEWTABLE, name=TABLE),
    ]
    for name, (kind, hook, priority, policy) in CHAINS.items():
        hooked = {"attrs": [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", priority)]}
        messages.append(_message(
            nft.nft_chain_msg, nft.NFT_MSG_NEWCHAIN, table=TABLE, name=name, hook=hooked, policy=policy, type=kind,
        ))
    messages += [
        _message(RuleMessage, nft.NFT_MSG_NEWRULE, table=TABLE, chain=rule.chain, expressions=expressions(rule))
        for rule in listed
    ]
    return [*messages, _boundary(BATCH_END)]


def apply(listed: Sequence[Rule]) -> None:
    """Put the rules in place in the current network namespace.

    Raises NetlinkError with the kernel's answer (ENOENT: an expression that it hasn't got), OSError (no nftables at
    all); then nothing has changed."""
    with NFTSocket() as nft:
        nft.asyncore.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        nft.nlm_request_batch(transaction(listed))


def protect(host: Sequence[IpNetwork], resolvers: Sequence[Address], *, fib: bool) -> bool:
    """Put the rules in place, without ``fib`` where the kernel hasn't got it.  Returns whether it has.

    Raises NetlinkError, OSError."""
    if fib:
        try:
            apply(rules(host, resolvers))
            return True
        except NetlinkError:
            pass  # said again without it, if that wasn't it
    apply(rules(host, resolvers, fib=False))
    return False


# --- N0 ---------------------------------------------------------------------------------------------


def destinations(netlink: IPRoute) -> list[IpNetwork]:
    """Destinations of the main table's unicast routes, default routes as a /0."""
    found: list[IpNetwork] = []
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for route in netlink.get_routes(family=family, table=MAIN_TABLE):
            if route["table"] == MAIN_TABLE and route["type"] == UNICAST:
                text = f"{route.get_attr('RTA_DST') or anywhere}/{route['dst_len']}"
                found.append(ipaddress.ip_network(text, strict=False))
    return found


def await_uplink(netlink: IPRoute, expected: set[int], deadline: float, mode: str) -> bool:
    """Until N0 has default routes as the host has; whether it has IPv6.  Raises TimeoutError."""
    enough = 0.0
    while True:
        defaults = {net.version for net in destinations(netlink) if not net.prefixlen}
        if defaults:
            enough = enough or time.monotonic() + SECOND_FAMILY
            if defaults >= expected or time.monotonic() > enough:
                return 6 in defaults
        if time.monotonic() > deadline:
            raise TimeoutError(110, f"{mode} did not come up in time")
        time.sleep(POLL)


def _told(message: Mapping[str, list[str]]) -> tuple[list[IpNetwork], list[Address]]:
    """What is the host's own, and its resolvers."""
    host = [ipaddress.ip_network(text) for text in message["host"]]
    return host, [ipaddress.ip_address(text) for text in message["resolvers"]]


def set_up(link: socket.socket, mode: str, deadline: float) -> None:
    """The first process, forked in the host's network namespace: {prefix, ipv6, fib} to ``link``.

    It waits there for {host, resolvers}, which come once N0 is there."""
    with IPRoute() as netlink:
        routes = destinations(netlink)
    received = wire.receive(link)
    if received is None:
        return
    host, resolvers = _told(received[0])
    with open(NETNS_FILE, "rb") as netns:
        syscalls.setns(netns.fileno(), syscalls.CLONE_NEWNET)
    with IPRoute() as netlink:
        netlink.link("set", index=LOOPBACK_INDEX, state="up")
        fib = protect(host, resolvers, fib=True)
        ipv6 = await_uplink(netlink, {net.version for net in routes if not net.prefixlen}, deadline, mode)
    wire.send(link, {"prefix": str(choose_prefix(routes, host)), "ipv6": ipv6, "fib": fib})


def renew(link: socket.socket, fib: bool) -> None:
    """A later process, in N0: other rules, since the host's addresses or resolvers changed."""
    received = wire.receive(link)
    if received is not None:
        host, resolvers = _told(received[0])
        wire.send(link, {"fib": protect(host, resolvers, fib=fib)})


def run(link: socket.socket, mode: str, deadline: float, fib: bool | None) -> None:
    """The body of the process; ``fib`` is None the first time.  What fails is told as {failed}."""
    try:
        if fib is None:
            set_up(link, mode, deadline)
        else:
            renew(link, fib)
    except NetlinkError as error:
        wire.send(link, {"failed": f"netlink: {os.strerror(error.code)}"})
    except OSError as error:
        wire.send(link, {"failed": error.strerror or str(error)})
