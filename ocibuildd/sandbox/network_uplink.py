"""The process that keeps the build network's way out: pasta, or slirp4netns, from the host's network
namespace into N0.

It is process 1 of a pid namespace of its own, with the worker (``network_worker``) and the uplink in it:
when nsd dies the kernel kills it, and with it all of them, whatever state they are in.  The uplink is
started again when it dies.

pasta must not be given a command (with an unopenable tun it leaves that hanging), must have N0 as a file
(it drops the capabilities that /proc/PID/ns/net takes), and forwards ports and maps the host's loopback
unless told not to: hence its flags.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .. import syscalls
from . import wire
from .network_rtnl import (
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    Rtnl,
)
from .network_rules import FORWARDER, UPLINK

MTU = 65520
"""The most that pasta's tap takes."""
SCRATCH = "/mnt"
"""Where the file for N0 is made, on a tmpfs that only these processes see (FHS: always there)."""
NETNS_FILE = SCRATCH + "/n0"
RESTART_FIRST, RESTART_MOST = 0.05, 5.0
"""Seconds until the uplink is started again, doubled from the first each time it dies soon."""
STABLE = 30.0
"""An uplink that lived as long as this is started again at once."""
STDERR_TAIL = 2000


@dataclass(frozen=True, slots=True)
class Settings:
    """What the worker and the uplink are to be.

    mode: pasta, slirp4netns or none.  program: the uplink's path.  uid_map, gid_map: text for U1.
    resolvers: addresses whose port 53 is allowed."""

    mode: str
    program: str
    uid_map: str
    gid_map: str
    resolvers: tuple[str, ...] = ()


def command(settings: Settings, forward: bool) -> list[str]:
    """The uplink's argv.  forward: pasta answers DNS at FORWARDER for the host's first resolver; only
    where that is needed, since it then sends the resolver's own replies from there too."""
    if settings.mode == "slirp4netns":
        return [
            settings.program, "--configure", f"--mtu={MTU}", "--disable-host-loopback",
            "--netns-type=path", NETNS_FILE, UPLINK,
        ]
    return [
        settings.program, "--foreground", "--quiet", "--config-net", "--ns-ifname", UPLINK,
        "--mtu", str(MTU), "--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra",
        "-t", "none", "-u", "none", "-T", "none", "-U", "none",
        *(("--dns-forward", str(FORWARDER)) if forward else ()), "--netns", NETNS_FILE,
    ]


def quiet_exit(code: int) -> NoReturn:
    """End a forked process without its parent's exit handlers."""
    os._exit(code)


def become_child(name: str, keep: set[int]) -> None:
    """First thing in a fork: die with the parent, its name, no descriptor but ``keep``."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    syscalls.set_name(name)
    first = 3
    for fd in sorted(keep | {1 << 30}):
        if fd > first:
            syscalls.close_range(first, fd - 1)
        first = max(first, fd + 1)


def default_signals() -> None:
    """nsd ignores what ends it; its children don't."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def fork(name: str, keep: set[int], body: Callable[[], None]) -> int:
    """Fork a process that runs ``body`` and ends; its traceback, if any, goes to stderr."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        become_child(name, keep)
        body()
        code = 0
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
        os.write(2, f"{name}: {type(error).__name__}: {error}\n".encode())
    finally:
        quiet_exit(code)


@dataclass(slots=True)
class Supervisor:
    """The state of the process: one uplink at a time."""

    settings: Settings
    link: socket.socket
    forward: bool = False
    wanted_end: bool = False
    pid: int = 0
    pidfd: int = -1
    stderr: int = -1
    tail: bytes = b""
    started: float = 0.0
    again: float = 0.0
    delay: float = RESTART_FIRST
    hosts: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start the uplink; its stderr is kept for messages."""
        read, write = os.pipe2(os.O_CLOEXEC)
        argv = command(self.settings, self.forward)
        self.pid = fork("uplink", {write}, lambda: _execute(argv, write))
        os.close(write)
        os.set_blocking(read, False)
        self.pidfd, self.stderr, self.tail = os.pidfd_open(self.pid), read, b""
        self.started = time.monotonic()
        self.again = 0.0

    def stop(self) -> None:
        """Kill the uplink; it is started again at once."""
        if self.pidfd >= 0:
            self.wanted_end = True
            syscalls.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def collect(self) -> None:
        """Read what the uplink says."""
        try:
            self.tail = (self.tail + os.read(self.stderr, 4096))[-STDERR_TAIL:]
        except OSError:
            return

    def ended(self) -> None:
        """The uplink is gone: tell, and plan when to start it again."""
        self.collect()
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.pidfd)
        os.close(self.stderr)
        self.pid, self.pidfd, self.stderr = 0, -1, -1
        if self.wanted_end:
            self.wanted_end, self.again = False, time.monotonic()
            return
        lived = time.monotonic() - self.started
        self.delay = RESTART_FIRST if lived > STABLE else min(self.delay * 2, RESTART_MOST)
        self.again = time.monotonic() + self.delay
        said = " ".join(self.tail.decode("utf-8", "replace").split())
        self.tell({"uplink": "down", "status": status, "said": said})

    def tell(self, message: dict[str, Any]) -> None:
        """To the worker."""
        try:
            wire.send(self.link, message)
        except OSError:
            quiet_exit(1)

    def tell_hosts(self) -> None:
        """The host's own addresses and networks, when they are others than last time."""
        with Rtnl() as rtnl:
            found = [str(network) for network in rtnl.own()]
        if found != self.hosts:
            self.hosts = found
            self.tell({"host": found})


def _execute(argv: list[str], stderr: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(stderr, 2)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execve(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"})


def supervise(settings: Settings, nsd: socket.socket, work: Callable[..., None]) -> NoReturn:
    """The life of process 1: ends when the worker does.  ``work(settings, nsd, link)`` is the worker."""
    become_child("ocibuildd-net", {nsd.fileno()})
    default_signals()
    os.setsid()
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", SCRATCH, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, b"size=64k")
    ours, theirs = wire.pair()
    worker = fork(
        "ocibuildd-netns", {nsd.fileno(), theirs.fileno()}, lambda: work(settings, nsd, theirs)
    )
    theirs.close()
    nsd.close()  # only the worker holds it: nsd sees its end
    monitor = Rtnl(RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE)
    monitor.sock.setblocking(False)
    state = Supervisor(settings, ours, forward=str(FORWARDER) in settings.resolvers)
    _loop(state, os.pidfd_open(worker), monitor)


def _loop(state: Supervisor, worker: int, monitor: Rtnl) -> NoReturn:
    poll = select.poll()
    for fd in (worker, state.link.fileno(), monitor.sock.fileno()):
        poll.register(fd, select.POLLIN)
    while True:
        for fd in (state.pidfd, state.stderr):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        timeout = max(0.0, state.again - time.monotonic()) if state.again else None
        ready = {fd for fd, _ in poll.poll(None if timeout is None else timeout * 1000)}
        if worker in ready:
            quiet_exit(0)
        if state.stderr in ready:
            state.collect()
        if state.pidfd in ready:
            for fd in (state.pidfd, state.stderr):
                poll.unregister(fd)
            state.ended()
        if state.again and time.monotonic() >= state.again:
            state.start()
        if monitor.sock.fileno() in ready:
            _drain(monitor)
            state.tell_hosts()
        if state.link.fileno() in ready:
            _obey(state)


def _drain(monitor: Rtnl) -> None:
    try:
        while True:
            monitor.sock.recv(1 << 16)
    except OSError:  # EAGAIN: all read; ENOBUFS: some were lost, which comes to the same
        return


def _obey(state: Supervisor) -> None:
    """A message of the worker: "begin" (N0's file is there) or "forward" (the host's resolvers changed,
    and pasta reads them only at its start)."""
    received = wire.receive(state.link)
    if received is None:
        quiet_exit(0)
    if "begin" in received[0]:
        state.tell_hosts()
        state.start()
    elif "forward" in received[0]:
        before, state.forward = state.forward, received[0]["forward"]
        if before or state.forward:
            state.stop()
