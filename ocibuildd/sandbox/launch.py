"""main's end of nsd: start it, send it jobs, start it again when it has died."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from .. import errors, syscalls
from ..ports import Capabilities, Requirement
from ..runtime import in_thread, until_done
from . import probe, wire
from .cgroup import Cgroups

START_TIMEOUT = 180.0
"""Seconds for nsd to say that it is ready: 0.1 on a usual host, a minute and more on a busy emulated one that has to
compile its modules first.  One that dies is noticed at once."""

DYING_TIMEOUT = 1.0
"""Seconds between the end of a job's socket and that of nsd, at most."""
STOP_TIMEOUT = 5.0
"""Seconds for nsd to end after its socket was closed, before it is killed."""

BOOT = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from ocibuildd import nsd; nsd.main()"
)

ENDED = "nsd, which runs the steps, ended; it is started again with the next one"

OnEvent = Callable[[dict[str, Any], list[int]], None]


async def start(state_dir: Path, *, config: Mapping[str, Any] | None = None) -> NsdClient:
    """Start nsd for a state directory (made if missing) and wait until it is ready.

    config: {"keep_ready": bool (one prepared sandbox a network mode, for "ready_seconds"), "network": bool (the build
    network)}, both true unless said otherwise; {"ids": shifted | identity | single, "network_mode": pasta |
    slirp4netns | none} force a rung of the ladder.
    Raises Unsupported with the fix as hint when the host lacks what is needed, Unavailable."""
    Cgroups.detect()  # moves us out of the way, into a leaf of the delegated subtree, if there is one
    client = NsdClient(state_dir, dict(config or {}))
    await client.ensure()
    return client


async def trial(state_dir: Path, *, config: Mapping[str, Any] | None = None) -> tuple[Requirement, ...]:
    """What a host without a daemon offers: nsd is started for it, in an empty directory beside ``state_dir``."""
    place = state_dir
    while not place.is_dir():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".doctor-", ignore_cleanup_errors=True) as directory:
            client = await start(Path(directory), config={**(config or {}), "keep_ready": False})
            try:
                return await client.doctor()
            finally:
                await client.close()
    except errors.BuildError as error:
        problem = error
    except OSError as error:
        problem = errors.Unsupported(f"{place}: {error.strerror or error}")
    return probe.without_sandbox(await in_thread(probe.host_facts, state_dir), problem)


class NsdClient:
    """``ports.Nsd``.  Belongs to one event loop."""

    capabilities: Capabilities

    def __init__(self, state_dir: Path, config: dict[str, Any]):
        self._state = state_dir
        self._config = config
        self._process: _Process | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._ready: dict[str, Any] = {}
        self._filling: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """For each cache that is being filled."""

    @property
    def pid(self) -> int:
        """nsd's process id in our namespace, 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    async def ensure(self) -> _Process:
        """The running nsd, started (again) if need be.  Raises Unavailable once closed."""
        if self._process is not None and self._process.alive():
            return self._process
        async with self._starting:
            if self._closed:
                raise errors.Unavailable("nsd: the daemon is ending")
            if self._process is not None and self._process.alive():
                return self._process
            if self._process is not None:
                process, self._process = self._process, None
                await process.stop()
            self._process, ready = await _spawn(self._state, self._config)
            self._ready = ready
            self.capabilities = _capabilities(ready, probe.host_facts(self._state))
            return self._process

    async def call(
        self,
        job: str,
        args: Mapping[str, Any],
        fds: Sequence[int] = (),
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """Run a job; see ``ports.Nsd.call``."""
        head: dict[str, Any] = {"job": job}
        if job == "run":
            head["network"] = args.get("network")
            await self._fill(args.get("mounts"))
        data = json.dumps(head).encode() + b"\n" + json.dumps(args).encode()
        ours, theirs = wire.pair()
        try:
            with theirs:
                process = await self._send(data, [theirs.fileno(), *fds])
            try:
                return await _Call(ours, on_event).result()
            except errors.Unavailable as error:
                if error.message == ENDED:
                    await process.dying()  # whoever asks next gets another
                raise
        finally:
            ours.close()

    async def _fill(self, mounts: Any) -> None:
        """Caches that begin with a copy of something: by jobs, so that nsd itself goes on meanwhile."""
        for mount in mounts or ():
            if isinstance(mount, dict) and mount.get("kind") == "cache" and mount.get("lowers"):
                path = str(mount.get("path"))
                lock = self._filling.get(path)
                if lock is None:
                    lock = self._filling[path] = asyncio.Lock()
                async with lock:
                    await self.call("fill", mount)

    async def _send(self, data: bytes, fds: list[int]) -> _Process:
        """To whichever nsd takes it: one that is dying isn't dead yet, and has taken nothing."""
        process = await self.ensure()
        try:
            await process.send(data, fds)
        except errors.Unavailable:
            process = await self.ensure()
            await process.send(data, fds)
        return process

    async def doctor(self) -> tuple[Requirement, ...]:
        """What the host has and lacks, looked at anew (overlayfs and procfs are tried again)."""
        described = await self.call("describe", {})
        return probe.requirements(await in_thread(probe.host_facts, self._state), described)

    async def close(self) -> None:
        """End nsd and with it every job.  Idempotent."""
        self._closed = True
        async with self._starting:
            if self._process is not None:
                process, self._process = self._process, None
                await process.stop()


class _Process:
    """A running nsd: our child, its pidfd, its control socket."""

    def __init__(self, pid: int, pidfd: int, control: socket.socket):
        self.pid = pid
        self.pidfd = pidfd
        self.control = control
        self._dead = False
        self._sending = asyncio.Lock()

    def alive(self) -> bool:
        """Is it still running?  Its socket tells first: it closes while the process is still ending."""
        if not self._dead:
            try:
                self._dead = not self.control.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return True
            except OSError:
                self._dead = True
        return not self._dead

    async def send(self, data: bytes, fds: list[int]) -> None:
        """Put a request on the control socket.  Raises Unavailable."""
        loop = asyncio.get_running_loop()
        async with self._sending:
            while True:
                try:
                    wire.send_raw(self.control, data, fds)
                    return
                except BlockingIOError:
                    await _writable(loop, self.control)
                except (BrokenPipeError, ConnectionError) as error:
                    self._dead = True
                    raise errors.Unavailable(ENDED) from error

    async def dying(self) -> None:
        """A job's socket was closed, as nsd does when it dies: wait for its own, so that nothing more is sent to it."""
        end = time.monotonic() + DYING_TIMEOUT
        while self.alive() and time.monotonic() < end:  # noqa: ASYNC110 - asked of the kernel
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        """Close the socket, wait for the end, kill if need be, reap.  Also right for one that has died."""
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)
        if not await _readable(self.pidfd, STOP_TIMEOUT):
            with contextlib.suppress(ProcessLookupError):
                syscalls.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            await _readable(self.pidfd, STOP_TIMEOUT)
        _wait(self.pidfd, os.WNOHANG)
        os.close(self.pidfd)
        self.control.close()


class _Call:
    """One job under way: messages in, one result out."""

    def __init__(self, sock: socket.socket, on_event: OnEvent | None):
        self._sock = sock
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._cancelled = False
        sock.setblocking(False)

    async def result(self) -> dict[str, Any]:
        """The job's result; when we are cancelled, first wait until its processes are gone."""
        self._loop.add_reader(self._sock, self._read)
        try:
            return await until_done(self._done, self._cancel)
        finally:
            self._loop.remove_reader(self._sock)

    def _cancel(self) -> None:
        self._cancelled = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def _read(self) -> None:
        try:
            self._take(wire.receive(self._sock))
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            self._take(None)
        except (OSError, ValueError) as error:
            self._fail(errors.BuildError(f"nsd: an answer that can't be read: {error}"))

    def _take(self, got: tuple[dict[str, Any], list[int]] | None) -> None:
        if self._done.done():
            return
        if got is None:
            self._ended()
            return
        message, fds = got
        if "event" in message and self._on_event is not None and not self._cancelled:
            self._on_event(message["event"], fds)  # the descriptors are the callback's now
            return
        wire.close_all(fds)
        if self._cancelled or "event" in message:
            return  # the job's end is what is waited for
        if "result" in message:
            self._done.set_result(message["result"])
        elif "errno" in message:
            self._fail(OSError(message["errno"], str(message.get("message", ""))))
        else:
            self._fail(errors.from_dict(message.get("error", {})))

    def _ended(self) -> None:
        if self._cancelled:
            self._fail(errors.Cancelled("the job was cancelled"))
        else:  # nsd answers for a job that died: so it was nsd
            self._fail(errors.Unavailable(ENDED))

    def _fail(self, error: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(error)


def _popen(state_dir: Path, config: dict[str, Any]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the first process.  By the C library (no Python runs between fork and exec), in a session of
    its own: a terminal's Ctrl-C is main's to handle."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours, theirs = wire.pair()
    ours.setblocking(False)
    arguments = {"control": theirs.fileno(), "state": os.fspath(state_dir.resolve()), **config}
    command = [
        sys.executable, "-I", "-S", "-c", BOOT, json.dumps([path for path in sys.path if path]),
        "enter", json.dumps(arguments),
    ]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment,
            pass_fds=[theirs.fileno()], start_new_session=True, cwd="/",
        ), ours
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()


async def _spawn(state_dir: Path, config: dict[str, Any]) -> tuple[_Process, dict[str, Any]]:
    first, ours = _popen(state_dir, config)
    pidfd = -1
    try:
        async with asyncio.timeout(START_TIMEOUT):
            born = await _message(ours)
            pidfd = os.pidfd_open(born["pid"])
            ready = await _message(ours)
        return _Process(born["pid"], pidfd, ours), ready["ready"]
    except BaseException as error:
        ours.close()
        if pidfd >= 0:
            syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
            await _readable(pidfd, STOP_TIMEOUT)
            _wait(pidfd)
            os.close(pidfd)
        if isinstance(error, TimeoutError):
            raise errors.Unavailable(f"nsd: not ready after {START_TIMEOUT:.0f} s") from error
        raise
    finally:
        await _reap_first(first)


def _wait(pidfd: int, flags: int = 0) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | flags)


async def _reap_first(process: subprocess.Popen[bytes]) -> None:
    # It ends by itself right after it has started nsd.
    pidfd = os.pidfd_open(process.pid) if process.poll() is None else -1
    if pidfd >= 0:
        if not await _readable(pidfd, STOP_TIMEOUT):
            process.kill()
        os.close(pidfd)
    process.wait()


async def _message(sock: socket.socket) -> dict[str, Any]:
    """The next message of a start.  Raises what nsd reports, Unavailable when it ended."""
    while True:
        try:
            got = wire.receive(sock)
            break
        except BlockingIOError:
            await _readable(sock.fileno(), START_TIMEOUT)
        except ConnectionError:
            got = None
            break
    if got is None:
        raise errors.Unavailable("nsd: ended while it was starting (its standard error has more)")
    message, _ = got
    if "error" in message:
        raise errors.from_dict(message["error"])
    if "errno" in message:
        raise OSError(message["errno"], message["message"])
    return message


async def _readable(fd: int, timeout: float) -> bool:  # noqa: ASYNC109 - no deadline: an answer
    """Wait until ``fd`` is readable; False after ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _settle, future)
    try:
        done, _ = await asyncio.wait({future}, timeout=timeout)
        return bool(done)
    finally:
        loop.remove_reader(fd)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    future: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _settle, future)
    try:
        await future
    finally:
        loop.remove_writer(sock)


def _capabilities(ready: Mapping[str, Any], host: Mapping[str, Any]) -> Capabilities:
    return Capabilities(
        ids=ready["ids"], overlay=ready["overlay"], network=ready["network"]["mode"],
        shift=ready["shift"], id_count=ready["count"], proc=ready["proc"], cgroup=ready["cgroup"],
        controllers=tuple(ready["controllers"]),
        requirements=probe.requirements(host, ready),
    )
