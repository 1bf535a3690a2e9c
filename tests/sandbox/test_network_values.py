"""Resolver files, prefixes and rules: the pure parts of the network."""

from __future__ import annotations

import ipaddress

import pytest

from ocibuildd.errors import InvalidArgument
from ocibuildd.sandbox import network_dns, network_plan, network_rules
from ocibuildd.sandbox.network_dns import Resolvers

IP, NET = ipaddress.ip_address, ipaddress.ip_network


@pytest.mark.parametrize(
    ("text", "servers", "search", "options"),
    [
        ("", [], (), ()),
        ("nameserver 1.2.3.4\n", ["1.2.3.4"], (), ()),
        ("# nameserver 1.1.1.1\n;x\nnameserver 8.8.8.8 # comment", ["8.8.8.8"], (), ()),
        ("nameserver nonsense\nnameserver fe80::1%eth0", ["fe80::1"], (), ()),
        ("domain a.example\nsearch b.example c.example", [], ("b.example", "c.example"), ()),
        ("search good bad\x1bname -x", [], ("good",), ()),
        ("options ndots:2 edns0 $(id)\noptions rotate", [], (), ("ndots:2", "edns0", "rotate")),
        ("nameserver", [], (), ()),
    ],
)
def test_resolv_conf_is_read_as_libc_does(text, servers, search, options):
    assert network_dns.parse(text) == Resolvers(tuple(map(IP, servers)), search, options)


@pytest.mark.parametrize(
    ("servers", "expected"),
    [
        (["127.0.0.1", "1.1.1.1"], ["1.1.1.1"]),
        (["127.0.0.53"], ["169.254.1.1"]),
        (["::1", "192.0.2.2"], ["169.254.1.1"]),  # the second is the host itself
        (["fe80::1"], ["169.254.1.1"]),
        (["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"], ["1.1.1.1", "1.1.1.2", "1.1.1.3"]),
        ([], []),  # there is nobody to forward to
        (["203.0.113.9"], ["169.254.1.1"]),
    ],
)
def test_servers_that_a_sandbox_cannot_reach_are_left_out(servers, expected):
    found = Resolvers(tuple(map(IP, servers)))
    got = network_dns.reachable(found, [NET("192.0.2.2"), NET("203.0.113.0/24")], IP("169.254.1.1"), ipv6=True)
    assert [str(server) for server in got.servers] == expected


def test_behind_the_stub_the_real_servers_are_taken(tmp_path):
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\nsearch lan\n")
    real.write_text("nameserver 9.9.9.9\n")
    assert network_dns.read(stub, real) == Resolvers((IP("9.9.9.9"),), ("lan",), ("edns0",))


def test_a_fifo_or_nothing_as_resolv_conf_is_empty(tmp_path):
    import os

    os.mkfifo(tmp_path / "fifo")
    assert network_dns.read(tmp_path / "fifo", tmp_path / "none") == Resolvers()
    assert network_dns.read(tmp_path / "none", tmp_path / "none") == Resolvers()


def test_given_servers_replace_the_host_s():
    found = Resolvers((IP("1.1.1.1"),), ("lan",), ("ndots:1",))
    got = network_dns.override(found, {"servers": ["8.8.8.8"], "search": ["."], "options": []})
    assert network_dns.render(got) == b"nameserver 8.8.8.8\noptions ndots:1\n"


@pytest.mark.parametrize("dns", [{"servers": ["x"]}, {"search": ["a b"]}, {"options": ["x\ny"]}])
def test_words_that_would_break_the_file_are_refused(dns):
    with pytest.raises(InvalidArgument):
        network_dns.override(Resolvers(), dns)


def test_hosts_has_the_sandbox_and_what_was_added():
    text = network_dns.hosts("box", ["10.0.0.1"], [["a.example", "1.2.3.4"], ["b", "[::2]"]]).decode()
    assert text.startswith("127.0.0.1\tlocalhost\n")
    assert text.endswith("1.2.3.4\ta.example\n::2\tb\n10.0.0.1\tbox\n")


@pytest.mark.parametrize(
    ("routes", "host", "expected"),
    [
        ([], [], "10.233.0.0/16"),
        (["0.0.0.0/0"], [], "10.233.0.0/16"),
        (["10.0.0.0/8"], [], "172.30.0.0/16"),
        (["10.233.4.0/24", "10.91.0.0/17"], [], "172.30.0.0/16"),
        ([], ["10.233.0.9"], "10.91.0.0/16"),
        (["10.0.0.0/8", "172.16.0.0/12", "198.18.0.0/15"], [], "198.18.0.0/16"),
    ],
)
def test_the_prefix_avoids_the_host_s_routes(routes, host, expected):
    prefix = network_plan.choose_prefix([ipaddress.ip_network(r) for r in routes], [NET(h) for h in host])
    assert str(prefix) == expected


def test_each_slot_has_addresses_of_its_own():
    seen = set()
    for slot in range(0, network_plan.SLOTS, 97):
        made = network_plan.plan(slot, ipaddress.ip_network("10.233.0.0/16"), ipv6=True)
        seen.update(made.inner + made.outer)
        assert made.inner[0] in ipaddress.ip_network((made.outer[0], 31))
        assert made.inner[1] in ipaddress.ip_network((made.outer[1], 127))
    assert len(seen) == 4 * len(range(0, network_plan.SLOTS, 97))


def verdict(destination: str, *, port: int = 80, host=(), resolvers=()) -> str:
    """What the forward chain does with a new TCP connection from a sandbox to the uplink."""
    address = IP(destination)
    for rule in network_rules.rules([NET(h) for h in host], [IP(r) for r in resolvers]):
        if rule.chain != "forward" or rule.state or rule.not_iif or rule.not_oif:
            continue
        fits = (
            (rule.destination is None or address in rule.destination)
            and rule.protocol in {0, network_rules.TCP} and rule.port in {0, port}
        )
        if fits:
            return rule.verdict
    return "drop"


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("1.1.1.1", "accept"), ("10.1.2.3", "accept"), ("192.168.1.1", "accept"),
        ("2606:4700::1111", "accept"), ("fd12::1", "accept"),
        ("127.0.0.1", "reject"), ("127.255.255.254", "reject"), ("0.0.0.0", "reject"),
        ("169.254.169.254", "reject"), ("169.254.170.2", "reject"), ("168.63.129.16", "reject"),
        ("100.100.100.200", "reject"), ("224.0.0.1", "reject"), ("255.255.255.255", "reject"),
        ("::1", "reject"), ("::", "reject"), ("fe80::1", "reject"), ("ff02::1", "reject"),
        ("::ffff:169.254.169.254", "reject"), ("fd00:ec2::254", "reject"), ("fd20:ce::254", "reject"),
        ("64:ff9b::a9fe:a9fe", "reject"), ("2002:a9fe:a9fe::1", "reject"), ("192.0.2.77", "reject"),
        ("203.0.113.200", "reject"), ("203.0.113.100", "accept"),
    ],
)
def test_destinations_are_allowed_or_refused(destination, expected):
    assert verdict(destination, host=["192.0.2.77", "203.0.113.128/25"]) == expected


def test_a_host_of_thousands_of_addresses_has_none_in_reach():
    host = [NET(0xC6330000 + 3 * number) for number in range(3000)] + [NET((1 << 125) + (number << 64)) for number in range(3000)]
    found = network_rules.condensed(host)
    assert len(found) <= network_rules.MAX_HOST_ADDRESSES
    assert all(any(one.version == net.version and one.subnet_of(net) for net in found) for one in host)


def test_few_addresses_are_denied_as_they_are():
    host = [NET("192.0.2.1"), NET("192.0.2.7"), NET("2001:db8::1")]
    assert network_rules.condensed(host) == host


def test_a_link_local_resolver_is_open_for_names_only():
    assert verdict("169.254.1.1", port=53, resolvers=["169.254.1.1"]) == "accept"
    assert verdict("169.254.1.1", port=80, resolvers=["169.254.1.1"]) == "reject"
