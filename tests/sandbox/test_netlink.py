"""Our netlink messages, read by pyroute2; and what we have it write."""

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


def test_the_rules_are_one_transaction_of_pyroute2_s_messages():
    from ocibuildd.sandbox import network_setup

    listed = network_rules.rules([ipaddress.ip_network("192.0.2.2")], [IP("10.9.9.9")])
    messages = network_setup.transaction(listed)
    assert [message["header"]["type"] for message in (messages[0], messages[-1])] == [0x10, 0x11]
    rules = [message for message in messages if isinstance(message, network_setup.RuleMessage)]
    last = {"accept": "immediate", "drop": "immediate", "reject": "reject", "masquerade": "masq"}
    found = [(m.get_attr("NFTA_RULE_CHAIN"), m.get_attr("NFTA_RULE_EXPRESSIONS")[-1]) for m in rules]
    assert [(chain, dict(e["attrs"])["NFTA_EXPR_NAME"]) for chain, e in found] == [
        (rule.chain, last[rule.verdict]) for rule in listed
    ]
    assert len(messages) == len(listed) + 5 + len(network_setup.CHAINS)


def test_the_result_of_fib_is_encoded_as_the_number_that_it_is():
    from ocibuildd.sandbox import network_setup

    rule = network_rules.Rule("prerouting", "drop", spoofed=True)
    message = next(m for m in network_setup.transaction([rule]) if isinstance(m, network_setup.RuleMessage))
    message.encode()
    # NFTA_FIB_RESULT and NFTA_FIB_FLAGS, big-endian
    assert struct.pack("=HH", 8, 2) + struct.pack(">I", 1) in bytes(message.data)
    assert struct.pack("=HH", 8, 3) + struct.pack(">I", 1 | 8 | 32) in bytes(message.data)
