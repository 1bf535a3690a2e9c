"""The loop of nsd: takes requests, forks a child or starts a sandbox for each, watches main and all of them.

Single-threaded: it waits, does a little, and waits again.  A request is one datagram on the
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from .. import errors, syscalls
from . import hidden, trees, wire
from .site import Site
from .step import Sandbox, Step, birth

REFILL_DELAY = 0.003
"""Seconds without a request before the next sandbox is prepared."""

READY_SECONDS = 10.0
"""A prepared sandbox that no step has taken for so long is let go: it is as large as we are."""

SETTLED = 0.1
"""A step that has run for so many seconds isn't a short one."""

UPPER_INTERVAL, UPPER_SOON = 0.5, 0.05
"""Seconds between two looks at the size of an upper directory that is limited: the second where half of it is used."""

UPPER_SHARE = 4
"""Looking takes at most one part in so many of the time."""

WITHIN, FILLING, OVER = 0, 3, 2
"""How a child that measures an upper directory ends."""

Job = Callable[[Site, dict[str, Any], list[int]], dict[str, Any]]


@dataclass(slots=True)
class Child:
    """A forked job.  sock: our copy of the job's socket, to see main leave."""

    pid: int
    pidfd: int
    name: str
    sock: socket.socket | None
    step: Step | None = None
    """For "measure": the step whose upper directory is being measured."""
    begun: float = 0.0
    final: bool = False
    """For "measure": the step's end waits for it."""


class Zygote:
    """The loop.  Everything is keyed by descriptor in one poll object."""

    def __init__(
        self, site: Site, control: socket.socket, jobs: Mapping[str, Job], *, keep_ready: bool = True,
        ready_seconds: float = READY_SECONDS,
    ):
        self.site = site
        self.jobs = jobs
        self.control = control
        self.keep_ready = keep_ready
        self.ready_seconds = ready_seconds
        self.children: dict[int, Child] = {}
        self.by_sock: dict[int, Child | Step] = {}
        self.steps: dict[int, Step] = {}
        self.guests: dict[int, Step] = {}
        self.ready: dict[str, Sandbox] = {}
        self.ready_until: dict[str, float] = {}
        self.measure_at: dict[int, float] = {}
        self.wanted: set[str] = set()
        self.when_idle: list[Callable[[], None]] = []
        self.parked: list[tuple[bytes, list[int]]] = []
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
                else:
                    self._event(fd)
            self._deadlines()
            if self.site.overlay == "fuse":
                self._reap_orphans()
            if self.parked and not self._starting():
                parked, self.parked = self.parked, []
                for data, fds in parked:
                    self._dispatch(data, fds)

    def _event(self, fd: int) -> None:
        if fd in self.steps:
            self._step_ended(fd)
        elif fd in self.guests:
            step = self.guests[fd]
            step.from_guest()
            if step.guest_closed:
                self.poll.unregister(fd)
                del self.guests[fd]
        elif fd in self.children:
            self._ended(self.children[fd])
        elif fd in self.by_sock:
            self._left(fd)
        elif fd == self._network_fd and self.site.network is not None:
            self.site.network.handle()

    def _idle(self) -> None:
        if self.wanted:
            # Not while a step has just begun: a short one would wait for us at its end.
            newest = max((step.started for step in self.steps.values()), default=0.0)
            if time.monotonic() - newest > SETTLED:
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
            return int((SETTLED / 4 if self.steps else REFILL_DELAY) * 1000)
        times = [step.deadline for step in self.steps.values() if step.deadline]
        times += self.measure_at.values()
        times += self.ready_until.values()
        if self.site.network is not None and (self._network_fd < 0 or self.parked):
            times.append(time.monotonic() + 0.2)
        return max(0, int((min(times) - time.monotonic()) * 1000) + 1) if times else None

    def _deadlines(self) -> None:
        now = time.monotonic()
        for step in self.steps.values():
            if step.deadline and now >= step.deadline:
                step.stop("timeout")
        for fd, moment in list(self.measure_at.items()):
            if now >= moment:
                del self.measure_at[fd]
                self._measure(fd)
        for kind, moment in list(self.ready_until.items()):
            if now >= moment:
                del self.ready_until[kind]
                self._let_go(self.ready.pop(kind))

    def _request(self) -> bool:
        try:
            got = wire.receive_raw(self.control)
        except ConnectionResetError:  # main was killed
            return False
        if got is None:
            return False
        self._dispatch(*got)
        return True

    def _starting(self) -> bool:
        return self.site.network is not None and self.site.network.starting

    def _dispatch(self, data: bytes, fds: list[int]) -> None:
        """Begin what a request asks for; what wants the network waits until that is up, and the loop goes on."""
        head: dict[str, Any] = json.loads(data.partition(b"\n")[0])
        if head.get("network") == "default":
            self.site.wake_network()
        if (head["job"] == "describe" or head.get("network") == "default") and self._starting():
            self.parked.append((data, fds))
            return
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
        except Exception as error:  # noqa: BLE001 - one request's failure must not end all
            text = f"nsd: internal error: {error!r}"
            _answer(sock, {"error": {"code": "build-error", "message": text}})
            sock.close()
        finally:
            wire.close_all(fds[1:])

    def _reap_orphans(self) -> None:
        """We are process 1: those who served a mount end up with us."""
        known = {child.pid for child in self.children.values()}
        known |= {step.sandbox.pid for step in self.steps.values()}
        known |= {sandbox.pid for sandbox in self.ready.values()}
        known |= self.site.network.pids() if self.site.network is not None else set()
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            while (found := os.waitid(os.P_ALL, 0, flags)) is not None and found.si_pid not in known:
                os.waitpid(found.si_pid, 0)
        except ChildProcessError:
            return

    # --- sandboxes ------------------------------------------------------------------------------------

    def _start_run(self, kind: str, sock: socket.socket, data: bytes, fds: list[int]) -> None:
        started = time.monotonic()
        step = Step(self.site, self._sandbox(kind), sock, started)
        pidfd = step.sandbox.pidfd
        self.steps[pidfd] = step
        self.guests[step.sandbox.sock.fileno()] = step
        self.poll.register(pidfd, select.POLLIN)
        self.poll.register(step.sandbox.sock, select.POLLIN)
        self._watch_sock(step, sock)
        try:
            step.begin(data.partition(b"\n")[2], fds[1:])
            if step.plan is not None and "upper_bytes" in step.plan.limits:
                self.measure_at[pidfd] = started + UPPER_INTERVAL
        except Exception as error:  # noqa: BLE001 - one step's failure must not end all
            step.fail(error)
        if self.keep_ready:
            self.wanted.add(kind)

    def _sandbox(self, kind: str) -> Sandbox:
        ready = self.ready.pop(str(kind), None)
        self.ready_until.pop(str(kind), None)
        if ready is not None:
            network = self.site.network
            if network is not None:
                network.handle()
            if (network is None or network.current(ready.lease)) and not os.waitid(
                os.P_PID, ready.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT
            ):
                return ready
            self._let_go(ready)
        if kind not in {"default", "none", "host"}:
            text = str(kind)[:100]
            raise errors.InvalidArgument(f"run: network {text!r} is none of default, none, host")
        return birth(self.site, self.site.lease(kind))  # type: ignore[arg-type]

    @staticmethod
    def _let_go(ready: Sandbox) -> None:
        ready.kill()
        os.waitpid(ready.pid, 0)
        ready.release()

    def _prepare(self, kind: str) -> None:
        if kind in self.ready:
            return
        try:
            self.ready[kind] = self._sandbox(kind)
            self.ready_until[kind] = time.monotonic() + self.ready_seconds
        except (errors.BuildError, OSError):
            return  # the next step of this kind tries again, and tells why

    def _step_ended(self, pidfd: int) -> None:
        self.measure_at.pop(pidfd, None)
        step = self.steps[pidfd]
        if not step.measured:
            self.poll.unregister(pidfd)
            if step.plan is not None and "upper_bytes" in step.plan.limits and not step.reason:
                step.measured, step.deadline = True, 0.0
                self._measure(pidfd)  # what it wrote last counts too
                return
        del self.steps[pidfd]
        guest_fd = step.sandbox.sock.fileno()
        step.ended()
        if self.guests.pop(guest_fd, None) is not None:
            self.poll.unregister(guest_fd)
        if self.by_sock.pop(step.sock.fileno(), None) is not None:
            self.poll.unregister(step.sock)
        trash = step.release()
        if trash:
            self._fork("discard", None, lambda: trees.discard_all(trash))

    def _measure(self, pidfd: int) -> None:
        """Let a child add up what a step has written, so that the loop goes on; it answers by its status."""
        step = self.steps.get(pidfd)
        if step is not None and step.plan is not None:
            child = self._fork("measure", None, lambda: os._exit(_fullness(step)))
            child.step, child.begun, child.final = step, time.monotonic(), step.measured

    # --- other jobs -----------------------------------------------------------------------------------

    def _start_job(self, name: str, sock: socket.socket, data: bytes, fds: list[int]) -> None:
        job = self.jobs.get(name)
        if job is None:
            raise errors.InvalidArgument(f"nsd: no job is called {str(name)[:100]!r}")
        self._fork(name, sock, lambda: run_job(job, self.site, sock, data, fds[1:]), keep=fds)

    def _fork(
        self, name: str, sock: socket.socket | None, body: Callable[[], object], keep: Sequence[int] = ()
    ) -> Child:
        """A child that runs ``body`` and ends; watched like any other."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                self._drop(set(keep))
                body()
                status = 0
            finally:
                os._exit(status)
        child = Child(pid, syscalls.pidfd_open(pid), name, None)
        self.children[child.pidfd] = child
        self.poll.register(child.pidfd, select.POLLIN)
        if sock is not None:
            child.sock = sock
            self._watch_sock(child, sock)
        return child

    def _drop(self, keep: set[int]) -> None:
        """In a child: close the sockets of everybody else, whose ends others wait for."""
        self.control.close()
        for fd in self.by_sock.keys() - keep:
            os.close(fd)
        for fd in self.guests:
            os.close(fd)
        for _, fds in self.parked:
            wire.close_all(fds)
        for sandbox in self.ready.values():
            sandbox.sock.close()

    def _watch_sock(self, owner: Child | Step, sock: socket.socket) -> None:
        self.by_sock[sock.fileno()] = owner
        self.poll.register(sock, select.POLLRDHUP)

    def _left(self, fd: int) -> None:
        """Main has shut a job's socket down."""
        owner = self.by_sock.pop(fd)
        self.poll.unregister(fd)
        if isinstance(owner, Step):
            owner.stop("cancelled")
        else:
            syscalls.pidfd_send_signal(owner.pidfd, signal.SIGKILL)

    def _ended(self, child: Child) -> None:
        _, status = os.waitpid(child.pid, 0)
        self.poll.unregister(child.pidfd)
        del self.children[child.pidfd]
        os.close(child.pidfd)
        code = os.waitstatus_to_exitcode(status)
        if child.step is not None:
            self._measured(child, child.step, code)
        if child.sock is None:
            return
        if self.by_sock.pop(child.sock.fileno(), None) is not None:
            self.poll.unregister(child.sock)
        if code != 0:
            how = f"killed by signal {-code}" if code < 0 else f"ended with {code}"
            text = f"{child.name}: the job's process was {how}"
            _answer(child.sock, {"error": {"code": "build-error", "message": text}})
        child.sock.close()

    def _measured(self, child: Child, step: Step, code: int) -> None:
        pidfd = step.sandbox.pidfd
        if self.steps.get(pidfd) is not step:
            return  # it has ended meanwhile
        if code == OVER:
            step.stop("disk-limit")
        if child.final:
            self._step_ended(pidfd)
        elif not step.measured and code != OVER:
            now = time.monotonic()
            pause = UPPER_SOON if code == FILLING else UPPER_INTERVAL
            self.measure_at[pidfd] = now + max(pause, UPPER_SHARE * (now - child.begun))


def _fullness(step: Step) -> int:
    """How full a step's upper directory is, with what it holds there under no name."""
    assert step.plan is not None
    limit = step.plan.limits["upper_bytes"] + step.copied
    used = trees.size(step.upper, limit)
    if used <= limit:
        used += hidden.size(step.sandbox.pidfd, limit - used)
    return OVER if used > limit else FILLING if used > limit // 2 else WITHIN


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
