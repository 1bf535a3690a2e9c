"""A made-up host with a made-up internet, in namespaces of the test's own.

``lab(scenario)`` forks; the child becomes root of a fresh user namespace with a network namespace T ("the
host") that is wired to another, S ("the rest of the world").  The scenario runs in T and returns something
that JSON knows.  No packet leaves the machine.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import json
import os
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocibuildd import syscalls
from ocibuildd.sandbox import network_rtnl as rtnl
from ocibuildd.sandbox.network import NetnsLease, Network, find_program, tun_problem
from ocibuildd.sandbox.network_rtnl import Rtnl

HOST, HOST6 = "198.51.100.2", "2001:db8::2"
SERVER, SERVER6 = "198.51.100.1", "2001:db8::1"
BRIDGE = "172.17.0.1"
"""An address of the host's on another interface, as docker0 has it."""
WORLD = ("203.0.113.5", "169.254.169.254", "100.100.100.200", "10.9.9.9", "fd00:ec2::254", "2001:db8:5::5")
LOOPBACK_PORT, HOST_PORT, WORLD_PORT, SINK_PORT = 81, 82, 80, 83
ABSTRACT = "\0ocibuildd-lab"


def missing() -> str:
    """Why a lab can't be had here."""
    if not find_program("pasta"):
        return "pasta isn't installed"
    return tun_problem()


def lab(scenario: Callable[[], Any], *, timeout: float = 90, nameserver: str = SERVER) -> Any:
    """Run a scenario and return what it returned.  Raises AssertionError with its traceback."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        code = 1
        try:
            _become_host(nameserver)
            answer = {"value": scenario()}
            code = 0
        except BaseException:
            answer = {"error": traceback.format_exc()}
        os.write(write, json.dumps(answer).encode())
        os._exit(code)
    os.close(write)
    try:
        with os.fdopen(read, "rb") as stream:
            data = _read_all(stream, timeout)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    answer = json.loads(data or '{"error": "no answer in time"}')
    assert "error" not in answer, answer["error"]
    return answer["value"]


def _read_all(stream: Any, timeout: float) -> bytes:
    data, end = b"", time.monotonic() + timeout
    while select.select([stream], [], [], max(0, end - time.monotonic()))[0]:
        chunk = os.read(stream.fileno(), 1 << 16)
        if not chunk:
            break
        data += chunk
    return data


def _become_host(nameserver: str) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    set_nameserver(nameserver)
    with Rtnl() as here:
        here.request([rtnl.link_up(1)])
        _world(here)
    _listen(("127.0.0.1", LOOPBACK_PORT), b"loopback")
    _listen(("0.0.0.0", HOST_PORT), b"host")
    _listen(("::", HOST_PORT + 10), b"host6")
    server = socket.socket(socket.AF_UNIX)
    server.bind(ABSTRACT)
    server.listen()


def set_nameserver(address: str) -> None:
    """Another /etc/resolv.conf for this mount namespace."""
    memory = os.memfd_create("resolv.conf")
    os.write(memory, f"nameserver {address}\nsearch lab.test\n".encode())
    directory = f"/proc/self/fd/{memory}"
    syscalls.mount("tmpfs", "/mnt", "tmpfs", 0, b"size=64k")
    Path("/mnt/resolv.conf").write_bytes(Path(directory).read_bytes())
    os.close(memory)
    syscalls.mount("/mnt/resolv.conf", os.path.realpath("/etc/resolv.conf"), "", syscalls.MS_BIND)


def _world(here: Rtnl) -> None:
    """S, its servers, and the wires."""
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    pid = os.fork()
    if not pid:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.unshare(syscalls.CLONE_NEWNET)
        os.write(ready_write, b"1")
        os.read(go_read, 1)
        with Rtnl() as there:
            there.request([
                rtnl.link_up(1), rtnl.link_up(10), rtnl.link_up(11),
                rtnl.address(10, ipaddress.ip_address(SERVER), 24),
                rtnl.address(10, ipaddress.ip_address(SERVER6), 64),
                *(rtnl.address(1, a, a.max_prefixlen) for a in map(ipaddress.ip_address, WORLD)),
            ])
        _serve_world(ready_write)
    os.read(ready_read, 1)
    global _world_netns
    _world_netns = netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    here.request([
        rtnl.veth("up0", 20, "s0", 10, netns, 65520), rtnl.veth("docker0", 21, "s1", 11, netns, 1500),
        rtnl.address(20, ipaddress.ip_address(HOST), 24), rtnl.address(20, ipaddress.ip_address(HOST6), 64),
        rtnl.address(21, ipaddress.ip_address(BRIDGE), 16),
    ])
    os.write(go_write, b"1")
    os.read(ready_read, 1)
    here.request([
        rtnl.default_route(ipaddress.ip_address(SERVER), 20),
        rtnl.default_route(ipaddress.ip_address(SERVER6), 20),
    ])


_world_netns = -1


def local_route(network: str) -> rtnl.Message:
    """``ip route add local NETWORK dev lo``: the host answers for all of it."""
    parsed = ipaddress.ip_network(network)
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    head = struct.pack("=BBBBBBBBI", family, parsed.prefixlen, 0, 0, rtnl.LOCAL_TABLE, 4, 254, rtnl.LOCAL_ROUTE, 0)
    body = head + rtnl.attribute(1, parsed.network_address.packed) + rtnl.attribute(4, struct.pack("=I", 1))
    return rtnl.Message(rtnl.RTM_NEWROUTE, rtnl.NLM_CREATE, body)


def rewire(here: Rtnl) -> None:
    """The wire to S anew, after its end here was removed."""
    here.request([
        rtnl.veth("up0", 20, "s0", 10, _world_netns, 65520),
        rtnl.address(20, ipaddress.ip_address(HOST), 24), rtnl.address(20, ipaddress.ip_address(HOST6), 64),
    ])
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    syscalls.setns(_world_netns, syscalls.CLONE_NEWNET)
    with Rtnl() as there:
        there.request([
            rtnl.link_up(10), rtnl.address(10, ipaddress.ip_address(SERVER), 24),
            rtnl.address(10, ipaddress.ip_address(SERVER6), 64),
        ])
    syscalls.setns(own, syscalls.CLONE_NEWNET)
    os.close(own)
    here.request([
        rtnl.default_route(ipaddress.ip_address(SERVER), 20),
        rtnl.default_route(ipaddress.ip_address(SERVER6), 20),
    ])


def _serve_world(ready: int) -> None:
    servers = [socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
               for port in (WORLD_PORT, SINK_PORT)]
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind((SERVER, 53))
    os.write(ready, b"1")
    while True:
        for sock in select.select([*servers, names], [], [])[0]:
            if sock is names:
                query, peer = names.recvfrom(512)
                names.sendto(_dns_answer(query), peer)
                continue
            client, peer = sock.accept()
            if sock is servers[0]:
                client.sendall(f"world {peer[0]}".encode())
                client.close()
            elif not os.fork():
                _pour(client)


def _pour(client: socket.socket) -> None:
    """Send as many bytes as the client's eight digits say."""
    left, block = int(client.recv(16)), bytes(1 << 20)
    try:
        while left > 0:
            left -= client.send(block[:left])
    finally:
        os._exit(0)


def _dns_answer(query: bytes) -> bytes:
    """A for any name: 203.0.113.5; nothing for AAAA (RFC 1035)."""
    end = query.index(b"\0", 12) + 5
    wanted = query[end - 4 : end - 2] == b"\0\1"
    head = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if wanted else b"\0\0") + b"\0\0\0\0"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(WORLD[0]) if wanted else b""
    return head + query[12:end] + answer


def _listen(address: tuple[str, int], answer: bytes) -> None:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    server = socket.create_server(address, family=family)
    if os.fork():
        return
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    while True:
        client, _ = server.accept()
        client.sendall(answer)
        client.close()


# --- for scenarios ----------------------------------------------------------------------------------


def network(**options: Any) -> Network:
    """A started network whose sandboxes have a single id."""
    made = Network(uid_map="0 0 1\n", gid_map="0 0 1\n", pool=options.pop("pool", 2), **options)
    made.start()
    made.settle()
    return made


def inside(lease: NetnsLease, body: Callable[[], Any]) -> Any:
    """What ``body`` returns when it runs in a lease's namespaces."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            syscalls.setns(lease.userns, syscalls.CLONE_NEWUSER)
            if lease.netns >= 0:
                syscalls.setns(lease.netns, syscalls.CLONE_NEWNET)
            answer = json.dumps(body())
        except BaseException:
            answer = json.dumps(traceback.format_exc())
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        answer = stream.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


def reach(address: str, port: int, timeout: float = 2) -> str:
    """What a server at an address says, or the error's name."""
    try:
        with socket.create_connection((address, port), timeout=timeout) as sock:
            return sock.recv(100).decode()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)


def resolve(name: str, server: str) -> str:
    """Ask a resolver for an A record by hand."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        try:
            sock.sendto(query, (server, 53))
            return socket.inet_ntoa(sock.recv(512)[-4:])
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, type(error).__name__)


def mount_sysfs() -> list[str]:
    """Interfaces as a sysfs of the current namespaces shows them."""
    libc = ctypes.CDLL(None)
    libc.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("sysfs", "/mnt", "sysfs")
    return sorted(os.listdir("/mnt/class/net"))
