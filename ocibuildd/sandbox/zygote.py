"""The fork loop of nsd: waits for requests, forks a child for each, watches main and the children.

Single-threaded: it waits, takes a request, forks a child for it and waits again.  A request is one datagram on the
control socket: a line of JSON ({"job", "network"}), then the job's arguments; the first descriptor is the job's own
socket, on which the child answers.  Main ends a job by shutting that socket down; the job is gone when the other end
is closed.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from .. import errors, syscalls
from . import supervisor, wire
from .network import NetnsLease
from .site import Site

CANCEL_GRACE = 2.0
"""Seconds that a supervisor has to end its sandbox before it is killed itself."""

REFILL_DELAY = 0.01
"""Seconds without a request before the next sandbox is prepared."""

Job = Callable[[Site, dict[str, Any], list[int]], dict[str, Any]]


@dataclass(slots=True)
class Child:
    """A forked job.  sock: our copy of the job's socket, to see main leave; None for a prepared sandbox."""

    pid: int
    pidfd: int
    name: str
    sock: socket.socket | None
    lease: NetnsLease | None = None
    kill_at: float = 0.0


@dataclass(slots=True)
class Ready:
    """A supervisor with a prepared sandbox that waits for a job."""

    child: Child
    requests: socket.socket


class Zygote:
    """The loop.  Everything is keyed by descriptor in one poll object."""

    def __init__(
        self, site: Site, control: socket.socket, jobs: Mapping[str, Job], *, keep_ready: bool = True
    ):
        self.site = site
        self.jobs = jobs
        self.control = control
        self.keep_ready = keep_ready
        self.children: dict[int, Child] = {}
        self.by_sock: dict[int, Child] = {}
        self.ready: dict[str, Ready] = {}
        self.wanted: set[str] = set()
        self.when_idle: list[Callable[[], None]] = []
        self._network_fd = -1
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)

    def loop(self) -> None:
        """Until main closes the control socket."""
        while True:
            self._follow_network()
            events = self.poll.poll(self._wait_ms())
            if not events:
                self._idle()
            for fd, _ in events:
                if fd == self.control.fileno():
                    if not self._request():
                        return
                elif fd in self.children:
                    self._ended(self.children[fd])
                elif fd in self.by_sock:
                    self._left(self.by_sock[fd])
                elif fd == self._network_fd and self.site.network is not None:
                    self.site.network.handle()
            self._kill_late()

    def _idle(self) -> None:
        if self.wanted:
            self._prepare(self.wanted.pop())
        elif self.when_idle:
            self.when_idle.pop()()
        elif self._network_fd < 0 and self.site.network is not None:
            self.site.network.handle()

    def _follow_network(self) -> None:
        """The network's descriptor changes whenever its worker is started again."""
        fd = self.site.network.fileno() if self.site.network is not None else -1
        if fd == self._network_fd:
            return
        if self._network_fd >= 0:
            try:
                self.poll.unregister(self._network_fd)
            except KeyError:
                pass
        if fd >= 0:
            self.poll.register(fd, select.POLLIN)
        self._network_fd = fd

    def _wait_ms(self) -> int | None:
        if self.wanted or self.when_idle:
            return int(REFILL_DELAY * 1000)
        restart = self.site.network is not None and self._network_fd < 0
        return 200 if restart or any(child.kill_at for child in self.children.values()) else None

    def _request(self) -> bool:
        got = wire.receive_raw(self.control)
        if got is None:
            return False
        data, fds = got
        head: dict[str, Any] = json.loads(data.partition(b"\n")[0])
        sock = socket.socket(fileno=fds[0])
        try:
            if head["job"] == "run":
                self._start_run(head["network"], sock, data, fds)
            else:
                self._start_job(head["job"], sock, data, fds)
        except errors.BuildError as error:
            _answer(sock, {"error": error.to_dict()})
            sock.close()
        except OSError as error:
            _answer(sock, {"errno": error.errno or errno.EIO, "message": str(error)})
            sock.close()
        finally:
            wire.close_all(fds[1:])
        return True

    # --- sandboxes ------------------------------------------------------------------------------------

    def _start_run(self, kind: str, sock: socket.socket, data: bytes, fds: list[int]) -> None:
        ready = self.ready.pop(kind, None)
        if ready is None or ready.child.pidfd not in self.children:
            ready = self._prepare_now(kind)
        try:
            wire.send_raw(ready.requests, data, fds)
        except OSError:  # it died meanwhile: once more, with a fresh one
            ready = self._prepare_now(kind)
            wire.send_raw(ready.requests, data, fds)
        finally:
            ready.requests.close()
        ready.child.name = "run"
        self._watch_sock(ready.child, sock)
        if self.keep_ready:
            self.wanted.add(kind)

    def _prepare(self, kind: str) -> None:
        if kind in self.ready:
            return
        try:
            self.ready[kind] = self._prepare_now(kind)
        except (errors.BuildError, OSError):
            return  # the next step of this kind tries again, and tells why

    def _prepare_now(self, kind: str) -> Ready:
        if kind not in {"default", "none", "host"}:
            raise errors.InvalidArgument(f"run: network {kind[:100]!r} is none of default, none, host")
        lease = self.site.lease(kind)  # type: ignore[arg-type]
        ours, theirs = wire.pair()
        pid = os.fork()
        if pid == 0:
            self._only(theirs)
            supervisor.serve(self.site, lease, theirs)
        theirs.close()
        return Ready(self._add(pid, "ready", lease), ours)

    # --- other jobs -----------------------------------------------------------------------------------

    def _start_job(self, name: str, sock: socket.socket, data: bytes, fds: list[int]) -> None:
        job = self.jobs.get(name)
        if job is None:
            raise errors.InvalidArgument(f"nsd: no job is called {str(name)[:100]!r}")
        pid = os.fork()
        if pid == 0:
            self._only(sock)
            run_job(job, self.site, sock, data, fds[1:])
        self._watch_sock(self._add(pid, name, None), sock)

    def _add(self, pid: int, name: str, lease: NetnsLease | None) -> Child:
        child = Child(pid, syscalls.pidfd_open(pid), name, None, lease)
        self.children[child.pidfd] = child
        self.poll.register(child.pidfd, select.POLLIN)
        return child

    def _watch_sock(self, child: Child, sock: socket.socket) -> None:
        child.sock = sock
        self.by_sock[sock.fileno()] = child
        self.poll.register(sock, select.POLLRDHUP)

    def _only(self, sock: socket.socket) -> None:
        """In a child: drop what belongs to the loop, keep ``sock``."""
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        self.control.close()
        for child in self.children.values():
            os.close(child.pidfd)
            if child.sock is not None and child.sock is not sock:
                child.sock.close()
        for ready in self.ready.values():
            ready.requests.close()

    def _left(self, child: Child) -> None:
        """Main has shut the job's socket down."""
        if child.sock is None:
            return
        self.poll.unregister(child.sock)
        self.by_sock.pop(child.sock.fileno(), None)
        if child.name == "run":  # the supervisor sees it too, and ends its sandbox in order
            child.kill_at = time.monotonic() + CANCEL_GRACE
        else:
            syscalls.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for child in self.children.values():
            if child.kill_at and now >= child.kill_at:
                child.kill_at = 0.0
                syscalls.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def _ended(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        self.poll.unregister(child.pidfd)
        del self.children[child.pidfd]
        os.close(child.pidfd)
        if status != 0:
            self._kill_orphans()
        if child.sock is not None:
            if self.by_sock.pop(child.sock.fileno(), None) is not None:
                self.poll.unregister(child.sock)
            if status != 0:
                code = os.waitstatus_to_exitcode(status)
                how = f"killed by signal {-code}" if code < 0 else f"ended with {code}"
                text = f"{child.name}: the job's process was {how}"
                _answer(child.sock, {"error": {"code": "build-error", "message": text}})
            child.sock.close()
        if child.lease is not None:
            self._release(child.lease)

    def _release(self, lease: NetnsLease) -> None:
        wire.close_all([fd for fd in (lease.userns, lease.netns) if fd >= 0])

    def _kill_orphans(self) -> None:
        """What a killed supervisor left became our child (we are PID 1): kill it, and reap it."""
        known = {child.pid for child in self.children.values()}
        if self.site.network is not None:
            known |= self.site.network.pids()
        for pid in _own_children():
            if pid not in known:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _own_children() -> list[int]:
    """Our children, by their numbers in our pid namespace (/proc shows those of the host's)."""
    found: list[int] = []
    with open("/proc/thread-self/children", encoding="ascii") as file:
        outer = file.read().split()
    for number in outer:
        try:
            with open(f"/proc/{number}/status", encoding="ascii", errors="replace") as file:
                line = next(line for line in file if line.startswith("NSpid:"))
        except (OSError, StopIteration):
            continue
        found.append(int(line.split()[2]))
    return found


def _answer(sock: socket.socket, message: dict[str, Any]) -> None:
    try:
        wire.send(sock, message)
    except OSError:
        return  # main has left


def run_job(job: Job, site: Site, sock: socket.socket, data: bytes, fds: list[int]) -> NoReturn:
    """The body of a job's child: run, answer, end."""
    try:
        result = job(site, json.loads(data.partition(b"\n")[2]), fds)
        _answer(sock, {"result": result})
    except errors.BuildError as error:
        _answer(sock, {"error": error.to_dict()})
    except OSError as error:
        _answer(sock, {"errno": error.errno or errno.EIO, "message": str(error)})
    except MemoryError:
        _answer(sock, {"error": {"code": "build-error", "message": "out of memory"}})
    except Exception as error:  # noqa: BLE001 - main must hear of it
        import traceback

        traceback.print_exc()
        text = f"internal error: {error!r}"
        _answer(sock, {"error": {"code": "build-error", "message": text}})
    finally:
        os._exit(0)
