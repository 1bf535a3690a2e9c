"""Our netlink messages, read by pyroute2."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from ocibuildd.sandbox import network_rtnl, network_rules

pytest.importorskip("pyroute2")
IP = ipaddress.ip_address


def decode(kind, message: network_rtnl.Message):
    size = 16 + len(message.body)
    data = struct.pack("=IHHII", size, message.type, message.flags, 1, 0) + message.body
    decoded = kind(data)
    decoded.decode()
    return decoded


def test_a_veth_pair_reads_as_one():
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    got = decode(ifinfmsg, network_rtnl.veth("sb7", 23, "eth0", 2, 99, 65520))
    assert (got["index"], got["flags"] & 1) == (23, 1)
    assert (got.get_attr("IFLA_IFNAME"), got.get_attr("IFLA_MTU")) == ("sb7", 65520)
    info = got.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert peer["index"] == 2
    assert (peer.get_attr("IFLA_IFNAME"), peer.get_attr("IFLA_MTU")) == ("eth0", 65520)
    assert peer.get_attr("IFLA_NET_NS_FD") == 99


@pytest.mark.parametrize(("text", "length"), [("10.233.0.1", 31), ("fd6f:6369:6275::1", 127)])
def test_an_address_reads_as_one(text, length):
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

    got = decode(ifaddrmsg, network_rtnl.address(2, IP(text), length))
    assert (got["index"], got["prefixlen"], got.get_attr("IFA_ADDRESS")) == (2, length, text)
    assert got.get_attr("IFA_LOCAL" if "." in text else "IFA_FLAGS") == (text if "." in text else 2)


@pytest.mark.parametrize("text", ["10.233.0.0", "fd6f:6369:6275::"])
def test_a_default_route_reads_as_one(text):
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    got = decode(rtmsg, network_rtnl.default_route(IP(text), 2))
    assert (got["dst_len"], got["table"], got["type"]) == (0, 254, 1)
    assert (got.get_attr("RTA_GATEWAY"), got.get_attr("RTA_OIF")) == (text, 2)


def test_the_rules_read_as_they_were_meant():
    from pyroute2.netlink.nfnetlink.nftsocket import nft_rule_msg

    listed = network_rules.rules([IP("192.0.2.2")], [IP("10.9.9.9")])
    data, expected = network_rules.batch(listed)
    found, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from("=IH", data, at)
        if kind == 0xA06:
            message = nft_rule_msg(data[at : at + size])
            message.decode()
            names = [item.get_attr("NFTA_EXPR_NAME") for item in message.get_attr("NFTA_RULE_EXPRESSIONS")]
            found.append((message.get_attr("NFTA_RULE_CHAIN"), names[-1]))
        at += size
    last = {"accept": "immediate", "drop": "immediate", "reject": "reject", "masquerade": "masq"}
    assert found == [(rule.chain, last[rule.verdict]) for rule in listed]
    assert expected == len(listed) + 3 + len(network_rules.CHAINS)
