"""The build network, in a made-up host (see netlab): what a sandbox reaches, and what it doesn't."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import PATIENCE, within
from sandboxes import Box

from ocibuildd import syscalls
from ocibuildd.errors import InvalidArgument, Unsupported
from ocibuildd.sandbox import launch
from ocibuildd.sandbox.network import Network
from ocibuildd.sandbox.network_rules import FORWARDER

_spec = importlib.util.spec_from_file_location("netlab", Path(__file__).with_name("netlab.py"))
netlab = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(netlab)
inside, lab, reach = netlab.inside, netlab.lab, netlab.reach

pytestmark = pytest.mark.skipif(bool(netlab.missing()), reason=netlab.missing())


@pytest.fixture(scope="module")
def view():
    """What one sandbox sees, asked in one lab since each takes half a second."""

    def scenario():
        network = netlab.network()
        lease, other = network.lease("default"), network.lease("default")

        def look():
            gateway = socket.inet_ntoa(
                (int.from_bytes(socket.inet_aton(lease.address)) - 1).to_bytes(4)
            )
            neighbour = reach(other.address, 80)
            return {
                "server": reach(netlab.SERVER, 80), "server6": reach(netlab.SERVER6, 80),
                **{address: reach(address, 80) for address in netlab.WORLD},
                "loopback": reach("127.0.0.1", netlab.LOOPBACK_PORT),
                "host": reach(netlab.HOST, netlab.HOST_PORT),
                "host6": reach(netlab.HOST6, netlab.HOST_PORT + 10),
                "bridge": reach(netlab.BRIDGE, netlab.HOST_PORT),
                "gateway": reach(gateway, netlab.HOST_PORT), "neighbour": neighbour,
                "mapped": reach("::ffff:127.0.0.1", netlab.LOOPBACK_PORT),
                "zero": reach("0.0.0.0", netlab.LOOPBACK_PORT),
                "dns": netlab.resolve("any.test", netlab.SERVER),
                "abstract": abstract(), "low port": low_port(), "raw": raw(),
                "sysfs": netlab.mount_sysfs(), "mtu": mtu(),
            }

        result = inside(lease, look)
        result["resolv"] = network.resolv_conf("default").decode()
        result["describe"] = network.describe()
        network.close()
        return result

    return lab(scenario)


def abstract() -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(netlab.ABSTRACT)
        except OSError as error:
            return type(error).__name__
    return "connected"


def low_port() -> str:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", 80))
    return "bound"


def raw() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
        return "made"


def mtu() -> str:
    return next(line for line in Path("/proc/net/dev").read_text().splitlines() if "eth0" in line)[:6]


def test_servers_of_the_outer_world_are_reached(view):
    assert view["server"].startswith("world ")
    assert view["203.0.113.5"].startswith("world ")
    assert view["10.9.9.9"].startswith("world ")


def test_servers_are_reached_by_ipv6_where_the_host_has_it(view):
    assert view["server6"].startswith("world ")
    assert view["2001:db8:5::5"].startswith("world ")


@pytest.mark.parametrize(
    "target",
    ["169.254.169.254", "100.100.100.200", "fd00:ec2::254", "loopback", "host", "host6", "bridge",
     "gateway", "neighbour", "mapped", "zero"],
)
def test_what_is_the_host_s_or_the_cloud_s_is_out_of_reach(view, target):
    refused = {"ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "EACCES", "EADDRNOTAVAIL", "EPERM"}
    assert view[target] in refused


def test_names_are_resolved_by_the_host_s_resolver(view):
    assert view["dns"] == "203.0.113.5"
    assert view["resolv"] == f"nameserver {netlab.SERVER}\nsearch lab.test\n"


def test_abstract_sockets_of_the_host_are_not_there(view):
    assert view["abstract"] == "ConnectionRefusedError"


def test_the_namespace_belongs_to_the_sandbox_s_own_user_namespace(view):
    assert view["low port"] == "bound"
    assert view["raw"] == "made"
    assert view["sysfs"] == ["eth0", "lo"]


def test_describe_tells_mode_and_resolvers(view):
    told = view["describe"]
    assert (told["mode"], told["ipv6"], told["resolvers"]) == ("pasta", True, [netlab.SERVER])
    assert not told["warnings"]


def test_a_lease_from_a_filled_pool_waits_for_nobody():
    def scenario():
        network = netlab.network(pool=4)
        wait_until(lambda: network.handle() or network.describe()["pool"] == 4)
        waited = []
        network._await = waited.append
        found = [network.lease("default") for _ in range(4)]
        pool = network.describe()["pool"]
        for lease in found:
            network.release(lease)
        network.close()
        return waited, len({lease.slot for lease in found}), pool

    assert lab(scenario) == [[], 4, 0]


def test_a_start_waits_for_nothing_and_steps_without_a_network_neither():
    def scenario():
        network = netlab.Network(uid_map="0 0 1\n", gid_map="0 0 1\n")
        starting = []
        for action in (network.start, lambda: network.lease("none"), lambda: network.lease("default")):
            starting.append(network.starting)
            action()
        network.close()
        return starting

    # It was still starting when the step without a network had its namespaces, and when the other one asked.
    assert lab(scenario) == [False, True, True]


async def test_jobs_go_on_while_a_step_waits_for_the_network(state_dir):
    client = await launch.start(state_dir, config={"keep_ready": False})
    box, order = Box(client, state_dir), []

    async def noted(name, job):
        try:
            return await job
        except OSError as error:
            return error.errno
        finally:
            order.append(name)

    try:
        step = noted("step", box.run("/nothing", lowers=[], network="default"))
        looks = (noted("look", client.call("lookup", {"lowers": [], "stat": ["/"], "read": []})) for _ in range(2))
        outcome, *_ = await asyncio.gather(step, *looks)
        assert order == ["look", "look", "step"]
        assert outcome.code == 127
    finally:
        await client.close()


def test_a_host_with_hundreds_of_addresses_still_gets_its_rules():
    def scenario():
        from ocibuildd.sandbox import network_rules, network_setup

        host = [netlab.ipaddress.ip_network(0xCB007100 + 3 * number) for number in range(network_rules.MAX_HOST_ADDRESSES)]
        assert len(network_rules.condensed(host)) == len(host)
        return network_setup.protect(host, [], fib=True)

    assert lab(scenario)


def test_nsd_never_imports_pyroute2():
    code = (
        "import sys; from ocibuildd import nsd; nsd._preload(); from ocibuildd.sandbox import network;"
        "print([name for name in sys.modules if name.startswith(('pyroute2', 'asyncio'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_a_local_route_gives_to_the_host_is_out_of_reach():
    """Addresses of load balancers, as clouds' agents set them: no interface has them.  One is there, one comes."""
    def scenario():
        with netlab.Rtnl() as netlink:
            netlink.request([netlab.local_route("192.0.2.128/25"), netlab.local_route("2001:db8:9::/64")])
            network = netlab.network()
            lease = network.lease("default")
            seen = [inside(lease, lambda: [
                reach("192.0.2.200", netlab.HOST_PORT), reach("2001:db8:9::7", netlab.HOST_PORT + 10),
            ])]
            netlink.request([netlab.local_route("192.0.2.7/32")])
        seen.append(wait_until(lambda: inside(lease, lambda: reach("192.0.2.7", netlab.HOST_PORT)) == "EHOSTUNREACH"))
        seen.append(inside(lease, lambda: reach(netlab.SERVER, 80)))
        network.close()
        return seen

    there, came, world = lab(scenario)
    assert there == ["EHOSTUNREACH", "EACCES"]
    assert came
    assert world.startswith("world")


def test_an_address_that_the_host_gets_is_out_of_reach_soon_and_one_that_it_loses_does_no_harm():
    from ocibuildd.sandbox import network_rtnl as rtnl

    def scenario():
        network = netlab.network()
        lease = network.lease("default")
        with rtnl.Rtnl() as netlink:
            netlink.request([rtnl.address(20, ipaddress.ip_address("203.0.113.77"), 32), rtnl.link_delete(21)])
        new = wait_until(lambda: inside(lease, lambda: reach("203.0.113.77", netlab.HOST_PORT)) == "EHOSTUNREACH")
        seen = inside(lease, lambda: reach(netlab.SERVER, 80))
        network.close()
        return [new, seen]

    new, seen = lab(scenario)
    assert new
    assert seen.startswith("world")


def test_a_network_that_goes_away_and_comes_back_serves_the_same_sandbox():
    from ocibuildd.sandbox import network_rtnl as rtnl

    def scenario():
        network = netlab.network()
        lease = network.lease("default")
        with rtnl.Rtnl() as netlink:
            netlink.request([rtnl.link_delete(20)])
            gone = inside(lease, lambda: reach(netlab.SERVER, 80, 0.3))
            netlab.rewire(netlink)
        back = wait_until(lambda: inside(lease, lambda: reach(netlab.SERVER, 80)).startswith("world"))
        network.close()
        return [gone, back]

    gone, back = lab(scenario)
    assert not gone.startswith("world")
    assert back


def test_a_host_that_names_no_resolver_gives_none():
    def scenario():
        Path("/mnt/resolv.conf").write_text("# nobody\n")
        network = netlab.network()
        text = network.resolv_conf("default").decode()
        described = network.describe()
        network.close()
        return [text, described]

    text, described = lab(scenario)
    assert "nameserver" not in text
    assert (described["mode"], described["resolvers"]) == ("pasta", [])


def test_no_network_is_lo_alone():
    def look():
        return sorted(line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:])

    def scenario():
        network = netlab.network()
        lease = network.lease("none")
        seen = inside(lease, lambda: [look(), reach(netlab.SERVER, 80), reach("127.0.0.1", 9)])
        network.close()
        return seen

    assert lab(scenario) == [["lo"], "ENETUNREACH", "ECONNREFUSED"]


def test_the_host_s_network_is_the_host_s():
    def scenario():
        network = netlab.network()
        lease = network.lease("host")
        seen = [lease.netns, inside(lease, lambda: reach("127.0.0.1", netlab.LOOPBACK_PORT))]
        network.close()
        return seen

    assert lab(scenario) == [-1, "loopback"]


def test_a_forged_source_address_is_dropped():
    """With all capabilities in its user namespace (security=insecure) a step may set any address."""

    def scenario():
        network = netlab.network()
        lease, other = network.lease("default"), network.lease("default")

        def forge():
            from ocibuildd.sandbox import network_rtnl as rtnl

            with rtnl.Rtnl() as netlink:
                netlink.request([rtnl.address(2, rtnl.ipaddress.ip_address(other.address), 32)])
            with socket.socket() as sock:
                sock.settimeout(1)
                sock.bind((other.address, 0))
                try:
                    sock.connect((netlab.SERVER, 80))
                except OSError as error:
                    return type(error).__name__
            return "connected"

        seen = inside(lease, forge)
        network.close()
        return seen

    assert lab(scenario) == "TimeoutError"


def test_nested_user_namespaces_are_switched_off():
    def nest():
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        except OSError as error:
            return error.errno
        return 0

    def scenario():
        network = netlab.network()
        seen = inside(network.lease("default"), nest)
        network.close()
        return seen

    assert lab(scenario) == 28  # ENOSPC


def uplinks() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"--ns-ifname" in path.read_bytes() and path.stat().st_uid == os.getuid():
                status = (path.parent / "status").read_text()
                found.append((int(path.parent.name), "ocibuildd" in status))
        except OSError:
            continue
    return [pid for pid, _ in found]


def wait_until(condition) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def mine(before: set[int]) -> list[int]:
    """Uplinks below this process: others' tests have theirs on the same machine."""
    return [pid for pid in uplinks() if pid not in before and os.getpid() in ancestors(pid)]


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found


def test_pasta_is_started_again_and_sandboxes_go_on():
    before = set(uplinks())

    def scenario():
        network = netlab.network()
        lease = network.lease("default")
        first = mine(before)
        os.kill(first[0], signal.SIGKILL)
        again = wait_until(lambda: mine(before) not in ([], first))
        works = wait_until(lambda: inside(lease, lambda: reach(netlab.SERVER, 80)).startswith("world"))
        network.handle()
        told = network.describe()["warnings"]
        network.close()
        return [len(first), again, works, told]

    count, again, works, told = lab(scenario)
    assert (count, again, works) == (1, True, True)
    assert "started again" in told[0]


def test_a_dead_worker_is_replaced():
    def scenario():
        network = netlab.network()
        network.lease("default")
        before = network._pid
        os.kill(before, signal.SIGKILL)
        network._restart_at = 0.0
        # Noticed once its socket is closed, however long the dying takes; then another one is started.
        wait_until(lambda: network.handle() or network._pid not in (before, 0))
        network.settle()
        lease = network.lease("default")
        seen = inside(lease, lambda: reach(netlab.SERVER, 80))
        network.close()
        return seen

    assert lab(scenario).startswith("world")


def test_nothing_outlives_the_process_that_had_the_network():
    before = set(uplinks())

    def scenario():
        pid = os.fork()
        if not pid:
            netlab.network()
            time.sleep(60)
        started = wait_until(lambda: mine(before))
        theirs = set(mine(before))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return [started, within(1.0, lambda: not theirs & set(uplinks()))]

    assert lab(scenario) == [True, True]


def test_a_change_of_the_host_s_resolvers_is_followed():
    def scenario():
        network = netlab.network()
        first = network.resolv_conf("default").decode()
        netlab.set_nameserver("203.0.113.5")
        return [first, network.resolv_conf("default").decode()]

    first, second = lab(scenario)
    assert first.startswith(f"nameserver {netlab.SERVER}\n")
    assert second.startswith("nameserver 203.0.113.5\n")


def test_a_resolver_on_loopback_is_reached_through_pasta():
    def scenario():
        names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        names.bind(("127.0.0.1", 53))
        if not os.fork():
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            while True:
                query, peer = names.recvfrom(512)
                names.sendto(netlab._dns_answer(query), peer)
        network = netlab.network()
        lease = network.lease("default")
        text = network.resolv_conf("default").decode()
        seen = inside(lease, lambda: [
            netlab.resolve("a.test", str(FORWARDER)), reach(str(FORWARDER), 80), reach("169.254.1.2", 53),
        ])
        network.close()
        return [text, *seen]

    text, answer, web, other = lab(scenario, nameserver="127.0.0.1")
    assert text.startswith(f"nameserver {FORWARDER}\n")
    assert answer == "203.0.113.5"
    assert web == other == "EHOSTUNREACH"


def test_two_hundred_connections_at_once():
    def many():
        socks = []
        for _ in range(200):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((netlab.SERVER, 80))
            socks.append(sock)
        done = 0
        for sock in socks:
            sock.settimeout(5)
            done += sock.recv(100).startswith(b"world")
            sock.close()
        return done

    def scenario():
        network = netlab.network()
        seen = inside(network.lease("default"), many)
        network.close()
        return seen

    assert lab(scenario) == 200


def test_slirp4netns_is_the_fallback():
    if not netlab.find_program("slirp4netns"):
        pytest.skip("slirp4netns isn't installed")

    def scenario():
        network = netlab.network(mode="slirp4netns")
        lease = network.lease("default")
        seen = inside(lease, lambda: [
            reach(netlab.SERVER, 80), reach("10.0.2.2", netlab.LOOPBACK_PORT),
            reach(netlab.HOST, netlab.HOST_PORT), reach("169.254.169.254", 80),
            netlab.resolve("a.test", netlab.SERVER),
        ])
        told = network.describe()
        network.close()
        return [told["mode"], told["reason"], *seen]

    mode, reason, server, gateway, host, metadata, name = lab(scenario)
    assert (mode, reason) == ("slirp4netns", "")
    assert server.startswith("world")
    assert {gateway, host, metadata} <= {"ECONNREFUSED", "EHOSTUNREACH", "ENETUNREACH", "ECONNRESET", "TimeoutError"}
    assert name == "203.0.113.5"


def test_without_tun_there_is_no_network_and_the_message_says_why():
    def scenario():
        syscalls.mount("tmpfs", "/dev/net", "tmpfs")
        network = netlab.network()
        try:
            network.lease("default")
        except Unsupported as error:
            said = [error.message, error.hint]
        lone = network.lease("none")
        said.append(lone.netns >= 0)
        network.close()
        return said

    message, hint, none_works = lab(scenario)
    assert "/dev/net/tun: No such file or directory" in message
    assert "chmod 666 /dev/net/tun" in hint
    assert none_works


def test_a_pasta_that_is_too_old_is_not_taken_without_its_isolation(tmp_path):
    program = tmp_path / "pasta"
    program.write_text("#!/bin/sh\nfor a; do [ $a = --no-map-gw ] && echo \"pasta: unrecognized option '$a'\" >&2 && exit 1; done\n")
    program.chmod(0o755)

    def scenario():
        os.environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
        network = netlab.network(mode="pasta")
        described = network.describe()
        network.close()
        return described

    described = lab(scenario)
    assert described["mode"] == "none"
    assert "unrecognized option '--no-map-gw'" in described["reason"]
    assert "newer passt" in described["fix"]


def test_a_host_that_was_offline_is_tried_again():
    def scenario():
        from ocibuildd.sandbox import network_rtnl as rtnl

        with rtnl.Rtnl() as netlink:
            netlink.request([rtnl.link_delete(20)])  # the way out, with its routes
            network = netlab.network(mode="pasta")
            first = [network.mode, network.reason]
            netlab.rewire(netlink)
        network._retry_at = 0.001
        lease = network.lease("default")
        seen = inside(lease, lambda: reach(netlab.SERVER, 80))
        network.close()
        return [*first, network.mode, seen]

    before, reason, after, answer = lab(scenario)
    assert (before, after) == ("none", "pasta")
    assert "pasta" in reason
    assert answer.startswith("world")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([["a", "nonsense"]], "no IP address"),
        ([["bad name", "1.2.3.4"]], "not a host name"),
        ([["a\nb", "1.2.3.4"]], "not a host name"),
        ([["gw", "host-gateway"]], "host-gateway"),
        ([["a", "1.2.3.4"]] * 2000, "at most"),
    ],
)
def test_extra_hosts_that_make_no_sense_are_refused(extra, words):
    network = Network(uid_map="", gid_map="")
    with pytest.raises(InvalidArgument, match=words):
        network.hosts(netlab.NetnsLease("none", -1, -1, "", "", -1), "h", extra)


def fetch(size: int) -> float:
    """Bytes a second from the outer server."""
    with socket.create_connection((netlab.SERVER, netlab.SINK_PORT), timeout=60) as sock:
        sock.send(b"%d" % size)
        begun, left, buffer = time.perf_counter(), size, bytearray(1 << 20)
        while left > 0:
            got = sock.recv_into(buffer)
            if not got:
                raise OSError(f"ended {left} bytes early")
            left -= got
        return size / (time.perf_counter() - begun)


def fetch_from_n0(network: Network, size: int) -> float:
    """The same, without the way from the sandbox to N0."""
    worker = Path(f"/proc/{network._pid}/task/{network._pid}/children").read_text().split()[0]
    netns = os.open(f"/proc/{worker}/ns/net", os.O_RDONLY)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
        return fetch(size)
    finally:
        syscalls.setns(own, syscalls.CLONE_NEWNET)
        os.close(netns)
        os.close(own)


def both_ways(size: int, rounds: int) -> list[tuple[float, float]]:
    """Bytes a second: with pasta alone, from a sandbox."""
    def scenario():
        network = netlab.network()
        lease = network.lease("default")
        pairs = [(fetch_from_n0(network, size), inside(lease, lambda: fetch(size))) for _ in range(rounds)]
        network.close()
        return pairs

    return lab(scenario, timeout=120)


def test_a_large_transfer_arrives_whole():
    [(alone, through)] = both_ways(128 << 20, 1)
    assert alone > 0 and through > 0


@pytest.mark.slow
def test_a_large_transfer_keeps_six_tenths_of_what_pasta_alone_does():
    alone, through = (max(column) for column in zip(*both_ways(1 << 30, 3), strict=True))
    print(f"pasta alone {alone / 1e6:.0f} MB/s, from a sandbox {through / 1e6:.0f} MB/s")
    assert through >= 0.6 * alone
